#include "server/scheduler/work_budget.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/error_reason.h"

namespace attention::server {
namespace {

// The bucket that unlisted tenants share: no tenant has an empty name.
constexpr char kShared[] = "";

absl::Status TooFast(const std::string& tenant, double rate, absl::Duration wait) {
  return ReasonedError(
      absl::StatusCode::kResourceExhausted, ErrorReason::kQuotaExceeded,
      absl::StrCat("tenant ", Quoted(tenant), " is ", absl::FormatDuration(wait),
                   " ahead of its limit work-rate (", rate,
                   " seconds of computing in a second): send less work, or ask the operator for "
                   "more"),
      {{"limit", std::string(TenantLimitKey(TenantLimit::kWorkRate))},
       {"use", absl::StrCat(absl::ToDoubleSeconds(wait) * rate)},
       {"bound", absl::StrCat(rate)}},
      std::max(wait, absl::Milliseconds(1)));
}

}  // namespace

void WorkBucket::Fill(double rate, absl::Time now) {
  const double most = rate * absl::ToDoubleSeconds(kBurst);
  seconds = std::min(most, seconds + rate * std::max(0.0, absl::ToDoubleSeconds(now - filled)));
  filled = std::max(filled, now);
}

absl::Duration WorkBucket::UntilReady(double rate) const {
  return absl::Seconds(std::max(0.0, -seconds / rate));
}

bool WorkBucket::IsFull(double rate, absl::Time now) const {
  WorkBucket bucket = *this;
  bucket.Fill(rate, now);
  return bucket.seconds >= rate * absl::ToDoubleSeconds(kBurst);
}

WorkBucket& WorkBudget::BucketOf(const std::string& tenant, double rate, absl::Time now) {
  if (const auto it = buckets_.find(tenant); it != buckets_.end()) return it->second;
  const std::shared_ptr<const TenantLimitsSet> all = limits_.all();
  const std::size_t most = kMaxUnlisted + all->listed.size();
  if (buckets_.size() >= most && all->listed.count(tenant) == 0) {
    // While the shared bucket is in use nobody is looked for whose own could go.
    const auto shared = buckets_.find(kShared);
    if (shared != buckets_.end() && !shared->second.IsFull(rate, now)) return shared->second;
    // A full bucket is as good as none.
    std::erase_if(buckets_, [&](const auto& entry) {
      return entry.second.IsFull(all->Of(entry.first).work_rate, now);
    });
    if (buckets_.size() >= most) {
      return buckets_.try_emplace(kShared, WorkBucket{0, now}).first->second;
    }
  }
  const double burst = rate * absl::ToDoubleSeconds(WorkBucket::kBurst);
  return buckets_.try_emplace(tenant, WorkBucket{burst, now}).first->second;
}

absl::Status WorkBudget::Check(const std::string& tenant, absl::Time now) {
  const double rate = limits_.Of(tenant).work_rate;
  if (std::isinf(rate)) return absl::OkStatus();
  absl::Duration wait;
  {
    MutexLock lock(&mutex_);
    WorkBucket& bucket = BucketOf(tenant, rate, now);
    bucket.Fill(rate, now);
    if (bucket.seconds >= 0) return absl::OkStatus();
    wait = bucket.UntilReady(rate);
  }
  limits_.CountRefusal(TenantLimit::kWorkRate, tenant);
  return TooFast(tenant, rate, wait);
}

void WorkBudget::Spend(const std::string& tenant, absl::Duration work, absl::Time now) {
  const double rate = limits_.Of(tenant).work_rate;
  if (std::isinf(rate)) return;
  MutexLock lock(&mutex_);
  WorkBucket& bucket = BucketOf(tenant, rate, now);
  bucket.Fill(rate, now);
  bucket.seconds -= absl::ToDoubleSeconds(work);
}

std::size_t WorkBudget::num_buckets() const {
  MutexLock lock(&mutex_);
  return buckets_.size();
}

}  // namespace attention::server
