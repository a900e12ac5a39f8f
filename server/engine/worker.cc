#include "server/engine/worker.h"

#include <utility>

#include "kernels/base/cpu_affinity.h"
#include "server/base/status_macros.h"
#include "server/domain/computed_share.h"
#include "server/engine/contained.h"
#include "server/engine/sliced_attention.h"

namespace attention::server {

void Worker::BeginThread() {
  if (options_.cpu.has_value()) PinThisThread(*options_.cpu);
}

std::vector<double> Worker::Execute(Batch batch) {
  std::vector<AttentionResult> results;
  std::vector<double> computed;
  RequestTiming timing;
  timing.batch_size = static_cast<int>(batch.requests.size());
  const absl::Status status = ContainExceptions([&] {
    computed.resize(batch.requests.size());
    return RunBatch(batch, results, timing);
  });
  timing.computed = clock_.Now();
  metrics_.batch_formation_seconds.Observe(absl::ToDoubleSeconds(timing.batch_formation));
  metrics_.compute_seconds.Observe(absl::ToDoubleSeconds(timing.compute));

  for (std::size_t i = 0; i < batch.requests.size(); ++i) {
    AttentionResult result;
    if (i < results.size()) result = std::move(results[i]);
    if (result.status.ok()) result.status = status;
    result.timing = timing;
    result.timing.queue = batch.taken - batch.requests[i]->arrival;
    const double share = ComputedShare(*batch.requests[i], result);
    if (i < computed.size()) computed[i] = share;
    metrics_.queue_seconds.Observe(absl::ToDoubleSeconds(result.timing.queue));
    metrics_.flops.Add(static_cast<std::int64_t>(share * batch.requests[i]->flops));
    Finish(status, std::move(batch.requests[i]), std::move(result));
  }
  return computed;
}

absl::Status Worker::RunBatch(Batch& batch, std::vector<AttentionResult>& results,
                              RequestTiming& timing) {
  results.resize(batch.requests.size());
  BatchAssembly assembly(backend_, options_.spiller);
  absl::Status status = Compute(batch, assembly, results, timing);
  if (status.ok()) {
    assembly.Commit();
  } else {
    assembly.RollBack();
  }
  metrics_.tokens_appended.Add(assembly.tokens_appended());
  return status;
}

void Worker::Finish(const absl::Status& status, std::unique_ptr<AttentionRequest> request,
                    AttentionResult result) {
  const bool must_wait = options_.on_failure && IsDeviceFailure(status);
  const auto keep = [&] {
    failed_.reserve(failed_.size() + 1);  // what throws leaves the request where it is
    failed_.push_back({std::move(request), std::move(result)});
    failure_ = status;
    return absl::OkStatus();
  };
  if (must_wait && ContainExceptions(keep).ok()) return;
  Complete(std::move(request), std::move(result));
}

void Worker::Recover() {
  const absl::Status failure = std::exchange(failure_, absl::OkStatus());
  ContainExceptions([&] {
    options_.on_failure(failure);
    return absl::OkStatus();
  }).IgnoreError();  // the next batch finds the device as it is
  for (FailedRequest& failed : std::exchange(failed_, {})) {
    Complete(std::move(failed.request), std::move(failed.result));
  }
}

absl::Status Worker::Compute(Batch& batch, BatchAssembly& assembly,
                             std::vector<AttentionResult>& results, RequestTiming& timing) {
  return ContainExceptions([&] {
    for (std::size_t i = 0; i < batch.requests.size(); ++i) {
      assembly.Add(*batch.requests[i], results[i]);
    }
    timing.batch_formation = clock_.Now() - batch.taken;
    return Run(assembly, timing);
  });
}

std::unique_ptr<SlicedRequest> Worker::BeginSliced(std::unique_ptr<AttentionRequest> request,
                                                   absl::Time taken) {
  const auto finish = [this](const absl::Status& status, std::unique_ptr<AttentionRequest> done,
                             AttentionResult result) {
    Finish(status, std::move(done), std::move(result));
  };
  std::unique_ptr<SlicedRequest> sliced;
  AttentionResult failed;
  failed.status = ContainExceptions([&] {
    sliced = std::make_unique<SlicedAttention>(backend_, clock_, metrics_, std::move(request),
                                               taken, finish, options_.spiller);
    return absl::OkStatus();
  });
  if (sliced == nullptr) Complete(std::move(request), std::move(failed));
  return sliced;
}

absl::Status Worker::Project(const std::vector<ProjectionTask>& tasks) {
  // Projections of one layer, of whichever request, share one pass over its weights.
  return tasks.empty() ? absl::OkStatus() : backend_.projections()->Project(tasks);
}

absl::Status Worker::Run(BatchAssembly& assembly, RequestTiming& timing) {
  if (assembly.has_changed()) return absl::OkStatus();
  const absl::Time planning = clock_.Now();
  const std::vector<KvAppendTask> appends = assembly.Appends();
  std::vector<AttentionTask> tasks = assembly.Tasks();
  ATTENTION_ASSIGN_OR_RETURN(std::unique_ptr<AttentionPlan> plan, backend_.Plan(tasks));

  const absl::Time computing = clock_.Now();
  timing.batch_formation += computing - planning;
  ATTENTION_RETURN_IF_ERROR(Project(assembly.inputs()));
  if (!appends.empty()) ATTENTION_RETURN_IF_ERROR(backend_.AppendKv(appends));
  ATTENTION_RETURN_IF_ERROR(backend_.Run(*plan));
  for (const WeightsTask& task : assembly.weights()) {
    ATTENTION_RETURN_IF_ERROR(backend_.RunWeights(task));
  }
  ATTENTION_RETURN_IF_ERROR(Project(assembly.outputs()));
  timing.compute = clock_.Now() - computing;
  return absl::OkStatus();
}

}  // namespace attention::server
