// The tenants that a queue tells apart, and what waits for each.
//
// Names are whatever callers say, so only so many have a turn of their own: those that the operator
// lists (TenantLimits), and a bounded number of others, of which the one that was idle for longest
// makes room for the next. Names beyond that share one turn, in which requests run in order of
// arrival. A caller who invents a name for each call thus shares the turn of one tenant.
//
// Used under the scheduler's lock; knows no clock.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/time/time.h"
#include "server/domain/attention_request.h"
#include "server/domain/tenant_limits.h"
#include "server/scheduler/batch_executor.h"
#include "server/scheduler/step_order.h"

namespace attention::server {

// The queued work of everybody or of a tenant.
struct QueueLoad {
  std::int64_t requests = 0;
  std::int64_t bytes = 0;  // with those of long requests in progress
  absl::Duration work;
};

struct LongInProgress {
  std::string tenant;
  std::unique_ptr<SlicedRequest> sliced;  // null before its first slice and while it runs
  absl::Duration work;
  double charged = 0;  // of its progress
  std::int64_t bytes = 0;
  std::vector<LayerKey> layers;
};

// The requests that share a turn.
struct TenantQueue {
  using Requests = std::deque<std::unique_ptr<AttentionRequest>>;

  bool is_shared = false;  // by tenants without one of their own
  double weight = 1;
  double virtual_time = 0;  // seconds of work over weight
  // The virtual time of each class: its work over its share.
  double short_time = 0;
  double long_time = 0;
  Requests short_requests;
  Requests long_requests;
  std::optional<LongInProgress> in_progress;
  QueueLoad load;
  bool is_active = false;        // in the queue's list of those that have work
  std::int64_t num_running = 0;  // requests of the batch that is being computed

  bool HasShort() const { return !short_requests.empty(); }
  bool HasLong() const { return in_progress.has_value() || !long_requests.empty(); }
  bool HasWork() const { return HasShort() || HasLong(); }
};

class TenantTable {
 public:
  struct Limits {
    // The tenants that are listed, and what each may have, as they are at each arrival; must
    // outlive the table. Null: nobody is listed, all shares are 1, and nothing else is bounded.
    TenantLimitsTable* limits = nullptr;
    std::int64_t max_unlisted = 64;
    // An idle tenant keeps its turn for so long: one that is ahead of the others gains nothing by
    // leaving and coming back.
    absl::Duration memory = absl::Seconds(10);
  };

  explicit TenantTable(const Limits& limits);

  // The queue in which a request of the tenant that arrives now waits. The tenant's requests that
  // wait already are in the same queue.
  TenantQueue& Join(const std::string& name, absl::Time now);
  // To be called when a request has left the queue that it joined: a long one when it is done.
  void Leave(const TenantQueue& queue, const std::string& name);

  // The queue that Join would give; null: a new one.
  const TenantQueue* Find(const std::string& name, absl::Time now) const;
  // The bytes that wait of those who have any; of the shared turn under the empty name.
  std::map<std::string, std::int64_t> BytesByTenant() const;
  // The requests that wait under the name.
  std::int64_t NumWaiting(const std::string& name) const;
  double WeightOf(const std::string& name) const { return shares_->Of(name).share; }

  // Follows a change of the shares, if there was one since the last call; true then: the weights
  // of queues may be others.
  bool FollowShares();

 private:
  struct Known {
    TenantQueue queue;
    std::list<std::string>::iterator age;  // in by_age_; its end for who is listed
    absl::Time last_joined;
  };

  bool IsListed(const std::string& name) const { return shares_->listed.count(name) > 0; }
  // True if an unlisted tenant that is not known could become so.
  bool HasPlace(absl::Time now) const;
  // Keeps one that has had work all the time from standing before those that have not.
  void RenewOldest(absl::Time now);

  const Limits limits_;
  std::shared_ptr<const TenantLimitsSet> shares_;
  int generation_ = 0;  // of them
  std::unordered_map<std::string, Known> known_;
  std::list<std::string> by_age_;  // the unlisted ones of them, by last_joined
  TenantQueue shared_;
  std::unordered_map<std::string, std::int64_t> waiting_in_shared_;  // requests of each name
};

}  // namespace attention::server
