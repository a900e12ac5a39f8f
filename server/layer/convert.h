// Converts layers from multi-head to grouped-query and multi-query attention.
#pragma once

#include "absl/status/statusor.h"
#include "server/base/interrupt.h"
#include "server/layer/layer_tensors.h"

namespace attention::server {

// The spec of a layer with so many KV heads, made from one of `source`. INVALID_ARGUMENT when
// num_kv_heads does not divide the source's count.
absl::StatusOr<LayerSpec> PooledSpec(const LayerSpec& source, int num_kv_heads);

// Averages the K and V projections, biases included, of the heads of each group (Ainslie et al.
// 2023, section 2.1), in float64, rounded to the layer's dtype. With as many KV heads as before it
// is the identity. The errors of PooledSpec and of the interrupt.
absl::StatusOr<LayerTensors> MeanPoolHeads(const LayerTensors& source, int num_kv_heads,
                                           const Interrupt& interrupt = nullptr);

}  // namespace attention::server
