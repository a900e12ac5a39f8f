#include "server/domain/tenant_limits.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/error_reason.h"

namespace attention::server {
namespace {

struct Wording {
  absl::string_view key;
  absl::string_view held;    // after "holds 7 "
  absl::string_view advice;  // before ", or ask the operator for more"
};

const Wording& WordingOf(TenantLimit limit) {
  static constexpr Wording kWordings[kNumTenantLimits] = {
      {"kv-bytes", "bytes of KV pages", "delete sessions"},
      {"layer-bytes", "bytes of layers' weights", "delete layers"},
      {"sessions", "sessions", "delete sessions"},
      {"streams", "open streams", "end streams"},
      {"queued-bytes", "bytes that wait for a device", "send fewer requests at a time"},
      {"work-rate", "", "send less work"},
      {"highest-priority", "", "ask for a lower priority"},
  };
  return kWordings[static_cast<int>(limit)];
}

}  // namespace

absl::string_view TenantLimitKey(TenantLimit limit) { return WordingOf(limit).key; }

absl::Status LimitReached(TenantLimit limit, absl::string_view tenant, std::int64_t held,
                          std::int64_t amount, std::int64_t bound,
                          std::optional<absl::Duration> retry_delay) {
  const Wording& wording = WordingOf(limit);
  return ReasonedError(
      absl::StatusCode::kResourceExhausted, ErrorReason::kQuotaExceeded,
      absl::StrCat("tenant ", Quoted(tenant), " holds ", held, " ", wording.held, ", and ", amount,
                   " more would exceed its limit ", wording.key, " (", bound, "): ", wording.advice,
                   ", or ask the operator for more"),
      {{"limit", std::string(wording.key)},
       {"use", absl::StrCat(held)},
       {"bound", absl::StrCat(bound)}},
      retry_delay);
}

TenantLimitsTable::TenantLimitsTable(TenantLimitsSet limits)
    : limits_(std::make_shared<const TenantLimitsSet>(std::move(limits))) {}

TenantLimits TenantLimitsTable::Of(const std::string& tenant) const {
  MutexLock lock(&mutex_);
  return limits_->Of(tenant);
}

std::shared_ptr<const TenantLimitsSet> TenantLimitsTable::all() const {
  MutexLock lock(&mutex_);
  return limits_;
}

void TenantLimitsTable::Replace(TenantLimitsSet limits) {
  auto replaced = std::make_shared<const TenantLimitsSet>(std::move(limits));
  MutexLock lock(&mutex_);
  Swap(replaced);
}

void TenantLimitsTable::Set(const std::string& tenant, const TenantLimits& limits) {
  std::shared_ptr<const TenantLimitsSet> replaced;  // freed without the lock
  MutexLock lock(&mutex_);
  auto changed = std::make_shared<TenantLimitsSet>(*limits_);
  (tenant.empty() ? changed->others : changed->listed[tenant]) = limits;
  replaced = std::move(changed);
  Swap(replaced);
}

void TenantLimitsTable::Swap(std::shared_ptr<const TenantLimitsSet>& limits) {
  limits_.swap(limits);
  generation_.fetch_add(1, std::memory_order_release);
}

void TenantLimitsTable::CountRefusal(TenantLimit limit, const std::string& tenant) {
  const bool is_listed = all()->listed.count(tenant) > 0;
  MutexLock lock(&refusals_mutex_);
  const bool has_line =
      is_listed || refusals_.size() < kMaxCountedTenants || refusals_.count(tenant) > 0;
  ++refusals_[has_line ? tenant : ""][static_cast<int>(limit)];
}

std::map<std::string, TenantLimitsTable::Refusals> TenantLimitsTable::refusals() const {
  MutexLock lock(&refusals_mutex_);
  return refusals_;
}

}  // namespace attention::server
