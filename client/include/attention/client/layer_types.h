// Requests and results of the layer calls: the words of attention/v1/layer_service.proto as plain
// structs. See layer.h for the object that drives a layer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "attention/client/attention.h"
#include "attention/client/session_types.h"
#include "attention/client/tensor.h"

namespace attention::client {

// How rotary frequencies are stretched over longer contexts; the .proto has the formulas. 0 stands
// for a default where there is one.
enum class RotaryScaling { kNone, kLinear, kLlama3, kYarn, kCustom };

struct RotaryConfig {
  double theta = 10000;  // unused with custom
  // Elements that are rotated, from the head's start. 0: head_dim_qk.
  int dim = 0;
  // Pairs are elements 2 i and 2 i + 1 instead of i and i + dim / 2.
  bool is_interleaved = false;
  RotaryScaling scaling = RotaryScaling::kNone;
  double factor = 1;
  std::int64_t original_max_positions = 0;  // llama3, yarn
  double low_freq_factor = 0;               // llama3
  double high_freq_factor = 0;              // llama3
  double beta_fast = 0;                     // yarn; default 32
  double beta_slow = 0;                     // yarn; default 1
  double attention_factor = 0;              // yarn; default 0.1 ln(factor) + 1; custom; default 1
  bool truncate = true;                     // yarn: the ramp's ends are rounded to whole pairs
  // custom: radians a position of each pair, dim / 2 of them. 0 leaves a pair as it is.
  std::vector<double> inv_freq = {};
};

struct LayerConfig {
  // Columns of x.
  int model_dim = 0;
  // Columns of the context of cross-attention; 0: self-attention.
  int context_dim = 0;
  // Columns of the output. 0: model_dim.
  int output_dim = 0;
  int num_q_heads = 0;
  // 0: num_q_heads.
  int num_kv_heads = 0;
  int head_dim_qk = 0;
  // 0: head_dim_qk.
  int head_dim_v = 0;
  AttentionConfig attention = {};
  // Absent: positions are not encoded.
  std::optional<RotaryConfig> rotary = {};
};

// [out_features, in_features] each, all of one dtype: float32, float16 or bfloat16. Biases may be
// absent.
struct LayerWeights {
  TensorView w_q = {};  // [num_q_heads * head_dim_qk, model_dim]
  TensorView w_k = {};  // [num_kv_heads * head_dim_qk, context_dim or model_dim]
  TensorView w_v = {};  // [num_kv_heads * head_dim_v, context_dim or model_dim]
  TensorView w_o = {};  // [output_dim, num_q_heads * head_dim_v]
  TensorView b_q = {};
  TensorView b_k = {};
  TensorView b_v = {};
  TensorView b_o = {};
};

// The request of CreateLayer. The tensors need to live only until the function returns.
struct LayerOptions {
  // 1 to 128 of A-Z a-z 0-9 . _ - and /; empty: one is picked.
  std::string layer_id = {};
  LayerConfig config = {};
  LayerWeights weights = {};
};

// A layer as the server holds it.
struct LayerInfo {
  std::string layer_id = {};
  // Defaults filled in; its tensors are not.
  LayerConfig config = {};
  DType dtype = DType::kFloat32;
  // The size of the weights in the server's memory.
  std::int64_t weight_bytes = 0;
  // A hash of the bytes of the uploaded tensors, w_q, w_k, w_v, w_o, b_q, b_k, b_v, b_o. 32 bytes.
  std::string sha256 = {};
  absl::Time create_time = {};
};

struct ListLayersRequest {
  // 0: 100. At most 1000.
  int page_size = 0;
  // Empty, or the next_page_token of the result before.
  std::string page_token = {};
};

struct ListLayersResult {
  // By ascending layer_id.
  std::vector<LayerInfo> layers = {};
  // Empty on the last page.
  std::string next_page_token = {};
};

struct ConvertLayerRequest {
  std::string source_layer_id = {};
  // As LayerOptions::layer_id.
  std::string layer_id = {};
  // Divides the source's; 1 makes multi-query attention.
  int num_kv_heads = 0;
};

// Where one sequence's keys and values are kept.
struct LayerSession {
  SessionHandle handle = {};
  // The session's layer, 0 to num_layers - 1.
  int layer = 0;
  // Its length before the call. Required when rows are appended.
  std::optional<std::int64_t> expected_position = {};
};

// One or many sequences: packed, x [sum(x_lens), model_dim], or dense, x [batch, x_len, model_dim].
struct ForwardRequest {
  std::string layer_id = {};
  // Absent only when a context is to be encoded into sessions.
  TensorView x = {};
  std::vector<std::int64_t> x_lens = {};
  // For cross-attention: [sum(context_lens), context_dim] or [batch, context_len, context_dim].
  TensorView context = {};
  std::vector<std::int64_t> context_lens = {};
  // One a sequence, or empty.
  std::vector<LayerSession> sessions = {};
  // The position of each sequence's first row, for rotary embedding; empty: 0.
  std::vector<std::int64_t> first_positions = {};
  // kBool, one for each row that keys are made of: 1 is visible. An axis of 1 is shared. Optional.
  TensorView padding_mask = {};
};

struct ForwardResult {
  // [sum(x_lens), output_dim] or [batch, x_len, output_dim], in x's dtype. Absent without x.
  Tensor output = {};
  // The length of each session's layer after the call.
  std::vector<std::int64_t> positions = {};
  Timing timing = {};
};

}  // namespace attention::client
