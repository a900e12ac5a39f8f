// A tensor of embeddings to the rows of its sequences.
#pragma once

#include <google/protobuf/repeated_field.h>

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/v1/tensor.pb.h"
#include "server/layer/ragged_rows.h"
#include "server/wire/request_tensors.h"

namespace attention::server {

// Checks and places `tensor`, [rows, columns] or [batch, rows, columns]. INVALID_ARGUMENT names the
// field, which is `field` or `lens_field`.
absl::StatusOr<RaggedRows> DecodeRaggedRows(
    absl::string_view field, absl::string_view lens_field, const v1::Tensor& tensor,
    const google::protobuf::RepeatedField<std::int64_t>& lens, std::int64_t columns,
    RequestTensors& tensors);

}  // namespace attention::server
