#include "server/scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/error_reason.h"

namespace attention::server {
namespace {

absl::Status DropStatus(DropReason reason) {
  switch (reason) {
    case DropReason::kDeadline:
      return absl::DeadlineExceededError("the deadline passed while the request was queued");
    case DropReason::kCancelled:
      return absl::CancelledError("the client cancelled while the request was queued");
    case DropReason::kDraining:
      break;
  }
  return ReasonedError(absl::StatusCode::kUnavailable, ErrorReason::kDraining,
                       "the server is shutting down");
}

}  // namespace

Scheduler::Scheduler(BatchExecutor& executor, const Limits& limits, const Clock& clock,
                     ServerMetrics& metrics)
    : executor_(executor), limits_(limits), clock_(clock), metrics_(metrics) {
  worker_ = std::thread([this] { WorkerLoop(); });
}

Scheduler::~Scheduler() {
  BeginDrain();
  std::vector<DroppedRequest> dropped;
  {
    MutexLock lock(&mutex_);
    is_stopping_ = true;
    has_work_.NotifyAll();
    for (auto& [tenant, queue] : queues_) {
      for (auto& request : queue.requests) {
        dropped.push_back({std::move(request), DropReason::kDraining});
      }
    }
    queues_.clear();
    queued_requests_ = 0;
    queued_bytes_ = 0;
  }
  worker_.join();
  CompleteDropped(std::move(dropped));
}

absl::Status Scheduler::QueueFull() {
  metrics_.rejected_queue_full.Add();
  return ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull,
                       absl::StrCat("the queue holds ", queued_requests_, " requests of ",
                                    limits_.max_queued_requests, " and ", queued_bytes_,
                                    " bytes of ", limits_.max_queued_bytes),
                       {}, RetryDelay(queued_requests_, requests_per_second_));
}

absl::Status Scheduler::Submit(std::unique_ptr<AttentionRequest>& request) {
  std::vector<DroppedRequest> dropped;
  absl::Status status;
  {
    MutexLock lock(&mutex_);
    status = Admit(request, dropped);
  }
  CompleteDropped(std::move(dropped));  // without the lock: completions are the callers' code
  return status;
}

absl::Status Scheduler::Admit(std::unique_ptr<AttentionRequest>& request,
                              std::vector<DroppedRequest>& dropped) {
  if (is_draining_ && !request->is_continuation) return DropStatus(DropReason::kDraining);
  const absl::Time now = clock_.Now();
  if (now >= request->deadline) {
    metrics_.dropped[static_cast<int>(DropReason::kDeadline)].Add();
    return absl::DeadlineExceededError("the deadline had passed when the request arrived");
  }
  if (!HasRoom(*request)) {
    dropped = TakeDead(queues_, now);
    for (const DroppedRequest& entry : dropped) CountTaken(*entry.request);
  }
  if (!HasRoom(*request)) return QueueFull();
  ++queued_requests_;
  queued_bytes_ += request->bytes;
  Enqueue(queues_, std::move(request));
  has_work_.NotifyAll();
  return absl::OkStatus();
}

bool Scheduler::HasRoom(const AttentionRequest& request) const {
  if (request.is_continuation) return true;
  if (queued_requests_ >= limits_.max_queued_requests) return false;
  // A request larger than the byte bound may still run when nothing else is queued.
  return queued_requests_ == 0 || queued_bytes_ + request.bytes <= limits_.max_queued_bytes;
}

void Scheduler::CountTaken(const AttentionRequest& request) {
  --queued_requests_;
  queued_bytes_ -= request.bytes;
}

absl::Status Scheduler::CheckAccepting() const {
  MutexLock lock(&mutex_);
  return is_draining_ ? DropStatus(DropReason::kDraining) : absl::OkStatus();
}

void Scheduler::BeginDrain() {
  MutexLock lock(&mutex_);
  is_draining_ = true;
}

bool Scheduler::AwaitIdle(absl::Time deadline) {
  MutexLock lock(&mutex_);
  return is_idle_.AwaitUntil(&mutex_, deadline, [this] { return IsIdle(); });
}

std::int64_t Scheduler::queued_requests() const {
  MutexLock lock(&mutex_);
  return queued_requests_;
}

void Scheduler::WorkerLoop() {
  for (;;) {
    BatchDecision decision;
    {
      MutexLock lock(&mutex_);
      has_work_.Await(&mutex_, [this] { return HasWork(); });
      if (is_stopping_) return;
      decision = TakeBatch(queues_, clock_.Now(), limits_.batch);
      for (const auto& request : decision.batch) CountTaken(*request);
      for (const auto& dropped : decision.dropped) CountTaken(*dropped.request);
      is_running_ = true;
    }
    Run(std::move(decision));
    MutexLock lock(&mutex_);
    is_running_ = false;
    if (IsIdle()) is_idle_.NotifyAll();
  }
}

void Scheduler::Run(BatchDecision decision) {
  CompleteDropped(std::move(decision.dropped));
  if (decision.batch.empty()) return;
  const std::size_t num_requests = decision.batch.size();
  const absl::Time taken = clock_.Now();
  metrics_.batch_requests.Observe(static_cast<double>(num_requests));
  executor_.Execute({std::move(decision.batch), taken});
  RecordDrain(num_requests, clock_.Now() - taken);
}

void Scheduler::CompleteDropped(std::vector<DroppedRequest> dropped) {
  for (DroppedRequest& entry : dropped) {
    metrics_.dropped[static_cast<int>(entry.reason)].Add();
    AttentionResult result;
    result.status = DropStatus(entry.reason);
    Complete(std::move(entry.request), std::move(result));
  }
}

void Scheduler::RecordDrain(std::size_t num_requests, absl::Duration elapsed) {
  // An exponential average over about ten batches follows a change of load within a second.
  constexpr double kWeight = 0.1;
  const double seconds = std::max(absl::ToDoubleSeconds(elapsed), 1e-6);
  const double rate = static_cast<double>(num_requests) / seconds;
  MutexLock lock(&mutex_);
  requests_per_second_ =
      requests_per_second_ == 0 ? rate : (1 - kWeight) * requests_per_second_ + kWeight * rate;
}

}  // namespace attention::server
