#include "server/observe/log_output.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <utility>

namespace attention::server {
namespace {

// Enough for a reader that the system lets run late.
constexpr int kPatienceMs = 20;

}  // namespace

void LogOutput::Write(std::string_view line) {
  MutexLock lock(&mutex_);
  if (is_cut_) WriteAll("\n");
  if (is_cut_ || !WriteAll(line)) ++num_lost_;
}

std::int64_t LogOutput::TakeLost() {
  MutexLock lock(&mutex_);
  if (num_lost_ == 0 || !HasRoom()) return 0;
  return std::exchange(num_lost_, 0);
}

bool LogOutput::WriteAll(std::string_view text) {
  for (std::string_view rest = text; !rest.empty();) {
    if (!HasRoom()) return false;
    // No more than a pipe with room takes without a wait.
    const ssize_t count =
        write(descriptor_, rest.data(), std::min(rest.size(), std::size_t{PIPE_BUF}));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return false;
    rest.remove_prefix(static_cast<std::size_t>(count));
    is_cut_ = !rest.empty();
  }
  return true;
}

bool LogOutput::HasRoom() {
  pollfd entry = {descriptor_, POLLOUT, 0};
  int count = 0;
  do {
    count = poll(&entry, 1, is_stuck_ ? 0 : kPatienceMs);
  } while (count < 0 && errno == EINTR);
  is_stuck_ = count == 0;
  return !is_stuck_;
}

}  // namespace attention::server
