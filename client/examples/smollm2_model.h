// SmolLM2-135M in float32, all of it but attention; projections through oneDNN. The weights are
// what client/examples/python/smollm2_export.py wrote.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/examples/smollm2_attention.h"
#include "client/examples/smollm2_safetensors.h"

namespace attention::examples {

// A token sequence and how far its cache has come.
struct Sequence {
  std::vector<std::int32_t> tokens;  // the prompt and what was generated
  std::int64_t length = 0;           // tokens whose keys and values are cached
  bool is_finished = false;
};

// Not thread-safe.
class SmolLm2 {
 public:
  static absl::StatusOr<std::unique_ptr<SmolLm2>> Load(const std::string& path);
  ~SmolLm2();

  AttentionShape shape() const;
  bool IsEnd(std::int32_t token) const { return end_tokens_.contains(token); }
  std::string Text(std::span<const std::int32_t> tokens) const;

  // One pass for all sequences that are not finished: caches what they have not cached yet, and
  // appends to each the likeliest next token.
  absl::Status Advance(std::span<Sequence> sequences, ModelAttention& attention);

 private:
  struct Layer;
  struct Products;
  explicit SmolLm2(Safetensors file);
  absl::Status ReadSettings();
  absl::Status ReadWeights();
  absl::Status ReadVocabulary();
  // Adds a layer's attention and feed-forward to x [rows, width].
  absl::Status RunLayer(int index, std::span<const SequenceRows> sequences, std::int64_t num_rows,
                        ModelAttention& attention);

  Safetensors file_;
  int num_layers_ = 0, num_q_heads_ = 0, num_kv_heads_ = 0, head_dim_ = 0;
  std::int64_t width_ = 0, ffn_width_ = 0, vocabulary_size_ = 0;
  float norm_epsilon_ = 0, rotary_theta_ = 0;
  std::set<std::int32_t> end_tokens_;
  std::span<const float> embedding_, output_, output_norm_;
  std::vector<Layer> layers_;
  std::span<const std::uint8_t> vocabulary_bytes_;
  std::span<const std::int64_t> vocabulary_ends_;
  std::unique_ptr<Products> products_;
  // Scratch of a pass: each row's hidden state, normalised state, and rotary cosines and sines.
  std::vector<float> x_, h_, cosines_, sines_;
  std::vector<float> qkv_, q_, k_, v_, attended_, gate_up_, added_;
};

}  // namespace attention::examples
