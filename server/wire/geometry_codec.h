// The shape of a session's cache between its message and CacheShape.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "attention/v1/session_service.pb.h"
#include "kernels/api/attention_params.h"
#include "server/domain/cache_shape.h"

namespace attention::server {

// INVALID_ARGUMENT names the field. Limits are checked by who makes the cache.
absl::StatusOr<CacheShape> DecodeGeometry(const v1::SessionGeometry& wire);

// In the form in which it was given.
void EncodeGeometry(const CacheShape& shape, v1::SessionGeometry* wire);

// INVALID_ARGUMENT unless attention with the config at `field` stays within the layer's window.
absl::Status CheckWindow(absl::string_view field, const AttentionParams& params,
                         const LayerShape& shape);

}  // namespace attention::server
