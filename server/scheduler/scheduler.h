// Admission, bounded queues and the thread that feeds one worker.
//
// Batching is continuous: whenever the worker is free it takes what has arrived, so a lone request
// never waits for company.
//
// Thread-safety: Submit, BeginDrain, queued_requests and AwaitIdle may be called from any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "server/base/clock.h"
#include "server/base/metrics.h"
#include "server/base/mutex.h"
#include "server/scheduler/batch_executor.h"
#include "server/scheduler/batch_policy.h"

namespace attention::server {

class Scheduler {
 public:
  struct Limits {
    std::int64_t max_queued_requests = 0;
    std::int64_t max_queued_bytes = 0;
    BatchLimits batch;
  };

  // All references must outlive the scheduler. The worker thread starts at once.
  Scheduler(BatchExecutor& executor, const Limits& limits, const Clock& clock,
            ServerMetrics& metrics);
  // Completes what is still queued with UNAVAILABLE and joins the worker thread.
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Takes the request, or leaves it with the caller and says why:
  //   UNAVAILABLE DRAINING, RESOURCE_EXHAUSTED QUEUE_FULL with a retry delay,
  //   DEADLINE_EXCEEDED when its deadline has passed already.
  absl::Status Submit(std::unique_ptr<AttentionRequest>& request);

  // UNAVAILABLE DRAINING when new work is no longer taken.
  absl::Status CheckAccepting() const;

  // From now on every Submit is refused, but for continuations; what is queued still runs.
  void BeginDrain();

  // Waits until nothing is queued or running. False when `deadline` came first.
  bool AwaitIdle(absl::Time deadline);

  std::int64_t queued_requests() const;

 private:
  void WorkerLoop();
  void Run(BatchDecision decision);
  void CompleteDropped(std::vector<DroppedRequest> dropped);
  absl::Status Admit(std::unique_ptr<AttentionRequest>& request,
                     std::vector<DroppedRequest>& dropped) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasRoom(const AttentionRequest& request) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CountTaken(const AttentionRequest& request) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status QueueFull() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void RecordDrain(std::size_t num_requests, absl::Duration elapsed);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return is_stopping_ || queued_requests_ > 0;
  }
  bool IsIdle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return queued_requests_ == 0 && !is_running_;
  }

  BatchExecutor& executor_;
  const Limits limits_;
  const Clock& clock_;
  ServerMetrics& metrics_;

  mutable Mutex mutex_;
  CondVar has_work_;
  CondVar is_idle_;
  TenantQueues queues_ ABSL_GUARDED_BY(mutex_);
  std::int64_t queued_requests_ ABSL_GUARDED_BY(mutex_) = 0;
  std::int64_t queued_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool is_running_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_stopping_ ABSL_GUARDED_BY(mutex_) = false;
  double requests_per_second_ ABSL_GUARDED_BY(mutex_) = 0;

  std::thread worker_;
};

}  // namespace attention::server
