// Counts of values, with bounded relative error and fixed memory, in the manner of HdrHistogram:
// values below 256 are counted exactly, above that each power of two is cut into 128 equal buckets,
// and a value is reported as the middle of its bucket, at most 0.4 % off. Minimum, maximum and mean
// are exact. Not thread-safe; histograms of several threads are merged.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace attention::loadgen {

class Histogram {
 public:
  Histogram();

  // Negative values count as 0.
  void Add(std::int64_t value);
  // In nanoseconds.
  void Add(absl::Duration duration) { Add(absl::ToInt64Nanoseconds(duration)); }
  void Merge(const Histogram& other);

  std::int64_t count() const { return count_; }
  // 0 while empty, as all that follow.
  std::int64_t min() const { return count_ == 0 ? 0 : min_; }
  std::int64_t max() const { return max_; }
  double mean() const;
  // The value that `percent` (0 to 100) of the values do not exceed: of n sorted values the one
  // with rank ceil(n * percent / 100).
  std::int64_t Percentile(double percent) const;
  absl::Duration DurationPercentile(double percent) const {
    return absl::Nanoseconds(Percentile(percent));
  }

 private:
  std::vector<std::int64_t> counts_;
  std::int64_t count_ = 0;
  std::int64_t min_ = 0;
  std::int64_t max_ = 0;
  double sum_ = 0;
};

}  // namespace attention::loadgen
