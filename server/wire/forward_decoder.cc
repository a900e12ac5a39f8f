#include "server/wire/forward_decoder.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/api/work_estimate.h"
#include "server/base/status_macros.h"
#include "server/wire/ragged_rows.h"
#include "server/wire/tensor_decoder.h"

namespace attention::server {
namespace {

constexpr std::int64_t kFloatBytes = sizeof(float);

absl::Status CheckPosition(absl::string_view field, std::int64_t value) {
  if (value >= 0 && value <= kMaxPosition) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, ", expected 0 to ", kMaxPosition));
}

absl::Status CheckCount(absl::string_view field, std::int64_t actual, std::int64_t expected) {
  if (actual == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " has ", actual, " entries, expected ", expected, ", one a sequence"));
}

// What is given and what is not, against the layer's kind.
absl::Status CheckPresence(const v1::ForwardRequest& request, const LayerSpec& spec) {
  const bool has_sessions = request.sessions_size() > 0;
  if (!spec.is_cross() && request.has_context()) {
    return absl::InvalidArgumentError(
        "context is set, expected none: the layer is self-attention (context_dim is 0)");
  }
  if (spec.is_cross() && !request.has_context() && !has_sessions) {
    return absl::InvalidArgumentError(
        "context is missing, expected a tensor, or sessions that hold it: the layer is "
        "cross-attention");
  }
  if (!request.has_x() && !(request.has_context() && has_sessions)) {
    return absl::InvalidArgumentError("x is missing, expected a tensor");
  }
  if (has_sessions && request.has_padding_mask()) {
    return absl::InvalidArgumentError("padding_mask is set, expected none with sessions");
  }
  if (has_sessions && !request.first_positions().empty()) {
    return absl::InvalidArgumentError(
        "first_positions are set, expected none with sessions, which know theirs");
  }
  return absl::OkStatus();
}

absl::Status CheckSession(const std::string& field, const v1::LayerSession& wire,
                          const KvCache& cache, const AttentionParams& params, bool appends) {
  if (wire.layer() < 0 || wire.layer() >= cache.num_layers()) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".layer is ", wire.layer(),
                                                   ", expected 0 to ", cache.num_layers() - 1));
  }
  const KvGeometry& geometry = cache.geometry();
  const auto check = [&](const char* name, int actual, int expected) {
    if (actual == expected) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(field, " has a geometry with ", name, " ",
                                                   actual, ", expected the layer's ", expected));
  };
  ATTENTION_RETURN_IF_ERROR(check("num_kv_heads", geometry.num_kv_heads, params.num_kv_heads));
  ATTENTION_RETURN_IF_ERROR(check("head_dim_qk", geometry.head_dim_qk, params.head_dim_qk));
  ATTENTION_RETURN_IF_ERROR(check("head_dim_v", geometry.head_dim_v, params.head_dim_v));
  if (wire.has_expected_position()) {
    return CheckPosition(field + ".expected_position", wire.expected_position());
  }
  if (!appends) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, ".expected_position is missing, expected the layer's length before this call"));
}

class ForwardBuilder {
 public:
  ForwardBuilder(const v1::ForwardRequest& request, const Layer& layer,
                 const std::vector<SessionLease>& leases, RequestTensors& tensors,
                 ResponseAllocator& allocator)
      : request_(request),
        layer_(layer),
        spec_(layer.spec),
        weights_(*layer.weights),
        leases_(leases),
        tensors_(tensors),
        allocator_(allocator) {}

  absl::StatusOr<DecodedForward> Build() {
    ATTENTION_RETURN_IF_ERROR(CheckPresence(request_, spec_));
    ATTENTION_RETURN_IF_ERROR(DecodeRows());
    ATTENTION_RETURN_IF_ERROR(CheckSequences());
    ATTENTION_RETURN_IF_ERROR(DeclareOutput());
    ATTENTION_RETURN_IF_ERROR(DecodePaddingMask());
    ATTENTION_RETURN_IF_ERROR(Allocate());
    for (std::int64_t i = 0; i < num_sequences_; ++i) AddSequence(static_cast<std::size_t>(i));
    decoded_.num_rows = x_.num_rows();
    return std::move(decoded_);
  }

 private:
  const RaggedRows& KvRows() const { return spec_.is_cross() ? context_ : x_; }
  bool appends() const { return has_sessions() && KvRows().is_present(); }
  bool has_sessions() const { return request_.sessions_size() > 0; }

  absl::Status DecodeRows() {
    if (request_.has_x()) {
      ATTENTION_ASSIGN_OR_RETURN(
          x_, DecodeRaggedRows("x", "x_lens", request_.x(), request_.x_lens(), spec_.model_dim,
                               tensors_));
    }
    if (request_.has_context()) {
      ATTENTION_ASSIGN_OR_RETURN(
          context_, DecodeRaggedRows("context", "context_lens", request_.context(),
                                     request_.context_lens(), spec_.context_dim, tensors_));
    }
    if (x_.is_present() && context_.is_present() && x_.dtype != context_.dtype) {
      return absl::InvalidArgumentError(
          absl::StrCat("context.dtype is ", DTypeText(request_.context().dtype()),
                       ", expected that of x (", DTypeText(request_.x().dtype()), ")"));
    }
    return absl::OkStatus();
  }

  absl::Status CheckSequences() {
    const RaggedRows& first = x_.is_present() ? x_ : context_;
    num_sequences_ = static_cast<std::int64_t>(first.lens.size());
    if (context_.is_present()) {
      ATTENTION_RETURN_IF_ERROR(CheckCount(
          "context_lens", static_cast<std::int64_t>(context_.lens.size()), num_sequences_));
    }
    if (!request_.first_positions().empty()) {
      ATTENTION_RETURN_IF_ERROR(
          CheckCount("first_positions", request_.first_positions_size(), num_sequences_));
    }
    for (int i = 0; i < request_.first_positions_size(); ++i) {
      ATTENTION_RETURN_IF_ERROR(
          CheckPosition(absl::StrCat("first_positions[", i, "]"), request_.first_positions(i)));
    }
    if (!has_sessions()) return absl::OkStatus();
    ATTENTION_RETURN_IF_ERROR(CheckCount("sessions", request_.sessions_size(), num_sequences_));
    for (int i = 0; i < request_.sessions_size(); ++i) {
      ATTENTION_RETURN_IF_ERROR(CheckSession(absl::StrCat("sessions[", i, "]"),
                                             request_.sessions(i), *leases_[i]->cache,
                                             spec_.attention, appends()));
    }
    return absl::OkStatus();
  }

  absl::Status DeclareOutput() {
    if (!x_.is_present()) return absl::OkStatus();
    const v1::DType dtype = request_.x().dtype();
    ResponseTensor& output = decoded_.output;
    const auto declare = [&](std::initializer_list<std::int64_t> shape) {
      return request_.has_output_to()
                 ? output.DeclareShared("output", dtype, shape, request_.output_to(), tensors_)
                 : output.Declare("output", dtype, shape, allocator_.budget());
    };
    const std::int64_t columns = spec_.output_dim;
    return x_.is_dense ? declare({num_sequences_, x_.padded_len, columns})
                       : declare({x_.num_tensor_rows, columns});
  }

  absl::Status DecodePaddingMask() {
    if (!request_.has_padding_mask()) return absl::OkStatus();
    const v1::Tensor& mask = request_.padding_mask();
    ATTENTION_RETURN_IF_ERROR(CheckBoolDType("padding_mask", mask.dtype()));
    ATTENTION_RETURN_IF_ERROR(CheckTensor("padding_mask", mask, tensors_));
    ATTENTION_RETURN_IF_ERROR(SetMaskStrides(mask));
    const char* data = tensors_.Place(mask);
    ATTENTION_RETURN_IF_ERROR(CheckBools("padding_mask", mask, data));
    mask_ = reinterpret_cast<const std::uint8_t*>(data);
    if (!spec_.is_cross()) FindHiddenRows();
    return absl::OkStatus();
  }

  absl::Status SetMaskStrides(const v1::Tensor& mask) {
    const RaggedRows& kv = KvRows();
    const int rank = mask.shape_size();
    const auto is_axis = [&](int axis, std::int64_t count) {
      return mask.shape(axis) == count || mask.shape(axis) == 1;
    };
    const auto stride = [&](int axis, std::int64_t elements) {
      return mask.shape(axis) == 1 ? 0 : elements;
    };
    if (!kv.is_dense && rank == 1 && is_axis(0, kv.num_tensor_rows)) {
      mask_row_stride_ = stride(0, 1);
      return absl::OkStatus();
    }
    const bool has_heads_and_queries =
        rank == 4 && mask.shape(1) == 1 && mask.shape(2) == 1;  // of which all are alike
    if (kv.is_dense && (rank == 2 || has_heads_and_queries) && is_axis(0, num_sequences_) &&
        is_axis(rank - 1, kv.padded_len)) {
      mask_row_stride_ = stride(rank - 1, 1);
      mask_sequence_stride_ = stride(0, mask.shape(rank - 1));
      return absl::OkStatus();
    }
    const std::string expected = kv.is_dense
                                     ? absl::StrCat("[", num_sequences_, ", ", kv.padded_len, "]")
                                     : absl::StrCat("[", kv.num_tensor_rows, "]");
    return absl::InvalidArgumentError(
        absl::StrCat("padding_mask.shape is ", ShapeText(mask), ", expected ", expected,
                     ", one for each row of ", spec_.is_cross() ? "context" : "x",
                     ", or 1 in place of an axis"));
  }

  // The element of a row of sequence `i`.
  const std::uint8_t* MaskAt(std::size_t i, std::int64_t row) const {
    const std::int64_t first = KvRows().is_dense
                                   ? static_cast<std::int64_t>(i) * mask_sequence_stride_
                                   : KvRows().begins[i] * mask_row_stride_;
    return mask_ + first + row * mask_row_stride_;
  }

  void FindHiddenRows() {
    for (std::size_t i = 0; i < x_.lens.size(); ++i) {
      for (std::int64_t row = x_.begins[i]; row < x_.begins[i] + x_.lens[i]; ++row) {
        if (*MaskAt(i, row - x_.begins[i]) != 0) continue;
        auto& hidden = decoded_.hidden_rows;
        if (!hidden.empty() && hidden.back().second == row) {
          hidden.back().second = row + 1;
        } else {
          hidden.emplace_back(row, row + 1);
        }
      }
    }
  }

  // Rows of a buffer between projections, `columns` floats each.
  struct BufferShape {
    std::int64_t rows = 0;
    std::int64_t columns = 0;
  };

  float* GetBuffer(const BufferShape& shape) {
    const std::int64_t bytes = std::max<std::int64_t>(1, shape.rows * shape.columns * kFloatBytes);
    decoded_.buffers.push_back(allocator_.pool().Get(static_cast<std::size_t>(bytes)));
    return reinterpret_cast<float*>(decoded_.buffers.back().data());
  }

  absl::Status Allocate() {
    const BufferShape input = {x_.num_rows(), weights_.input().out_features()};
    const BufferShape attended = {x_.num_rows(), spec_.o_columns()};
    BufferShape kv;
    if (spec_.is_cross()) kv = {context_.num_rows(), weights_.context()->out_features()};
    for (const auto& [what, shape] : {std::pair{"x becomes between the projections", input},
                                      std::pair{"x becomes between the projections", attended},
                                      std::pair{"context becomes between the projections", kv}}) {
      ATTENTION_RETURN_IF_ERROR(
          allocator_.budget().CountRows(what, shape.rows, shape.columns * kFloatBytes));
    }
    ATTENTION_RETURN_IF_ERROR(allocator_.Admit());
    decoded_.result_bytes = allocator_.budget().bytes();
    decoded_.charge = allocator_.charge();
    decoded_.output.Allocate(allocator_);
    // Rows behind a sequence's length stay zero.
    if (decoded_.output.has_value() && x_.is_dense) decoded_.output.FillWithZeros();
    input_ = GetBuffer(input);
    attended_ = GetBuffer(attended);
    if (spec_.is_cross()) kv_ = GetBuffer(kv);
    return absl::OkStatus();
  }

  void AddSequence(std::size_t i) {
    const std::int64_t x_len = x_.is_present() ? x_.lens[i] : 0;
    const std::int64_t kv_rows = KvRows().is_present() ? KvRows().lens[i] : 0;
    const std::int64_t input_columns = weights_.input().out_features();
    float* input = input_ + x_row_ * input_columns;
    const AttentionTask task = TaskOf(i, input, x_len, kv_rows);
    const int step = has_sessions() ? static_cast<int>(i) : -1;
    if (x_len > 0) {
      AddInput(weights_.input(), x_, i, input, step);
      SetRotary(i, &decoded_.inputs.back().task);
      AddOutput(i, task, step);
    }
    if (spec_.is_cross() && kv_rows > 0) {
      AddInput(*weights_.context(), context_, i, kv_ + kv_row_ * weights_.context()->out_features(),
               step);
    }
    if (has_sessions()) {
      AddStep(i, task, kv_rows);
    } else {
      decoded_.tasks.push_back(task);
      decoded_.work += EstimateWork(task);
    }
    x_row_ += x_len;
    kv_row_ += spec_.is_cross() ? kv_rows : 0;
  }

  // Its keys and values are those of the call; a step puts the cache in their place.
  AttentionTask TaskOf(std::size_t i, const float* input, std::int64_t x_len,
                       std::int64_t kv_rows) const {
    const AttentionParams& p = spec_.attention;
    AttentionTask task;
    task.params = p;
    task.q_len = x_len;
    task.kv_len = kv_rows;
    task.first_query_position = spec_.is_cross() ? 0 : kv_rows - x_len;
    const std::int64_t input_columns = weights_.input().out_features();
    task.q = {input, DType::kFloat32, input_columns, p.head_dim_qk};
    const float* k = input + spec_.q_columns();
    std::int64_t kv_columns = input_columns;
    if (spec_.is_cross()) {
      kv_columns = weights_.context()->out_features();
      k = kv_ + kv_row_ * kv_columns;
    }
    task.k = {k, DType::kFloat32, kv_columns, p.head_dim_qk};
    task.v = {k + spec_.k_columns(), DType::kFloat32, kv_columns, p.head_dim_v};
    task.o = DenseRows(static_cast<void*>(attended_ + x_row_ * spec_.o_columns()), DType::kFloat32,
                       p.num_q_heads, p.head_dim_v);
    if (!spec_.alibi_slopes.empty()) task.alibi_slopes = spec_.alibi_slopes.data();
    if (!spec_.sink_logits.empty()) task.sink_logits = spec_.sink_logits.data();
    if (mask_ != nullptr) task.mask = {MaskAt(i, 0), 0, 0, mask_row_stride_};
    return task;
  }

  void AddInput(const PackedProjection& projection, const RaggedRows& rows, std::size_t i, float* y,
                int step) {
    ProjectionTask task;
    task.projection = &projection;
    task.num_rows = rows.lens[i];
    task.x = rows.At(rows.begins[i]);
    task.x_dtype = rows.dtype;
    task.x_stride = rows.columns;
    task.y = y;
    task.y_stride = projection.out_features();
    decoded_.inputs.push_back({task, step});
    CountProjection(task);
  }

  void AddOutput(std::size_t i, const AttentionTask& attention, int step) {
    ProjectionTask task;
    task.projection = &weights_.output();
    task.num_rows = x_.lens[i];
    task.x = attention.o.data;
    task.x_stride = spec_.o_columns();
    task.y = decoded_.output.data() +
             x_.begins[i] * spec_.output_dim * static_cast<std::int64_t>(DTypeBytes(x_.dtype));
    task.y_dtype = x_.dtype;
    task.y_stride = spec_.output_dim;
    decoded_.outputs.push_back({task, step});
    CountProjection(task);
  }

  void SetRotary(std::size_t i, ProjectionTask* task) const {
    if (!layer_.rotary) return;
    task->rotary = &*layer_.rotary;
    task->num_rotary_heads = spec_.attention.num_q_heads + spec_.attention.num_kv_heads;
    task->rotary_head_dim = spec_.attention.head_dim_qk;
    if (!request_.first_positions().empty()) {
      task->first_position = request_.first_positions(static_cast<int>(i));
    }
  }

  // Weights are read once for all sequences of a batch, of whichever request: charged once a
  // request, as if sixteen shared the pass. Charged in full, they would keep those who could share
  // them in different batches.
  double WeightBytes(const PackedProjection& projection) {
    constexpr double kSharers = 16;
    if (!counted_.insert(&projection).second) return 0;
    return static_cast<double>(projection.bytes()) / kSharers;
  }

  void CountProjection(const ProjectionTask& task) {
    const auto rows = static_cast<double>(task.num_rows);
    const auto in = static_cast<double>(task.projection->in_features());
    const auto out = static_cast<double>(task.projection->out_features());
    decoded_.work.flops += 2 * rows * in * out;
    decoded_.work.kv_bytes += WeightBytes(*task.projection);
    decoded_.work.io_bytes += rows * (in * static_cast<double>(DTypeBytes(task.x_dtype)) +
                                      out * static_cast<double>(DTypeBytes(task.y_dtype)));
  }

  void AddStep(std::size_t i, const AttentionTask& task, std::int64_t kv_rows) {
    const v1::LayerSession& wire = request_.sessions(static_cast<int>(i));
    SessionStep step;
    step.cache = leases_[i]->cache;
    step.layer = wire.layer();
    if (wire.has_expected_position()) step.expected_position = wire.expected_position();
    if (appends()) {
      step.has_append = true;
      step.num_tokens = kv_rows;
      step.k = task.k;
      step.v = task.v;
    }
    step.has_attend = x_.is_present();
    step.attend = task;
    step.attend.k = step.attend.v = {};
    step.attend.params.kv_dtype = step.cache->geometry().dtype;
    if (spec_.is_cross()) step.first_query_position = 0;
    AttentionTask estimated = step.attend;
    // A position beyond is an error when the step runs, and no reason to wait for it until then.
    const std::int64_t length = step.cache->length(step.layer) + num_appended_;
    estimated.kv_len = std::min(step.expected_position.value_or(length), length) + step.num_tokens;
    estimated.first_query_position = spec_.is_cross() ? 0 : estimated.kv_len - estimated.q_len;
    num_appended_ += step.num_tokens;
    decoded_.work += EstimateWork(estimated);
    decoded_.steps.push_back(std::move(step));
  }

  const v1::ForwardRequest& request_;
  const Layer& layer_;
  const LayerSpec& spec_;
  const LayerWeights& weights_;
  const std::vector<SessionLease>& leases_;
  RequestTensors& tensors_;
  ResponseAllocator& allocator_;
  RaggedRows x_;
  RaggedRows context_;
  std::int64_t num_sequences_ = 0;
  const std::uint8_t* mask_ = nullptr;  // of the rows of the keys' tensor, may be null
  std::int64_t mask_sequence_stride_ = 0;
  std::int64_t mask_row_stride_ = 0;
  float* input_ = nullptr;     // [x rows, columns of the input projection]
  float* kv_ = nullptr;        // [context rows, columns of the context's projection]
  float* attended_ = nullptr;  // [x rows, num_q_heads * head_dim_v]
  std::int64_t x_row_ = 0;
  std::int64_t kv_row_ = 0;
  std::int64_t num_appended_ = 0;  // by the steps so far
  std::set<const PackedProjection*> counted_;
  DecodedForward decoded_;
};

}  // namespace

absl::StatusOr<DecodedForward> DecodeForward(const v1::ForwardRequest& request,
                                             const std::shared_ptr<const Layer>& layer,
                                             const std::vector<SessionLease>& leases,
                                             RequestTensors& tensors,
                                             ResponseAllocator& allocator) {
  return ForwardBuilder(request, *layer, leases, tensors, allocator).Build();
}

}  // namespace attention::server
