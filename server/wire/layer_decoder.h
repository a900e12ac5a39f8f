// Layers between the wire and the domain. Every error is INVALID_ARGUMENT and names the field.
#pragma once

#include "absl/status/statusor.h"
#include "attention/v1/layer_service.pb.h"
#include "server/domain/layer_spec.h"
#include "server/layer/layer_table.h"

namespace attention::server {

// Returns the spec with defaults filled in, and valid. Errors name the field from the config on.
absl::StatusOr<LayerSpec> DecodeLayerConfig(const v1::LayerConfig& wire);

absl::StatusOr<LayerTensor> DecodeLayerTensorName(v1::LayerTensorName name);

void EncodeLayer(const Layer& layer, v1::Layer* wire);

}  // namespace attention::server
