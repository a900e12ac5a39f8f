// The schedulers of all devices as one: who computes what.
//
// A step runs on the device that holds its session's cache; a request with steps on several devices
// is cut and put together again. What needs no cache goes to the device with the least work before
// it.
//
// Thread-safety: all methods.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/domain/attention_request.h"
#include "server/scheduler/scheduler.h"
#include "server/scheduler/work_budget.h"

namespace attention::server {

class SchedulerPool {
 public:
  // One scheduler for each device, in the order of SessionStep::device; at least one. `budget`,
  // which must outlive the pool, bounds the work of tenants; null: nothing does.
  explicit SchedulerPool(std::vector<std::unique_ptr<Scheduler>> schedulers,
                         WorkBudget* budget = nullptr)
      : schedulers_(std::move(schedulers)), budget_(budget) {}

  // Submits as Scheduler::Submit does, and refuses what is beyond the tenant's budget of work.
  // Steps of a request on several devices fail one by one where their device refuses them; only
  // when all refuse is the request left with the caller, and then without its steps.
  absl::Status Submit(std::unique_ptr<AttentionRequest>& request,
                      Scheduler::Start start = Scheduler::Start::kNow);

  // The same as in Scheduler, for all devices. There is room when one of them has it.
  void ComputePending();
  absl::Status CheckAccepting() const { return schedulers_[0]->CheckAccepting(); }
  absl::Status CheckRoom(const Scheduler::Arrival& arrival, absl::Time now);
  void BeginDrain();
  bool AwaitIdle(absl::Time deadline);
  void Stop();

  // The load of all devices, and that of one.
  QueueLoad load() const;
  QueueLoad load(int device) const { return schedulers_[device]->load(); }
  // The bytes that wait of those who have any. Tenants that share a turn have the empty name.
  std::map<std::string, std::int64_t> queued_bytes_by_tenant() const;
  // Requests of the tenant that wait for any device.
  std::int64_t NumWaiting(const std::string& tenant) const;

 private:
  absl::Status SubmitToDevices(std::unique_ptr<AttentionRequest>& request, Scheduler::Start start);
  Scheduler& LeastBusy() const;
  absl::Status SubmitParts(std::unique_ptr<AttentionRequest>& request, Scheduler::Start start);

  const std::vector<std::unique_ptr<Scheduler>> schedulers_;
  WorkBudget* const budget_;
};

}  // namespace attention::server
