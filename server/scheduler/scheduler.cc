#include "server/scheduler/scheduler.h"

#include <algorithm>
#include <new>
#include <utility>

#include "server/base/contain_exceptions.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

absl::Status DropStatus(DropReason reason) {
  switch (reason) {
    case DropReason::kDeadline:
      return absl::DeadlineExceededError("the deadline passed before the request was computed");
    case DropReason::kCancelled:
      return absl::CancelledError("the client cancelled before the request was computed");
    case DropReason::kDraining:
      break;
  }
  return ReasonedError(absl::StatusCode::kUnavailable, ErrorReason::kDraining,
                       "the server is shutting down");
}

// The same, or less of it when memory is out.
absl::Status ContainedDropStatus(DropReason reason) {
  return ContainExceptions([reason] { return DropStatus(reason); });
}

absl::Duration WorkOf(const Decision& decision) {
  absl::Duration work;
  for (const auto& request : decision.batch) work += request->work;
  if (decision.long_request != nullptr) work += decision.long_request->work;
  if (decision.sliced != nullptr) {
    work += decision.sliced->request().work * (1 - decision.sliced->progress());
  }
  return work;
}

}  // namespace

Scheduler::Scheduler(BatchExecutor& executor, const Limits& limits, const Clock& clock,
                     ServerMetrics& metrics)
    : executor_(executor),
      limits_(limits),
      clock_(clock),
      metrics_(metrics),
      queue_(limits.policy) {
  worker_ = std::thread([this] { WorkerLoop(); });
}

Scheduler::~Scheduler() { Stop(); }

void Scheduler::Stop() {
  {
    MutexLock lock(&mutex_);
    is_draining_ = true;
    is_stopping_ = true;
    should_yield_.store(true);
    has_work_.NotifyAll();
  }
  if (worker_.joinable()) worker_.join();
  bool must_recover = false;
  {
    MutexLock lock(&mutex_);
    // Another thread may be in ComputePending.
    has_stopped_.Await(&mutex_, [this] { return !is_running_ || must_recover_; });
    must_recover = std::exchange(must_recover_, false);
  }
  if (must_recover) executor_.Recover();
  std::vector<DroppedRequest> dropped;
  std::vector<std::unique_ptr<SlicedRequest>> sliced;
  {
    MutexLock lock(&mutex_);
    if (must_recover) EndRun();
    sliced = queue_.TakeAllSliced();
    for (std::unique_ptr<AttentionRequest>& request : queue_.TakeAll()) {
      dropped.push_back({std::move(request), DropReason::kDraining});
    }
  }
  for (const auto& request : sliced) request->Abandon(ContainedDropStatus(DropReason::kDraining));
  CompleteDropped(std::move(dropped));
}

// --- Admission
// ------------------------------------------------------------------------------------

absl::Status Scheduler::Submit(std::unique_ptr<AttentionRequest>& request, Start start) {
  std::vector<DroppedRequest> dropped;
  absl::Status status;
  {
    MutexLock lock(&mutex_);
    status = Admit(request, dropped);
    if (status.ok()) Wake(start);
  }
  CompleteDropped(std::move(dropped));  // without the lock: completions are the callers' code
  return status;
}

absl::Status Scheduler::Admit(std::unique_ptr<AttentionRequest>& request,
                              std::vector<DroppedRequest>& dropped) {
  if (is_stopping_) return DropStatus(DropReason::kDraining);
  if (!request->is_continuation) {
    absl::Status status = CheckRoomFor(
        {request->tenant, request->priority, request->bytes, request->deadline}, dropped);
    if (!status.ok()) return status;
  }
  queue_.Add(std::move(request));
  return absl::OkStatus();
}

QueueView Scheduler::ViewOf(const std::string& tenant, absl::Time now) const {
  return {queue_.load(), queue_.load(tenant, now), queue_.ShareOf(tenant, now), work_rate_};
}

absl::Status Scheduler::CheckTenantBound(const Arrival& arrival, const QueueView& view) const {
  const TenantLimitsTable* limits = limits_.policy.tenants.limits;
  if (limits == nullptr) return absl::OkStatus();
  return CheckTenantBytes(arrival.tenant, view.tenant.bytes, arrival.bytes,
                          limits->Of(arrival.tenant).queued_bytes,
                          RetryDelay(view.tenant.work / view.tenant_share, view.work_rate));
}

absl::Status Scheduler::CheckRoomFor(const Arrival& arrival, std::vector<DroppedRequest>& dropped) {
  if (is_draining_) return DropStatus(DropReason::kDraining);
  const absl::Time now = clock_.Now();
  if (now >= arrival.deadline) {
    metrics_.dropped[static_cast<int>(DropReason::kDeadline)].Add();
    return absl::DeadlineExceededError("the deadline had passed when the request arrived");
  }
  // A request that is first in its tenant's queue does not wait for what is in it.
  const bool is_first =
      arrival.priority == Priority::kHigh && !queue_.IsShared(arrival.tenant, now);
  const absl::Duration until_deadline =
      is_first ? absl::InfiniteDuration() : arrival.deadline - now;
  const auto check = [&]() -> absl::Status {
    const QueueView view = ViewOf(arrival.tenant, now);
    ATTENTION_RETURN_IF_ERROR(CheckTenantBound(arrival, view));
    return CheckAdmission(view, limits_.queue, arrival.bytes, until_deadline);
  };
  absl::Status status = check();
  if (!status.ok()) {
    dropped = queue_.TakeExpiredAndCancelled(now);
    if (!dropped.empty()) status = check();
  }
  if (!status.ok()) CountRefusal(arrival.tenant, status);
  return status;
}

void Scheduler::CountRefusal(const std::string& tenant, const absl::Status& status) {
  TenantLimitsTable* limits = limits_.policy.tenants.limits;
  if (limits != nullptr && HasReason(status, ErrorReason::kQuotaExceeded)) {
    limits->CountRefusal(TenantLimit::kQueuedBytes, tenant);
  } else {
    metrics_.rejected_queue_full.Add();
  }
}

absl::Status Scheduler::CheckRoom(const Arrival& arrival) {
  std::vector<DroppedRequest> dropped;
  absl::Status status;
  {
    MutexLock lock(&mutex_);
    status = CheckRoomFor(arrival, dropped);
  }
  CompleteDropped(std::move(dropped));
  return status;
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

QueueLoad Scheduler::load() const {
  MutexLock lock(&mutex_);
  return queue_.load();
}

std::map<std::string, std::int64_t> Scheduler::queued_bytes_by_tenant() const {
  MutexLock lock(&mutex_);
  return queue_.BytesByTenant();
}

std::int64_t Scheduler::NumWaiting(const std::string& tenant) const {
  MutexLock lock(&mutex_);
  return queue_.NumWaiting(tenant);
}

absl::Duration Scheduler::outstanding_work() const {
  MutexLock lock(&mutex_);
  return queue_.load().work + running_work_;
}

// --- Running
// --------------------------------------------------------------------------------------

bool Scheduler::MayRunInline() const {
  return queue_.num_in_progress() == 0 && queue_.load().work <= limits_.max_inline_work;
}

void Scheduler::Wake(Start start) {
  // Whoever runs now finds the new work when he is done, or, in a slice, is asked to make way.
  if (is_running_) {
    should_yield_.store(true, std::memory_order_relaxed);
    return;
  }
  if (start == Start::kWithPending && MayRunInline()) {
    is_pending_.store(true, std::memory_order_relaxed);
    return;
  }
  is_pending_.store(false, std::memory_order_relaxed);
  has_work_.NotifyAll();
}

void Scheduler::ComputePending() {
  if (!is_pending_.load(std::memory_order_relaxed)) return;
  Decision decision;
  {
    MutexLock lock(&mutex_);
    if (!is_pending_.load(std::memory_order_relaxed) || is_running_ || is_stopping_) return;
    is_pending_.store(false, std::memory_order_relaxed);
    decision = TakeNext();
  }
  Run(std::move(decision));
  MutexLock lock(&mutex_);
  if (executor_.needs_recovery()) {
    // Takes seconds, for which this thread would serve nobody.
    must_recover_ = true;
    has_work_.NotifyAll();
    if (is_stopping_) has_stopped_.NotifyAll();
  } else {
    EndRun();
  }
}

bool Scheduler::MayWorkerRun() const {
  if (is_stopping_ || must_recover_) return true;
  return !queue_.empty() && !is_running_ && !is_pending_.load(std::memory_order_relaxed);
}

void Scheduler::WorkerLoop() {
  executor_.BeginThread();
  for (;;) {
    Decision decision;
    {
      MutexLock lock(&mutex_);
      has_work_.Await(&mutex_, [this] { return MayWorkerRun(); });
      if (!std::exchange(must_recover_, false)) {
        if (is_stopping_) return;
        decision = TakeNext();
      }
    }
    Run(std::move(decision));
    if (executor_.needs_recovery()) executor_.Recover();
    MutexLock lock(&mutex_);
    EndRun();
  }
}

Decision Scheduler::TakeNext() {
  is_running_ = true;
  Decision decision;
  try {
    queue_.Next(clock_.Now(), decision);
  } catch (const std::bad_alloc&) {
    // The decision so far is carried out, and EndRun has the rest tried again.
  }
  running_work_ = WorkOf(decision);
  should_yield_.store(queue_.ShouldYield(), std::memory_order_relaxed);
  return decision;
}

void Scheduler::EndRun() {
  is_running_ = false;
  running_work_ = absl::ZeroDuration();
  if (is_stopping_) has_stopped_.NotifyAll();
  if (IsIdle()) {
    is_idle_.NotifyAll();
  } else if (!is_pending_.load(std::memory_order_relaxed)) {
    has_work_.NotifyAll();
  }
}

// Whatever happens, the device must not count as busy for good.
void Scheduler::Run(Decision decision) {
  TryRun([&] { RunDecision(std::move(decision)); });
}

void Scheduler::RunDecision(Decision decision) {
  CompleteDropped(std::move(decision.dropped));
  for (AbandonedRequest& entry : decision.abandoned) {
    metrics_.dropped[static_cast<int>(entry.reason)].Add();
    entry.request->Abandon(ContainedDropStatus(entry.reason));
  }
  if (decision.long_request != nullptr) {
    metrics_.batch_requests.Observe(1);
    decision.sliced = executor_.BeginSliced(std::move(decision.long_request), clock_.Now());
    if (decision.sliced == nullptr) {
      MutexLock lock(&mutex_);
      queue_.EndSlice(nullptr, 0);
    }
  }
  if (decision.sliced != nullptr) return RunSlice(std::move(decision.sliced));
  if (!decision.batch.empty()) RunBatch(std::move(decision.batch));
}

void Scheduler::RunBatch(std::vector<std::unique_ptr<AttentionRequest>> requests) {
  const absl::Time taken = clock_.Now();
  metrics_.batch_requests.Observe(static_cast<double>(requests.size()));
  const std::vector<double> computed = executor_.Execute({std::move(requests), taken});
  const absl::Duration elapsed = clock_.Now() - taken;
  MutexLock lock(&mutex_);
  RecordRate(queue_.EndBatch(computed), elapsed);
}

void Scheduler::RunSlice(std::unique_ptr<SlicedRequest> sliced) {
  const absl::Time begin = clock_.Now();
  const absl::Duration work = sliced->request().work;
  const double progress = sliced->progress();
  const bool is_done = sliced->RunSlice(should_yield_);
  const absl::Duration elapsed = clock_.Now() - begin;
  const double computed = sliced->progress();
  if (is_done) sliced.reset();
  MutexLock lock(&mutex_);
  RecordRate(work * (computed - progress), elapsed);
  queue_.EndSlice(std::move(sliced), computed);
}

void Scheduler::CompleteDropped(std::vector<DroppedRequest> dropped) {
  for (DroppedRequest& entry : dropped) {
    metrics_.dropped[static_cast<int>(entry.reason)].Add();
    AttentionResult result;
    result.status = ContainedDropStatus(entry.reason);
    Complete(std::move(entry.request), std::move(result));
  }
}

void Scheduler::RecordRate(absl::Duration work, absl::Duration elapsed) {
  // An average that forgets over a second of computing follows a change of load, and weighs a batch
  // by its length.
  constexpr absl::Duration kMemory = absl::Seconds(1);
  if (work <= absl::ZeroDuration()) return;
  elapsed = std::max(elapsed, absl::Microseconds(1));
  const double rate = absl::FDivDuration(work, elapsed);
  const double weight = std::min(1.0, absl::FDivDuration(elapsed, kMemory));
  work_rate_ = work_rate_ == 0 ? rate : (1 - weight) * work_rate_ + weight * rate;
}

}  // namespace attention::server
