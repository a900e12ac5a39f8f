#include "server/domain/tenant_ledger.h"

#include <algorithm>

namespace attention::server {

std::int64_t TenantLedger::Held(const std::string& tenant) const {
  const auto it = held_.find(tenant);
  return it == held_.end() ? 0 : it->second;
}

absl::Status TenantLedger::Refuse(const std::string& tenant, std::int64_t held, std::int64_t amount,
                                  std::int64_t bound) {
  limits_.CountRefusal(limit_, tenant);
  return LimitReached(limit_, tenant, held, amount, bound, retry_delay_);
}

std::int64_t TenantLedger::Excess(const std::string& tenant, std::int64_t amount) const {
  const std::int64_t room = limits_.Of(tenant).*bound_ - HeldBy(tenant);
  return std::max<std::int64_t>(0, amount - room);
}

absl::Status TenantLedger::Check(const std::string& tenant, std::int64_t amount) {
  const std::int64_t bound = limits_.Of(tenant).*bound_;
  const std::int64_t held = HeldBy(tenant);
  return amount <= bound - held ? absl::OkStatus() : Refuse(tenant, held, amount, bound);
}

absl::Status TenantLedger::Take(const std::string& tenant, std::int64_t amount) {
  if (amount == 0) return absl::OkStatus();
  const std::int64_t bound = limits_.Of(tenant).*bound_;
  std::int64_t held = 0;
  {
    MutexLock lock(&mutex_);
    held = Held(tenant);
    if (amount <= bound - held) {
      held_[tenant] = held + amount;
      return absl::OkStatus();
    }
  }
  return Refuse(tenant, held, amount, bound);
}

void TenantLedger::Give(const std::string& tenant, std::int64_t amount) noexcept {
  MutexLock lock(&mutex_);
  const auto it = held_.find(tenant);
  if (it == held_.end()) return;
  it->second -= amount;
  if (it->second <= 0) held_.erase(it);
}

std::int64_t TenantLedger::HeldBy(const std::string& tenant) const {
  MutexLock lock(&mutex_);
  return Held(tenant);
}

std::map<std::string, std::int64_t> TenantLedger::ByTenant() const {
  MutexLock lock(&mutex_);
  return {held_.begin(), held_.end()};
}

}  // namespace attention::server
