#include "tests/support/layer_case.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <sstream>

#include "tests/support/tolerance.h"

namespace attention::testing {
namespace {

template <typename Real>
using Rows = std::vector<std::vector<Real>>;

template <typename Real>
Rows<Real> Project(const LayerCase& layer, v1::LayerTensorName weights, v1::LayerTensorName bias,
                   const Rows<Real>& x) {
  const v1::Tensor& w = layer.tensors.at(weights);
  const auto b = layer.tensors.find(bias);
  Rows<Real> y(x.size());
  for (std::size_t row = 0; row < x.size(); ++row) {
    for (std::int64_t out = 0; out < w.shape(0); ++out) {
      Real sum = 0;
      for (std::int64_t in = 0; in < w.shape(1); ++in) {
        sum += x[row][in] * static_cast<Real>(ElementAt(w, out * w.shape(1) + in));
      }
      if (b != layer.tensors.end()) sum += static_cast<Real>(ElementAt(b->second, out));
      y[row].push_back(sum);
    }
  }
  return y;
}

template <typename Real>
Rows<Real> RowsOf(const v1::Tensor& tensor) {
  Rows<Real> rows(tensor.shape(0));
  for (std::int64_t i = 0; i < NumElements(tensor); ++i) {
    rows[i / tensor.shape(1)].push_back(static_cast<Real>(ElementAt(tensor, i)));
  }
  return rows;
}

// The plain forms only: scaled frequencies have their own test.
template <typename Real>
void Rotate(const v1::LayerConfig& config, std::int64_t first_position, Rows<Real>* rows) {
  if (!config.has_rotary()) return;
  const v1::RotaryConfig& rotary = config.rotary();
  const int dim = rotary.dim() == 0 ? config.head_dim_qk() : rotary.dim();
  const double theta = rotary.theta() == 0 ? 10000 : rotary.theta();
  for (std::size_t row = 0; row < rows->size(); ++row) {
    for (std::size_t head = 0; head < (*rows)[row].size(); head += config.head_dim_qk()) {
      for (int pair = 0; pair < dim / 2; ++pair) {
        const double angle = static_cast<double>(first_position + static_cast<std::int64_t>(row)) *
                             std::pow(theta, -2.0 * pair / dim);
        Real& a = (*rows)[row][head + (rotary.is_interleaved() ? 2 * pair : pair)];
        Real& b = (*rows)[row][head + (rotary.is_interleaved() ? 2 * pair + 1 : pair + dim / 2)];
        const Real cos = static_cast<Real>(std::cos(angle));
        const Real sin = static_cast<Real>(std::sin(angle));
        const Real x = a, y = b;
        a = x * cos - y * sin;
        b = x * sin + y * cos;
      }
    }
  }
}

bool IsVisible(const v1::LayerConfig& config, const LayerSequence& sequence, std::int64_t query,
               std::int64_t key) {
  const v1::AttentionConfig& attention = config.attention();
  if (!sequence.visible.empty() && !sequence.visible[key]) return false;
  if (attention.is_causal() && key > query) return false;
  return !attention.has_window_left() || key >= query - attention.window_left();
}

template <typename Real>
Rows<Real> Attend(const v1::LayerConfig& config, const LayerSequence& sequence, const Rows<Real>& q,
                  const Rows<Real>& k, const Rows<Real>& v) {
  const int dim_qk = config.head_dim_qk();
  const int dim_v = config.head_dim_v();
  const int group = config.num_q_heads() / config.num_kv_heads();
  const Real scale = static_cast<Real>(1 / std::sqrt(static_cast<double>(dim_qk)));
  Rows<Real> o(q.size());
  for (std::size_t query = 0; query < q.size(); ++query) {
    for (int head = 0; head < config.num_q_heads(); ++head) {
      std::vector<Real> s(k.size(), -INFINITY);
      Real max = -INFINITY;
      for (std::size_t key = 0; key < k.size(); ++key) {
        if (!IsVisible(config, sequence, query, key)) continue;
        Real sum = 0;
        for (int i = 0; i < dim_qk; ++i) {
          sum += q[query][head * dim_qk + i] * k[key][head / group * dim_qk + i];
        }
        s[key] = sum * scale;
        max = std::max(max, s[key]);
      }
      std::vector<Real> out(dim_v, 0);
      Real total = 0;
      for (std::size_t key = 0; key < k.size(); ++key) {
        if (s[key] == -INFINITY) continue;
        const Real p = std::exp(s[key] - max);
        total += p;
        for (int i = 0; i < dim_v; ++i) out[i] += p * v[key][head / group * dim_v + i];
      }
      for (const Real value : out) o[query].push_back(total > 0 ? value / total : 0);
    }
  }
  return o;
}

template <typename Real>
std::vector<Real> Forward(const LayerCase& layer, const LayerSequence& sequence) {
  const Rows<Real> x = RowsOf<Real>(sequence.x);
  const Rows<Real> context = sequence.context ? RowsOf<Real>(*sequence.context) : x;
  Rows<Real> q = Project(layer, v1::LAYER_TENSOR_NAME_W_Q, v1::LAYER_TENSOR_NAME_B_Q, x);
  Rows<Real> k = Project(layer, v1::LAYER_TENSOR_NAME_W_K, v1::LAYER_TENSOR_NAME_B_K, context);
  const Rows<Real> v =
      Project(layer, v1::LAYER_TENSOR_NAME_W_V, v1::LAYER_TENSOR_NAME_B_V, context);
  Rotate(layer.config, sequence.first_position, &q);
  Rotate(layer.config, sequence.first_position, &k);
  const Rows<Real> y = Project(layer, v1::LAYER_TENSOR_NAME_W_O, v1::LAYER_TENSOR_NAME_B_O,
                               Attend(layer.config, sequence, q, k, v));
  std::vector<Real> flat;
  for (const std::vector<Real>& row : y) flat.insert(flat.end(), row.begin(), row.end());
  return flat;
}

}  // namespace

Shape LayerTensorShape(const v1::LayerConfig& c, v1::LayerTensorName name) {
  const std::int64_t kv_in = c.context_dim() > 0 ? c.context_dim() : c.model_dim();
  switch (name) {
    case v1::LAYER_TENSOR_NAME_W_Q:
      return {c.num_q_heads() * c.head_dim_qk(), c.model_dim()};
    case v1::LAYER_TENSOR_NAME_W_K:
      return {c.num_kv_heads() * c.head_dim_qk(), kv_in};
    case v1::LAYER_TENSOR_NAME_W_V:
      return {c.num_kv_heads() * c.head_dim_v(), kv_in};
    case v1::LAYER_TENSOR_NAME_W_O:
      return {c.output_dim(), c.num_q_heads() * c.head_dim_v()};
    case v1::LAYER_TENSOR_NAME_B_Q:
      return {c.num_q_heads() * c.head_dim_qk()};
    case v1::LAYER_TENSOR_NAME_B_K:
      return {c.num_kv_heads() * c.head_dim_qk()};
    case v1::LAYER_TENSOR_NAME_B_V:
      return {c.num_kv_heads() * c.head_dim_v()};
    default:
      return {c.output_dim()};
  }
}

v1::LayerConfig SmallLayerConfig(v1::DType dtype) {
  v1::LayerConfig config;
  config.set_dtype(dtype);
  config.set_model_dim(48);
  config.set_output_dim(48);
  config.set_num_q_heads(4);
  config.set_num_kv_heads(2);
  config.set_head_dim_qk(16);
  config.set_head_dim_v(16);
  config.mutable_attention()->set_is_causal(true);
  return config;
}

LayerCase MakeLayer(const v1::LayerConfig& config, std::uint32_t seed) {
  LayerCase layer{config, {}};
  for (int i = v1::LAYER_TENSOR_NAME_W_Q; i <= v1::LAYER_TENSOR_NAME_B_O; ++i) {
    const auto name = static_cast<v1::LayerTensorName>(i);
    const Shape shape = LayerTensorShape(config, name);
    const float deviation = shape.size() == 2 ? 1 / std::sqrt(static_cast<float>(shape[1])) : 0.1f;
    layer.tensors[name] = RandomTensor(config.dtype(), shape, seed * 100 + i, deviation);
  }
  return layer;
}

LayerExpectation ExpectForward(const LayerCase& layer, const LayerSequence& sequence) {
  const DType dtype = FromWire(sequence.x.dtype());
  LayerExpectation expected{Forward<double>(layer, sequence), 0};
  const std::vector<float> plain = Forward<float>(layer, sequence);
  double error = 0, largest = 0;
  for (std::size_t i = 0; i < plain.size(); ++i) {
    error = std::max(error, std::abs(Rounded(dtype, plain[i]) - expected.y[i]));
    largest = std::max(largest, std::abs(expected.y[i]));
  }
  // A small tensor may be computed almost exactly by luck: no less than two roundings of its
  // largest.
  error = std::max(error, 0x1p-22 * largest);
  expected.tolerance = 2 * error + DTypeEpsilon(dtype) * largest;
  return expected;
}

std::string FindMismatch(const LayerExpectation& expected, const v1::Tensor& y,
                         std::int64_t begin_row) {
  const std::int64_t columns = y.shape(y.shape_size() - 1);
  for (std::size_t i = 0; i < expected.y.size(); ++i) {
    const double actual = ElementAt(y, begin_row * columns + static_cast<std::int64_t>(i));
    if (std::abs(actual - expected.y[i]) <= expected.tolerance) continue;
    std::ostringstream out;
    out << "y[" << i / columns << "][" << i % columns << "] is " << actual << ", expected "
        << expected.y[i] << " within " << expected.tolerance;
    return out.str();
  }
  return "";
}

}  // namespace attention::testing
