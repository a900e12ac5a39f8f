// The configuration of preloaded layers: a JSON file,
//
//   {"layers": [{"layer_id": "encoder.0", "tenant": "default", "file": "model.safetensors",
//                "model_dim": 384, "num_q_heads": 12, "head_dim_qk": 32,
//                "tensors": {"w_q": "encoder.layer.0.attention.self.query.weight", ...}}]}
//
// with the other fields of LayerConfig under their names: context_dim, output_dim, num_kv_heads,
// head_dim_v; of AttentionConfig: softmax_scale, soft_cap, is_causal, window_left, window_right,
// sink_tokens; and rotary, an object of theta, dim, is_interleaved, and one of linear, llama3, yarn
// with that message's fields. A relative `file` is sought beside the JSON file.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/layer/preload.h"

namespace attention::server {

// NOT_FOUND when the file cannot be read; INVALID_ARGUMENT names the layer and the key.
absl::StatusOr<std::vector<PreloadedLayer>> ReadPreloadFile(const std::string& path);

}  // namespace attention::server
