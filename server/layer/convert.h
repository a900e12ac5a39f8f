// From multi-head to grouped-query and multi-query attention.
#pragma once

#include "absl/status/statusor.h"
#include "server/layer/layer_tensors.h"

namespace attention::server {

// Averages the K and V projections, biases included, of the heads of each group (Ainslie et al.
// 2023, section 2.1), in float64, rounded to the layer's dtype. With as many KV heads as before it
// is the identity. INVALID_ARGUMENT when num_kv_heads does not divide the present count.
absl::StatusOr<LayerTensors> MeanPoolHeads(const LayerTensors& source, int num_kv_heads);

}  // namespace attention::server
