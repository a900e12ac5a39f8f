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

// A histogram of exponential buckets, 8 for each power of two: bucket i counts values above
// 2^((i-1)/8) and up to 2^(i/8), a quantile is known to within 5 %. That is "schema 3" of
// Prometheus' native histograms; every eighth bound is one of the classic histogram. From 2^-20
// (1 us) to 2^16 it spans the times of a decode step and of an hour, and the sizes of all batches.
class Histogram {
 public:
  static constexpr int kSchema = 3;
  static constexpr int kPerDoubling = 1 << kSchema;
  static constexpr int kMinExponent = -20;
  static constexpr int kMaxExponent = 16;
  static constexpr int kNumBuckets = (kMaxExponent - kMinExponent) * kPerDoubling;
  // The index of the first bucket.
  static constexpr int kFirstIndex = kMinExponent * kPerDoubling + 1;
  // Values up to here, the least bound, are in a bucket of their own.
  static constexpr double kZeroThreshold = 1.0 / (1 << -kMinExponent);

  // Larger values than 2^16 count as that.
  void Observe(double value);

  // The count of the i-th bucket from the first.
  std::int64_t BucketCount(int bucket) const {
    return buckets_[bucket].load(std::memory_order_relaxed);
  }
  std::int64_t zero_count() const { return zero_count_.load(std::memory_order_relaxed); }
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  std::array<std::atomic<std::int64_t>, kNumBuckets> buckets_{};
  std::atomic<std::int64_t> zero_count_{0};
  std::atomic<double> sum_{0};
};

// The reason why queued work was dropped without being computed.
enum class DropReason { kDeadline, kCancelled, kDraining };
inline constexpr int kNumDropReasons = 3;

// The reason why a connection was closed as soon as it was accepted: the process had no descriptors
// left, there were as many connections as there may be, or its peer had as many as a peer may.
enum class ConnectionRefusal { kDescriptors, kAll, kPeer };
inline constexpr int kNumConnectionRefusals = 3;

// Every metric of the server. One instance, made in main and passed by reference.
struct ServerMetrics {
  static constexpr int kNumStatusCodes = 17;

  std::array<Counter, kNumStatusCodes> calls_by_code;               // index: canonical status code
  std::array<Counter, kNumDropReasons> dropped;                     // index: DropReason
  std::array<Counter, kNumConnectionRefusals> connections_refused;  // index: ConnectionRefusal
  Counter connections_reset_too_often;  // which began calls and reset them by the thousand
  Counter probes_answered;              // of the server's own calls through its listeners
  Counter probes_missed;
  Counter rejected_queue_full;
  Counter sessions_created;
  Counter sessions_expired;
  Counter sessions_lost;      // with a device's memory
  Counter sessions_spilled;   // to the host's memory
  Counter sessions_restored;  // from there
  Counter device_failures;    // after which it was set up again, or was tried to be
  Counter tokens_appended;
  Counter query_rows;
  Counter flops;  // estimated, of computed work
  Counter input_bytes;
  Counter output_bytes;
  Counter copied_bytes;  // of tensors, between the wire and the kernels
  Histogram wire_in_seconds;
  Histogram wire_out_seconds;
  Histogram queue_seconds;
  Histogram batch_formation_seconds;
  Histogram compute_seconds;
  Histogram call_seconds;
  Histogram batch_requests;
};

}  // namespace attention::server
