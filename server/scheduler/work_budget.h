// The rate at which tenants may send work: for each a bucket that fills with the time.
//
// A request is taken while the bucket is not in debt, and may bring it there: a long request of a
// tenant with a low rate runs, and the next one waits. Names are whatever callers say, so the
// tenants that are not listed have so many buckets at a time, and more of them share one.
//
// Thread-safety: all methods.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/base/mutex.h"
#include "server/domain/tenant_limits.h"

namespace attention::server {

// One tenant's bucket, as a pure function of the time that it is told.
struct WorkBucket {
  // The time of filling whose work may come at once: bursts of a second are no excess.
  static constexpr absl::Duration kBurst = absl::Seconds(1);

  double seconds = 0;  // of work that may come; negative in debt
  absl::Time filled;

  void Fill(double rate, absl::Time now);
  // Until it is out of debt.
  absl::Duration UntilReady(double rate) const;
  bool IsFull(double rate, absl::Time now) const;
};

class WorkBudget {
 public:
  static constexpr std::size_t kMaxUnlisted = 1024;

  // `limits` must outlive the budget.
  explicit WorkBudget(TenantLimitsTable& limits) : limits_(limits) {}

  // RESOURCE_EXHAUSTED QUOTA_EXCEEDED, with the time until the bucket is out of debt as the retry
  // delay. OK takes nothing.
  absl::Status Check(const std::string& tenant, absl::Time now);
  // Takes the work out of the bucket, which may go into debt.
  void Spend(const std::string& tenant, absl::Duration work, absl::Time now);

  std::size_t num_buckets() const;

 private:
  WorkBucket& BucketOf(const std::string& tenant, double rate, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  TenantLimitsTable& limits_;

  mutable Mutex mutex_;
  std::unordered_map<std::string, WorkBucket> buckets_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::server
