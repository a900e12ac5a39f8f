#include "server/rpc/credential_watch.h"

#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

constexpr absl::Duration kPeriod = absl::Seconds(1);
constexpr absl::Duration kTellPeriod = absl::Seconds(5);
// Beyond, all counts are forgotten: whoever opens so many connections meets their limits.
constexpr std::size_t kMaxCounts = 4096;

}  // namespace

void CredentialWatch::OnRefused(const std::string& address, absl::Time now) {
  std::string text;
  {
    MutexLock lock(&mutex_);
    if (counts_.size() >= kMaxCounts && counts_.count(address) == 0) counts_.clear();
    Count& count = counts_.try_emplace(address, Count{now}).first->second;
    if (now - count.since >= kPeriod) count = {now};
    if (++count.refusals < kMaxRefusals) return;
    counts_.erase(address);
    if (!close_(address)) return;
    ++untold_;
    if (now - last_told_ < kTellPeriod) return;
    last_told_ = now;
    text = absl::StrCat("ended ", std::exchange(untold_, 0), " connections, the latest of ",
                        address, ": ", kMaxRefusals,
                        " of its calls were refused for their credentials "
                        "within a second");
  }
  warn_(text);
}

}  // namespace attention::server
