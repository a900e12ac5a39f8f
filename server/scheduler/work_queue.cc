#include "server/scheduler/work_queue.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/cleanup/cleanup.h"

namespace attention::server {
namespace {

// Room for one more, so that nothing has to be taken back when there is none.
template <typename Element>
void MakeRoom(std::vector<Element>& elements) {
  if (elements.size() == elements.capacity()) elements.reserve(2 * elements.size() + 1);
}

bool IsExpiredOrCancelled(const AttentionRequest& request, absl::Time now, DropReason* reason) {
  // First: gRPC also cancels a call whose deadline passes.
  if (now >= request.deadline) {
    *reason = DropReason::kDeadline;
    return true;
  }
  *reason = DropReason::kCancelled;
  return request.is_cancelled != nullptr && request.is_cancelled->load(std::memory_order_relaxed);
}

}  // namespace

// --- Queueing
// -------------------------------------------------------------------------------------

TenantQueue& WorkQueue::Activate(const AttentionRequest& request) {
  MakeRoom(active_);
  if (tenants_.FollowShares()) {
    active_weight_ = 0;
    for (const TenantQueue* active : active_) active_weight_ += active->weight;
  }
  TenantQueue& tenant = tenants_.Join(request.tenant, request.arrival);
  if (!tenant.HasWork()) tenant.virtual_time = std::max(tenant.virtual_time, virtual_now_);
  if (!tenant.is_active) {
    tenant.is_active = true;
    active_.push_back(&tenant);
    active_weight_ += tenant.weight;
  }
  return tenant;
}

void WorkQueue::DeactivateIdle() {
  std::erase_if(active_, [this](TenantQueue* tenant) {
    if (tenant->HasWork()) return false;
    tenant->is_active = false;
    active_weight_ -= tenant->weight;
    return true;
  });
  if (active_.empty()) active_weight_ = 0;  // of rounding, too
  if (empty()) virtual_now_ = std::max(virtual_now_, furthest_);
}

absl::Time WorkQueue::DueOf(const TenantQueue& tenant, const AttentionRequest& request) const {
  const Priority priority = tenant.is_shared ? Priority::kNormal : request.priority;
  return request.arrival + static_cast<int>(priority) * policy_.priority_head_start;
}

void WorkQueue::Insert(const TenantQueue& tenant, Requests& requests,
                       std::unique_ptr<AttentionRequest> request) const {
  const absl::Time due = DueOf(tenant, *request);
  auto place = requests.end();
  while (place != requests.begin() && DueOf(tenant, **std::prev(place)) > due) --place;
  requests.insert(place, std::move(request));
}

void WorkQueue::Add(std::unique_ptr<AttentionRequest> request) {
  const std::vector<LayerKey> layers = LayersOf(*request);
  const bool is_long = request->work > policy_.max_batch_work || order_.FollowsLong(layers);
  order_.Add(layers, is_long);
  absl::Cleanup leave_order = [&] { order_.Remove(layers, is_long); };
  const std::string name = request->tenant;
  TenantQueue& tenant = Activate(*request);
  absl::Cleanup leave_tenant = [&] { tenants_.Leave(tenant, name); };
  const QueueLoad added = {1, request->bytes, request->work};
  // A class that was idle goes on from the other's time.
  if (is_long) {
    if (!tenant.HasLong()) tenant.long_time = std::max(tenant.long_time, tenant.short_time);
    Insert(tenant, tenant.long_requests, std::move(request));
  } else {
    const bool is_beside_long = !tenant.HasShort() && tenant.HasLong();
    if (is_beside_long) tenant.short_time = std::max(tenant.short_time, tenant.long_time);
    Insert(tenant, tenant.short_requests, std::move(request));
  }
  std::move(leave_tenant).Cancel();
  std::move(leave_order).Cancel();
  for (QueueLoad* load : {&load_, &tenant.load}) {
    load->requests += added.requests;
    load->bytes += added.bytes;
    load->work += added.work;
  }
}

QueueLoad WorkQueue::load(const std::string& name, absl::Time now) const {
  const TenantQueue* tenant = tenants_.Find(name, now);
  return tenant == nullptr ? QueueLoad{} : tenant->load;
}

double WorkQueue::ShareOf(const std::string& name, absl::Time now) const {
  const TenantQueue* tenant = tenants_.Find(name, now);
  const double own = tenant == nullptr ? tenants_.WeightOf(name) : tenant->weight;
  const bool is_counted = tenant != nullptr && tenant->is_active;
  return own / (active_weight_ + (is_counted ? 0 : own));
}

bool WorkQueue::IsShared(const std::string& name, absl::Time now) const {
  const TenantQueue* tenant = tenants_.Find(name, now);
  return tenant != nullptr && tenant->is_shared;
}

// --- Deciding
// -------------------------------------------------------------------------------------

bool WorkQueue::CanRunLong(const TenantQueue& tenant) const {
  if (tenant.in_progress.has_value()) return true;
  return !tenant.long_requests.empty() &&
         order_.MayBeginLong(LayersOf(*tenant.long_requests.front()));
}

bool WorkQueue::PrefersLong(const TenantQueue& tenant) const {
  return CanRunLong(tenant) && (!tenant.HasShort() || tenant.long_time < tenant.short_time);
}

template <typename Predicate>
TenantQueue* WorkQueue::FurthestBehind(Predicate has_work) {
  TenantQueue* least = nullptr;
  for (TenantQueue* tenant : active_) {
    if (!has_work(*tenant)) continue;
    if (least == nullptr || tenant->virtual_time < least->virtual_time) least = tenant;
  }
  return least;
}

void WorkQueue::Next(absl::Time now, Decision& decision) {
  if (!running_.empty()) EndBatch({});  // whoever ran it did not come back
  DropDead(now, decision);
  TenantQueue* next = FurthestBehind(
      [this](const TenantQueue& tenant) { return tenant.HasShort() || CanRunLong(tenant); });
  if (next != nullptr) {
    if (PrefersLong(*next)) {
      TakeLong(*next, decision);
    } else {
      TakeBatch(now, decision);
    }
  }
  DeactivateIdle();
}

void WorkQueue::Charge(TenantQueue& tenant, QueueClass queue_class, absl::Duration work) {
  const double seconds = absl::ToDoubleSeconds(work);
  if (seconds > 0) virtual_now_ = std::max(virtual_now_, tenant.virtual_time);
  tenant.virtual_time += seconds / tenant.weight;
  furthest_ = std::max(furthest_, tenant.virtual_time);
  if (queue_class == QueueClass::kShort) {
    tenant.short_time += seconds / (1 - policy_.long_share);
  } else {
    tenant.long_time += seconds / policy_.long_share;
  }
}

void WorkQueue::CountTaken(TenantQueue& tenant, const AttentionRequest& request) {
  for (QueueLoad* load : {&load_, &tenant.load}) {
    --load->requests;
    load->bytes -= request.bytes;
    load->work -= request.work;
  }
}

void WorkQueue::CountGone(TenantQueue& tenant, const Requests& requests,
                          const AttentionRequest& request) {
  CountTaken(tenant, request);
  tenants_.Leave(tenant, request.tenant);
  order_.Remove(request, &requests == &tenant.long_requests);
}

absl::Duration WorkQueue::BatchBudget(absl::Time now) {
  const auto has_short = [](const TenantQueue* tenant) { return tenant->HasShort(); };
  const auto first = std::find_if(active_.begin(), active_.end(), has_short);
  const bool is_contended = std::any_of(std::next(first), active_.end(), has_short);
  const bool is_another = batch_tenant_ != nullptr && *first != batch_tenant_;
  if (is_contended || is_another) contended_until_ = now + policy_.contention_memory;
  batch_tenant_ = *first;
  return now < contended_until_ ? std::min(policy_.max_batch_work, policy_.max_contended_batch_work)
                                : policy_.max_batch_work;
}

void WorkQueue::TakeBatch(absl::Time now, Decision& decision) {
  const absl::Duration budget = BatchBudget(now);
  const auto most = static_cast<std::size_t>(std::min(policy_.max_batch_requests, load_.requests));
  decision.batch.reserve(most);
  running_.reserve(most);
  absl::Duration work;
  while (static_cast<std::int64_t>(decision.batch.size()) < policy_.max_batch_requests) {
    TenantQueue* tenant =
        FurthestBehind([](const TenantQueue& candidate) { return candidate.HasShort(); });
    if (tenant == nullptr) return;
    std::unique_ptr<AttentionRequest>& front = tenant->short_requests.front();
    const absl::Duration charged = front->work;
    const bool is_change = front->change.has_value();
    if (!decision.batch.empty() && (is_change || work + charged > budget)) return;
    work += charged;
    Charge(*tenant, QueueClass::kShort, charged);
    CountGone(*tenant, tenant->short_requests, *front);
    running_.emplace_back(tenant, charged);
    ++tenant->num_running;
    decision.batch.push_back(std::move(front));
    tenant->short_requests.pop_front();
    DropDeadFronts(*tenant, now, decision);
    if (is_change) return;
  }
}

absl::Duration WorkQueue::EndBatch(const std::vector<double>& computed) {
  absl::Duration sum;
  for (std::size_t i = 0; i < running_.size(); ++i) {
    const auto [tenant, work] = running_[i];
    const double share = i < computed.size() ? computed[i] : 0;
    --tenant->num_running;
    sum += share * work;
    if (share < 1) Charge(*tenant, QueueClass::kShort, (share - 1) * work);
  }
  running_.clear();
  return sum;
}

void WorkQueue::TakeLong(TenantQueue& tenant, Decision& decision) {
  virtual_now_ = std::max(virtual_now_, tenant.virtual_time);
  if (tenant.in_progress.has_value()) {
    sliced_tenant_ = &tenant;
    decision.sliced = std::move(tenant.in_progress->sliced);
    return;
  }
  std::unique_ptr<AttentionRequest>& front = tenant.long_requests.front();
  tenant.in_progress =
      LongInProgress{front->tenant, nullptr, front->work, 0, front->bytes, LayersOf(*front)};
  sliced_tenant_ = &tenant;
  ++num_in_progress_;
  CountTaken(tenant, *front);
  load_.bytes += front->bytes;
  tenant.load.bytes += front->bytes;
  decision.long_request = std::move(front);
  tenant.long_requests.pop_front();
}

void WorkQueue::EndSlice(std::unique_ptr<SlicedRequest> sliced, double progress) {
  TenantQueue& tenant = *std::exchange(sliced_tenant_, nullptr);
  LongInProgress& in_progress = *tenant.in_progress;
  Charge(tenant, QueueClass::kLong, (progress - in_progress.charged) * in_progress.work);
  in_progress.charged = progress;
  in_progress.sliced = std::move(sliced);
  if (in_progress.sliced == nullptr) EndLong(tenant);
  DeactivateIdle();
}

void WorkQueue::EndLong(TenantQueue& tenant) {
  load_.bytes -= tenant.in_progress->bytes;
  tenant.load.bytes -= tenant.in_progress->bytes;
  order_.Remove(tenant.in_progress->layers, /*is_long=*/true);
  tenants_.Leave(tenant, tenant.in_progress->tenant);
  tenant.in_progress.reset();
  --num_in_progress_;
}

bool WorkQueue::ShouldYield() const {
  return std::any_of(active_.begin(), active_.end(), [this](const TenantQueue* tenant) {
    return tenant->HasShort() || (tenant != sliced_tenant_ && CanRunLong(*tenant));
  });
}

// --- Dropping
// -------------------------------------------------------------------------------------

void WorkQueue::DropDead(absl::Time now, Decision& decision) {
  for (TenantQueue* tenant : active_) {
    DropReason reason;
    if (tenant->in_progress.has_value() &&
        IsExpiredOrCancelled(tenant->in_progress->sliced->request(), now, &reason)) {
      MakeRoom(decision.abandoned);
      decision.abandoned.push_back({std::move(tenant->in_progress->sliced), reason});
      EndLong(*tenant);
    }
    DropDeadFronts(*tenant, now, decision);
  }
}

void WorkQueue::DropDeadFronts(TenantQueue& tenant, absl::Time now, Decision& decision) {
  for (Requests* requests : {&tenant.short_requests, &tenant.long_requests}) {
    DropReason reason;
    while (!requests->empty() && IsExpiredOrCancelled(*requests->front(), now, &reason)) {
      MakeRoom(decision.dropped);
      CountGone(tenant, *requests, *requests->front());
      decision.dropped.push_back({std::move(requests->front()), reason});
      requests->pop_front();
    }
  }
}

std::vector<DroppedRequest> WorkQueue::TakeExpiredAndCancelled(absl::Time now) {
  std::vector<DroppedRequest> dropped;
  dropped.reserve(static_cast<std::size_t>(load_.requests));
  for (TenantQueue* tenant : active_) {
    for (Requests* requests : {&tenant->short_requests, &tenant->long_requests}) {
      std::erase_if(*requests, [&, requests](std::unique_ptr<AttentionRequest>& request) {
        DropReason reason;
        if (!IsExpiredOrCancelled(*request, now, &reason)) return false;
        CountGone(*tenant, *requests, *request);
        dropped.push_back({std::move(request), reason});
        return true;
      });
    }
  }
  DeactivateIdle();
  return dropped;
}

std::vector<std::unique_ptr<AttentionRequest>> WorkQueue::TakeAll() {
  std::vector<std::unique_ptr<AttentionRequest>> taken;
  taken.reserve(static_cast<std::size_t>(load_.requests));
  for (TenantQueue* tenant : active_) {
    for (Requests* requests : {&tenant->short_requests, &tenant->long_requests}) {
      for (std::unique_ptr<AttentionRequest>& request : *requests) {
        CountGone(*tenant, *requests, *request);
        taken.push_back(std::move(request));
      }
      requests->clear();
    }
  }
  DeactivateIdle();
  return taken;
}

std::vector<std::unique_ptr<SlicedRequest>> WorkQueue::TakeAllSliced() {
  std::vector<std::unique_ptr<SlicedRequest>> all;
  for (TenantQueue* tenant : active_) {
    if (!tenant->in_progress.has_value() || tenant->in_progress->sliced == nullptr) continue;
    all.push_back(std::move(tenant->in_progress->sliced));
    EndLong(*tenant);
  }
  DeactivateIdle();
  return all;
}

}  // namespace attention::server
