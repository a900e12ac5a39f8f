// The regions of all clients: who may use which, and until when.
//
// A region belongs to a tenant and lives as long as the connection that registered it (its lease).
// What is being computed keeps the memory mapped beyond that, and counted against the tenant.
//
// Thread-safety: all methods.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/base/mutex.h"
#include "server/shared_memory/shared_region.h"

namespace attention::server {

class RegionTable {
 public:
  struct Limits {
    std::int64_t max_bytes_per_tenant = 0;
    std::int64_t max_regions_per_tenant = 0;
  };

  explicit RegionTable(const Limits& limits);
  ~RegionTable();

  // Maps the memory behind `fd`, which it takes, and returns the region's unguessable id.
  // RESOURCE_EXHAUSTED QUOTA_EXCEEDED at a limit of the tenant, for which all that is still mapped
  // counts; else as SharedRegion::Map.
  absl::StatusOr<std::string> Register(const std::string& tenant, int fd);

  // Ends a lease. Unknown ids are ignored.
  void Release(const std::string& region_id);

  // NOT_FOUND REGION_NOT_FOUND when it never was, was released, or is another tenant's.
  absl::StatusOr<std::shared_ptr<const SharedRegion>> Find(const std::string& region_id,
                                                           absl::string_view tenant) const;

  // Those that are mapped, released or not.
  std::int64_t num_regions() const;
  std::int64_t bytes() const;

 private:
  class Ledger;

  struct Entry {
    std::string tenant;
    std::shared_ptr<const SharedRegion> region;
  };
  const Limits limits_;
  const std::shared_ptr<Ledger> ledger_;  // regions in use may outlive the table
  mutable Mutex mutex_;
  std::unordered_map<std::string, Entry> regions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::server
