#include "server/shared_memory/region_table.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/error_reason.h"
#include "server/base/random_id.h"
#include "server/base/status_macros.h"

namespace attention::server {

absl::Status RegionTable::CheckQuota(const std::string& tenant, std::int64_t bytes) {
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

absl::StatusOr<std::string> RegionTable::Register(const std::string& tenant, int fd) {
  {
    MutexLock lock(&mutex_);
    if (absl::Status status = CheckQuota(tenant, 0); !status.ok()) {
      close(fd);
      return status;
    }
  }
  // Without the lock: mapping takes its time, and others' requests look for their regions.
  ATTENTION_ASSIGN_OR_RETURN(std::shared_ptr<const SharedRegion> region,
                             SharedRegion::Map(fd, limits_.max_bytes_per_tenant));
  const std::int64_t bytes = region->size();
  std::string id = MakeRandomId();
  MutexLock lock(&mutex_);
  ATTENTION_RETURN_IF_ERROR(CheckQuota(tenant, bytes));
  Usage& usage = usage_[tenant];
  ++usage.regions;
  usage.bytes += bytes;
  regions_[id] = {tenant, std::move(region)};
  return id;
}

void RegionTable::Release(const std::string& region_id) {
  std::shared_ptr<const SharedRegion> region;  // unmapped without the lock
  MutexLock lock(&mutex_);
  const auto it = regions_.find(region_id);
  if (it == regions_.end()) return;
  const auto usage = usage_.find(it->second.tenant);
  usage->second.bytes -= it->second.region->size();
  if (--usage->second.regions == 0) usage_.erase(usage);
  region = std::move(it->second.region);
  regions_.erase(it);
}

absl::StatusOr<std::shared_ptr<const SharedRegion>> RegionTable::Find(
    const std::string& region_id, absl::string_view tenant) const {
  MutexLock lock(&mutex_);
  const auto it = regions_.find(region_id);
  if (it != regions_.end() && it->second.tenant == tenant) return it->second.region;
  return ReasonedError(
      absl::StatusCode::kNotFound, ErrorReason::kRegionNotFound,
      absl::StrCat("region_id is '", region_id,
                   "', expected a region of this tenant whose connection is open"));
}

std::int64_t RegionTable::num_regions() const {
  MutexLock lock(&mutex_);
  return static_cast<std::int64_t>(regions_.size());
}

std::int64_t RegionTable::bytes() const {
  MutexLock lock(&mutex_);
  std::int64_t bytes = 0;
  for (const auto& [tenant, usage] : usage_) bytes += usage.bytes;
  return bytes;
}

}  // namespace attention::server
