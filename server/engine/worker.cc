#include "server/engine/worker.h"

#include <utility>

#include "kernels/base/cpu_affinity.h"
#include "server/base/status_macros.h"
#include "server/engine/contained.h"
#include "server/engine/sliced_attention.h"

namespace attention::server {

void Worker::BeginThread() {
  if (options_.cpu.has_value()) PinThisThread(*options_.cpu);
}

void Worker::Execute(Batch batch) {
  std::vector<AttentionResult> results(batch.requests.size());
  RequestTiming timing;
  timing.batch_size = static_cast<int>(batch.requests.size());

  BatchAssembly assembly(backend_, options_.spiller);
  const absl::Status status = Compute(batch, assembly, results, timing);
  if (!status.ok()) {
    assembly.RollBack();
    // Before any request is answered: a retry must meet a device that is well again.
    ReportFailure(options_.on_failure, status);
    for (AttentionResult& result : results) {
      if (result.status.ok()) result.status = status;
    }
  }
  timing.computed = clock_.Now();
  metrics_.tokens_appended.Add(assembly.tokens_appended());
  metrics_.batch_formation_seconds.Observe(absl::ToDoubleSeconds(timing.batch_formation));
  metrics_.compute_seconds.Observe(absl::ToDoubleSeconds(timing.compute));

  for (std::size_t i = 0; i < batch.requests.size(); ++i) {
    results[i].timing = timing;
    results[i].timing.queue = batch.taken - batch.requests[i]->arrival;
    metrics_.queue_seconds.Observe(absl::ToDoubleSeconds(results[i].timing.queue));
    metrics_.flops.Add(static_cast<std::int64_t>(batch.requests[i]->flops));
    Complete(std::move(batch.requests[i]), std::move(results[i]));
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
  return std::make_unique<SlicedAttention>(backend_, clock_, metrics_, std::move(request), taken,
                                           options_.on_failure, options_.spiller);
}

absl::Status Worker::Project(const std::vector<ProjectionTask>& tasks) {
  // Those of a layer, of whichever request, share one pass over its weights.
  return tasks.empty() ? absl::OkStatus() : backend_.projections()->Project(tasks);
}

absl::Status Worker::Run(BatchAssembly& assembly, RequestTiming& timing) {
  const absl::Time planning = clock_.Now();
  std::vector<std::vector<KvAppendTask>> waves = assembly.AppendWaves();
  std::vector<AttentionTask> tasks = assembly.Tasks();
  ATTENTION_ASSIGN_OR_RETURN(std::unique_ptr<AttentionPlan> plan, backend_.Plan(tasks));

  const absl::Time computing = clock_.Now();
  timing.batch_formation += computing - planning;
  ATTENTION_RETURN_IF_ERROR(Project(assembly.inputs()));
  for (const std::vector<KvAppendTask>& wave : waves) {
    ATTENTION_RETURN_IF_ERROR(backend_.AppendKv(wave));
  }
  ATTENTION_RETURN_IF_ERROR(backend_.Run(*plan));
  for (const WeightsTask& task : assembly.weights()) {
    ATTENTION_RETURN_IF_ERROR(backend_.RunWeights(task));
  }
  ATTENTION_RETURN_IF_ERROR(Project(assembly.outputs()));
  timing.compute = clock_.Now() - computing;
  return absl::OkStatus();
}

}  // namespace attention::server
