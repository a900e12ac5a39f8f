// The configuration of preloaded layers: a JSON file,
//
//   {"layers": [{"layer_id": "encoder.0", "tenants": ["search"], "file": "model.safetensors",
//                "model_dim": 384, "num_q_heads": 12, "head_dim_qk": 32,
//                "tensors": {"w_q": "encoder.layer.0.attention.self.query.weight", ...}}]}
//
// with the other fields of LayerConfig and AttentionConfig under their names, side by side, vectors
// as lists of numbers, and rotary, an object of RotaryConfig's fields. A relative `file` is sought
// beside the JSON file. Without `tenants` all tenants may use the layer.
//
// The objects become the messages of CreateLayer, which the decoder of that call reads, so a file
// says what a call may say and no more.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/layer/preload.h"

namespace attention::server {

// NOT_FOUND when the file cannot be read; INVALID_ARGUMENT names the file, the line and the key.
absl::StatusOr<std::vector<PreloadedLayer>> ReadPreloadFile(const std::string& path);

}  // namespace attention::server
