#include "server/wire/attend_decoder.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/api/work_estimate.h"
#include "server/base/status_macros.h"
#include "server/domain/work_model.h"
#include "server/wire/config_decoder.h"
#include "server/wire/tensor_decoder.h"

namespace attention::server {
namespace {

// A sequence costs a few hundred bytes of bookkeeping however empty it is, and two bytes to
// declare.
constexpr std::int64_t kMaxSequences = 16384;

constexpr absl::string_view kPackedLayout = "[tokens, heads, head_dim]";
constexpr absl::string_view kDenseLayout = "[batch, tokens, heads, head_dim]";

// The places of each sequence's rows in q, k and v.
struct Sequences {
  bool is_dense = false;
  std::int64_t padded_q_len = 0;   // dense: rows of one sequence in q; packed: the longest
  std::int64_t padded_kv_len = 0;  // the same for k and v
  std::vector<std::int64_t> q_lens;
  std::vector<std::int64_t> kv_lens;
};

absl::Status CheckPresence(const v1::AttendRequest& request) {
  const auto missing = [](absl::string_view field) {
    return absl::InvalidArgumentError(absl::StrCat(field, " is missing, expected a tensor"));
  };
  if (!request.has_q()) return missing("q");
  if (!request.has_k()) return missing("k");
  if (request.value_is_key_prefix()) {
    if (!request.has_v()) return absl::OkStatus();
    return absl::InvalidArgumentError("v is given, expected none: value_is_key_prefix is true");
  }
  if (!request.has_v()) return missing("v");
  if (request.head_dim_v() == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("head_dim_v is ", request.head_dim_v(),
                   ", expected it only with value_is_key_prefix: v has its own shape"));
}

// Checks k, and v where there is one.
template <typename Check>
absl::Status ForKeysAndValues(const v1::AttendRequest& request, const Check& check) {
  ATTENTION_RETURN_IF_ERROR(check("k", request.k()));
  return request.has_v() ? check("v", request.v()) : absl::OkStatus();
}

absl::Status CheckTensors(const v1::AttendRequest& request, RequestTensors& tensors, DType* dtype) {
  ATTENTION_ASSIGN_OR_RETURN(*dtype, DecodeDType("q.dtype", request.q().dtype()));
  const auto check_dtype = [&](absl::string_view field, const v1::Tensor& tensor) {
    if (tensor.dtype() == request.q().dtype()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(field, ".dtype is ", DTypeText(tensor.dtype()),
                                                   ", expected that of q (",
                                                   DTypeText(request.q().dtype()), ")"));
  };
  ATTENTION_RETURN_IF_ERROR(ForKeysAndValues(request, check_dtype));
  ATTENTION_RETURN_IF_ERROR(CheckTensor("q", request.q(), tensors));
  return ForKeysAndValues(request, [&](absl::string_view field, const v1::Tensor& tensor) {
    return CheckTensor(field, tensor, tensors);
  });
}

absl::Status InvalidRows(absl::string_view field, const v1::Tensor& tensor, int axis,
                         absl::string_view expected) {
  return InvalidAxis(field, tensor, axis, tensor.shape_size() == 3 ? kPackedLayout : kDenseLayout,
                     expected);
}

absl::Status CheckRanks(const v1::AttendRequest& request) {
  const int rank = request.q().shape_size();
  if (rank != 3 && rank != 4) {
    return absl::InvalidArgumentError(absl::StrCat("q.shape is ", ShapeText(request.q()),
                                                   ", expected rank 3 (packed), ", kPackedLayout,
                                                   ", or 4 (dense), ", kDenseLayout));
  }
  return ForKeysAndValues(request, [&](absl::string_view field, const v1::Tensor& tensor) {
    if (tensor.shape_size() == rank) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".shape is ", ShapeText(tensor), ", expected rank ", rank,
                     ", as q: ", rank == 3 ? kPackedLayout : kDenseLayout));
  });
}

// Ranks agree, k and v have the same rows and heads, q and k the same head_dim_qk.
absl::Status CheckShapes(const v1::AttendRequest& request) {
  ATTENTION_RETURN_IF_ERROR(CheckRanks(request));
  const v1::Tensor& q = request.q();
  const v1::Tensor& k = request.k();
  const v1::Tensor& v = request.v();
  const int rank = q.shape_size();
  for (int axis = 0; request.has_v() && axis < rank - 1; ++axis) {
    if (v.shape(axis) == k.shape(axis)) continue;
    return InvalidRows("v", v, axis, absl::StrCat(k.shape(axis), ", as k,"));
  }
  if (k.shape(rank - 1) != q.shape(rank - 1)) {
    return InvalidRows("k", k, rank - 1, absl::StrCat(q.shape(rank - 1), ", as q,"));
  }
  if (rank == 4 && k.shape(0) != q.shape(0)) {
    return InvalidRows("k", k, 0, absl::StrCat(q.shape(0), ", as q,"));
  }
  return absl::OkStatus();
}

// The dims of values that are prefixes of their keys.
absl::Status DecodePrefix(const v1::AttendRequest& request, AttentionParams* params) {
  const int max = std::min(kMaxHeadDimV, params->head_dim_qk);
  params->value_is_key_prefix = true;
  params->head_dim_v = request.head_dim_v();
  if (request.head_dim_v() >= 1 && request.head_dim_v() <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("head_dim_v is ", request.head_dim_v(),
                                                 ", expected 1 to ", max,
                                                 ", dims of a key that are its value"));
}

absl::Status DecodeHeads(const v1::AttendRequest& request, AttentionParams* params) {
  const int heads = request.q().shape_size() - 2;
  const auto decode = [](absl::string_view field, const v1::Tensor& tensor, int axis,
                         std::int64_t max, int* value) {
    if (tensor.shape(axis) < 1 || tensor.shape(axis) > max) {
      return InvalidRows(field, tensor, axis, absl::StrCat("1 to ", max));
    }
    *value = static_cast<int>(tensor.shape(axis));
    return absl::OkStatus();
  };
  ATTENTION_RETURN_IF_ERROR(decode("q", request.q(), heads, kMaxHeads, &params->num_q_heads));
  ATTENTION_RETURN_IF_ERROR(decode("k", request.k(), heads, kMaxHeads, &params->num_kv_heads));
  ATTENTION_RETURN_IF_ERROR(
      decode("q", request.q(), heads + 1, kMaxHeadDimQk, &params->head_dim_qk));
  ATTENTION_RETURN_IF_ERROR(
      request.value_is_key_prefix()
          ? DecodePrefix(request, params)
          : decode("v", request.v(), heads + 1, kMaxHeadDimV, &params->head_dim_v));
  if (params->num_q_heads % params->num_kv_heads == 0) return absl::OkStatus();
  return InvalidRows("q", request.q(), heads,
                     absl::StrCat("a multiple of the ", params->num_kv_heads, " heads of k"));
}

template <typename Lengths>
absl::Status CheckLengths(absl::string_view field, const Lengths& lengths, std::int64_t max,
                          absl::string_view bound) {
  for (int i = 0; i < lengths.size(); ++i) {
    if (lengths[i] >= 0 && lengths[i] <= max) continue;
    return absl::InvalidArgumentError(absl::StrCat(field, "[", i, "] is ", lengths[i],
                                                   ", expected 0 to ", max, " (", bound, ")"));
  }
  return absl::OkStatus();
}

absl::Status CheckCount(absl::string_view field, std::int64_t actual, std::int64_t expected) {
  if (actual == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " has ", actual, " entries, expected ", expected, ", one a sequence"));
}

template <typename Lengths>
absl::Status CheckSum(absl::string_view field, const Lengths& lengths, std::int64_t rows,
                      absl::string_view tensor) {
  // Every entry is at most `rows` and there are at most kMaxSequences, so the sum cannot overflow
  // as long as rows stay below 2^49; a tensor with that many rows cannot arrive.
  const std::int64_t sum = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
  if (sum == rows) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " sum to ", sum, ", expected the ", rows, " rows of ", tensor));
}

absl::Status CheckNumSequences(absl::string_view field, std::int64_t count) {
  if (count <= kMaxSequences) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is of ", count, " sequences, expected at most ", kMaxSequences));
}

absl::Status DecodePacked(const v1::AttendRequest& request, Sequences* sequences) {
  const std::int64_t q_rows = request.q().shape(0);
  const std::int64_t kv_rows = request.k().shape(0);
  if (request.q_lens().empty() && request.kv_lens().empty()) {
    sequences->q_lens = {q_rows};
    sequences->kv_lens = {kv_rows};
  } else {
    ATTENTION_RETURN_IF_ERROR(CheckNumSequences("q_lens", request.q_lens_size()));
    if (request.q_lens().empty()) {
      return CheckCount("q_lens", 0, request.kv_lens_size());
    }
    ATTENTION_RETURN_IF_ERROR(CheckCount("kv_lens", request.kv_lens_size(), request.q_lens_size()));
    ATTENTION_RETURN_IF_ERROR(CheckLengths("q_lens", request.q_lens(), q_rows, "the rows of q"));
    ATTENTION_RETURN_IF_ERROR(CheckLengths("kv_lens", request.kv_lens(), kv_rows, "the rows of k"));
    ATTENTION_RETURN_IF_ERROR(CheckSum("q_lens", request.q_lens(), q_rows, "q"));
    ATTENTION_RETURN_IF_ERROR(CheckSum("kv_lens", request.kv_lens(), kv_rows, "k"));
    sequences->q_lens.assign(request.q_lens().begin(), request.q_lens().end());
    sequences->kv_lens.assign(request.kv_lens().begin(), request.kv_lens().end());
  }
  sequences->padded_q_len = *std::max_element(sequences->q_lens.begin(), sequences->q_lens.end());
  sequences->padded_kv_len =
      *std::max_element(sequences->kv_lens.begin(), sequences->kv_lens.end());
  return absl::OkStatus();
}

template <typename Lengths>
absl::Status DecodeDenseLengths(absl::string_view field, const Lengths& lengths, std::int64_t batch,
                                std::int64_t padded, std::vector<std::int64_t>* out) {
  out->assign(static_cast<std::size_t>(batch), padded);
  if (lengths.empty()) return absl::OkStatus();
  ATTENTION_RETURN_IF_ERROR(CheckCount(field, lengths.size(), batch));
  ATTENTION_RETURN_IF_ERROR(CheckLengths(field, lengths, padded, "the padded length"));
  out->assign(lengths.begin(), lengths.end());
  return absl::OkStatus();
}

absl::Status DecodeDense(const v1::AttendRequest& request, Sequences* sequences) {
  const std::int64_t batch = request.q().shape(0);
  ATTENTION_RETURN_IF_ERROR(CheckNumSequences("q.shape[0]", batch));
  sequences->is_dense = true;
  sequences->padded_q_len = request.q().shape(1);
  sequences->padded_kv_len = request.k().shape(1);
  ATTENTION_RETURN_IF_ERROR(DecodeDenseLengths("q_lens", request.q_lens(), batch,
                                               sequences->padded_q_len, &sequences->q_lens));
  return DecodeDenseLengths("kv_lens", request.kv_lens(), batch, sequences->padded_kv_len,
                            &sequences->kv_lens);
}

absl::StatusOr<Sequences> DecodeSequences(const v1::AttendRequest& request) {
  Sequences sequences;
  ATTENTION_RETURN_IF_ERROR(request.q().shape_size() == 4 ? DecodeDense(request, &sequences)
                                                          : DecodePacked(request, &sequences));
  if (!request.first_query_positions().empty()) {
    ATTENTION_RETURN_IF_ERROR(CheckCount("first_query_positions",
                                         request.first_query_positions_size(),
                                         static_cast<std::int64_t>(sequences.q_lens.size())));
  }
  for (int i = 0; i < request.first_query_positions_size(); ++i) {
    const std::int64_t position = request.first_query_positions(i);
    if (position < -kMaxPosition || position > kMaxPosition) {
      return absl::InvalidArgumentError(absl::StrCat("first_query_positions[", i, "] is ", position,
                                                     ", expected ", -kMaxPosition, " to ",
                                                     kMaxPosition));
    }
  }
  return sequences;
}

// Declares a response tensor of [rows..., heads(, last)] in the form of the request.
absl::Status DeclareRows(absl::string_view field, v1::DType dtype, const v1::Tensor& rows_like,
                         std::int64_t heads, std::optional<std::int64_t> last,
                         ResponseBudget& budget, ResponseTensor* tensor) {
  const std::int64_t a = rows_like.shape(0);
  if (rows_like.shape_size() == 3) {
    return last ? tensor->Declare(field, dtype, {a, heads, *last}, budget)
                : tensor->Declare(field, dtype, {a, heads}, budget);
  }
  const std::int64_t b = rows_like.shape(1);
  return last ? tensor->Declare(field, dtype, {a, b, heads, *last}, budget)
              : tensor->Declare(field, dtype, {a, b, heads}, budget);
}

// Declares the output [rows..., heads, head_dim_v] in the form of the request: where the client
// wants it.
absl::Status DeclareOutput(const v1::AttendRequest& request, const AttentionParams& params,
                           ResponseBudget& budget, RequestTensors& tensors,
                           ResponseTensor* output) {
  const v1::Tensor& q = request.q();
  const std::int64_t heads = params.num_q_heads;
  const std::int64_t last = params.head_dim_v;
  if (!request.has_output_to()) {
    return DeclareRows("output", q.dtype(), q, heads, last, budget, output);
  }
  const v1::SharedMemoryRef& place = request.output_to();
  return q.shape_size() == 3
             ? output->DeclareShared("output", q.dtype(), {q.shape(0), heads, last}, place, tensors)
             : output->DeclareShared("output", q.dtype(), {q.shape(0), q.shape(1), heads, last},
                                     place, tensors);
}

std::int64_t NumQueryRows(const v1::Tensor& q) {
  return q.shape_size() == 3 ? q.shape(0) : q.shape(0) * q.shape(1);
}

absl::Status DeclareWeights(const Sequences& sequences, std::int64_t heads, ResponseBudget& budget,
                            std::vector<ResponseTensor>* weights) {
  weights->resize(sequences.q_lens.size());
  for (std::size_t i = 0; i < weights->size(); ++i) {
    ATTENTION_RETURN_IF_ERROR(
        (*weights)[i].Declare(absl::StrCat("weights[", i, "].weights"), v1::DTYPE_FLOAT32,
                              {sequences.q_lens[i], heads, sequences.kv_lens[i]}, budget));
  }
  return absl::OkStatus();
}

absl::Status DeclareResponse(const v1::AttendRequest& request, const AttentionParams& params,
                             const Sequences& sequences, WeightsForm form, ResponseBudget& budget,
                             RequestTensors& tensors, DecodedAttend* decoded) {
  const std::int64_t heads = params.num_q_heads;
  const std::int64_t float_row_bytes = heads * static_cast<std::int64_t>(sizeof(float));
  ATTENTION_RETURN_IF_ERROR(DeclareOutput(request, params, budget, tensors, &decoded->output));
  if (request.returns().lse()) {
    ATTENTION_RETURN_IF_ERROR(DeclareRows("lse", v1::DTYPE_FLOAT32, request.q(), heads,
                                          std::nullopt, budget, &decoded->lse));
  }
  if (request.returns().column_sums()) {
    ATTENTION_RETURN_IF_ERROR(DeclareRows("column_sums", v1::DTYPE_FLOAT32, request.k(), heads,
                                          std::nullopt, budget, &decoded->column_sums));
  }
  if (!request.returns().weights()) return absl::OkStatus();
  if (form == WeightsForm::kInAnswer) {
    return DeclareWeights(sequences, heads, budget, &decoded->weights);
  }
  // Only one block of weights is in memory at a time; it has at least one row.
  ATTENTION_RETURN_IF_ERROR(budget.CountRows("returns.weights asks for rows over the longest keys",
                                             sequences.padded_kv_len, float_row_bytes));
  if (budget.HasRoom(kWeightsBlockBytes)) budget.Count(kWeightsBlockBytes);
  return absl::OkStatus();
}

absl::Status AllocateResponse(ResponseAllocator& allocator, bool is_dense, DecodedAttend* decoded) {
  ATTENTION_RETURN_IF_ERROR(allocator.Admit());
  for (ResponseTensor* tensor : {&decoded->output, &decoded->lse, &decoded->column_sums}) {
    tensor->Allocate(allocator);
  }
  for (ResponseTensor& weights : decoded->weights) weights.Allocate(allocator);
  // Rows behind a sequence's length stay zero.
  if (is_dense) decoded->output.FillWithZeros();
  if (decoded->column_sums.has_value()) decoded->column_sums.FillWithZeros();
  decoded->charge = allocator.charge();
  decoded->result_bytes = allocator.budget().bytes();
  return absl::OkStatus();
}

// Builds the task of each sequence from the first one, whose shared fields are set.
class TaskBuilder {
 public:
  TaskBuilder(const v1::AttendRequest& request, const Sequences& sequences,
              const AttentionTask& shared, RequestTensors& tensors, float* lse,
              DecodedAttend& decoded)
      : request_(request),
        sequences_(sequences),
        shared_(shared),
        tensors_(tensors),
        q_(tensors.Place(request.q())),
        k_(tensors.Place(request.k())),
        v_(request.has_v() ? tensors.Place(request.v()) : nullptr),
        output_(decoded.output.data()),
        lse_(lse),
        column_sums_(decoded.column_sums.floats()) {}

  absl::Status DecodeBiasAndMask() {
    const BiasOrMaskLimits limits{static_cast<std::int64_t>(sequences_.q_lens.size()),
                                  shared_.params.num_q_heads, sequences_.padded_q_len,
                                  sequences_.padded_kv_len};
    if (request_.has_bias()) {
      ATTENTION_ASSIGN_OR_RETURN(bias_, DecodeBiasOrMask("bias", request_.bias(),
                                                         BiasOrMaskKind::kBias, limits, tensors_));
    }
    if (request_.has_mask()) {
      ATTENTION_ASSIGN_OR_RETURN(mask_, DecodeBiasOrMask("mask", request_.mask(),
                                                         BiasOrMaskKind::kMask, limits, tensors_));
    }
    return absl::OkStatus();
  }

  AttentionTask Next() {
    const int index = next_++;
    AttentionTask task = shared_;
    task.q_len = sequences_.q_lens[index];
    task.kv_len = sequences_.kv_lens[index];
    task.first_query_position = request_.first_query_positions().empty()
                                    ? task.kv_len - task.q_len
                                    : request_.first_query_positions(index);
    SetRows(&task);
    if (bias_) SetBias(*bias_, index, &task);
    if (mask_) SetMask(*mask_, index, &task);
    q_row_ += sequences_.is_dense ? sequences_.padded_q_len : task.q_len;
    kv_row_ += sequences_.is_dense ? sequences_.padded_kv_len : task.kv_len;
    return task;
  }

 private:
  void SetRows(AttentionTask* task) const {
    const AttentionParams& p = shared_.params;
    const auto bytes = static_cast<std::int64_t>(DTypeBytes(p.dtype));
    const auto at = [&](const char* data, std::int64_t row, std::int64_t width) {
      return data + row * width * bytes;
    };
    const std::int64_t q_width = std::int64_t{p.num_q_heads} * p.head_dim_qk;
    const std::int64_t k_width = std::int64_t{p.num_kv_heads} * p.head_dim_qk;
    const std::int64_t v_width = std::int64_t{p.num_kv_heads} * p.head_dim_v;
    const std::int64_t o_width = std::int64_t{p.num_q_heads} * p.head_dim_v;
    task->q = DenseRows(at(q_, q_row_, q_width), p.dtype, p.num_q_heads, p.head_dim_qk);
    task->k = DenseRows(at(k_, kv_row_, k_width), p.dtype, p.num_kv_heads, p.head_dim_qk);
    if (v_ != nullptr) {
      task->v = DenseRows(at(v_, kv_row_, v_width), p.dtype, p.num_kv_heads, p.head_dim_v);
    }
    task->o = DenseRows(static_cast<void*>(output_ + q_row_ * o_width * bytes), p.dtype,
                        p.num_q_heads, p.head_dim_v);
    if (lse_ != nullptr) task->lse = lse_ + q_row_ * p.num_q_heads;
    if (column_sums_ != nullptr) task->column_sums = column_sums_ + kv_row_ * p.num_q_heads;
  }

  const v1::AttendRequest& request_;
  const Sequences& sequences_;
  const AttentionTask shared_;
  RequestTensors& tensors_;
  const char* const q_;
  const char* const k_;
  const char* const v_;  // may be null
  char* const output_;
  float* const lse_;          // may be null
  float* const column_sums_;  // may be null
  std::optional<DecodedBiasOrMask> bias_;
  std::optional<DecodedBiasOrMask> mask_;
  int next_ = 0;
  std::int64_t q_row_ = 0;
  std::int64_t kv_row_ = 0;
};

// The place for the lse of every row; rows behind a sequence's length in the dense form keep -inf.
float* PrepareLse(const v1::AttendRequest& request, const AttentionParams& params,
                  DecodedAttend* decoded) {
  const auto count = static_cast<std::size_t>(NumQueryRows(request.q()) * params.num_q_heads);
  float* lse = decoded->lse.floats();
  if (lse != nullptr) std::fill_n(lse, count, -std::numeric_limits<float>::infinity());
  return lse;
}

}  // namespace

absl::StatusOr<DecodedAttend> DecodeAttend(const v1::AttendRequest& request, WeightsForm form,
                                           RequestTensors& tensors, ResponseAllocator& allocator) {
  ATTENTION_RETURN_IF_ERROR(CheckPresence(request));
  AttentionTask shared;
  AttentionParams& params = shared.params;
  ATTENTION_RETURN_IF_ERROR(CheckTensors(request, tensors, &params.dtype));
  params.kv_dtype = params.dtype;
  ATTENTION_RETURN_IF_ERROR(CheckShapes(request));
  ATTENTION_RETURN_IF_ERROR(DecodeHeads(request, &params));
  ATTENTION_RETURN_IF_ERROR(DecodeConfig("config", request.config(), &params));
  ATTENTION_RETURN_IF_ERROR(DecodeHeadVectors("config", request.config(), tensors, &shared));
  ATTENTION_ASSIGN_OR_RETURN(const Sequences sequences, DecodeSequences(request));

  DecodedAttend decoded;
  ATTENTION_RETURN_IF_ERROR(
      DeclareResponse(request, params, sequences, form, allocator.budget(), tensors, &decoded));
  ATTENTION_RETURN_IF_ERROR(AllocateResponse(allocator, sequences.is_dense, &decoded));
  float* lse = PrepareLse(request, params, &decoded);
  TaskBuilder builder(request, sequences, shared, tensors, lse, decoded);
  ATTENTION_RETURN_IF_ERROR(builder.DecodeBiasAndMask());
  decoded.tasks.reserve(sequences.q_lens.size());
  for (std::size_t i = 0; i < sequences.q_lens.size(); ++i) {
    decoded.tasks.push_back(builder.Next());
    const AttentionTask& task = decoded.tasks.back();
    decoded.work += EstimateWork(task);
    if (!decoded.weights.empty()) decoded.work += EstimateWeights(task, task.q_len);
  }
  return decoded;
}

}  // namespace attention::server
