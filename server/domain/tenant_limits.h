// The bounds of what each tenant may hold and do: one table, which every room asks.
//
// Names are whatever callers say where they have no credentials, so nothing here grows with the
// names that are asked for: only those that the operator lists have an entry, and refusals are
// counted under so many other names.
//
// Thread-safety: all methods of TenantLimitsTable.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/base/mutex.h"
#include "server/domain/priority.h"

namespace attention::server {

struct TenantLimits {
  static constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  // The range of a rate that is not infinite, and that of shares.
  static constexpr double kMinRate = 1e-6, kMaxRate = 1e6;
  static constexpr double kMinShare = 1e-3, kMaxShare = 1e3;

  std::int64_t kv_bytes = kNone;     // of KV pages on devices
  std::int64_t layer_bytes = kNone;  // of weights, those being uploaded included
  std::int64_t sessions = kNone;
  std::int64_t streams = kNone;       // open at a time
  std::int64_t queued_bytes = kNone;  // of requests that wait for one device
  // Estimated seconds of computing in a second: 1 is one device all the time.
  double work_rate = std::numeric_limits<double>::infinity();
  // Part of the devices' time while others have work, too, in proportion to theirs.
  double share = 1;
  Priority highest_priority = Priority::kHigh;

  bool operator==(const TenantLimits&) const = default;
};

// The limits of everybody at one time.
struct TenantLimitsSet {
  TenantLimits others;  // who is not listed
  std::map<std::string, TenantLimits> listed;

  const TenantLimits& Of(const std::string& tenant) const {
    const auto it = listed.find(tenant);
    return it == listed.end() ? others : it->second;
  }
  bool operator==(const TenantLimitsSet&) const = default;
};

// The limit that a tenant has met.
enum class TenantLimit {
  kKvBytes,
  kLayerBytes,
  kSessions,
  kStreams,
  kQueuedBytes,
  kWorkRate,
  kHighestPriority
};
inline constexpr int kNumTenantLimits = 7;

// Its key in the file of limits: "kv-bytes".
absl::string_view TenantLimitKey(TenantLimit limit);

// RESOURCE_EXHAUSTED QUOTA_EXCEEDED: the tenant holds `held` and may not have `amount` more. Says
// what to do about it; with the retry delay where waiting helps.
absl::Status LimitReached(TenantLimit limit, absl::string_view tenant, std::int64_t held,
                          std::int64_t amount, std::int64_t bound,
                          std::optional<absl::Duration> retry_delay = std::nullopt);

// The largest part of a capacity that a tenant gets unless the operator says otherwise: nine tenths
// of it, rounded up. One tenant alone has nearly all, and the next one finds room.
constexpr std::int64_t DefaultTenantPart(std::int64_t capacity) { return capacity - capacity / 10; }

class TenantLimitsTable {
 public:
  explicit TenantLimitsTable(TenantLimitsSet limits = {});

  TenantLimits Of(const std::string& tenant) const;
  std::shared_ptr<const TenantLimitsSet> all() const;
  // Admits by these from now on; all that was admitted before stays, also where it is beyond them.
  void Replace(TenantLimitsSet limits);
  // Lists the tenant with these; the empty name changes those of who is not listed.
  void Set(const std::string& tenant, const TenantLimits& limits);
  // Grows with each Replace.
  int generation() const { return generation_.load(std::memory_order_acquire); }

  void CountRefusal(TenantLimit limit, const std::string& tenant);

  using Refusals = std::array<std::int64_t, kNumTenantLimits>;  // index: TenantLimit
  // By tenant: of those that were refused first, and of the listed ones; "" is all others.
  std::map<std::string, Refusals> refusals() const;

 private:
  static constexpr std::size_t kMaxCountedTenants = 64;

  void Swap(std::shared_ptr<const TenantLimitsSet>& limits) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable Mutex mutex_;
  std::shared_ptr<const TenantLimitsSet> limits_ ABSL_GUARDED_BY(mutex_);
  std::atomic<int> generation_{0};  // written under the lock

  mutable Mutex refusals_mutex_;
  std::map<std::string, Refusals> refusals_ ABSL_GUARDED_BY(refusals_mutex_);
};

}  // namespace attention::server
