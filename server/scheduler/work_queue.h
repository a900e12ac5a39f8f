// The work that waits for one device, and the choice of what runs next. Decides from what is queued
// and the time it is told; knows no clock, no lock and no thread.
//
// Between tenants: start-time fair queueing (Goyal, Vin, Cheng 1996) over estimated work. A
// tenant's virtual time advances by the work it is given, divided by its weight; who is furthest
// behind is next. A tenant that was idle goes on from the present virtual time, so idleness earns
// no credit; when nobody has work, that is the furthest that anybody has come. What was charged and
// then not computed is given back. While several tenants have work, batches are shorter: a tenant
// whose callers are on their way loses its turn until the batch without them ends. Who counts as a
// tenant is TenantTable's to say.
//
// Within a tenant: by priority and age. A request goes before one of the next lower priority that
// arrived up to `priority_head_start` earlier, and behind all that have waited longer than that:
// low priority waits, but never for ever. Requests of one priority run in order of arrival, which
// keeps the steps of a session in order.
//
// Changes: a change of caches is a batch of its own. So the rows of steps before it have been
// written when it is made, and steps after it see it.
//
// Short and long: short requests ride in batches, which run to their end. A request with more work
// than a batch may hold is long: it runs alone and in slices, and whatever else is there runs
// between them. While a tenant has both, its long ones get `long_share` of its work. Each tenant
// has at most one long request in progress.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "server/base/metrics.h"
#include "server/domain/attention_request.h"
#include "server/scheduler/batch_executor.h"
#include "server/scheduler/step_order.h"
#include "server/scheduler/tenant_table.h"

namespace attention::server {

struct WorkPolicy {
  std::int64_t max_batch_requests = 256;
  absl::Duration max_batch_work = absl::Milliseconds(5);
  // The same while several tenants have work, and `contention_memory` longer: their next requests
  // are most likely on the way. On two cores, 16 callers beside 64 of another tenant got 0.3 of the
  // capacity with 5 ms, and 0.5 with 1 ms, which costs a tenant alone a fifth of its throughput.
  absl::Duration max_contended_batch_work = absl::Milliseconds(1);
  absl::Duration contention_memory = absl::Milliseconds(100);
  // A quarter keeps a decode step beside a long prompt within 4/3 of its time alone, and the prompt
  // within four times of its own.
  double long_share = 0.25;
  absl::Duration priority_head_start = absl::Seconds(1);
  TenantTable::Limits tenants = {};
};

struct DroppedRequest {
  std::unique_ptr<AttentionRequest> request;
  DropReason reason;
};

struct AbandonedRequest {
  std::unique_ptr<SlicedRequest> request;
  DropReason reason;
};

// The next thing to do: one of batch, long_request and sliced, or none of them when nothing can
// run.
struct Decision {
  std::vector<std::unique_ptr<AttentionRequest>> batch;
  std::unique_ptr<AttentionRequest> long_request;  // to begin
  std::unique_ptr<SlicedRequest> sliced;           // to go on with
  // Expired or cancelled work that was met on the way.
  std::vector<DroppedRequest> dropped;
  std::vector<AbandonedRequest> abandoned;
};

class WorkQueue {
 public:
  explicit WorkQueue(const WorkPolicy& policy) : policy_(policy), tenants_(policy.tenants) {}

  // When this throws, the request is as if it had never been there.
  void Add(std::unique_ptr<AttentionRequest> request);

  // Adds to the decision, of which all is to be done, also when this throws.
  void Next(absl::Time now, Decision& decision);
  Decision Next(absl::Time now) {
    Decision decision;
    Next(now, decision);
    return decision;
  }

  // After the batch that Next gave last: the share of each request's work that was computed, 0 to
  // 1. Returns the work of those shares. To be called before Next is called again.
  absl::Duration EndBatch(const std::vector<double>& computed);

  // After a slice of the long request that Next gave last: `sliced` is null when it is done, and
  // `progress` is what was computed of it. To be called before Next is called again.
  void EndSlice(std::unique_ptr<SlicedRequest> sliced, double progress);

  // True when there is work that could run instead of the long request that Next gave last.
  bool ShouldYield() const;

  // Removes every expired or cancelled request: they hold room that others could use.
  std::vector<DroppedRequest> TakeExpiredAndCancelled(absl::Time now);
  // The requests that have not begun, and those that have; all leave the queue.
  std::vector<std::unique_ptr<AttentionRequest>> TakeAll();
  std::vector<std::unique_ptr<SlicedRequest>> TakeAllSliced();

  // Nothing queued and nothing in progress.
  bool empty() const { return load_.requests == 0 && num_in_progress_ == 0; }
  int num_in_progress() const { return num_in_progress_; }
  const QueueLoad& load() const { return load_; }
  // The load of the turn in which a request of the tenant that arrives now would wait.
  QueueLoad load(const std::string& tenant, absl::Time now) const;
  // The turn's weight in the weights of all that have work, itself included.
  double ShareOf(const std::string& tenant, absl::Time now) const;
  // True if it is shared by tenants, whose priorities do not count then.
  bool IsShared(const std::string& tenant, absl::Time now) const;
  std::map<std::string, std::int64_t> BytesByTenant() const { return tenants_.BytesByTenant(); }
  std::int64_t NumWaiting(const std::string& tenant) const { return tenants_.NumWaiting(tenant); }

 private:
  enum class QueueClass { kShort, kLong };
  using Requests = TenantQueue::Requests;

  TenantQueue& Activate(const AttentionRequest& request);
  void Insert(const TenantQueue& tenant, Requests& requests,
              std::unique_ptr<AttentionRequest> request) const;
  absl::Time DueOf(const TenantQueue& tenant, const AttentionRequest& request) const;

  bool CanRunLong(const TenantQueue& tenant) const;
  bool PrefersLong(const TenantQueue& tenant) const;
  template <typename Predicate>
  TenantQueue* FurthestBehind(Predicate has_work);
  // Negative work is given back.
  void Charge(TenantQueue& tenant, QueueClass queue_class, absl::Duration work);
  void CountTaken(TenantQueue& tenant, const AttentionRequest& request);
  // The same of one that leaves its queue for good.
  void CountGone(TenantQueue& tenant, const Requests& requests, const AttentionRequest& request);

  void DropDead(absl::Time now, Decision& decision);
  void DropDeadFronts(TenantQueue& tenant, absl::Time now, Decision& decision);
  // The budget of the batch that is formed now.
  absl::Duration BatchBudget(absl::Time now);
  void TakeBatch(absl::Time now, Decision& decision);
  void TakeLong(TenantQueue& tenant, Decision& decision);
  void EndLong(TenantQueue& tenant);
  void DeactivateIdle();

  const WorkPolicy policy_;
  TenantTable tenants_;
  std::vector<TenantQueue*> active_;  // those that have work, in the order in which it came
  double active_weight_ = 0;
  StepOrder order_;
  QueueLoad load_;
  int num_in_progress_ = 0;
  double virtual_now_ = 0;                // of the work taken last, before it was charged
  double furthest_ = 0;                   // of any tenant's virtual time
  TenantQueue* sliced_tenant_ = nullptr;  // whose long request Next gave last
  // The requests of the batch that Next gave last.
  std::vector<std::pair<TenantQueue*, absl::Duration>> running_;
  const TenantQueue* batch_tenant_ = nullptr;  // whose request began the last batch
  absl::Time contended_until_ = absl::InfinitePast();
};

}  // namespace attention::server
