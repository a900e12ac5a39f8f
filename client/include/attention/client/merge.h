// Joining partial results: attention over disjoint parts of the keys, each with its log-sum-exp,
// becomes attention over their union. Parts come from SessionStep::kv_begin and kv_end, or from
// sessions that hold stripes of one sequence. Pure, thread-safe.
#pragma once

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/client/tensor.h"

namespace attention::client {

// One part. Points to tensors that must outlive the call.
struct Partial {
  // [..., head_dim_v], float32, float16 or bfloat16.
  const Tensor* output = nullptr;
  // float32 [...], natural log. -inf where the part had nothing visible.
  const Tensor* lse = nullptr;
};

struct MergedPartials {
  // float32 [..., head_dim_v]; 0 where no part had anything visible.
  Tensor output = {};
  // float32 [...]; -inf where no part had anything visible.
  Tensor lse = {};
};

// Merges one or more parts of equal shapes, in float32:
//   lse = log(sum_p exp(lse_p)),  output = sum_p exp(lse_p - lse) * output_p.
// A part with lse = -inf takes no part, whatever its output; NaN in others propagates to its row.
// Sink logits join a denominator, so at most one of the parts may have been computed with them.
// INVALID_ARGUMENT: no part, a missing tensor, or shapes or types that do not fit.
absl::StatusOr<MergedPartials> MergePartials(absl::Span<const Partial> partials);

}  // namespace attention::client
