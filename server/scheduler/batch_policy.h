// Which queued requests run next: pure functions of the queues, the time and the limits.
//
// Fairness is start-time fair queueing (Goyal, Vin, Cheng 1996) over estimated work: each tenant
// has a virtual time that advances by the work it is given divided by its weight (all 1 here); the
// tenant furthest behind is served next. A tenant that was idle starts at the least virtual time of
// the busy ones, so idleness earns no credit. Within a tenant requests run in order of arrival,
// which also keeps the steps of a session in order.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/base/metrics.h"
#include "server/domain/attention_request.h"

namespace attention::server {

struct BatchLimits {
  std::int64_t max_requests = 0;
  // A batch stops growing when its work reaches this; a larger request runs alone.
  double max_flops = 0;
};

struct TenantQueue {
  std::deque<std::unique_ptr<AttentionRequest>> requests;
  double virtual_time = 0;
};

// Ordered by name so that ties are broken the same way every time.
using TenantQueues = std::map<std::string, TenantQueue>;

struct DroppedRequest {
  std::unique_ptr<AttentionRequest> request;
  DropReason reason;
};

struct BatchDecision {
  std::vector<std::unique_ptr<AttentionRequest>> batch;
  std::vector<DroppedRequest> dropped;
};

// Puts a request at the end of its tenant's queue.
void Enqueue(TenantQueues& queues, std::unique_ptr<AttentionRequest> request);

// Removes from the queues the next batch, and expired or cancelled requests met on the way. Removes
// queues that ran empty.
BatchDecision TakeBatch(TenantQueues& queues, absl::Time now, const BatchLimits& limits);

// Removes every expired or cancelled request, so that the dead do not take the room of the living.
std::vector<DroppedRequest> TakeDead(TenantQueues& queues, absl::Time now);

// How long a refused client should wait: the time to work off the queue at the measured rate,
// between 1 ms and 10 s. A rate of 0 means unknown.
absl::Duration RetryDelay(std::int64_t queued_requests, double requests_per_second);

}  // namespace attention::server
