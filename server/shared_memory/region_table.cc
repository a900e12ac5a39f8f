#include "server/shared_memory/region_table.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/error_reason.h"
#include "server/base/random_id.h"
#include "server/base/status_macros.h"

namespace attention::server {

// What each tenant has mapped.
class RegionTable::Ledger {
 public:
  explicit Ledger(const Limits& limits) : limits_(limits) {}

  // Of one more region.
  absl::Status Check(const std::string& tenant, std::int64_t bytes) const {
    MutexLock lock(&mutex_);
    return CheckLocked(tenant, bytes);
  }

  absl::Status Take(const std::string& tenant, std::int64_t bytes) {
    MutexLock lock(&mutex_);
    ATTENTION_RETURN_IF_ERROR(CheckLocked(tenant, bytes));
    Usage& usage = usage_[tenant];
    ++usage.regions;
    usage.bytes += bytes;
    return absl::OkStatus();
  }

  void GiveBack(const std::string& tenant, std::int64_t bytes) {
    MutexLock lock(&mutex_);
    const auto it = usage_.find(tenant);
    it->second.bytes -= bytes;
    if (--it->second.regions == 0) usage_.erase(it);
  }

  std::int64_t num_regions() const { return Sum(&Usage::regions); }
  std::int64_t bytes() const { return Sum(&Usage::bytes); }

 private:
  struct Usage {
    std::int64_t regions = 0;
    std::int64_t bytes = 0;
  };

  absl::Status CheckLocked(const std::string& tenant, std::int64_t bytes) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto it = usage_.find(tenant);
    const Usage usage = it == usage_.end() ? Usage() : it->second;
    if (usage.regions >= limits_.max_regions_per_tenant) {
      return ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kQuotaExceeded,
                           absl::StrCat("the tenant has ", usage.regions,
                                        " regions of shared memory, expected at most ",
                                        limits_.max_regions_per_tenant));
    }
    if (bytes > limits_.max_bytes_per_tenant - usage.bytes) {
      return ReasonedError(
          absl::StatusCode::kResourceExhausted, ErrorReason::kQuotaExceeded,
          absl::StrCat("the tenant would have ", usage.bytes + bytes,
                       " bytes of shared memory, expected at most ", limits_.max_bytes_per_tenant));
    }
    return absl::OkStatus();
  }

  std::int64_t Sum(std::int64_t Usage::*field) const {
    MutexLock lock(&mutex_);
    std::int64_t sum = 0;
    for (const auto& [tenant, usage] : usage_) sum += usage.*field;
    return sum;
  }

  const Limits limits_;
  mutable Mutex mutex_;
  std::unordered_map<std::string, Usage> usage_ ABSL_GUARDED_BY(mutex_);  // by tenant
};

RegionTable::RegionTable(const Limits& limits)
    : limits_(limits), ledger_(std::make_shared<Ledger>(limits)) {}

RegionTable::~RegionTable() = default;

absl::StatusOr<std::string> RegionTable::Register(const std::string& tenant, int fd) {
  if (absl::Status status = ledger_->Check(tenant, 0); !status.ok()) {
    close(fd);
    return status;
  }
  // Without the lock: mapping takes its time, and others' requests look for their regions.
  ATTENTION_ASSIGN_OR_RETURN(std::shared_ptr<const SharedRegion> region,
                             SharedRegion::Map(fd, limits_.max_bytes_per_tenant));
  const std::int64_t bytes = region->size();
  ATTENTION_RETURN_IF_ERROR(ledger_->Take(tenant, bytes));
  const SharedRegion* const mapped = region.get();
  // Whoever lets the region go last unmaps it, and gives back what it counts.
  auto unmap = [region = std::move(region), ledger = ledger_, tenant,
                bytes](const SharedRegion*) mutable {
    region.reset();
    ledger->GiveBack(tenant, bytes);
  };
  std::string id = MakeRandomId();
  Entry entry{tenant, std::shared_ptr<const SharedRegion>(mapped, std::move(unmap))};
  MutexLock lock(&mutex_);
  regions_[id] = std::move(entry);
  return id;
}

void RegionTable::Release(const std::string& region_id) {
  std::shared_ptr<const SharedRegion> region;  // unmapped without the lock
  MutexLock lock(&mutex_);
  const auto it = regions_.find(region_id);
  if (it == regions_.end()) return;
  region = std::move(it->second.region);
  regions_.erase(it);
}

absl::StatusOr<std::shared_ptr<const SharedRegion>> RegionTable::Find(
    const std::string& region_id, absl::string_view tenant) const {
  MutexLock lock(&mutex_);
  const auto it = regions_.find(region_id);
  if (it != regions_.end() && it->second.tenant == tenant) return it->second.region;
  return ReasonedError(absl::StatusCode::kNotFound, ErrorReason::kRegionNotFound,
                       absl::StrCat("region_id is ", Quoted(region_id),
                                    ", expected a region of this tenant whose connection is open"));
}

std::int64_t RegionTable::num_regions() const { return ledger_->num_regions(); }
std::int64_t RegionTable::bytes() const { return ledger_->bytes(); }

}  // namespace attention::server
