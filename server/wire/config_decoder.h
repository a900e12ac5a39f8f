// AttentionConfig and the tensors beside it: from the wire to AttentionParams and views.
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/v1/attention_config.pb.h"
#include "kernels/api/attention_params.h"
#include "server/domain/attention_request.h"
#include "server/wire/request_tensors.h"

namespace attention::server {

// Fills in and checks what the config has; heads, dims and dtypes must be set, and are not checked.
// `field` is the config's path in the request.
absl::Status DecodeConfig(absl::string_view field, const v1::AttentionConfig& config,
                          AttentionParams* params);

// Per-head vectors, float32 [num_q_heads], of the config at `field`.
absl::Status DecodeHeadVectors(absl::string_view field, const v1::AttentionConfig& config,
                               RequestTensors& tensors, AttentionTask* task);

// A bias or mask as [batch, heads, q_len, kv_len], its leading dimensions filled up with 1. Each
// axis has the full count or 1, and is shared then. Strides are in elements and 0 along axes of 1.
struct DecodedBiasOrMask {
  const char* data = nullptr;
  DType dtype = DType::kFloat32;  // of a bias
  BiasOrMaskShape shape;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;
  std::int64_t key_stride = 0;
};

struct BiasOrMaskLimits {
  std::int64_t num_sequences = 1;
  std::int64_t num_q_heads = 1;
  std::int64_t q_len = 0;
  std::optional<std::int64_t> kv_len;  // absent: known only when the step runs
};

enum class BiasOrMaskKind { kBias, kMask };

absl::StatusOr<DecodedBiasOrMask> DecodeBiasOrMask(absl::string_view field,
                                                   const v1::Tensor& tensor, BiasOrMaskKind kind,
                                                   const BiasOrMaskLimits& limits,
                                                   RequestTensors& tensors);

// Points the task at the bias, or the mask, of sequence `index`.
void SetBias(const DecodedBiasOrMask& decoded, std::int64_t index, AttentionTask* task);
void SetMask(const DecodedBiasOrMask& decoded, std::int64_t index, AttentionTask* task);

}  // namespace attention::server
