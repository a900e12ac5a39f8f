#include "server/layer/forward_graph.h"

#include "server/domain/row_checksums.h"
#include "server/domain/work_model.h"

namespace attention::server {
namespace {

// The mask's element of a row of sequence `i`.
const std::uint8_t* MaskAt(const KeyMask& mask, const RaggedRows& kv, std::size_t i,
                           std::int64_t row) {
  const std::int64_t first = kv.is_dense ? static_cast<std::int64_t>(i) * mask.sequence_stride
                                         : kv.begins[i] * mask.row_stride;
  return mask.data + first + row * mask.row_stride;
}

// Adds sequence after sequence; their rows lie one after another in the memory.
class GraphBuilder {
 public:
  GraphBuilder(const Layer& layer, const ForwardInput& input, const ForwardMemory& memory)
      : layer_(layer),
        spec_(layer.spec),
        weights_(*layer.weights),
        input_(input),
        kv_rows_(input.KvRows(spec_)),
        memory_(memory) {}

  ForwardGraph Build() {
    for (std::int64_t i = 0; i < input_.num_sequences; ++i) {
      AddSequence(static_cast<std::size_t>(i));
    }
    graph_.work += projections_.work();
    return std::move(graph_);
  }

 private:
  // The place of a sequence's rows.
  struct Sequence {
    std::size_t index = 0;
    std::int64_t x_len = 0;
    std::int64_t kv_len = 0;
    const float* input = nullptr;
    float* attended = nullptr;
    float* kv = nullptr;  // of cross-attention
    std::optional<std::size_t> step;
  };

  void AddSequence(std::size_t i) {
    Sequence sequence;
    sequence.index = i;
    sequence.x_len = input_.x.is_present() ? input_.x.lens[i] : 0;
    sequence.kv_len = kv_rows_.is_present() ? kv_rows_.lens[i] : 0;
    float* input = memory_.input + x_row_ * weights_.input().out_features();
    sequence.input = input;
    sequence.attended = memory_.attended + x_row_ * spec_.o_columns();
    if (!input_.sessions.empty()) sequence.step = i;
    if (spec_.is_cross()) {
      sequence.kv = memory_.kv + kv_row_ * weights_.context()->out_features();
    }
    const AttentionTask task = TaskOf(sequence);
    if (sequence.x_len > 0) {
      AddInput(weights_.input(), input_.x, sequence, input);
      SetRotary(i, &graph_.inputs.back().task);
      AddOutput(sequence);
    }
    if (spec_.is_cross() && sequence.kv_len > 0) {
      AddInput(*weights_.context(), input_.context, sequence, sequence.kv);
    }
    if (sequence.step) {
      AddStep(input_.sessions[i], task, sequence);
    } else {
      graph_.tasks.push_back(task);
      graph_.work += EstimateWork(task);
    }
    x_row_ += sequence.x_len;
    kv_row_ += spec_.is_cross() ? sequence.kv_len : 0;
  }

  // Its keys and values are those of the call; a step puts the cache in their place.
  AttentionTask TaskOf(const Sequence& sequence) const {
    const AttentionParams& p = spec_.attention;
    AttentionTask task;
    task.params = p;
    task.q_len = sequence.x_len;
    task.kv_len = sequence.kv_len;
    task.first_query_position = spec_.is_cross() ? 0 : sequence.kv_len - sequence.x_len;
    const std::int64_t input_columns = weights_.input().out_features();
    task.q = {sequence.input, DType::kFloat32, input_columns, p.head_dim_qk};
    const float* k = spec_.is_cross() ? sequence.kv : sequence.input + spec_.q_columns();
    const std::int64_t kv_columns =
        spec_.is_cross() ? weights_.context()->out_features() : input_columns;
    task.k = {k, DType::kFloat32, kv_columns, p.head_dim_qk};
    task.v = {k + spec_.k_columns(), DType::kFloat32, kv_columns, p.head_dim_v};
    task.o = DenseRows(static_cast<void*>(sequence.attended), DType::kFloat32, p.num_q_heads,
                       p.head_dim_v);
    if (!spec_.alibi_slopes.empty()) task.alibi_slopes = spec_.alibi_slopes.data();
    if (!spec_.sink_logits.empty()) task.sink_logits = spec_.sink_logits.data();
    if (input_.mask.data != nullptr) {
      task.mask = {MaskAt(input_.mask, kv_rows_, sequence.index, 0), 0, 0, input_.mask.row_stride};
    }
    return task;
  }

  void AddInput(const PackedProjection& projection, const RaggedRows& rows,
                const Sequence& sequence, float* y) {
    ProjectionTask task;
    task.projection = &projection;
    task.num_rows = rows.lens[sequence.index];
    task.x = rows.At(rows.begins[sequence.index]);
    task.x_dtype = rows.dtype;
    task.x_stride = rows.columns;
    task.y = y;
    task.y_stride = projection.out_features();
    graph_.inputs.push_back({task, sequence.step});
    projections_.Add(task);
  }

  void AddOutput(const Sequence& sequence) {
    const RaggedRows& x = input_.x;
    ProjectionTask task;
    task.projection = &weights_.output();
    task.num_rows = sequence.x_len;
    task.x = sequence.attended;
    task.x_stride = spec_.o_columns();
    task.y = memory_.output + x.begins[sequence.index] * spec_.output_dim *
                                  static_cast<std::int64_t>(DTypeBytes(x.dtype));
    task.y_dtype = x.dtype;
    task.y_stride = spec_.output_dim;
    graph_.outputs.push_back({task, sequence.step});
    projections_.Add(task);
  }

  void SetRotary(std::size_t i, ProjectionTask* task) const {
    if (!layer_.rotary) return;
    task->rotary = &*layer_.rotary;
    task->num_rotary_heads = spec_.attention.num_q_heads + spec_.attention.num_kv_heads;
    task->rotary_head_dim = spec_.attention.head_dim_qk;
    if (!input_.first_positions.empty()) task->first_position = input_.first_positions[i];
  }

  void AddStep(const ForwardSession& session, const AttentionTask& task, const Sequence& sequence) {
    SessionStep step;
    step.cache = session.target.cache;
    step.device = session.target.device;
    step.writer = session.target.writer;
    step.layer = session.layer;
    step.expected_position = session.expected_position;
    if (kv_rows_.is_present()) {
      StepAppend& append = step.append.emplace();
      append.num_tokens = sequence.kv_len;
      append.k = task.k;
      append.v = task.v;
      const std::int64_t row_bytes =
          kv_rows_.columns * static_cast<std::int64_t>(DTypeBytes(kv_rows_.dtype));
      append.checksums =
          ChecksumInputs(layer_.layer_id, kv_rows_.At(kv_rows_.begins[sequence.index]),
                         sequence.kv_len, row_bytes);
    }
    if (input_.x.is_present()) {
      StepAttend& attend = step.attend.emplace();
      attend.task = task;
      attend.task.k = attend.task.v = {};
      attend.task.params.kv_dtype = session.target.shape.geometry.dtype;
      if (spec_.is_cross()) attend.first_query_position = 0;
    }
    graph_.work +=
        EstimateStep(step, session.target.shape.geometry, session.target.length + appended_);
    appended_ += step.num_tokens();
    graph_.steps.push_back(std::move(step));
  }

  const Layer& layer_;
  const LayerSpec& spec_;
  const LayerWeights& weights_;
  const ForwardInput& input_;
  const RaggedRows& kv_rows_;
  const ForwardMemory& memory_;
  std::int64_t x_row_ = 0;
  std::int64_t kv_row_ = 0;
  std::int64_t appended_ = 0;  // tokens, by the steps so far
  ProjectionEstimate projections_;
  ForwardGraph graph_;
};

}  // namespace

ForwardShapes ShapesOf(const Layer& layer, const ForwardInput& input) {
  const LayerWeights& weights = *layer.weights;
  ForwardShapes shapes;
  shapes.input = {input.x.num_rows(), weights.input().out_features()};
  shapes.attended = {input.x.num_rows(), layer.spec.o_columns()};
  if (layer.spec.is_cross()) {
    shapes.kv = {input.context.num_rows(), weights.context()->out_features()};
  }
  return shapes;
}

ForwardGraph BuildForwardGraph(const Layer& layer, const ForwardInput& input,
                               const ForwardMemory& memory) {
  return GraphBuilder(layer, input, memory).Build();
}

std::vector<std::pair<std::int64_t, std::int64_t>> HiddenRows(const ForwardInput& input) {
  std::vector<std::pair<std::int64_t, std::int64_t>> hidden;
  if (input.mask.data == nullptr) return hidden;
  const RaggedRows& x = input.x;
  for (std::size_t i = 0; i < x.lens.size(); ++i) {
    for (std::int64_t row = x.begins[i]; row < x.begins[i] + x.lens[i]; ++row) {
      if (*MaskAt(input.mask, x, i, row - x.begins[i]) != 0) continue;
      if (!hidden.empty() && hidden.back().second == row) {
        hidden.back().second = row + 1;
      } else {
        hidden.emplace_back(row, row + 1);
      }
    }
  }
  return hidden;
}

}  // namespace attention::server
