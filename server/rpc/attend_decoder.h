// AttendRequest to tasks whose results land in an AttendResponse.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/v1/attention_service.pb.h"
#include "kernels/api/attention_params.h"

namespace attention::server {

struct DecodedAttend {
  std::vector<AttentionTask> tasks;  // one a sequence; point into the request and the response
  // Set when weights are wanted: what the second pass needs, whether the client asked for the lse
  // or not. [rows of q, num_q_heads]
  std::vector<float> lse_for_weights;
  double flops = 0;
};

struct AttendLimits {
  std::int64_t max_output_bytes = 0;  // of each tensor of the response
  bool allows_weights = false;
};

// Checks the request, sizes the response's tensors and builds the tasks. Both messages must stay
// where they are until the tasks have run. INVALID_ARGUMENT names the field.
absl::StatusOr<DecodedAttend> DecodeAttend(const v1::AttendRequest& request,
                                           const AttendLimits& limits,
                                           v1::AttendResponse* response);

}  // namespace attention::server
