#include "server/shared_memory/region_table.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/error_reason.h"
#include "server/base/random_id.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

// The usage of a connection, a user, or all.
struct Usage {
  std::int64_t regions = 0;
  std::int64_t bytes = 0;
};

absl::Status Exceeded(const char* whose, std::int64_t count, const char* what, std::int64_t limit) {
  return ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kQuotaExceeded,
                       absl::StrCat(whose, " would have ", count, " ", what,
                                    " of shared memory, expected at most ", limit));
}

// Checks the usage with one more region of so many bytes.
absl::Status Check(const char* whose, const Usage& usage, std::int64_t bytes,
                   std::int64_t max_bytes, std::int64_t max_regions) {
  if (usage.regions >= max_regions) {
    return Exceeded(whose, usage.regions + 1, "regions", max_regions);
  }
  if (bytes > max_bytes - usage.bytes) {
    return Exceeded(whose, usage.bytes + bytes, "bytes", max_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

// The regions that count, and whose they are.
class RegionTable::Ledger {
 public:
  explicit Ledger(const Limits& limits) : limits_(limits) {}

  absl::Status Take(const Owner& owner, std::int64_t bytes) {
    MutexLock lock(&mutex_);
    const Usage connection = Of(connections_, owner.connection);
    const Usage user = Of(users_, owner.user);
    ATTENTION_RETURN_IF_ERROR(Check("the connection", connection, bytes,
                                    limits_.max_bytes_per_connection,
                                    limits_.max_regions_per_connection));
    ATTENTION_RETURN_IF_ERROR(
        Check("the user", user, bytes, limits_.max_bytes_per_user, limits_.max_regions));
    ATTENTION_RETURN_IF_ERROR(
        Check("the server", all_, bytes, limits_.max_bytes, limits_.max_regions));
    for (Usage* usage : {&connections_[owner.connection], &users_[owner.user], &all_}) {
      ++usage->regions;
      usage->bytes += bytes;
    }
    return absl::OkStatus();
  }

  void GiveBack(const Owner& owner, std::int64_t bytes) {
    MutexLock lock(&mutex_);
    for (Usage* usage : {&connections_[owner.connection], &users_[owner.user], &all_}) {
      --usage->regions;
      usage->bytes -= bytes;
    }
    if (connections_[owner.connection].regions == 0) connections_.erase(owner.connection);
    if (users_[owner.user].regions == 0) users_.erase(owner.user);
  }

  Usage all() const {
    MutexLock lock(&mutex_);
    return all_;
  }

 private:
  template <typename Key>
  static Usage Of(const std::unordered_map<Key, Usage>& usages, Key key) {
    const auto it = usages.find(key);
    return it == usages.end() ? Usage() : it->second;
  }

  const Limits limits_;
  mutable Mutex mutex_;
  std::unordered_map<std::uint64_t, Usage> connections_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<std::uint32_t, Usage> users_ ABSL_GUARDED_BY(mutex_);
  Usage all_ ABSL_GUARDED_BY(mutex_);
};

class RegionTable::Charged {
 public:
  Charged(std::shared_ptr<Ledger> ledger, const Owner& owner, std::int64_t bytes)
      : ledger_(std::move(ledger)), owner_(owner), bytes_(bytes) {}
  ~Charged() { ledger_->GiveBack(owner_, bytes_); }
  Charged(const Charged&) = delete;
  Charged& operator=(const Charged&) = delete;

 private:
  const std::shared_ptr<Ledger> ledger_;
  const Owner owner_;
  const std::int64_t bytes_;
};

RegionTable::RegionTable(const Limits& limits)
    : limits_(limits), ledger_(std::make_shared<Ledger>(limits)) {}

RegionTable::~RegionTable() = default;

absl::StatusOr<RegionTable::Charge> RegionTable::Reserve(const Owner& owner, std::int64_t bytes) {
  ATTENTION_RETURN_IF_ERROR(ledger_->Take(owner, bytes));
  return std::make_shared<const Charged>(ledger_, owner, bytes);
}

std::string RegionTable::Add(const std::string& tenant, std::unique_ptr<SharedRegion> region,
                             Charge charge) {
  // Whoever lets the region go last has it freed, in turns, and what it counts given back then.
  struct Last {
    std::shared_ptr<SharedRegion> region;
    Charge charge;
  };
  const SharedRegion* const lent = region.get();
  auto free = [last = Last{std::move(region), std::move(charge)},
               queue = worker_.queue()](const SharedRegion*) mutable {
    AddTask(*queue, [last = std::move(last)]() mutable {
      if (last.region->keeps_pages() || !last.region->Depopulate(kBytesPerTurn)) {
        last.region.reset();
        last.charge.reset();
        return true;
      }
      return false;
    });
  };
  std::string id = MakeRandomId();
  Entry entry{tenant, std::shared_ptr<const SharedRegion>(lent, std::move(free))};
  MutexLock lock(&mutex_);
  regions_[id] = std::move(entry);
  return id;
}

void RegionTable::Release(const std::string& region_id) {
  std::shared_ptr<const SharedRegion> region;  // let go of without the lock
  MutexLock lock(&mutex_);
  const auto it = regions_.find(region_id);
  if (it == regions_.end()) return;
  region = std::move(it->second.region);
  regions_.erase(it);
}

void RegionTable::ReleaseAllAndKeepPages() {
  std::unordered_map<std::string, Entry> released;  // let go of without the lock
  MutexLock lock(&mutex_);
  regions_.swap(released);
  for (const auto& [id, entry] : released) entry.region->KeepPages();
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

std::int64_t RegionTable::num_regions() const { return ledger_->all().regions; }
std::int64_t RegionTable::bytes() const { return ledger_->all().bytes; }

}  // namespace attention::server
