#include "server/base/watched_file.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

constexpr std::size_t kMaxBytes = std::size_t{1} << 20;

std::int64_t Nanoseconds(const timespec& time) {
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text(kMaxBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(file.gcount()));
  if (text.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot be read: ", errno != 0 ? std::strerror(errno) : "it is empty"));
  }
  if (text.size() > kMaxBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("is larger than ", kMaxBytes, " bytes, the most that are read"));
  }
  return text;
}

WatchedFile::Change WatchedFile::Look() {
  const Stamp now = Now();
  const bool is_still = now == last_seen_;
  last_seen_ = now;
  if (now == read_) return Change::kNone;
  return is_still ? Change::kSettled : Change::kMoving;
}

WatchedFile::Stamp WatchedFile::Now() const {
  struct stat status;
  if (stat(path_.c_str(), &status) != 0) return {};
  return {status.st_dev, status.st_ino, status.st_size, Nanoseconds(status.st_mtim),
          Nanoseconds(status.st_ctim)};
}

}  // namespace attention::server
