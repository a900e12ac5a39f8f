// Plain counters that any room may bump from any thread; observe/ turns them into an exposition.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>

namespace attention::server {

class Counter {
 public:
  void Add(std::int64_t amount = 1) { value_.fetch_add(amount, std::memory_order_relaxed); }
  std::int64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::int64_t> value_{0};
};

// A histogram over powers of two of a base unit: bucket i counts values <= unit * 2^i, and the last
// one everything. 24 buckets from 1 us reach 8.4 s, which spans a decode step and a long prompt.
class Histogram {
 public:
  static constexpr int kNumBuckets = 24;

  explicit Histogram(double unit) : unit_(unit) {}

  void Observe(double value);

  double UpperBound(int bucket) const { return unit_ * static_cast<double>(1ull << bucket); }
  std::int64_t BucketCount(int bucket) const {
    return buckets_[bucket].load(std::memory_order_relaxed);
  }
  double sum() const { return sum_.load(std::memory_order_relaxed); }
  std::int64_t count() const { return count_.load(std::memory_order_relaxed); }

 private:
  double unit_;
  std::array<std::atomic<std::int64_t>, kNumBuckets + 1> buckets_{};
  std::atomic<double> sum_{0};
  std::atomic<std::int64_t> count_{0};
};

// Why queued work was dropped without being computed.
enum class DropReason { kDeadline, kCancelled, kDraining };
inline constexpr int kNumDropReasons = 3;

// Every metric of the server. One instance, made in main and passed by reference.
struct ServerMetrics {
  static constexpr int kNumStatusCodes = 17;

  std::array<Counter, kNumStatusCodes> calls_by_code;  // index: canonical status code
  std::array<Counter, kNumDropReasons> dropped;        // index: DropReason
  Counter rejected_queue_full;
  Counter sessions_created;
  Counter sessions_expired;
  Counter tokens_appended;
  Counter query_rows;
  Counter flops;  // estimated, of computed work
  Counter input_bytes;
  Counter output_bytes;
  Counter copied_bytes;  // of tensors, between the wire and the kernels
  Histogram wire_in_seconds{1e-6};
  Histogram wire_out_seconds{1e-6};
  Histogram queue_seconds{1e-6};
  Histogram batch_formation_seconds{1e-6};
  Histogram compute_seconds{1e-6};
  Histogram call_seconds{1e-6};
  Histogram batch_requests{1};
};

}  // namespace attention::server
