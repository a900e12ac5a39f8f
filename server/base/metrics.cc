#include "server/base/metrics.h"

namespace attention::server {

void Histogram::Observe(double value) {
  int bucket = 0;
  while (bucket < kNumBuckets && value > UpperBound(bucket)) ++bucket;
  buckets_[bucket].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
  count_.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace attention::server
