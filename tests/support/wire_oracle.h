// Checks an answer of the service: the request's bytes, read independently of the
// server's decoder, computed by the float64 reference.
//
// Bounds. Scores, softmax and accumulation are float32 on exactly the request's values, and the
// result is rounded once to its type. An output may therefore be off by one epsilon of its type at
// the largest output, for that rounding, plus 2^-18 of the largest value: 32 float32 epsilons for
// sums of a few hundred terms in another order and for exp. An lse may be off by 2^-18 of
// its magnitude (at least 1), a weight by 2^-18, a column sum by 2^-18 for each query.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attention/v1/attention_service.pb.h"
#include "kernels/api/attention_params.h"
#include "tests/support/wire_tensor.h"

namespace attention::testing {

// A random request. Sequence i has q_lens[i] queries over kv_lens[i] keys.
struct WireSpec {
  int num_q_heads = 4;
  int num_kv_heads = 2;
  int head_dim_qk = 32;
  int head_dim_v = 32;
  v1::DType dtype = v1::DTYPE_FLOAT32;
  std::vector<std::int64_t> q_lens = {9};
  std::vector<std::int64_t> kv_lens = {41};
  bool is_dense = false;  // padded to the longest, with lengths given
  std::uint32_t seed = 1;
};

// Asks for lse; without q_lens and kv_lens on the wire when there is one packed sequence.
v1::AttendRequest MakeAttendRequest(const WireSpec& spec);

// One task a sequence, without outputs; points into the request. The request must be valid.
std::vector<AttentionTask> TasksOf(const v1::AttendRequest& request);

// Empty when every tensor asked for is there and right and no other is; else what is wrong first.
std::string FindMismatch(const v1::AttendRequest& request, const v1::AttendResponse& response);

// The same for all the weights of sequence `index`, [q_len, num_q_heads, kv_len]; also checks that
// each row sums to 1, or to 0 when nothing is visible (less when sink logits take their share).
std::string FindWeightsMismatch(const v1::AttendRequest& request, int index,
                                const v1::Tensor& weights);

}  // namespace attention::testing
