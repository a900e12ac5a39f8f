#include "client/loadgen/schedule.h"

#include <cmath>

namespace attention::loadgen {

Schedule::Schedule(Arrivals arrivals, double rate, std::uint64_t seed)
    : arrivals_(arrivals), rate_(rate), random_(seed) {}

absl::Duration Schedule::Next() {
  // The first constant arrival is at zero; the first Poisson one after a gap like any other.
  if (arrivals_ == Arrivals::kConstant) return absl::Seconds(gaps_++ / rate_);
  gaps_ += NextGap();
  return absl::Seconds(gaps_ / rate_);
}

double Schedule::NextGap() {
  // Inverse of the exponential distribution. std::exponential_distribution would differ between
  // standard libraries.
  const double uniform = static_cast<double>(random_() >> 11) * 0x1p-53;  // [0, 1)
  return -std::log1p(-uniform);
}

}  // namespace attention::loadgen
