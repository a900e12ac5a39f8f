// The virtual users that are idle. Bounds the requests in flight: at most `limit` users are out at
// a time. Thread-safe. The user that has rested longest is given out first, so all are used evenly.
#pragma once

#include <atomic>
#include <optional>
#include <queue>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/loadgen/clock.h"

namespace attention::loadgen {

struct AcquiredUser {
  int user = 0;
  bool has_waited = false;  // none was idle at first
};

class UserPool {
 public:
  // All users begin idle. `clock` must outlive the pool.
  UserPool(int num_users, int limit, Clock& clock);

  // Blocks until a user is idle; nullopt once `deadline` has passed or `stop` is set without one.
  // An idle user is given out even then.
  std::optional<AcquiredUser> Acquire(absl::Duration deadline, const std::atomic<bool>& stop);
  // The user may be given out again from `not_before` on.
  void Release(int user, absl::Duration not_before);

  int in_use() const;
  // True as soon as no user is out; false if that did not happen within `timeout` of real time.
  bool WaitUntilIdle(absl::Duration timeout) const;

 private:
  using Idle = std::pair<absl::Duration, int>;  // not before, user

  const int limit_;
  Clock& clock_;
  mutable absl::Mutex mutex_;
  absl::CondVar released_;
  std::priority_queue<Idle, std::vector<Idle>, std::greater<Idle>> idle_ ABSL_GUARDED_BY(mutex_);
  int in_use_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace attention::loadgen
