#include "client/loadgen/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace attention::loadgen {
namespace {

// 2^7 buckets to a power of two: a bucket is at most 1/128 of its value wide, so its middle is at
// most 1/256 away from any value in it.
constexpr int kBucketBits = 7;
constexpr std::int64_t kBuckets = std::int64_t{1} << kBucketBits;
constexpr std::int64_t kExact = 2 * kBuckets;    // below this, buckets are one wide
constexpr int kPowers = 63 - (kBucketBits + 1);  // from 2^8 to 2^62
constexpr std::int64_t kNumCounts = kExact + kPowers * kBuckets;

// For value >= kExact: how far it is shifted right to leave kBucketBits + 1 significant bits.
int ShiftOf(std::int64_t value) {
  return std::bit_width(static_cast<std::uint64_t>(value)) - (kBucketBits + 1);
}

std::int64_t IndexOf(std::int64_t value) {
  if (value < kExact) return value;
  const int shift = ShiftOf(value);
  return kExact + (shift - 1) * kBuckets + ((value >> shift) - kBuckets);
}

std::int64_t MiddleOf(std::int64_t index) {
  if (index < kExact) return index;
  const int shift = static_cast<int>((index - kExact) / kBuckets) + 1;
  const std::int64_t lowest = (kBuckets + (index - kExact) % kBuckets) << shift;
  return lowest + (std::int64_t{1} << (shift - 1));
}

}  // namespace

Histogram::Histogram() : counts_(static_cast<std::size_t>(kNumCounts)) {}

void Histogram::Add(std::int64_t value) {
  value = std::max<std::int64_t>(value, 0);
  ++counts_[static_cast<std::size_t>(IndexOf(value))];
  min_ = count_ == 0 ? value : std::min(min_, value);
  max_ = std::max(max_, value);
  sum_ += static_cast<double>(value);
  ++count_;
}

void Histogram::Merge(const Histogram& other) {
  if (other.count_ == 0) return;
  for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
  min_ = count_ == 0 ? other.min_ : std::min(min_, other.min_);
  max_ = std::max(max_, other.max_);
  sum_ += other.sum_;
  count_ += other.count_;
}

double Histogram::mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }

std::int64_t Histogram::Percentile(double percent) const {
  if (count_ == 0) return 0;
  // Less a hair, so that 99.9 % of 1000, which binary fractions miss, is 999 and not 1000.
  const double exact_rank = std::ceil(static_cast<double>(count_) * percent / 100 - 1e-9);
  const std::int64_t rank =
      std::clamp<std::int64_t>(static_cast<std::int64_t>(exact_rank), 1, count_);
  if (rank == count_) return max_;
  std::int64_t seen = 0;
  for (std::size_t i = 0; i < counts_.size(); ++i) {
    seen += counts_[i];
    if (seen >= rank) return std::clamp(MiddleOf(static_cast<std::int64_t>(i)), min_, max_);
  }
  return max_;
}

}  // namespace attention::loadgen
