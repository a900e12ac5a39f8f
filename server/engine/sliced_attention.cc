#include "server/engine/sliced_attention.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "kernels/api/append_range.h"
#include "server/base/status_macros.h"
#include "server/domain/computed_share.h"

namespace attention::server {
namespace {

// About a millisecond of copying: what others wait at the most while keys and values are appended.
constexpr std::int64_t kAppendChunkBytes = std::int64_t{8} << 20;

// Tokens of the chunk that begins at `position`. It ends on a page's granule, where the next one
// begins fastest.
std::int64_t ChunkTokens(const KvGeometry& geometry, std::int64_t position, std::int64_t left) {
  const std::int64_t token_bytes = static_cast<std::int64_t>(geometry.num_kv_heads) *
                                   geometry.elements_per_head() *
                                   static_cast<std::int64_t>(DTypeBytes(geometry.dtype));
  const std::int64_t tokens = std::max(kPageGranularity, kAppendChunkBytes / token_bytes);
  const std::int64_t end = (position + tokens) / kPageGranularity * kPageGranularity;
  return std::min(left, end - position);
}

}  // namespace

SlicedAttention::SlicedAttention(AttentionBackend& backend, const Clock& clock,
                                 ServerMetrics& metrics,
                                 std::unique_ptr<AttentionRequest>&& request, absl::Time taken,
                                 Finisher finisher, Spiller* spiller)
    : backend_(backend),
      clock_(clock),
      metrics_(metrics),
      assembly_(backend, spiller),
      taken_(taken),
      finisher_(std::move(finisher)),
      request_(std::move(request)) {
  result_.timing.queue = taken - request_->arrival;
  result_.timing.batch_size = 1;
}

SlicedAttention::~SlicedAttention() = default;

double SlicedAttention::progress() const {
  if (computed_.has_value()) return *computed_;
  if (!is_prepared_) return 0;
  double attended = has_attended_ ? 1 : 0;  // share of the attention that is done
  if (!has_attended_ && plan_ != nullptr) {
    const PlanProgress progress = plan_->progress();
    attended = progress.flops > 0 ? progress.flops_done / progress.flops : 0;
  }
  const double projection = inputs_->flops() + outputs_->flops();
  const double attention = std::max(0.0, request_->flops - projection);
  if (projection + attention <= 0) return attended;
  return (inputs_->flops_done() + outputs_->flops_done() + attended * attention) /
         (projection + attention);
}

bool SlicedAttention::RunSlice(const std::atomic<bool>& should_yield) {
  const absl::Time begin = clock_.Now();
  const double progress_before = progress();
  const absl::StatusOr<RunState> state = ContainExceptions([&] { return Advance(should_yield); });
  result_.timing.compute += clock_.Now() - begin;
  if (state.ok() && *state == RunState::kYielded) return false;
  computed_ = state.ok() ? ComputedShare(*request_, result_) : progress_before;
  Conclude(state.status());
  if (finisher_) {
    finisher_(state.status(), std::move(request_), std::move(result_));
  } else {
    Complete(std::move(request_), std::move(result_));
  }
  return true;
}

void SlicedAttention::Abandon(const absl::Status& status) {
  Conclude(status);
  Complete(std::move(request_), std::move(result_));
}

absl::StatusOr<RunState> SlicedAttention::Advance(const std::atomic<bool>& should_yield) {
  if (!is_prepared_) ATTENTION_RETURN_IF_ERROR(Prepare());
  if (assembly_.has_changed()) return RunState::kDone;
  for (const auto stage :
       {&SlicedAttention::ProjectInputs, &SlicedAttention::Append, &SlicedAttention::Attend,
        &SlicedAttention::ComputeWeights, &SlicedAttention::ProjectOutputs}) {
    ATTENTION_ASSIGN_OR_RETURN(const RunState state, (this->*stage)(should_yield));
    if (state == RunState::kYielded) return state;
  }
  return RunState::kDone;
}

absl::Status SlicedAttention::Prepare() {
  is_prepared_ = true;
  const absl::Time begin = clock_.Now();
  assembly_.Add(*request_, result_);
  appends_ = assembly_.Appends();
  inputs_.emplace(backend_.projections(), assembly_.inputs());
  outputs_.emplace(backend_.projections(), assembly_.outputs());
  result_.timing.batch_formation = clock_.Now() - begin;
  return result_.status;
}

absl::StatusOr<RunState> SlicedAttention::ProjectInputs(const std::atomic<bool>& should_yield) {
  return inputs_->Run(should_yield);
}

absl::StatusOr<RunState> SlicedAttention::ProjectOutputs(const std::atomic<bool>& should_yield) {
  return outputs_->Run(should_yield);
}

absl::StatusOr<RunState> SlicedAttention::Append(const std::atomic<bool>& should_yield) {
  while (next_append_ < appends_.size()) {
    ATTENTION_RETURN_IF_ERROR(AppendChunk(appends_[next_append_]));
    if (should_yield.load(std::memory_order_relaxed)) return RunState::kYielded;
  }
  return RunState::kDone;
}

absl::Status SlicedAttention::AppendChunk(const KvAppendTask& task) {
  const std::int64_t count = ChunkTokens(task.geometry, task.position + appended_tokens_,
                                         task.num_tokens - appended_tokens_);
  const AppendRange chunk(task, appended_tokens_, count);
  ATTENTION_RETURN_IF_ERROR(backend_.AppendKv({&chunk.task(), 1}));
  appended_tokens_ += count;
  if (appended_tokens_ == task.num_tokens) {
    ++next_append_;
    appended_tokens_ = 0;
  }
  return absl::OkStatus();
}

absl::StatusOr<RunState> SlicedAttention::Attend(const std::atomic<bool>& should_yield) {
  if (has_attended_) return RunState::kDone;
  if (plan_ == nullptr) {
    ATTENTION_ASSIGN_OR_RETURN(plan_, backend_.Plan(assembly_.Tasks()));
  }
  ATTENTION_ASSIGN_OR_RETURN(const RunState state, backend_.Run(*plan_, &should_yield));
  has_attended_ = state == RunState::kDone;
  return state;
}

absl::StatusOr<RunState> SlicedAttention::ComputeWeights(const std::atomic<bool>& should_yield) {
  const std::vector<WeightsTask> weights = assembly_.weights();
  while (next_weights_ < weights.size()) {
    ATTENTION_RETURN_IF_ERROR(backend_.RunWeights(weights[next_weights_++]));
    if (next_weights_ < weights.size() && should_yield.load(std::memory_order_relaxed)) {
      return RunState::kYielded;
    }
  }
  return RunState::kDone;
}

void SlicedAttention::Conclude(const absl::Status& status) {
  plan_.reset();  // it holds the backend, which may have failed
  if (!status.ok()) {
    assembly_.RollBack();
    if (result_.status.ok()) result_.status = status;
  } else {
    assembly_.Commit();
    metrics_.tokens_appended.Add(assembly_.tokens_appended());
    metrics_.flops.Add(
        static_cast<std::int64_t>(ComputedShare(*request_, result_) * request_->flops));
  }
  result_.timing.computed = clock_.Now();
  metrics_.queue_seconds.Observe(absl::ToDoubleSeconds(result_.timing.queue));
  metrics_.batch_formation_seconds.Observe(absl::ToDoubleSeconds(result_.timing.batch_formation));
  metrics_.compute_seconds.Observe(absl::ToDoubleSeconds(result_.timing.compute));
}

}  // namespace attention::server
