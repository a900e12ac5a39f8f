#include "server/scheduler/scheduler_pool.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <utility>

#include "server/base/mutex.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

// The steps of a request that one device computes.
struct Part {
  std::unique_ptr<AttentionRequest> request;
  std::vector<std::size_t> indices;  // of its steps in the whole
};

// The place of one of the whole's steps in a part.
struct PartStep {
  Part* part = nullptr;
  std::size_t step = 0;
};

// Gives each projection to the part that has its step.
void CutProjections(const std::vector<RequestProjection>& whole,
                    std::vector<RequestProjection> AttentionRequest::*projections,
                    const std::vector<PartStep>& steps) {
  for (const RequestProjection& projection : whole) {
    const PartStep& step = steps[*projection.step];
    std::vector<RequestProjection>& of_part = step.part->request.get()->*projections;
    of_part.push_back(projection);
    of_part.back().step = step.step;
  }
}

// Work and bytes of a request are known for all its steps together; a part counts by its steps.
std::map<int, Part> Cut(AttentionRequest& whole) {
  const auto num_steps = static_cast<double>(whole.steps.size());
  std::map<int, Part> parts;
  std::vector<PartStep> steps;
  for (std::size_t i = 0; i < whole.steps.size(); ++i) {
    Part& part = parts[whole.steps[i].device];
    if (part.request == nullptr) {
      part.request = std::make_unique<AttentionRequest>();
      part.request->tenant = whole.tenant;
      part.request->priority = whole.priority;
      part.request->arrival = whole.arrival;
      part.request->deadline = whole.deadline;
      part.request->is_cancelled = whole.is_cancelled;
      part.request->projections_owner = whole.projections_owner;
    }
    steps.push_back({&part, part.indices.size()});
    part.request->steps.push_back(std::move(whole.steps[i]));
    part.indices.push_back(i);
  }
  CutProjections(whole.inputs, &AttentionRequest::inputs, steps);
  CutProjections(whole.outputs, &AttentionRequest::outputs, steps);
  for (auto& [device, part] : parts) {
    const double share = static_cast<double>(part.indices.size()) / num_steps;
    part.request->work = whole.work * share;
    part.request->flops = whole.flops * share;
    part.request->bytes = static_cast<std::int64_t>(static_cast<double>(whole.bytes) * share);
  }
  return parts;
}

// Puts the results of the parts together; completes the whole when the last has come.
class Joint {
 public:
  Joint(std::unique_ptr<AttentionRequest> whole, std::size_t num_steps, std::size_t num_parts)
      : whole_(std::move(whole)), num_pending_(num_parts) {
    result_.steps.resize(num_steps);
  }

  // Takes the steps out of the result.
  void OnPart(const std::vector<std::size_t>& indices, AttentionResult& part) {
    AttentionResult joined;
    {
      MutexLock lock(&mutex_);
      for (std::size_t i = 0; i < indices.size(); ++i) {
        StepOutcome& outcome = result_.steps[indices[i]];
        if (part.status.ok()) {
          outcome = std::move(part.steps[i]);
        } else {
          outcome.status = part.status;
        }
      }
      AddTiming(part.timing);
      if (--num_pending_ > 0) return;
      joined = std::exchange(result_, {});
    }
    Complete(std::move(whole_), std::move(joined));
  }

  // Gives the whole back, of which no part was taken.
  std::unique_ptr<AttentionRequest> TakeBack() { return std::move(whole_); }

 private:
  // The slowest part is what the request waited for.
  void AddTiming(const RequestTiming& part) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    RequestTiming& timing = result_.timing;
    timing.queue = std::max(timing.queue, part.queue);
    timing.batch_formation = std::max(timing.batch_formation, part.batch_formation);
    timing.compute = std::max(timing.compute, part.compute);
    timing.batch_size = std::max(timing.batch_size, part.batch_size);
    timing.computed = std::max(timing.computed, part.computed);
  }

  Mutex mutex_;
  std::unique_ptr<AttentionRequest> whole_;
  AttentionResult result_;
  std::size_t num_pending_;
};

}  // namespace

// A continuation of admitted work is never refused, and costs all the same. Work that is taken and
// then not computed stays spent.
absl::Status SchedulerPool::Submit(std::unique_ptr<AttentionRequest>& request,
                                   Scheduler::Start start) {
  if (budget_ == nullptr) return SubmitToDevices(request, start);
  const absl::Time arrival = request->arrival;
  if (!request->is_continuation) {
    ATTENTION_RETURN_IF_ERROR(budget_->Check(request->tenant, arrival));
  }
  const std::string tenant = request->tenant;
  const absl::Duration work = request->work;
  ATTENTION_RETURN_IF_ERROR(SubmitToDevices(request, start));
  budget_->Spend(tenant, work, arrival);
  return absl::OkStatus();
}

absl::Status SchedulerPool::SubmitToDevices(std::unique_ptr<AttentionRequest>& request,
                                            Scheduler::Start start) {
  if (request->change) return schedulers_[request->change->device]->Submit(request, start);
  const std::vector<SessionStep>& steps = request->steps;
  if (steps.empty()) return LeastBusy().Submit(request, start);
  const int device = steps[0].device;
  const bool is_whole = std::all_of(steps.begin(), steps.end(), [device](const SessionStep& step) {
    return step.device == device;
  });
  return is_whole ? schedulers_[device]->Submit(request, start) : SubmitParts(request, start);
}

absl::Status SchedulerPool::SubmitParts(std::unique_ptr<AttentionRequest>& request,
                                        Scheduler::Start start) {
  const std::size_t num_steps = request->steps.size();
  std::map<int, Part> parts = Cut(*request);
  auto joint = std::make_shared<Joint>(std::move(request), num_steps, parts.size());
  std::vector<std::pair<std::vector<std::size_t>, absl::Status>> refused;
  for (auto& [device, part] : parts) {
    part.request->completion = [joint, indices = part.indices](std::unique_ptr<AttentionRequest>,
                                                               AttentionResult result) {
      joint->OnPart(indices, result);
    };
    absl::Status status = schedulers_[device]->Submit(part.request, start);
    if (!status.ok()) refused.emplace_back(std::move(part.indices), std::move(status));
  }
  if (refused.size() == parts.size()) {
    request = joint->TakeBack();
    return std::move(refused[0].second);
  }
  for (auto& [indices, status] : refused) {
    AttentionResult result;
    result.status = std::move(status);
    joint->OnPart(indices, result);
  }
  return absl::OkStatus();
}

Scheduler& SchedulerPool::LeastBusy() const {
  if (schedulers_.size() == 1) return *schedulers_[0];
  const auto least = std::min_element(
      schedulers_.begin(), schedulers_.end(),
      [](const auto& a, const auto& b) { return a->outstanding_work() < b->outstanding_work(); });
  return **least;
}

void SchedulerPool::ComputePending() {
  for (const auto& scheduler : schedulers_) scheduler->ComputePending();
}

absl::Status SchedulerPool::CheckRoom(const Scheduler::Arrival& arrival, absl::Time now) {
  if (budget_ != nullptr) ATTENTION_RETURN_IF_ERROR(budget_->Check(arrival.tenant, now));
  absl::Status status;
  for (const auto& scheduler : schedulers_) {
    status = scheduler->CheckRoom(arrival);
    if (status.ok()) return status;
  }
  return status;
}

void SchedulerPool::BeginDrain() {
  for (const auto& scheduler : schedulers_) scheduler->BeginDrain();
}

bool SchedulerPool::AwaitIdle(absl::Time deadline) {
  bool is_idle = true;
  for (const auto& scheduler : schedulers_) is_idle = scheduler->AwaitIdle(deadline) && is_idle;
  return is_idle;
}

void SchedulerPool::Stop() {
  for (const auto& scheduler : schedulers_) scheduler->Stop();
}

std::int64_t SchedulerPool::NumWaiting(const std::string& tenant) const {
  std::int64_t sum = 0;
  for (const auto& scheduler : schedulers_) sum += scheduler->NumWaiting(tenant);
  return sum;
}

std::map<std::string, std::int64_t> SchedulerPool::queued_bytes_by_tenant() const {
  std::map<std::string, std::int64_t> sum;
  for (const auto& scheduler : schedulers_) {
    for (const auto& [tenant, bytes] : scheduler->queued_bytes_by_tenant()) sum[tenant] += bytes;
  }
  return sum;
}

QueueLoad SchedulerPool::load() const {
  QueueLoad sum;
  for (const auto& scheduler : schedulers_) {
    const QueueLoad load = scheduler->load();
    sum.requests += load.requests;
    sum.bytes += load.bytes;
    sum.work += load.work;
  }
  return sum;
}

}  // namespace attention::server
