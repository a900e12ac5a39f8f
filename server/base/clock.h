// Time as an argument: rooms that decide by the clock take one, so tests can move it by hand.
#pragma once

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace attention::server {

class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() const = 0;  // thread-safe
};

class RealClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::Now(); }
};

}  // namespace attention::server
