// A long request, computed in slices: its projections and its appends chunk by chunk, its attention
// with a plan that yields, its weights block by block.
//
// Thread-safety: as SlicedRequest.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "server/base/clock.h"
#include "server/base/metrics.h"
#include "server/engine/batch_assembly.h"
#include "server/engine/contained.h"
#include "server/engine/sliced_projection.h"
#include "server/scheduler/batch_executor.h"

namespace attention::server {

class SlicedAttention final : public SlicedRequest {
 public:
  // Completes a request that was computed, or failed with the status, at once or later.
  using Finisher = std::function<void(const absl::Status& status, std::unique_ptr<AttentionRequest>,
                                      AttentionResult)>;

  // The references must outlive it. Does nothing yet. Without a finisher the request is completed
  // at once. When this throws, the caller still has the request.
  SlicedAttention(AttentionBackend& backend, const Clock& clock, ServerMetrics& metrics,
                  std::unique_ptr<AttentionRequest>&& request, absl::Time taken,
                  Finisher finisher = nullptr, Spiller* spiller = nullptr);
  ~SlicedAttention() override;

  const AttentionRequest& request() const override { return *request_; }
  double progress() const override;
  bool RunSlice(const std::atomic<bool>& should_yield) override;
  void Abandon(const absl::Status& status) override;

 private:
  absl::StatusOr<RunState> Advance(const std::atomic<bool>& should_yield);
  absl::Status Prepare();
  absl::StatusOr<RunState> ProjectInputs(const std::atomic<bool>& should_yield);
  absl::StatusOr<RunState> ProjectOutputs(const std::atomic<bool>& should_yield);
  absl::StatusOr<RunState> Append(const std::atomic<bool>& should_yield);
  absl::Status AppendChunk(const KvAppendTask& task);
  absl::StatusOr<RunState> Attend(const std::atomic<bool>& should_yield);
  absl::StatusOr<RunState> ComputeWeights(const std::atomic<bool>& should_yield);
  // Lets go of the plan, and of the appends if it failed; the result is complete.
  void Conclude(const absl::Status& status);

  AttentionBackend& backend_;
  const Clock& clock_;
  ServerMetrics& metrics_;
  AttentionResult result_;
  BatchAssembly assembly_;
  const absl::Time taken_;
  const Finisher finisher_;
  std::unique_ptr<AttentionRequest> request_;  // behind all whose making may throw

  std::optional<double> computed_;  // of the request's work, when it is done
  bool is_prepared_ = false;
  std::optional<SlicedProjection> inputs_;
  std::optional<SlicedProjection> outputs_;
  std::vector<KvAppendTask> appends_;  // in order
  std::size_t next_append_ = 0;
  std::int64_t appended_tokens_ = 0;  // of the next append
  std::unique_ptr<AttentionPlan> plan_;
  bool has_attended_ = false;
  std::size_t next_weights_ = 0;
};

}  // namespace attention::server
