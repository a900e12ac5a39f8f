// How much of one resource each tenant holds, and the limit of that.
//
// Thread-safety: all methods.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/base/mutex.h"
#include "server/domain/tenant_limits.h"

namespace attention::server {

class TenantLedger {
 public:
  // `bound`: the limit's member. `limits` must be there when something is taken. Refusals have the
  // retry delay, if there is one.
  TenantLedger(TenantLimit limit, std::int64_t TenantLimits::*bound, TenantLimitsTable& limits,
               std::optional<absl::Duration> retry_delay = std::nullopt)
      : limit_(limit), bound_(bound), limits_(limits), retry_delay_(retry_delay) {}

  // Counts `amount` more for the tenant, or refuses it as LimitReached does, and counts that.
  absl::Status Take(const std::string& tenant, std::int64_t amount);
  // The answer of Take, of which nothing is taken.
  absl::Status Check(const std::string& tenant, std::int64_t amount);
  // The part of the amount that is beyond the bound. Counts no refusal.
  std::int64_t Excess(const std::string& tenant, std::int64_t amount) const;
  // Gives back a part of the amount that was taken before.
  void Give(const std::string& tenant, std::int64_t amount) noexcept;

  std::int64_t HeldBy(const std::string& tenant) const;
  // Those who hold something.
  std::map<std::string, std::int64_t> ByTenant() const;

 private:
  absl::Status Refuse(const std::string& tenant, std::int64_t held, std::int64_t amount,
                      std::int64_t bound);
  std::int64_t Held(const std::string& tenant) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const TenantLimit limit_;
  std::int64_t TenantLimits::*const bound_;
  TenantLimitsTable& limits_;
  const std::optional<absl::Duration> retry_delay_;

  mutable Mutex mutex_;
  std::unordered_map<std::string, std::int64_t> held_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::server
