#include "server/engine/batch_assembly.h"

#include <span>

#include "absl/strings/str_cat.h"
#include "server/base/error_reason.h"
#include "server/base/status_macros.h"
#include "server/domain/weights_tasks.h"
#include "server/engine/cache_changes.h"

namespace attention::server {

namespace {

absl::Status CheckIsThere(const KvCache& cache) {
  if (!cache.is_lost()) return absl::OkStatus();
  return ReasonedError(absl::StatusCode::kNotFound, ErrorReason::kSessionLost,
                       "the session was lost: its device failed and lost its memory");
}

// Rows of a step as pieces, the first of which is row `begin_row`.
void AddPieces(const RowsView& rows, std::span<const RowsPiece> pieces, std::int64_t begin_row,
               std::vector<RowsPiece>& joined) {
  if (pieces.empty()) joined.push_back({begin_row, rows});
  for (const RowsPiece& piece : pieces) {
    joined.push_back({begin_row + piece.begin_row, piece.rows});
  }
}

}  // namespace

BatchAssembly::~BatchAssembly() {
  for (const std::shared_ptr<KvCache>& cache : held_) spiller_->Release(*cache);
}

absl::Status BatchAssembly::Hold(const std::shared_ptr<KvCache>& cache) {
  if (spiller_ == nullptr) return absl::OkStatus();
  ATTENTION_RETURN_IF_ERROR(spiller_->Hold(*cache));
  held_.push_back(cache);
  return absl::OkStatus();
}

absl::Status BatchAssembly::Extend(KvCache& cache, int layer, std::int64_t new_length) {
  if (spiller_ != nullptr) return spiller_->Extend(cache, layer, new_length);
  ATTENTION_RETURN_IF_ERROR(cache.OwnTail(backend_, layer));
  return cache.Extend(layer, new_length);
}

absl::Status BatchAssembly::Change(const CacheChange& change) {
  for (const std::shared_ptr<KvCache>& cache : change.caches) {
    ATTENTION_RETURN_IF_ERROR(CheckIsThere(*cache));
    // Another writer needs no pages: it must not fail where the device has no room for them.
    if (change.kind != CacheChange::Kind::kAttach) ATTENTION_RETURN_IF_ERROR(Hold(cache));
  }
  ATTENTION_RETURN_IF_ERROR(ApplyChange(change, backend_, spiller_));
  has_changed_ = true;
  return absl::OkStatus();
}

absl::Status BatchAssembly::CheckProjections(const AttentionRequest& request) {
  for (const auto* projections : {&request.inputs, &request.outputs}) {
    for (const RequestProjection& projection : *projections) {
      if (!projection.task.projection->is_lost()) continue;
      return ReasonedError(absl::StatusCode::kNotFound, ErrorReason::kLayerNotFound,
                           "the layer was lost: its device failed and lost its memory; it can be "
                           "created again");
    }
  }
  return absl::OkStatus();
}

void BatchAssembly::Add(AttentionRequest& request, AttentionResult& result) {
  if (request.change) {
    result.status = Change(*request.change);
    return;
  }
  for (const AttentionTask& task : request.tasks) {
    result.status = backend_.Supports(task.params, task.kv_len);
    if (!result.status.ok()) return;
  }
  result.status = CheckProjections(request);
  if (!result.status.ok()) return;
  for (const AttentionTask& task : request.tasks) attends_.push_back({nullptr, nullptr, task});
  weights_.insert(weights_.end(), request.weights.begin(), request.weights.end());
  result.steps.resize(request.steps.size());
  std::vector<std::int64_t> append_positions(request.steps.size(), 0);
  for (std::size_t i = 0; i < request.steps.size(); ++i) {
    result.steps[i].status = AddStep(request.steps[i], result.steps[i], append_positions[i]);
  }
  AddProjections(request.inputs, result, append_positions, inputs_);
  AddProjections(request.outputs, result, append_positions, outputs_);
}

void BatchAssembly::AddProjections(const std::vector<RequestProjection>& projections,
                                   const AttentionResult& result,
                                   const std::vector<std::int64_t>& append_positions,
                                   std::vector<ProjectionTask>& tasks) {
  for (const RequestProjection& projection : projections) {
    if (projection.step && !result.steps[*projection.step].status.ok()) continue;
    tasks.push_back(projection.task);
    if (projection.step) tasks.back().first_position = append_positions[*projection.step];
  }
}

absl::Status BatchAssembly::AddStep(const SessionStep& step, StepOutcome& outcome,
                                    std::int64_t& append_position) {
  KvCache& cache = *step.cache;
  ATTENTION_RETURN_IF_ERROR(CheckIsThere(cache));
  ATTENTION_RETURN_IF_ERROR(cache.CheckWriter(step.writer));
  ATTENTION_RETURN_IF_ERROR(Hold(step.cache));
  const LayerTokens layer = cache.tokens(step.layer);
  outcome.position = layer.length;
  const auto holds = [&](std::int64_t position, std::span<const std::uint32_t> checksums) {
    return cache.Holds(step.layer, position, checksums);
  };
  ATTENTION_ASSIGN_OR_RETURN(const ResolvedStep resolved, ResolveStep(step, layer, holds));
  append_position = resolved.append_position;

  AttentionTask task;
  if (step.attend) {
    task = step.attend->task;
    task.kv_len = resolved.kv_end;
    task.kv_begin = resolved.kv_begin;
    task.first_query_position = resolved.first_query_position;
    // A step that cannot attend does not append either.
    ATTENTION_RETURN_IF_ERROR(backend_.Supports(task.params, task.kv_len));
  }
  if (resolved.is_append) {
    ATTENTION_RETURN_IF_ERROR(Extend(cache, step.layer, resolved.new_length));
    old_lengths_.push_back({&cache, step.layer, layer.length});
    if (cache.shape().layer(step.layer).has_window()) {
      first_appends_.try_emplace({&cache, step.layer}, layer.length);
    }
    cache.Append(step.layer, step.append->checksums);
    appends_.push_back({&cache, &step, resolved.append_position - layer.num_dropped});
    tokens_appended_ += step.append->num_tokens;
  }
  outcome.position = resolved.new_length;
  outcome.is_replay = resolved.is_replay;
  if (!step.attend) return absl::OkStatus();
  outcome.kv_len = resolved.kv_end;
  if (step.attend->max_column_sum_bytes) {
    outcome.column_sums.resize(static_cast<std::size_t>(resolved.kv_end) * task.params.num_q_heads);
  }
  if (step.attend->max_weight_bytes) {
    outcome.weights.resize(static_cast<std::size_t>(task.q_len) * task.params.num_q_heads *
                           static_cast<std::size_t>(task.kv_len));
  }
  attends_.push_back({&step, &outcome, task});
  return absl::OkStatus();
}

std::vector<KvAppendTask> BatchAssembly::Appends() {
  struct JoinedTask {
    std::size_t task;
    RowsOfSteps* joined;  // null: of one step
  };
  std::vector<KvAppendTask> tasks;
  std::map<std::pair<const KvCache*, int>, JoinedTask> joined_tasks;
  for (const Append& append : appends_) {
    const StepAppend& rows = *append.step->append;
    const int layer = append.step->layer;
    const auto [it, is_first] =
        joined_tasks.try_emplace({append.cache, layer}, JoinedTask{tasks.size(), nullptr});
    if (is_first) {
      KvAppendTask& task = tasks.emplace_back();
      task.geometry = append.cache->geometry(layer);
      task.destination = append.cache->View(layer);
      task.position = append.position;
      task.num_tokens = rows.num_tokens;
      task.k = rows.k;
      task.v = rows.v;
      task.k_pieces = rows.k_pieces;
      task.v_pieces = rows.v_pieces;
      continue;
    }
    KvAppendTask& task = tasks[it->second.task];
    RowsOfSteps*& joined = it->second.joined;
    const bool has_values = !task.geometry.value_is_key_prefix;
    if (joined == nullptr) {
      joined = &joined_.emplace_back();
      AddPieces(task.k, task.k_pieces, 0, joined->k);
      if (has_values) AddPieces(task.v, task.v_pieces, 0, joined->v);
    }
    AddPieces(rows.k, rows.k_pieces, task.num_tokens, joined->k);
    if (has_values) AddPieces(rows.v, rows.v_pieces, task.num_tokens, joined->v);
    task.num_tokens += rows.num_tokens;
    task.k_pieces = joined->k;
    task.v_pieces = joined->v;
  }
  return tasks;
}

std::vector<AttentionTask> BatchAssembly::Tasks() {
  std::vector<AttentionTask> tasks;
  tasks.reserve(attends_.size());
  for (const Attend& attend : attends_) {
    AttentionTask task = attend.task;
    if (attend.step != nullptr) {
      task.kv_pages = attend.step->cache->View(attend.step->layer);
      if (attend.step->attend->max_column_sum_bytes)
        task.column_sums = attend.outcome->column_sums.data();
    }
    tasks.push_back(task);
  }
  return tasks;
}

std::vector<WeightsTask> BatchAssembly::weights() const {
  std::vector<WeightsTask> weights = weights_;
  for (const Attend& attend : attends_) {
    if (attend.step == nullptr || !attend.step->attend->max_weight_bytes) continue;
    AttentionTask task = attend.task;
    task.kv_pages = attend.step->cache->View(attend.step->layer);
    AddWeightsTasks(task, attend.outcome->weights.data(), weights);
  }
  return weights;
}

void BatchAssembly::Commit() noexcept {
  for (const auto& [layer, position] : first_appends_) layer.first->LetGo(layer.second, position);
}

void BatchAssembly::RollBack() {
  for (auto it = old_lengths_.rbegin(); it != old_lengths_.rend(); ++it) {
    it->cache->TakeBack(it->layer, it->length);
  }
}

}  // namespace attention::server
