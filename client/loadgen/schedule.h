// When an open loop sends: a pure sequence of arrival times, the same for the same seed on every
// platform. Not thread-safe.
#pragma once

#include <cstdint>
#include <random>

#include "absl/time/time.h"
#include "client/loadgen/options.h"

namespace attention::loadgen {

class Schedule {
 public:
  // `rate` in arrivals per second, above 0. kConstant spaces them evenly; kPoisson draws
  // exponential gaps, as independent users would cause.
  Schedule(Arrivals arrivals, double rate, std::uint64_t seed);

  // The next arrival, counted from the schedule's start; never before the one before.
  absl::Duration Next();

 private:
  double NextGap();  // in units of the mean gap

  Arrivals arrivals_;
  double rate_;
  std::mt19937_64 random_;
  // Arrivals so far, in mean gaps. Whole numbers when constant, so no rounding error piles up.
  double gaps_ = 0;
};

}  // namespace attention::loadgen
