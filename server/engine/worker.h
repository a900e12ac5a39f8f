// Computes what the scheduler of one device hands it.
//
// Thread-safety: as BatchExecutor.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "server/base/clock.h"
#include "server/base/metrics.h"
#include "server/engine/batch_assembly.h"
#include "server/engine/contained.h"
#include "server/scheduler/batch_executor.h"

namespace attention::server {

class Worker final : public BatchExecutor {
 public:
  struct Options {
    // The CPU that the scheduler's thread is kept on.
    std::optional<int> cpu = {};
    // Told, in Recover, of what the backend failed with, when it was not the request's fault.
    std::function<void(const absl::Status&)> on_failure = nullptr;
    // Makes room for sessions in use; null: what is full is full.
    Spiller* spiller = nullptr;
  };

  // All references must outlive the worker.
  Worker(AttentionBackend& backend, const Clock& clock, ServerMetrics& metrics)
      : Worker(backend, clock, metrics, Options()) {}
  Worker(AttentionBackend& backend, const Clock& clock, ServerMetrics& metrics, Options options)
      : backend_(backend), clock_(clock), metrics_(metrics), options_(std::move(options)) {}

  void BeginThread() override;

  // A failure of the backend fails the batch: its appends are taken back and every request
  // completes with the error. The next batch starts clean.
  std::vector<double> Execute(Batch batch) override;

  bool needs_recovery() const override { return !failure_.ok(); }
  void Recover() override;

  std::unique_ptr<SlicedRequest> BeginSliced(std::unique_ptr<AttentionRequest> request,
                                             absl::Time taken) override;

 private:
  struct FailedRequest {
    std::unique_ptr<AttentionRequest> request;
    AttentionResult result;
  };

  absl::Status RunBatch(Batch& batch, std::vector<AttentionResult>& results, RequestTiming& timing);
  // Completes the request; when the device has failed, in Recover.
  void Finish(const absl::Status& status, std::unique_ptr<AttentionRequest> request,
              AttentionResult result);
  absl::Status Compute(Batch& batch, BatchAssembly& assembly, std::vector<AttentionResult>& results,
                       RequestTiming& timing);
  absl::Status Run(BatchAssembly& assembly, RequestTiming& timing);
  absl::Status Project(const std::vector<ProjectionTask>& tasks);

  AttentionBackend& backend_;
  const Clock& clock_;
  ServerMetrics& metrics_;
  const Options options_;
  absl::Status failure_;  // of the device, until Recover
  std::vector<FailedRequest> failed_;
};

}  // namespace attention::server
