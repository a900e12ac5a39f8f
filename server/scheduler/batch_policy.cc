#include "server/scheduler/batch_policy.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace attention::server {
namespace {

// The floor keeps requests without arithmetic (appends, empty sequences) from being free of charge.
constexpr double kMinChargedFlops = 1e4;

double ChargedFlops(const AttentionRequest& request) {
  return std::max(request.flops, kMinChargedFlops);
}

bool IsDead(const AttentionRequest& request, absl::Time now, DropReason* reason) {
  // First: gRPC also cancels a call whose deadline passes.
  if (now >= request.deadline) {
    *reason = DropReason::kDeadline;
    return true;
  }
  *reason = DropReason::kCancelled;
  return request.is_cancelled != nullptr && request.is_cancelled->load(std::memory_order_relaxed);
}

// Moves dead requests from the front of the queue to the decision.
void DropDeadFront(TenantQueue& queue, absl::Time now, BatchDecision& decision) {
  DropReason reason;
  while (!queue.requests.empty() && IsDead(*queue.requests.front(), now, &reason)) {
    decision.dropped.push_back({std::move(queue.requests.front()), reason});
    queue.requests.pop_front();
  }
}

TenantQueues::iterator FurthestBehind(TenantQueues& queues) {
  return std::min_element(queues.begin(), queues.end(), [](const auto& a, const auto& b) {
    return a.second.virtual_time < b.second.virtual_time;
  });
}

}  // namespace

void Enqueue(TenantQueues& queues, std::unique_ptr<AttentionRequest> request) {
  double least = std::numeric_limits<double>::infinity();
  for (const auto& [name, queue] : queues) least = std::min(least, queue.virtual_time);
  const auto [it, is_new] = queues.try_emplace(request->tenant);
  if (is_new && queues.size() > 1) it->second.virtual_time = least;
  it->second.requests.push_back(std::move(request));
}

BatchDecision TakeBatch(TenantQueues& queues, absl::Time now, const BatchLimits& limits) {
  BatchDecision decision;
  double flops = 0;
  while (static_cast<std::int64_t>(decision.batch.size()) < limits.max_requests) {
    for (auto it = queues.begin(); it != queues.end();) {
      DropDeadFront(it->second, now, decision);
      it = it->second.requests.empty() ? queues.erase(it) : std::next(it);
    }
    if (queues.empty()) break;
    const auto next = FurthestBehind(queues);
    std::unique_ptr<AttentionRequest>& front = next->second.requests.front();
    const double charged = ChargedFlops(*front);
    if (!decision.batch.empty() && flops + charged > limits.max_flops) break;
    flops += charged;
    next->second.virtual_time += charged;
    decision.batch.push_back(std::move(front));
    next->second.requests.pop_front();
  }
  return decision;
}

std::vector<DroppedRequest> TakeDead(TenantQueues& queues, absl::Time now) {
  std::vector<DroppedRequest> dropped;
  for (auto& [tenant, queue] : queues) {
    std::erase_if(queue.requests, [&](std::unique_ptr<AttentionRequest>& request) {
      DropReason reason;
      if (!IsDead(*request, now, &reason)) return false;
      dropped.push_back({std::move(request), reason});
      return true;
    });
  }
  std::erase_if(queues, [](const auto& entry) { return entry.second.requests.empty(); });
  return dropped;
}

absl::Duration RetryDelay(std::int64_t queued_requests, double requests_per_second) {
  constexpr absl::Duration kUnknownRate = absl::Milliseconds(100);
  if (requests_per_second <= 0) return kUnknownRate;
  const absl::Duration delay =
      absl::Seconds(static_cast<double>(queued_requests) / requests_per_second);
  return std::clamp(delay, absl::Milliseconds(1), absl::Seconds(10));
}

}  // namespace attention::server
