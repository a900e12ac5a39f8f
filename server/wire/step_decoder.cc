#include "server/wire/step_decoder.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"
#include "server/domain/row_checksums.h"
#include "server/domain/work_model.h"
#include "server/wire/config_decoder.h"
#include "server/wire/draft_tree_decoder.h"
#include "server/wire/geometry_codec.h"
#include "server/wire/tensor_decoder.h"

namespace attention::server {
namespace {

absl::Status CheckPosition(absl::string_view field, std::int64_t value, std::int64_t min) {
  if (value >= min && value <= kMaxPosition) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, ", expected ", min, " to ", kMaxPosition));
}

absl::Status CheckPositions(const v1::SessionStep& wire) {
  if (wire.has_expected_position()) {
    ATTENTION_RETURN_IF_ERROR(CheckPosition("expected_position", wire.expected_position(), 0));
  }
  if (wire.has_first_query_position()) {
    ATTENTION_RETURN_IF_ERROR(
        CheckPosition("first_query_position", wire.first_query_position(), -kMaxPosition));
  }
  if (wire.has_kv_end()) ATTENTION_RETURN_IF_ERROR(CheckPosition("kv_end", wire.kv_end(), 0));
  return CheckPosition("kv_begin", wire.kv_begin(), 0);
}

// Keys and values come together, or keys alone where they hold the values.
absl::Status CheckRows(const v1::SessionStep& wire, const KvGeometry& geometry) {
  if (geometry.value_is_key_prefix) {
    if (!wire.has_v()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "v is given, expected none: the session's values are prefixes of its keys");
  }
  if (wire.has_k() != wire.has_v()) {
    return absl::InvalidArgumentError(
        absl::StrCat(wire.has_k() ? "v" : "k", " is missing, expected k and v or neither"));
  }
  return absl::OkStatus();
}

absl::Status CheckPresence(const v1::SessionStep& wire) {
  if (!wire.has_k() && !wire.has_q()) {
    return absl::InvalidArgumentError("q, k and v are missing, expected q, or k and v, or all");
  }
  if (wire.has_k() && !wire.has_expected_position()) {
    return absl::InvalidArgumentError(
        "expected_position is missing, expected the layer's length before this step");
  }
  if (!wire.has_q() && (wire.has_bias() || wire.has_mask() || wire.has_tree())) {
    return absl::InvalidArgumentError(
        absl::StrCat("q is missing, expected it with a ", wire.has_bias()   ? "bias"
                                                          : wire.has_mask() ? "mask"
                                                                            : "tree"));
  }
  return absl::OkStatus();
}

// [num_tokens, heads, head_dim] rows of k or v.
absl::Status DecodeRows(absl::string_view field, const v1::Tensor& tensor, std::int64_t heads,
                        std::int64_t head_dim, RequestTensors& tensors, RowsView* rows,
                        std::vector<RowsPiece>* pieces) {
  ATTENTION_ASSIGN_OR_RETURN(const DType dtype,
                             DecodeDType(absl::StrCat(field, ".dtype"), tensor.dtype()));
  ATTENTION_RETURN_IF_ERROR(CheckTensor(field, tensor, tensors));
  if (tensor.shape_size() != 3 || tensor.shape(1) != heads || tensor.shape(2) != head_dim) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".shape is ", ShapeText(tensor),
                                                   ", expected [num_tokens, ", heads, ", ",
                                                   head_dim, "] of the session's geometry"));
  }
  *rows = DenseRows(static_cast<const void*>(nullptr), dtype, heads, head_dim);
  tensors.PlaceRows(tensor, rows, pieces);
  return absl::OkStatus();
}

absl::Status DecodeValues(const v1::SessionStep& wire, const KvGeometry& geometry,
                          RequestTensors& tensors, StepAppend& append) {
  ATTENTION_RETURN_IF_ERROR(DecodeRows("v", wire.v(), geometry.num_kv_heads, geometry.head_dim_v,
                                       tensors, &append.v, &append.v_pieces));
  if (wire.v().shape(0) == append.num_tokens) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("v.shape is ", ShapeText(wire.v()), ", expected ",
                                                 append.num_tokens, " tokens, as k"));
}

absl::Status DecodeAppend(const v1::SessionStep& wire, const KvGeometry& geometry,
                          RequestTensors& tensors, SessionStep* step) {
  if (!wire.has_k()) return absl::OkStatus();
  StepAppend& append = step->append.emplace();
  ATTENTION_RETURN_IF_ERROR(DecodeRows("k", wire.k(), geometry.num_kv_heads, geometry.head_dim_qk,
                                       tensors, &append.k, &append.k_pieces));
  append.num_tokens = wire.k().shape(0);
  if (wire.has_v()) {
    ATTENTION_RETURN_IF_ERROR(DecodeValues(wire, geometry, tensors, append));
  }
  append.checksums = ChecksumRows(append, geometry);
  return absl::OkStatus();
}

absl::Status CheckQueryShape(const v1::Tensor& q, const KvGeometry& geometry) {
  if (q.shape_size() != 3 || q.shape(2) != geometry.head_dim_qk) {
    return absl::InvalidArgumentError(
        absl::StrCat("q.shape is ", ShapeText(q), ", expected [q_len, num_q_heads, ",
                     geometry.head_dim_qk, "] of the session's geometry"));
  }
  const std::int64_t heads = q.shape(1);
  if (heads >= 1 && heads <= kMaxHeads && heads % geometry.num_kv_heads == 0) {
    return absl::OkStatus();
  }
  return InvalidAxis("q", q, 1, "[tokens, heads, head_dim]",
                     absl::StrCat("a multiple of the session's ", geometry.num_kv_heads,
                                  " KV heads, at most ", kMaxHeads, ","));
}

absl::Status DecodeQuery(const v1::SessionStep& wire, const KvGeometry& geometry,
                         RequestTensors& tensors, StepAttend* attend) {
  AttentionTask& task = attend->task;
  const v1::Tensor& q = wire.q();
  ATTENTION_ASSIGN_OR_RETURN(task.params.dtype, DecodeDType("q.dtype", q.dtype()));
  ATTENTION_RETURN_IF_ERROR(CheckTensor("q", q, tensors));
  ATTENTION_RETURN_IF_ERROR(CheckQueryShape(q, geometry));
  task.params.num_q_heads = static_cast<int>(q.shape(1));
  task.params.num_kv_heads = geometry.num_kv_heads;
  task.params.head_dim_qk = geometry.head_dim_qk;
  task.params.head_dim_v = geometry.head_dim_v;
  task.params.value_is_key_prefix = geometry.value_is_key_prefix;
  task.params.kv_dtype = geometry.dtype;
  task.q_len = q.shape(0);
  task.q = DenseRows(static_cast<const void*>(tensors.Place(q)), task.params.dtype,
                     task.params.num_q_heads, task.params.head_dim_qk);
  ATTENTION_RETURN_IF_ERROR(DecodeConfig("config", wire.config(), &task.params));
  return DecodeHeadVectors("config", wire.config(), tensors, &task);
}

absl::Status DecodeBiasAndMask(const v1::SessionStep& wire, RequestTensors& tensors,
                               StepAttend* attend) {
  AttentionTask& task = attend->task;
  const BiasOrMaskLimits limits{1, task.params.num_q_heads, task.q_len, std::nullopt};
  if (wire.has_bias()) {
    ATTENTION_ASSIGN_OR_RETURN(
        const DecodedBiasOrMask decoded,
        DecodeBiasOrMask("bias", wire.bias(), BiasOrMaskKind::kBias, limits, tensors));
    SetBias(decoded, 0, &task);
    attend->bias_shape = decoded.shape;
  }
  if (wire.has_mask()) {
    ATTENTION_ASSIGN_OR_RETURN(
        const DecodedBiasOrMask decoded,
        DecodeBiasOrMask("mask", wire.mask(), BiasOrMaskKind::kMask, limits, tensors));
    SetMask(decoded, 0, &task);
    attend->mask_shape = decoded.shape;
  }
  return absl::OkStatus();
}

// Counts rows of `row_bytes` for each key that the step may attend over. `length`: of the layer
// before the step. Returns the bytes for which there will be room.
absl::StatusOr<std::int64_t> CountKeyRows(absl::string_view what, const SessionStep& step,
                                          std::int64_t length, std::int64_t row_bytes,
                                          ResponseBudget& budget) {
  // Other calls may append before the step runs: so much is not worth a refusal.
  constexpr std::int64_t kGrowthBytes = 64 * 1024;
  std::int64_t rows = step.expected_position.value_or(length) + step.num_tokens();
  if (step.attend->kv_end) rows = std::min(rows, *step.attend->kv_end);
  ATTENTION_RETURN_IF_ERROR(budget.CountRows(
      absl::StrCat("returns.", what, " asks for the keys' rows"), rows, row_bytes));
  return rows * row_bytes + kGrowthBytes;
}

absl::Status DeclareKeyRows(const v1::SessionStep& wire, std::int64_t length,
                            ResponseBudget& budget, SessionStep* step) {
  StepAttend& attend = *step->attend;
  const std::int64_t row_bytes =
      std::int64_t{attend.task.params.num_q_heads} * static_cast<std::int64_t>(sizeof(float));
  if (wire.returns().column_sums()) {
    ATTENTION_ASSIGN_OR_RETURN(attend.max_column_sum_bytes,
                               CountKeyRows("column_sums", *step, length, row_bytes, budget));
  }
  if (wire.returns().weights()) {
    ATTENTION_ASSIGN_OR_RETURN(
        attend.max_weight_bytes,
        CountKeyRows("weights", *step, length, row_bytes * attend.task.q_len, budget));
  }
  return absl::OkStatus();
}

absl::Status DeclareResult(const v1::SessionStep& wire, std::int64_t length, ResponseBudget& budget,
                           RequestTensors& tensors, DecodedStep* decoded) {
  const AttentionTask& task = decoded->step.attend->task;
  const std::int64_t heads = task.params.num_q_heads;
  const std::initializer_list<std::int64_t> shape = {task.q_len, heads, task.params.head_dim_v};
  ATTENTION_RETURN_IF_ERROR(
      wire.has_output_to() ? decoded->output.DeclareShared("output", wire.q().dtype(), shape,
                                                           wire.output_to(), tensors)
                           : decoded->output.Declare("output", wire.q().dtype(), shape, budget));
  if (wire.returns().lse()) {
    ATTENTION_RETURN_IF_ERROR(
        decoded->lse.Declare("lse", v1::DTYPE_FLOAT32, {task.q_len, heads}, budget));
  }
  return DeclareKeyRows(wire, length, budget, &decoded->step);
}

absl::Status DecodeAttend(const v1::SessionStep& wire, const StepTarget& target,
                          RequestTensors& tensors, ResponseBudget& budget, DecodedStep* decoded) {
  if (!wire.has_q()) return absl::OkStatus();
  StepAttend& attend = decoded->step.attend.emplace();
  if (wire.has_first_query_position()) attend.first_query_position = wire.first_query_position();
  attend.kv_begin = wire.kv_begin();
  if (wire.has_kv_end()) attend.kv_end = wire.kv_end();
  ATTENTION_RETURN_IF_ERROR(DecodeQuery(wire, target.shape.geometry, tensors, &attend));
  ATTENTION_RETURN_IF_ERROR(CheckWindow("config", attend.task.params, target.shape));
  ATTENTION_RETURN_IF_ERROR(DecodeBiasAndMask(wire, tensors, &attend));
  ATTENTION_RETURN_IF_ERROR(DecodeDraftTree(wire, &decoded->step));
  return DeclareResult(wire, target.length, budget, tensors, decoded);
}

}  // namespace

absl::StatusOr<DecodedStep> DecodeStep(const v1::SessionStep& wire, const StepTarget& target,
                                       RequestTensors& tensors, ResponseBudget& budget) {
  DecodedStep decoded;
  SessionStep& step = decoded.step;
  if (wire.layer() < 0 || wire.layer() >= target.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer is ", wire.layer(), ", expected 0 to ", target.num_layers - 1));
  }
  ATTENTION_RETURN_IF_ERROR(CheckRows(wire, target.shape.geometry));
  ATTENTION_RETURN_IF_ERROR(CheckPresence(wire));
  ATTENTION_RETURN_IF_ERROR(CheckPositions(wire));
  step.cache = target.cache;
  step.writer = target.writer;
  step.device = target.device;
  step.layer = wire.layer();
  if (wire.has_expected_position()) step.expected_position = wire.expected_position();
  ATTENTION_RETURN_IF_ERROR(DecodeAppend(wire, target.shape.geometry, tensors, &step));
  ATTENTION_RETURN_IF_ERROR(DecodeAttend(wire, target, tensors, budget, &decoded));
  decoded.work = EstimateStep(step, target.shape.geometry, target.length);
  return decoded;
}

void AllocateResult(const ResponseAllocator& allocator, SessionStep& step, ResponseTensor& output,
                    ResponseTensor& lse) {
  if (!step.attend) return;
  AttentionTask& task = step.attend->task;
  output.Allocate(allocator);
  task.o = DenseRows(static_cast<void*>(output.data()), task.params.dtype, task.params.num_q_heads,
                     task.params.head_dim_v);
  lse.Allocate(allocator);
  if (lse.has_value()) task.lse = lse.floats();
}

}  // namespace attention::server
