#include "server/wire/ragged_rows_decoder.h"

#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"
#include "server/wire/tensor_decoder.h"

namespace attention::server {
namespace {

// The limit is that of AttendRequest, for the same reason.
constexpr std::int64_t kMaxSequences = 16384;

absl::Status CheckLens(absl::string_view lens_field, const RaggedRows& rows,
                       absl::string_view field) {
  const std::int64_t max = rows.is_dense ? rows.padded_len : rows.num_tensor_rows;
  for (std::size_t i = 0; i < rows.lens.size(); ++i) {
    if (rows.lens[i] >= 0 && rows.lens[i] <= max) continue;
    return absl::InvalidArgumentError(absl::StrCat(lens_field, "[", i, "] is ", rows.lens[i],
                                                   ", expected 0 to ", max, " (the rows of ", field,
                                                   ")"));
  }
  const std::int64_t sum = rows.num_rows();
  if (rows.is_dense || sum == rows.num_tensor_rows) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(lens_field, " sum to ", sum, ", expected the ",
                                                 rows.num_tensor_rows, " rows of ", field));
}

}  // namespace

absl::StatusOr<RaggedRows> DecodeRaggedRows(
    absl::string_view field, absl::string_view lens_field, const v1::Tensor& tensor,
    const google::protobuf::RepeatedField<std::int64_t>& lens, std::int64_t columns,
    RequestTensors& tensors) {
  RaggedRows rows;
  ATTENTION_ASSIGN_OR_RETURN(rows.dtype,
                             DecodeDType(absl::StrCat(field, ".dtype"), tensor.dtype()));
  ATTENTION_RETURN_IF_ERROR(CheckTensor(field, tensor, tensors));
  const int rank = tensor.shape_size();
  if ((rank != 2 && rank != 3) || tensor.shape(rank - 1) != columns) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".shape is ", ShapeText(tensor),
                                                   ", expected [rows, ", columns,
                                                   "] or [batch, rows, ", columns, "]"));
  }
  rows.is_dense = rank == 3;
  rows.columns = columns;
  const std::int64_t batch = rows.is_dense ? tensor.shape(0) : lens.empty() ? 1 : lens.size();
  if (batch < 1 || batch > kMaxSequences) {
    return absl::InvalidArgumentError(absl::StrCat(rows.is_dense ? field : lens_field, " has ",
                                                   batch, " sequences, expected 1 to ",
                                                   kMaxSequences));
  }
  rows.padded_len = tensor.shape(rank - 2);
  rows.num_tensor_rows = rows.is_dense ? batch * rows.padded_len : rows.padded_len;
  if (!lens.empty() && lens.size() != batch) {
    return absl::InvalidArgumentError(absl::StrCat(
        lens_field, " has ", lens.size(), " entries, expected ", batch, ", one a sequence"));
  }
  rows.lens.assign(lens.begin(), lens.end());
  if (lens.empty()) rows.lens.assign(static_cast<std::size_t>(batch), rows.padded_len);
  ATTENTION_RETURN_IF_ERROR(CheckLens(lens_field, rows, field));
  std::int64_t begin = 0;
  for (const std::int64_t len : rows.lens) {
    rows.begins.push_back(begin);
    begin += rows.is_dense ? rows.padded_len : len;
  }
  rows.data = tensors.Place(tensor);
  return rows;
}

}  // namespace attention::server
