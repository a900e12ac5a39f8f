#include "client/examples/smollm2_model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace attention::examples {

struct SmolLm2::Layer {
  std::span<const float> attn_norm, qkv, attn_output, ffn_norm, gate_up, ffn_down;
};

// Matrix products, each shape prepared once.
struct SmolLm2::Products {
  // y [rows, out] = x [rows, in] * weight [in, out].
  void Run(const float* x, std::span<const float> weight, float* y, std::int64_t rows,
           std::int64_t in, std::int64_t out) {
    const auto desc = [](std::int64_t height, std::int64_t width) {
      return dnnl::memory::desc({height, width}, dnnl::memory::data_type::f32,
                                dnnl::memory::format_tag::ab);
    };
    const auto x_desc = desc(rows, in), weight_desc = desc(in, out), y_desc = desc(rows, out);
    auto [entry, is_new] = prepared.try_emplace({rows, in, out});
    if (is_new) entry->second = dnnl::matmul({{x_desc, weight_desc, y_desc}, engine});
    const auto memory = [&](const dnnl::memory::desc& shape, const float* data) {
      return dnnl::memory(shape, engine, const_cast<float*>(data));
    };
    entry->second.execute(stream, {{DNNL_ARG_SRC, memory(x_desc, x)},
                                   {DNNL_ARG_WEIGHTS, memory(weight_desc, weight.data())},
                                   {DNNL_ARG_DST, memory(y_desc, y)}});
    stream.wait();
  }

  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, dnnl::matmul> prepared;
};

namespace {

// y = x / rms(x) * weight for each row of `weight.size()`.
void RmsNorm(const float* x, std::span<const float> weight, float epsilon, std::int64_t rows,
             float* y) {
  const std::size_t width = weight.size();
  for (std::int64_t row = 0; row < rows; ++row, x += width, y += width) {
    float sum = 0;
    for (std::size_t i = 0; i < width; ++i) sum += x[i] * x[i];
    const float scale = 1 / std::sqrt(sum / static_cast<float>(width) + epsilon);
    for (std::size_t i = 0; i < width; ++i) y[i] = x[i] * scale * weight[i];
  }
}

// Copies heads, rotating the neighbours (2i, 2i + 1) of each by angle i of the row. `cosines` and
// `sines` have head_dim / 2 elements.
void Rotate(const float* from, int num_heads, int head_dim, const float* cosines,
            const float* sines, float* to) {
  for (int head = 0; head < num_heads; ++head, from += head_dim, to += head_dim) {
    for (int i = 0; i < head_dim / 2; ++i) {
      const float even = from[2 * i], odd = from[2 * i + 1];
      to[2 * i] = even * cosines[i] - odd * sines[i];
      to[2 * i + 1] = even * sines[i] + odd * cosines[i];
    }
  }
}

void Add(const std::vector<float>& from, std::vector<float>& to) {
  for (std::size_t i = 0; i < from.size(); ++i) to[i] += from[i];
}

template <typename Number>
absl::Status ReadNumber(const Safetensors& file, const char* name, Number& number) {
  const absl::StatusOr<std::string> text = file.Metadata(name);
  if (!text.ok()) return text.status();
  double value = 0;
  if (!absl::SimpleAtod(*text, &value) || !(value > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model's ", name, " is \"", *text, "\", expected a number above 0"));
  }
  number = static_cast<Number>(value);
  return absl::OkStatus();
}

}  // namespace

SmolLm2::SmolLm2(Safetensors file)
    : file_(std::move(file)), products_(std::make_unique<Products>()) {}
SmolLm2::~SmolLm2() = default;

absl::StatusOr<std::unique_ptr<SmolLm2>> SmolLm2::Load(const std::string& path) {
  absl::StatusOr<Safetensors> file = Safetensors::Read(path);
  if (!file.ok()) return file.status();
  auto model = std::unique_ptr<SmolLm2>(new SmolLm2(*std::move(file)));
  absl::Status status = model->ReadSettings();
  if (status.ok()) status = model->ReadWeights();
  if (status.ok()) status = model->ReadVocabulary();
  if (!status.ok()) return status;
  return model;
}

AttentionShape SmolLm2::shape() const {
  return {num_layers_, num_q_heads_, num_kv_heads_, head_dim_};
}

absl::Status SmolLm2::ReadSettings() {
  absl::Status status = ReadNumber(file_, "num_layers", num_layers_);
  status.Update(ReadNumber(file_, "num_q_heads", num_q_heads_));
  status.Update(ReadNumber(file_, "num_kv_heads", num_kv_heads_));
  status.Update(ReadNumber(file_, "head_dim", head_dim_));
  status.Update(ReadNumber(file_, "norm_epsilon", norm_epsilon_));
  status.Update(ReadNumber(file_, "rotary_theta", rotary_theta_));
  const absl::StatusOr<std::string> ends = file_.Metadata("end_tokens");
  status.Update(ends.status());
  if (!status.ok()) return status;
  const nlohmann::json list = nlohmann::json::parse(*ends, nullptr, /*allow_exceptions=*/false);
  for (const nlohmann::json& token : list) {
    if (token.is_number_integer()) end_tokens_.insert(token.get<std::int32_t>());
  }
  width_ = std::int64_t{num_q_heads_} * head_dim_;
  vocabulary_size_ =
      file_.NumBytes("embedding") / static_cast<std::int64_t>(sizeof(float)) / width_;
  ffn_width_ =
      file_.NumBytes("layers.0.ffn_down") / static_cast<std::int64_t>(sizeof(float)) / width_;
  return absl::OkStatus();
}

absl::Status SmolLm2::ReadWeights() {
  absl::Status status;
  const auto read = [&](const std::string& name, std::int64_t in, std::int64_t out) {
    auto weight = file_.Get<float>(name, static_cast<std::size_t>(in * out));
    status.Update(weight.status());
    return weight.ok() ? *weight : std::span<const float>();
  };
  embedding_ = read("embedding", vocabulary_size_, width_);
  output_ = read("output", width_, vocabulary_size_);
  output_norm_ = read("output_norm", 1, width_);
  const std::int64_t qkv_width = std::int64_t{num_q_heads_ + 2 * num_kv_heads_} * head_dim_;
  for (int i = 0; i < num_layers_; ++i) {
    const std::string prefix = absl::StrCat("layers.", i, ".");
    layers_.push_back({.attn_norm = read(prefix + "attn_norm", 1, width_),
                       .qkv = read(prefix + "qkv", width_, qkv_width),
                       .attn_output = read(prefix + "attn_output", width_, width_),
                       .ffn_norm = read(prefix + "ffn_norm", 1, width_),
                       .gate_up = read(prefix + "gate_up", width_, 2 * ffn_width_),
                       .ffn_down = read(prefix + "ffn_down", ffn_width_, width_)});
  }
  return status;
}

absl::Status SmolLm2::ReadVocabulary() {
  const auto ends =
      file_.Get<std::int64_t>("vocabulary.ends", static_cast<std::size_t>(vocabulary_size_));
  if (!ends.ok()) return ends.status();
  const auto bytes =
      file_.Get<std::uint8_t>("vocabulary.bytes", static_cast<std::size_t>(ends->back()));
  if (!bytes.ok()) return bytes.status();
  if (!std::ranges::is_sorted(*ends) || ends->front() < 0) {
    return absl::InvalidArgumentError("vocabulary.ends must not descend");
  }
  vocabulary_ends_ = *ends;
  vocabulary_bytes_ = *bytes;
  return absl::OkStatus();
}

std::string SmolLm2::Text(std::span<const std::int32_t> tokens) const {
  std::string text;
  for (const std::int32_t token : tokens) {
    const std::int64_t begin = token == 0 ? 0 : vocabulary_ends_[token - 1];
    const auto piece = vocabulary_bytes_.subspan(begin, vocabulary_ends_[token] - begin);
    text.append(piece.begin(), piece.end());
  }
  return text;
}

absl::Status SmolLm2::Advance(std::span<Sequence> sequences, ModelAttention& attention) {
  std::vector<SequenceRows> rows;
  std::vector<std::int64_t> last_rows;
  x_.clear(), cosines_.clear(), sines_.clear();
  std::int64_t num_rows = 0;
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const auto& [tokens, length, is_finished] = sequences[s];
    if (is_finished) continue;
    for (std::int64_t position = length; position < std::ssize(tokens); ++position, ++num_rows) {
      if (tokens[position] < 0 || tokens[position] >= vocabulary_size_) {
        return absl::InvalidArgumentError(
            absl::StrCat("token ", tokens[position], ", expected less than ", vocabulary_size_));
      }
      const auto row = embedding_.subspan(tokens[position] * width_, width_);
      x_.insert(x_.end(), row.begin(), row.end());
      for (int i = 0; i < head_dim_ / 2; ++i) {
        const double angle =
            static_cast<double>(position) * std::pow(rotary_theta_, -2.0 * i / head_dim_);
        cosines_.push_back(static_cast<float>(std::cos(angle)));
        sines_.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    rows.push_back({static_cast<int>(s), std::ssize(tokens) - length});
    last_rows.push_back(num_rows - 1);
  }
  for (int i = 0; i < num_layers_; ++i) {
    const absl::Status status = RunLayer(i, rows, num_rows, attention);
    if (!status.ok()) return status;
  }
  const auto num_sequences = std::ssize(rows);
  h_.resize(num_sequences * width_);
  for (std::int64_t i = 0; i < num_sequences; ++i) {
    RmsNorm(&x_[last_rows[i] * width_], output_norm_, norm_epsilon_, 1, &h_[i * width_]);
  }
  std::vector<float> logits(num_sequences * vocabulary_size_);
  products_->Run(h_.data(), output_, logits.data(), num_sequences, width_, vocabulary_size_);
  for (std::int64_t i = 0; i < num_sequences; ++i) {
    const auto row = std::span(logits).subspan(i * vocabulary_size_, vocabulary_size_);
    Sequence& sequence = sequences[rows[i].sequence];
    sequence.length = std::ssize(sequence.tokens);
    sequence.tokens.push_back(
        static_cast<std::int32_t>(std::ranges::max_element(row) - row.begin()));
  }
  return absl::OkStatus();
}

absl::Status SmolLm2::RunLayer(int index, std::span<const SequenceRows> sequences,
                               std::int64_t rows, ModelAttention& attention) {
  const Layer& layer = layers_[index];
  const std::int64_t kv_width = std::int64_t{num_kv_heads_} * head_dim_,
                     qkv_width = width_ + 2 * kv_width;
  h_.resize(rows * width_), added_.resize(rows * width_), attended_.resize(rows * width_);
  qkv_.resize(rows * qkv_width), q_.resize(rows * width_);
  k_.resize(rows * kv_width), v_.resize(rows * kv_width);
  gate_up_.resize(rows * 2 * ffn_width_);

  RmsNorm(x_.data(), layer.attn_norm, norm_epsilon_, rows, h_.data());
  products_->Run(h_.data(), layer.qkv, qkv_.data(), rows, width_, qkv_width);
  for (std::int64_t row = 0; row < rows; ++row) {
    const float* from = &qkv_[row * qkv_width];
    const float *cosines = &cosines_[row * head_dim_ / 2], *sines = &sines_[row * head_dim_ / 2];
    Rotate(from, num_q_heads_, head_dim_, cosines, sines, &q_[row * width_]);
    Rotate(from + width_, num_kv_heads_, head_dim_, cosines, sines, &k_[row * kv_width]);
    std::copy_n(from + width_ + kv_width, kv_width, &v_[row * kv_width]);
  }
  const absl::Status status =
      attention.Attend(sequences, index, {q_.data(), k_.data(), v_.data()}, attended_.data());
  if (!status.ok()) return status;
  products_->Run(attended_.data(), layer.attn_output, added_.data(), rows, width_, width_);
  Add(added_, x_);

  RmsNorm(x_.data(), layer.ffn_norm, norm_epsilon_, rows, h_.data());
  products_->Run(h_.data(), layer.gate_up, gate_up_.data(), rows, width_, 2 * ffn_width_);
  std::vector<float>& hidden = qkv_;  // [rows, ffn_width]
  hidden.resize(rows * ffn_width_);
  for (std::int64_t row = 0; row < rows; ++row) {
    const float *gate = &gate_up_[row * 2 * ffn_width_], *up = gate + ffn_width_;
    for (std::int64_t i = 0; i < ffn_width_; ++i) {
      hidden[row * ffn_width_ + i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    }
  }
  products_->Run(hidden.data(), layer.ffn_down, added_.data(), rows, ffn_width_, width_);
  Add(added_, x_);
  return absl::OkStatus();
}

}  // namespace attention::examples
