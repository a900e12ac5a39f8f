// Which lanes are idle. It bounds the requests in flight: at most `limit` lanes are out at a time.
// Thread-safe. The lane that has rested longest is given out first, so all are used evenly.
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

struct AcquiredLane {
  int lane = 0;
  bool has_waited = false;  // none was idle at first
};

class LanePool {
 public:
  // All lanes begin idle. `clock` must outlive the pool.
  LanePool(int num_lanes, int limit, Clock& clock);

  // Blocks until a lane is idle; nullopt once `deadline` has passed or `stop` is set without one.
  // An idle lane is given out even then.
  std::optional<AcquiredLane> Acquire(absl::Duration deadline, const std::atomic<bool>& stop);
  // The lane may be given out again from `not_before` on.
  void Release(int lane, absl::Duration not_before);

  int in_use() const;
  // True as soon as no lane is out; false if that did not happen within `timeout` of real time.
  bool WaitUntilIdle(absl::Duration timeout) const;

 private:
  using Idle = std::pair<absl::Duration, int>;  // not before, lane

  const int limit_;
  Clock& clock_;
  mutable absl::Mutex mutex_;
  absl::CondVar released_;
  std::priority_queue<Idle, std::vector<Idle>, std::greater<Idle>> idle_ ABSL_GUARDED_BY(mutex_);
  int in_use_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace attention::loadgen
