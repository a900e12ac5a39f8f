#include "client/loadgen/user_pool.h"

#include <algorithm>

namespace attention::loadgen {
namespace {

// How often a waiting thread looks at the deadline and at `stop`.
constexpr absl::Duration kCheckInterval = absl::Milliseconds(10);

}  // namespace

UserPool::UserPool(int num_users, int limit, Clock& clock) : limit_(limit), clock_(clock) {
  for (int user = 0; user < num_users; ++user) idle_.emplace(absl::ZeroDuration(), user);
}

std::optional<AcquiredUser> UserPool::Acquire(absl::Duration deadline,
                                              const std::atomic<bool>& stop) {
  bool has_waited = false;
  absl::Duration rested_at;
  for (;; has_waited = true) {
    {
      absl::MutexLock lock(&mutex_);
      if (has_waited && (idle_.empty() || in_use_ >= limit_)) {
        released_.WaitWithTimeout(&mutex_, kCheckInterval);
      }
      const bool is_available = !idle_.empty() && in_use_ < limit_;
      rested_at = is_available ? idle_.top().first : absl::InfiniteDuration();
      if (is_available && rested_at <= clock_.Now()) {
        const AcquiredUser acquired{idle_.top().second, has_waited};
        idle_.pop();
        ++in_use_;
        return acquired;
      }
    }
    const absl::Duration now = clock_.Now();
    if (now >= deadline || stop.load(std::memory_order_relaxed)) return std::nullopt;
    // Users are idle, but rest: only time helps.
    if (rested_at < absl::InfiniteDuration()) {
      clock_.SleepUntil(std::min({rested_at, deadline, now + kCheckInterval}), stop);
    }
  }
}

void UserPool::Release(int user, absl::Duration not_before) {
  absl::MutexLock lock(&mutex_);
  idle_.emplace(not_before, user);
  --in_use_;
  // Under the lock: the pool may be destroyed as soon as WaitUntilIdle has seen the last release.
  released_.Signal();
}

int UserPool::in_use() const {
  absl::MutexLock lock(&mutex_);
  return in_use_;
}

bool UserPool::WaitUntilIdle(absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  const auto is_idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return in_use_ == 0; };
  return mutex_.AwaitWithTimeout(absl::Condition(&is_idle), timeout);
}

}  // namespace attention::loadgen
