// Monotonic time, as an argument: the driver's tests move it by hand.
#pragma once

#include <atomic>

#include "absl/time/time.h"

namespace attention::loadgen {

class Clock {
 public:
  virtual ~Clock() = default;
  // Time since some fixed moment; never goes back. Thread-safe.
  virtual absl::Duration Now() const = 0;
  // Blocks until Now() >= time, or until `stop` is seen to be set. Thread-safe.
  virtual void SleepUntil(absl::Duration time, const std::atomic<bool>& stop) = 0;
};

// steady_clock: immune to changes of the wall clock.
class SteadyClock final : public Clock {
 public:
  absl::Duration Now() const override;
  void SleepUntil(absl::Duration time, const std::atomic<bool>& stop) override;
};

}  // namespace attention::loadgen
