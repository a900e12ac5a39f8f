#include "server/wire/forward_decoder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"
#include "server/wire/geometry_codec.h"
#include "server/wire/ragged_rows_decoder.h"
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

// Checks that the fields that the layer's kind needs are given, and no others.
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
                          const StepTarget& target, const AttentionParams& params, bool appends) {
  if (wire.layer() < 0 || wire.layer() >= target.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".layer is ", wire.layer(), ", expected 0 to ", target.num_layers - 1));
  }
  const KvGeometry& geometry = target.shape.geometry;
  const auto check = [&](const char* name, int actual, int expected) {
    if (actual == expected) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(field, " has a geometry with ", name, " ",
                                                   actual, ", expected the layer's ", expected));
  };
  ATTENTION_RETURN_IF_ERROR(check("num_kv_heads", geometry.num_kv_heads, params.num_kv_heads));
  ATTENTION_RETURN_IF_ERROR(check("head_dim_qk", geometry.head_dim_qk, params.head_dim_qk));
  ATTENTION_RETURN_IF_ERROR(check("head_dim_v", geometry.head_dim_v, params.head_dim_v));
  if (geometry.value_is_key_prefix) {
    return absl::InvalidArgumentError(absl::StrCat(
        field,
        " has a geometry with value_is_key_prefix true, expected false: layers have values"));
  }
  ATTENTION_RETURN_IF_ERROR(
      CheckWindow(absl::StrCat(field, " has a window: the layer's config"), params, target.shape));
  if (wire.has_expected_position()) {
    return CheckPosition(field + ".expected_position", wire.expected_position());
  }
  if (!appends) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      field, ".expected_position is missing, expected the layer's length before this call"));
}

// A buffer of the pool for rows between the projections.
float* GetBuffer(const BufferShape& shape, const ResponseAllocator& allocator,
                 std::vector<PooledBuffer>& buffers) {
  const std::int64_t bytes = std::max<std::int64_t>(1, shape.rows * shape.columns * kFloatBytes);
  buffers.push_back(allocator.Get(static_cast<std::size_t>(bytes)));
  return reinterpret_cast<float*>(buffers.back().data());
}

class ForwardDecoder {
 public:
  ForwardDecoder(const v1::ForwardRequest& request, const Layer& layer,
                 const std::vector<StepTarget>& targets, RequestTensors& tensors,
                 ResponseAllocator& allocator)
      : request_(request),
        layer_(layer),
        spec_(layer.spec),
        targets_(targets),
        tensors_(tensors),
        allocator_(allocator) {}

  absl::StatusOr<DecodedForward> Decode() {
    ATTENTION_RETURN_IF_ERROR(CheckPresence(request_, spec_));
    ATTENTION_RETURN_IF_ERROR(DecodeRows());
    ATTENTION_RETURN_IF_ERROR(DecodeFirstPositions());
    ATTENTION_RETURN_IF_ERROR(DecodeSessions());
    ATTENTION_RETURN_IF_ERROR(DeclareOutput());
    ATTENTION_RETURN_IF_ERROR(DecodePaddingMask());
    ATTENTION_ASSIGN_OR_RETURN(const ForwardMemory memory, Allocate());
    decoded_.graph = BuildForwardGraph(layer_, input_, memory);
    decoded_.num_rows = input_.x.num_rows();
    return std::move(decoded_);
  }

 private:
  const RaggedRows& KvRows() const { return input_.KvRows(spec_); }
  bool has_sessions() const { return request_.sessions_size() > 0; }

  absl::Status DecodeRows() {
    RaggedRows& x = input_.x;
    RaggedRows& context = input_.context;
    if (request_.has_x()) {
      ATTENTION_ASSIGN_OR_RETURN(x, DecodeRaggedRows("x", "x_lens", request_.x(), request_.x_lens(),
                                                     spec_.model_dim, tensors_));
    }
    if (request_.has_context()) {
      ATTENTION_ASSIGN_OR_RETURN(
          context, DecodeRaggedRows("context", "context_lens", request_.context(),
                                    request_.context_lens(), spec_.context_dim, tensors_));
    }
    if (x.is_present() && context.is_present() && x.dtype != context.dtype) {
      return absl::InvalidArgumentError(
          absl::StrCat("context.dtype is ", DTypeText(request_.context().dtype()),
                       ", expected that of x (", DTypeText(request_.x().dtype()), ")"));
    }
    const RaggedRows& first = x.is_present() ? x : context;
    input_.num_sequences = static_cast<std::int64_t>(first.lens.size());
    if (!context.is_present()) return absl::OkStatus();
    return CheckCount("context_lens", static_cast<std::int64_t>(context.lens.size()),
                      input_.num_sequences);
  }

  absl::Status DecodeFirstPositions() {
    const auto& positions = request_.first_positions();
    if (positions.empty()) return absl::OkStatus();
    ATTENTION_RETURN_IF_ERROR(
        CheckCount("first_positions", positions.size(), input_.num_sequences));
    for (int i = 0; i < positions.size(); ++i) {
      ATTENTION_RETURN_IF_ERROR(
          CheckPosition(absl::StrCat("first_positions[", i, "]"), positions[i]));
    }
    input_.first_positions.assign(positions.begin(), positions.end());
    return absl::OkStatus();
  }

  absl::Status DecodeSessions() {
    if (!has_sessions()) return absl::OkStatus();
    ATTENTION_RETURN_IF_ERROR(
        CheckCount("sessions", request_.sessions_size(), input_.num_sequences));
    for (int i = 0; i < request_.sessions_size(); ++i) {
      const v1::LayerSession& wire = request_.sessions(i);
      ATTENTION_RETURN_IF_ERROR(CheckSession(absl::StrCat("sessions[", i, "]"), wire, targets_[i],
                                             spec_.attention, KvRows().is_present()));
      ForwardSession session{targets_[i], wire.layer(), std::nullopt};
      if (wire.has_expected_position()) session.expected_position = wire.expected_position();
      input_.sessions.push_back(std::move(session));
    }
    return absl::OkStatus();
  }

  absl::Status DeclareOutput() {
    if (!input_.x.is_present()) return absl::OkStatus();
    const v1::DType dtype = request_.x().dtype();
    ResponseTensor& output = decoded_.output;
    const auto declare = [&](std::initializer_list<std::int64_t> shape) {
      return request_.has_output_to()
                 ? output.DeclareShared("output", dtype, shape, request_.output_to(), tensors_)
                 : output.Declare("output", dtype, shape, allocator_.budget());
    };
    const std::int64_t columns = spec_.output_dim;
    return input_.x.is_dense ? declare({input_.num_sequences, input_.x.padded_len, columns})
                             : declare({input_.x.num_tensor_rows, columns});
  }

  absl::Status DecodePaddingMask() {
    if (!request_.has_padding_mask()) return absl::OkStatus();
    const v1::Tensor& mask = request_.padding_mask();
    ATTENTION_RETURN_IF_ERROR(CheckBoolDType("padding_mask", mask.dtype()));
    ATTENTION_RETURN_IF_ERROR(CheckTensor("padding_mask", mask, tensors_));
    ATTENTION_RETURN_IF_ERROR(SetMaskStrides(mask));
    const char* data = tensors_.Place(mask);
    ATTENTION_RETURN_IF_ERROR(CheckBools("padding_mask", mask, data));
    input_.mask.data = reinterpret_cast<const std::uint8_t*>(data);
    if (!spec_.is_cross()) decoded_.hidden_rows = HiddenRows(input_);
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
      input_.mask.row_stride = stride(0, 1);
      return absl::OkStatus();
    }
    const bool has_heads_and_queries =
        rank == 4 && mask.shape(1) == 1 && mask.shape(2) == 1;  // which share one row
    if (kv.is_dense && (rank == 2 || has_heads_and_queries) && is_axis(0, input_.num_sequences) &&
        is_axis(rank - 1, kv.padded_len)) {
      input_.mask.row_stride = stride(rank - 1, 1);
      input_.mask.sequence_stride = stride(0, mask.shape(rank - 1));
      return absl::OkStatus();
    }
    const std::string expected =
        kv.is_dense ? absl::StrCat("[", input_.num_sequences, ", ", kv.padded_len, "]")
                    : absl::StrCat("[", kv.num_tensor_rows, "]");
    return absl::InvalidArgumentError(
        absl::StrCat("padding_mask.shape is ", ShapeText(mask), ", expected ", expected,
                     ", one for each row of ", spec_.is_cross() ? "context" : "x",
                     ", or 1 in place of an axis"));
  }

  absl::StatusOr<ForwardMemory> Allocate() {
    const ForwardShapes shapes = ShapesOf(layer_, input_);
    for (const auto& [what, shape] :
         {std::pair{"x becomes between the projections", shapes.input},
          std::pair{"x becomes between the projections", shapes.attended},
          std::pair{"context becomes between the projections", shapes.kv}}) {
      ATTENTION_RETURN_IF_ERROR(
          allocator_.budget().CountRows(what, shape.rows, shape.columns * kFloatBytes));
    }
    ATTENTION_RETURN_IF_ERROR(allocator_.Admit());
    decoded_.result_bytes = allocator_.budget().bytes();
    decoded_.charge = allocator_.charge();
    decoded_.output.Allocate(allocator_);
    // Rows behind a sequence's length stay zero.
    if (decoded_.output.has_value() && input_.x.is_dense) decoded_.output.FillWithZeros();
    ForwardMemory memory;
    memory.input = GetBuffer(shapes.input, allocator_, decoded_.buffers);
    memory.attended = GetBuffer(shapes.attended, allocator_, decoded_.buffers);
    if (spec_.is_cross()) memory.kv = GetBuffer(shapes.kv, allocator_, decoded_.buffers);
    memory.output = decoded_.output.data();
    return memory;
  }

  const v1::ForwardRequest& request_;
  const Layer& layer_;
  const LayerSpec& spec_;
  const std::vector<StepTarget>& targets_;
  RequestTensors& tensors_;
  ResponseAllocator& allocator_;
  ForwardInput input_;
  DecodedForward decoded_;
};

}  // namespace

absl::StatusOr<DecodedForward> DecodeForward(const v1::ForwardRequest& request, const Layer& layer,
                                             const std::vector<StepTarget>& targets,
                                             RequestTensors& tensors,
                                             ResponseAllocator& allocator) {
  return ForwardDecoder(request, layer, targets, tensors, allocator).Decode();
}

}  // namespace attention::server
