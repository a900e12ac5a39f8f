// Layers with random weights, and what they compute: independently, in float64 and, for the
// tolerance, in float32 by the same obvious loops.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "attention/v1/layer_service.pb.h"
#include "tests/support/wire_tensor.h"

namespace attention::testing {

struct LayerCase {
  v1::LayerConfig config;
  std::map<v1::LayerTensorName, v1::Tensor> tensors;
};

// The shape of the projection `name` in a layer of the config, whose defaults must be filled in.
Shape LayerTensorShape(const v1::LayerConfig& config, v1::LayerTensorName name);

// 4 query heads and 2 KV heads of 16, causal, 48 columns.
v1::LayerConfig SmallLayerConfig(v1::DType dtype = v1::DTYPE_FLOAT32);

// Weights that keep rows of unit variance at about unit variance; all biases.
LayerCase MakeLayer(const v1::LayerConfig& config, std::uint32_t seed);

// One sequence through a layer.
struct LayerSequence {
  v1::Tensor x;                                      // [x_len, model_dim]
  std::optional<v1::Tensor> context = std::nullopt;  // [context_len, context_dim]
  std::int64_t first_position = 0;
  std::vector<bool> visible = {};  // of the keys; empty: all
};

// [x_len, output_dim], and how far a result may be from it: twice the error of the plain
// computation, rounded to the type of x, plus one epsilon of that type.
struct LayerExpectation {
  std::vector<double> y;
  double tolerance = 0;
};
LayerExpectation ExpectForward(const LayerCase& layer, const LayerSequence& sequence);

// Empty, or the first element of rows [begin, end) of `y` that differs from rows 0 to end - begin.
std::string FindMismatch(const LayerExpectation& expected, const v1::Tensor& y,
                         std::int64_t begin_row = 0);

}  // namespace attention::testing
