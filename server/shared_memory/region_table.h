// The regions of all clients: who may use which, until when, and how much there may be.
//
// A region belongs to a tenant and lives as long as the connection that asked for it (its lease).
// Work that is being computed keeps the memory beyond that. A region counts, against its
// connection, the user that has connected and all together, from before it is made until its pages
// are freed. Tenants do not count, as a client may claim any number of them.
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
#include "server/shared_memory/turn_worker.h"

namespace attention::server {

class RegionTable {
 public:
  struct Limits {
    std::int64_t max_bytes = 0;
    std::int64_t max_bytes_per_user = 0;
    std::int64_t max_bytes_per_connection = 0;
    std::int64_t max_regions = 0;
    std::int64_t max_regions_per_connection = 0;
  };
  // The client that asks for a region.
  struct Owner {
    std::uint64_t connection = 0;  // its number
    std::uint32_t user = 0;        // as the system numbers them
  };
  // One region that counts, for as long as this lives.
  using Charge = std::shared_ptr<const void>;

  explicit RegionTable(const Limits& limits);
  ~RegionTable();

  const Limits& limits() const { return limits_; }

  // RESOURCE_EXHAUSTED QUOTA_EXCEEDED at a limit, which is named.
  absl::StatusOr<Charge> Reserve(const Owner& owner, std::int64_t bytes);
  // Lends a populated region to the tenant, under an unguessable id.
  std::string Add(const std::string& tenant, std::unique_ptr<SharedRegion> region, Charge charge);

  // Ends a lease. Unknown ids are ignored.
  void Release(const std::string& region_id);
  // Ends all leases, and leaves the pages to the clients: before the server ends, which frees the
  // memory as far as it is concerned.
  void ReleaseAllAndKeepPages();

  // NOT_FOUND REGION_NOT_FOUND when it never was, was released, or is another tenant's.
  absl::StatusOr<std::shared_ptr<const SharedRegion>> Find(const std::string& region_id,
                                                           absl::string_view tenant) const;

  // Pages are taken and freed there: a region at a time would keep others waiting.
  TurnWorker::Queue& worker() const { return *worker_.queue(); }

  // The regions that count, and their bytes.
  std::int64_t num_regions() const;
  std::int64_t bytes() const;

 private:
  class Ledger;
  class Charged;

  struct Entry {
    std::string tenant;
    std::shared_ptr<const SharedRegion> region;
  };
  const Limits limits_;
  const std::shared_ptr<Ledger> ledger_;  // regions in use may outlive the table
  TurnWorker worker_;
  mutable Mutex mutex_;
  std::unordered_map<std::string, Entry> regions_ ABSL_GUARDED_BY(mutex_);
};

// The bytes that are populated or freed before it is another region's turn: some milliseconds.
inline constexpr std::int64_t kBytesPerTurn = std::int64_t{16} << 20;

}  // namespace attention::server
