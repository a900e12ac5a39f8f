// Admission, the queue, and who runs what is in it: one device's scheduler.
//
// Batching is continuous: whenever the device is free it takes what has arrived, so a lone request
// never waits for company. Work runs on the scheduler's own thread, or, when it is small and the
// device idle, on the thread that received it (ComputePending): the hop to another thread costs as
// much as a small request's whole way through the server.
//
// Thread-safety: all methods.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/base/clock.h"
#include "server/base/metrics.h"
#include "server/base/mutex.h"
#include "server/scheduler/admission.h"
#include "server/scheduler/batch_executor.h"
#include "server/scheduler/work_queue.h"

namespace attention::server {

class Scheduler {
 public:
  struct Limits {
    QueueLimits queue;
    WorkPolicy policy;
    // ComputePending computes at most this much; more is left to the scheduler's thread.
    absl::Duration max_inline_work;
  };

  // All references must outlive the scheduler. Its thread starts at once.
  Scheduler(BatchExecutor& executor, const Limits& limits, const Clock& clock,
            ServerMetrics& metrics);
  // Stops.
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // The moment when accepted work is to run.
  enum class Start {
    kNow,
    // The same as kNow, unless the work is small: then the caller promises to call ComputePending
    // soon, before it waits for anything. What else it submits until then shares the batch.
    kWithPending,
  };

  // Takes the request, or leaves it with the caller and says why:
  //   UNAVAILABLE DRAINING, RESOURCE_EXHAUSTED QUEUE_FULL with a retry delay,
  //   DEADLINE_EXCEEDED when its deadline has passed already.
  absl::Status Submit(std::unique_ptr<AttentionRequest>& request, Start start = Start::kNow);

  // Runs what was submitted with kWithPending on this thread, or hands it to the scheduler's.
  // Cheap when there is nothing.
  void ComputePending();

  // UNAVAILABLE DRAINING when new work is no longer taken.
  absl::Status CheckAccepting() const;

  struct Arrival {
    const std::string& tenant;
    Priority priority;
    std::int64_t bytes;
    absl::Time deadline;
  };
  // The answer that Submit would give, for callers that would rather not decode a message in vain.
  // OK promises nothing.
  absl::Status CheckRoom(const Arrival& arrival);

  // From now on every Submit is refused, but for continuations; what is queued still runs.
  void BeginDrain();

  // Waits until nothing is queued or running. False when `deadline` came first.
  bool AwaitIdle(absl::Time deadline);

  // Ends what runs, completes what is not done with UNAVAILABLE and joins the thread. Every later
  // Submit is refused, also of continuations. From one thread at a time.
  void Stop();

  QueueLoad load() const;
  // As SchedulerPool has them.
  std::map<std::string, std::int64_t> queued_bytes_by_tenant() const;
  // Requests of the tenant that wait.
  std::int64_t NumWaiting(const std::string& tenant) const;
  // Estimated, of what is queued or being computed.
  absl::Duration outstanding_work() const;

 private:
  void WorkerLoop();
  bool MayWorkerRun() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool MayRunInline() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Decision TakeNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Run(Decision decision);
  void RunDecision(Decision decision);
  void RunBatch(std::vector<std::unique_ptr<AttentionRequest>> requests);
  void RunSlice(std::unique_ptr<SlicedRequest> sliced);
  void EndRun() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Status Admit(std::unique_ptr<AttentionRequest>& request,
                     std::vector<DroppedRequest>& dropped) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckRoomFor(const Arrival& arrival, std::vector<DroppedRequest>& dropped)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckTenantBound(const Arrival& arrival, const QueueView& view) const;
  void CountRefusal(const std::string& tenant, const absl::Status& status);
  QueueView ViewOf(const std::string& tenant, absl::Time now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Wake(Start start) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CompleteDropped(std::vector<DroppedRequest> dropped);
  // `work`: what was computed, which is not what had been estimated when some of it failed.
  void RecordRate(absl::Duration work, absl::Duration elapsed)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool IsIdle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return queue_.empty() && !is_running_;
  }

  BatchExecutor& executor_;
  const Limits limits_;
  const Clock& clock_;
  ServerMetrics& metrics_;

  mutable Mutex mutex_;
  CondVar has_work_;
  CondVar is_idle_;
  CondVar has_stopped_;
  WorkQueue queue_ ABSL_GUARDED_BY(mutex_);
  // Whoever set it runs what is queued, and nobody else.
  bool is_running_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration running_work_ ABSL_GUARDED_BY(mutex_);
  bool is_draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // Whoever ran has left the device to be set up again, and is_running_ to whoever does it.
  bool must_recover_ ABSL_GUARDED_BY(mutex_) = false;
  double work_rate_ ABSL_GUARDED_BY(mutex_) = 0;
  // Set under the lock, read without it: what is queued waits for somebody's ComputePending.
  std::atomic<bool> is_pending_{false};
  std::atomic<bool> should_yield_{false};

  std::thread worker_;
};

}  // namespace attention::server
