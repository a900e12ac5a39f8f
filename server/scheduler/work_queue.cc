#include "server/scheduler/work_queue.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace attention::server {
namespace {

bool IsDead(const AttentionRequest& request, absl::Time now, DropReason* reason) {
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

double WorkQueue::WeightOf(const std::string& tenant) const {
  const auto it = policy_.tenant_weights.find(tenant);
  return it == policy_.tenant_weights.end() ? 1 : it->second;
}

WorkQueue::Tenant& WorkQueue::Activate(const std::string& name) {
  const auto [it, is_new] = tenants_.try_emplace(name);
  Tenant& tenant = it->second;
  if (is_new) tenant.weight = WeightOf(name);
  if (!tenant.HasWork()) tenant.virtual_time = std::max(tenant.virtual_time, virtual_now_);
  return tenant;
}

absl::Time WorkQueue::DueOf(const AttentionRequest& request) const {
  return request.arrival + static_cast<int>(request.priority) * policy_.priority_head_start;
}

void WorkQueue::Insert(Requests& lane, std::unique_ptr<AttentionRequest> request) const {
  const absl::Time due = DueOf(*request);
  auto place = lane.end();
  while (place != lane.begin() && DueOf(**std::prev(place)) > due) --place;
  lane.insert(place, std::move(request));
}

void WorkQueue::Add(std::unique_ptr<AttentionRequest> request) {
  Tenant& tenant = Activate(request->tenant);
  for (QueueLoad* load : {&load_, &tenant.load}) {
    ++load->requests;
    load->bytes += request->bytes;
    load->work += request->work;
  }
  const std::vector<LayerKey> layers = LayersOf(*request);
  const bool is_long = request->work > policy_.max_batch_work || order_.FollowsLong(layers);
  order_.Add(layers, is_long);
  // A lane that was idle goes on from the other's time.
  if (is_long) {
    if (!tenant.HasLong()) tenant.long_time = std::max(tenant.long_time, tenant.short_time);
    Insert(tenant.long_lane, std::move(request));
  } else {
    const bool is_beside_long = !tenant.HasShort() && tenant.HasLong();
    if (is_beside_long) tenant.short_time = std::max(tenant.short_time, tenant.long_time);
    Insert(tenant.short_lane, std::move(request));
  }
}

QueueLoad WorkQueue::load(const std::string& tenant) const {
  const auto it = tenants_.find(tenant);
  return it == tenants_.end() ? QueueLoad{} : it->second.load;
}

double WorkQueue::ShareOf(const std::string& name) const {
  const double own = WeightOf(name);
  double sum = own;
  for (const auto& [other, tenant] : tenants_) {
    if (other != name && tenant.HasWork()) sum += tenant.weight;
  }
  return own / sum;
}

// --- Deciding
// -------------------------------------------------------------------------------------

bool WorkQueue::CanRunLong(const Tenant& tenant) const {
  if (tenant.in_progress.has_value()) return true;
  return !tenant.long_lane.empty() && order_.MayBeginLong(LayersOf(*tenant.long_lane.front()));
}

bool WorkQueue::PrefersLong(const Tenant& tenant) const {
  return CanRunLong(tenant) && (!tenant.HasShort() || tenant.long_time < tenant.short_time);
}

template <typename Predicate>
WorkQueue::Tenant* WorkQueue::FurthestBehind(Predicate has_work) {
  Tenant* least = nullptr;
  for (auto& [name, tenant] : tenants_) {
    if (!has_work(tenant)) continue;
    if (least == nullptr || tenant.virtual_time < least->virtual_time) least = &tenant;
  }
  return least;
}

Decision WorkQueue::Next(absl::Time now) {
  Decision decision;
  DropDead(now, decision);
  Tenant* next = FurthestBehind(
      [this](const Tenant& tenant) { return tenant.HasShort() || CanRunLong(tenant); });
  if (next != nullptr) {
    if (PrefersLong(*next)) {
      TakeLong(*next, decision);
    } else {
      TakeBatch(now, decision);
    }
  }
  ForgetIdleTenants();
  return decision;
}

void WorkQueue::Charge(Tenant& tenant, Lane lane, absl::Duration work) {
  const double seconds = absl::ToDoubleSeconds(work);
  virtual_now_ = std::max(virtual_now_, tenant.virtual_time);
  tenant.virtual_time += seconds / tenant.weight;
  if (lane == Lane::kShort) {
    tenant.short_time += seconds / (1 - policy_.long_share);
  } else {
    tenant.long_time += seconds / policy_.long_share;
  }
}

void WorkQueue::CountTaken(Tenant& tenant, const AttentionRequest& request) {
  for (QueueLoad* load : {&load_, &tenant.load}) {
    --load->requests;
    load->bytes -= request.bytes;
    load->work -= request.work;
  }
}

absl::Duration WorkQueue::BatchBudget(absl::Time now) {
  const auto has_short = [](const auto& entry) { return entry.second.HasShort(); };
  const auto first = std::find_if(tenants_.begin(), tenants_.end(), has_short);
  const bool is_shared = std::any_of(std::next(first), tenants_.end(), has_short);
  const bool is_another = !batch_tenant_.empty() && first->first != batch_tenant_;
  if (is_shared || is_another) contended_until_ = now + policy_.contention_memory;
  batch_tenant_ = first->first;
  return now < contended_until_ ? std::min(policy_.max_batch_work, policy_.max_contended_batch_work)
                                : policy_.max_batch_work;
}

void WorkQueue::TakeBatch(absl::Time now, Decision& decision) {
  const absl::Duration budget = BatchBudget(now);
  absl::Duration work;
  while (static_cast<std::int64_t>(decision.batch.size()) < policy_.max_batch_requests) {
    Tenant* tenant = FurthestBehind([](const Tenant& candidate) { return candidate.HasShort(); });
    if (tenant == nullptr) return;
    std::unique_ptr<AttentionRequest>& front = tenant->short_lane.front();
    const absl::Duration charged = front->work;
    if (!decision.batch.empty() && work + charged > budget) return;
    work += charged;
    Charge(*tenant, Lane::kShort, charged);
    CountTaken(*tenant, *front);
    order_.Remove(LayersOf(*front), /*is_long=*/false);
    decision.batch.push_back(std::move(front));
    tenant->short_lane.pop_front();
    DropDeadFronts(*tenant, now, decision);
  }
}

void WorkQueue::TakeLong(Tenant& tenant, Decision& decision) {
  sliced_tenant_ = &tenant;
  virtual_now_ = std::max(virtual_now_, tenant.virtual_time);
  if (tenant.in_progress.has_value()) {
    decision.sliced = std::move(tenant.in_progress->sliced);
    return;
  }
  std::unique_ptr<AttentionRequest>& front = tenant.long_lane.front();
  tenant.in_progress = LongInProgress{nullptr, front->work, 0, front->bytes, LayersOf(*front)};
  ++num_in_progress_;
  CountTaken(tenant, *front);
  load_.bytes += front->bytes;
  tenant.load.bytes += front->bytes;
  decision.long_request = std::move(front);
  tenant.long_lane.pop_front();
}

void WorkQueue::EndSlice(std::unique_ptr<SlicedRequest> sliced) {
  Tenant& tenant = *std::exchange(sliced_tenant_, nullptr);
  LongInProgress& in_progress = *tenant.in_progress;
  const double progress = sliced == nullptr ? 1 : sliced->progress();
  Charge(tenant, Lane::kLong, (progress - in_progress.charged) * in_progress.work);
  in_progress.charged = progress;
  in_progress.sliced = std::move(sliced);
  if (in_progress.sliced == nullptr) EndLong(tenant);
}

void WorkQueue::EndLong(Tenant& tenant) {
  load_.bytes -= tenant.in_progress->bytes;
  tenant.load.bytes -= tenant.in_progress->bytes;
  order_.Remove(tenant.in_progress->layers, /*is_long=*/true);
  tenant.in_progress.reset();
  --num_in_progress_;
}

bool WorkQueue::HasRival() const {
  return std::any_of(tenants_.begin(), tenants_.end(), [this](const auto& entry) {
    const Tenant& tenant = entry.second;
    return tenant.HasShort() || (&tenant != sliced_tenant_ && CanRunLong(tenant));
  });
}

// --- Dropping
// -------------------------------------------------------------------------------------

void WorkQueue::DropDead(absl::Time now, Decision& decision) {
  for (auto& [name, tenant] : tenants_) {
    DropReason reason;
    if (tenant.in_progress.has_value() &&
        IsDead(tenant.in_progress->sliced->request(), now, &reason)) {
      decision.abandoned.push_back({std::move(tenant.in_progress->sliced), reason});
      EndLong(tenant);
    }
    DropDeadFronts(tenant, now, decision);
  }
}

void WorkQueue::DropDeadFronts(Tenant& tenant, absl::Time now, Decision& decision) {
  for (Requests* lane : {&tenant.short_lane, &tenant.long_lane}) {
    DropReason reason;
    while (!lane->empty() && IsDead(*lane->front(), now, &reason)) {
      CountTaken(tenant, *lane->front());
      order_.Remove(LayersOf(*lane->front()), lane == &tenant.long_lane);
      decision.dropped.push_back({std::move(lane->front()), reason});
      lane->pop_front();
    }
  }
}

std::vector<DroppedRequest> WorkQueue::TakeDead(absl::Time now) {
  std::vector<DroppedRequest> dropped;
  for (auto& [name, tenant] : tenants_) {
    for (Requests* lane : {&tenant.short_lane, &tenant.long_lane}) {
      std::erase_if(*lane, [&, &owner = tenant](std::unique_ptr<AttentionRequest>& request) {
        DropReason reason;
        if (!IsDead(*request, now, &reason)) return false;
        CountTaken(owner, *request);
        order_.Remove(LayersOf(*request), lane == &owner.long_lane);
        dropped.push_back({std::move(request), reason});
        return true;
      });
    }
  }
  return dropped;
}

std::vector<std::unique_ptr<AttentionRequest>> WorkQueue::TakeAll() {
  std::vector<std::unique_ptr<AttentionRequest>> requests;
  for (auto& [name, tenant] : tenants_) {
    for (Requests* lane : {&tenant.short_lane, &tenant.long_lane}) {
      for (std::unique_ptr<AttentionRequest>& request : *lane) {
        CountTaken(tenant, *request);
        order_.Remove(LayersOf(*request), lane == &tenant.long_lane);
        requests.push_back(std::move(request));
      }
      lane->clear();
    }
  }
  return requests;
}

std::vector<std::unique_ptr<SlicedRequest>> WorkQueue::TakeAllSliced() {
  std::vector<std::unique_ptr<SlicedRequest>> all;
  for (auto& [name, tenant] : tenants_) {
    if (!tenant.in_progress.has_value() || tenant.in_progress->sliced == nullptr) continue;
    all.push_back(std::move(tenant.in_progress->sliced));
    EndLong(tenant);
  }
  return all;
}

// A tenant that is ahead of the present virtual time is remembered, so that it gains nothing by
// leaving and coming back.
void WorkQueue::ForgetIdleTenants() {
  std::erase_if(tenants_, [this](const auto& entry) {
    return !entry.second.HasWork() && (empty() || entry.second.virtual_time <= virtual_now_);
  });
}

}  // namespace attention::server
