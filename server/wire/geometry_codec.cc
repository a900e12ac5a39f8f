#include "server/wire/geometry_codec.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/codec/dtypes.h"
#include "server/base/status_macros.h"
#include "server/wire/tensor_decoder.h"

namespace attention::server {
namespace {

// SessionGeometry and LayerShape name these fields alike.
template <typename Wire>
absl::StatusOr<LayerShape> DecodeShape(const std::string& field, const Wire& wire) {
  LayerShape shape;
  shape.geometry.num_kv_heads = wire.num_kv_heads();
  shape.geometry.head_dim_qk = wire.head_dim_qk();
  shape.geometry.head_dim_v = wire.head_dim_v();
  shape.geometry.value_is_key_prefix = wire.value_is_key_prefix();
  shape.window_tokens = wire.window_tokens();
  shape.sink_tokens = wire.sink_tokens();
  ATTENTION_ASSIGN_OR_RETURN(shape.geometry.dtype,
                             DecodeKvDType(field + ".kv_dtype", wire.kv_dtype()));
  return shape;
}

template <typename Wire>
void EncodeShape(const LayerShape& shape, Wire* wire) {
  wire->set_num_kv_heads(shape.geometry.num_kv_heads);
  wire->set_head_dim_qk(shape.geometry.head_dim_qk);
  wire->set_head_dim_v(shape.geometry.head_dim_v);
  wire->set_value_is_key_prefix(shape.geometry.value_is_key_prefix);
  wire->set_kv_dtype(codec::DTypeToWire(shape.geometry.dtype));
  wire->set_window_tokens(shape.window_tokens);
  wire->set_sink_tokens(shape.sink_tokens);
}

// With layers, nothing is said for all of them.
absl::Status CheckOnlyLayers(const v1::SessionGeometry& wire) {
  if (wire.num_layers() != 0 && wire.num_layers() != wire.layers_size()) {
    return absl::InvalidArgumentError(absl::StrCat("geometry.num_layers is ", wire.num_layers(),
                                                   ", expected 0 or ", wire.layers_size(),
                                                   ", as many as geometry.layers"));
  }
  const std::pair<const char*, std::int64_t> fields[] = {
      {"num_kv_heads", wire.num_kv_heads()},
      {"head_dim_qk", wire.head_dim_qk()},
      {"head_dim_v", wire.head_dim_v()},
      {"kv_dtype", wire.kv_dtype()},
      {"value_is_key_prefix", wire.value_is_key_prefix() ? 1 : 0},
      {"window_tokens", wire.window_tokens()},
      {"sink_tokens", wire.sink_tokens()}};
  for (const auto& [name, value] : fields) {
    if (value == 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("geometry.", name, " is set, expected none beside geometry.layers"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CacheShape> DecodeGeometry(const v1::SessionGeometry& wire) {
  if (wire.layers().empty()) {
    ATTENTION_ASSIGN_OR_RETURN(const LayerShape all, DecodeShape("geometry", wire));
    return CacheShape(all, wire.num_layers());
  }
  ATTENTION_RETURN_IF_ERROR(CheckOnlyLayers(wire));
  std::vector<LayerShape> layers;
  for (int i = 0; i < wire.layers_size(); ++i) {
    ATTENTION_ASSIGN_OR_RETURN(
        LayerShape layer, DecodeShape(absl::StrCat("geometry.layers[", i, "]"), wire.layers(i)));
    layers.push_back(std::move(layer));
  }
  return CacheShape(std::move(layers));
}

void EncodeGeometry(const CacheShape& shape, v1::SessionGeometry* wire) {
  wire->set_num_layers(shape.num_layers());
  if (shape.is_uniform()) return EncodeShape(shape.layer(0), wire);
  for (const LayerShape& layer : shape.said()) EncodeShape(layer, wire->add_layers());
}

absl::Status CheckWindow(absl::string_view field, const AttentionParams& params,
                         const LayerShape& shape) {
  if (!shape.has_window()) return absl::OkStatus();
  const auto refuse = [&](absl::string_view name, const auto& actual, const auto& expected) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, ".", name, " is ", actual, ", expected ", expected, ": the session's layer keeps ",
        shape.window_tokens, " tokens (window_tokens) and ", shape.sink_tokens, " sinks"));
  };
  if (!params.is_causal && params.window_right != 0) {
    return refuse("is_causal", "false", "true");
  }
  if (params.window_left < 0 || params.window_left >= shape.window_tokens) {
    const std::string actual = params.window_left < 0 ? "absent" : absl::StrCat(params.window_left);
    return refuse("window_left", actual, absl::StrCat("0 to ", shape.window_tokens - 1));
  }
  if (params.sink_tokens > shape.sink_tokens) {
    return refuse("sink_tokens", params.sink_tokens, absl::StrCat("at most ", shape.sink_tokens));
  }
  return absl::OkStatus();
}

}  // namespace attention::server
