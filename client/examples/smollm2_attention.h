// Where attention-smollm2 computes attention and keeps the KV cache: in an attention-server, or, to
// compare with, in its own process.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "attention/client/options.h"

namespace attention::examples {

struct AttentionShape {
  int num_layers = 0;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
};

// The rows that a sequence brings to a pass.
struct SequenceRows {
  int sequence = 0;  // 0 to num_sequences - 1
  std::int64_t num_rows = 0;
};

// One layer's new rows of several sequences, one after another.
struct LayerRows {
  const float* q = nullptr;  // [rows, num_q_heads, head_dim]
  const float* k = nullptr;  // [rows, num_kv_heads, head_dim]
  const float* v = nullptr;  // [rows, num_kv_heads, head_dim]
};

class ModelAttention {
 public:
  virtual ~ModelAttention() = default;

  // Appends k and v to each sequence's cache of `layer` and attends, causally, with q over all of
  // it. Writes output [rows, num_q_heads, head_dim].
  virtual absl::Status Attend(std::span<const SequenceRows> sequences, int layer,
                              const LayerRows& rows, float* output) = 0;
  // Frees the caches.
  virtual absl::Status Close() { return absl::OkStatus(); }
};

// A session for each sequence, and one open stream for the steps of all.
absl::StatusOr<std::unique_ptr<ModelAttention>> MakeRemoteAttention(
    const client::ClientOptions& connection, const AttentionShape& shape, int num_sequences);
// The server's own kernels, linked.
absl::StatusOr<std::unique_ptr<ModelAttention>> MakeLocalAttention(const AttentionShape& shape,
                                                                   int num_sequences);

}  // namespace attention::examples
