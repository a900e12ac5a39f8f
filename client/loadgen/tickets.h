// Hands out the right to send one request, at its time, until the run's time or its number of
// requests is used up. Thread-safe.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/loadgen/options.h"
#include "client/loadgen/schedule.h"

namespace attention::loadgen {

struct Ticket {
  absl::Duration scheduled;  // by the driver's clock
  bool is_recorded = false;  // false: warm-up
};

class Tickets {
 public:
  // The run begins at `start`.
  Tickets(const Options& options, absl::Duration start);

  // Closed loop: a request to be sent at once. nullopt: the run is over.
  std::optional<Ticket> TakeNow(absl::Duration now);
  // Open loop: the next arrival, in order, also when it is overdue. nullopt: none is left. It is
  // recorded when it is due, or `now` is, after the warm-up: a backlog that the warm-up left behind
  // is part of what the recorded time shows.
  std::optional<Ticket> TakeNext(absl::Duration now);
  // Open loop: ends the schedule at `now` (if it has not ended before) and counts the arrivals
  // until then that nobody took. 0 during the warm-up.
  std::int64_t CloseAndCountUntaken(absl::Duration now);

  // Every one of --requests was taken.
  bool has_used_up_requests();
  absl::Duration record_begin() const { return record_begin_; }
  // When the run ends by the clock; infinite when only a number of requests ends it.
  absl::Duration end() const { return end_; }

 private:
  // Counts a recorded one against --requests; false when none is left.
  bool Admit(const Ticket& ticket) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const absl::Duration start_;
  const absl::Duration record_begin_;
  const absl::Duration end_;
  absl::Mutex mutex_;
  Schedule schedule_ ABSL_GUARDED_BY(mutex_);
  std::int64_t recorded_left_ ABSL_GUARDED_BY(mutex_);
  bool is_over_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace attention::loadgen
