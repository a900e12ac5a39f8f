// One request's computation, told by lengths and pool offsets: enough to send it, to describe it in
// a message, and to compute it again.
#pragma once

#include <cstdint>
#include <string>

#include "attention/client/attention.h"
#include "client/loadgen/options.h"
#include "kernels/api/attention_params.h"

namespace attention::loadgen {

struct AttentionCase {
  ShapeOptions shape;  // q_len and kv_len here are the request's own
  // Where the tensors begin in the TensorPool. A session's keys are one run of elements from
  // k_offset: token j of the session is row j, whichever request brought it.
  std::int64_t q_offset = 0;
  std::int64_t k_offset = 0;
  std::int64_t v_offset = 0;
  int layer = 0;

  std::int64_t q_row() const { return std::int64_t{shape.num_q_heads} * shape.head_dim_qk; }
  std::int64_t k_row() const { return std::int64_t{shape.num_kv_heads} * shape.head_dim_qk; }
  std::int64_t v_row() const { return std::int64_t{shape.num_kv_heads} * shape.head_dim_v; }
};

// The work that an answered request took.
struct Work {
  std::int64_t tokens = 0;  // queries
  double flops = 0;         // as EstimateWork counts: only visible pairs
  std::int64_t bytes_sent = 0;
  std::int64_t bytes_received = 0;

  void Add(const Work& other);
};

// The configuration of every request of this shape, in the SDK's words.
client::AttentionConfig ConfigOf(const ShapeOptions& shape);
// The same in the kernels' words: no pointers set.
AttentionTask TaskOf(const AttentionCase& request);
// `kv_rows_sent`: rows of k and v that travelled with the request.
Work WorkOf(const AttentionCase& request, std::int64_t kv_rows_sent);
// "q_len=1 kv_len=513 num_q_heads=8 ... q_offset=..": what to rerun it by.
std::string Describe(const AttentionCase& request);

}  // namespace attention::loadgen
