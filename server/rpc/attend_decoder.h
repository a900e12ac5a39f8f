// AttendRequest to tasks whose results land in the tensors of an AttendResponse.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/v1/attention_service.pb.h"
#include "kernels/api/attention_params.h"
#include "server/rpc/request_tensors.h"
#include "server/rpc/response_tensors.h"

namespace attention::server {

struct DecodedAttend {
  std::vector<AttentionTask> tasks;  // one a sequence; point into the tensors
  ResponseTensor output;
  ResponseTensor lse;
  ResponseTensor column_sums;
  // Set when weights are wanted: what the second pass needs, when the response has left. The tasks
  // write here, and CopyLse copies to `lse` if the client asked for it. [rows of q, num_q_heads]
  std::vector<float> lse_for_weights;
  WorkEstimate work;

  void CopyLse();
};

struct AttendLimits {
  std::int64_t max_output_bytes = 0;  // of each tensor of the response
  bool allows_weights = false;
};

// Checks the request, places its tensors, gets memory for those of the response and builds the
// tasks. INVALID_ARGUMENT names the field. Throws std::bad_alloc when memory is out.
absl::StatusOr<DecodedAttend> DecodeAttend(const v1::AttendRequest& request,
                                           const AttendLimits& limits, RequestTensors& tensors,
                                           BufferPool& pool);

}  // namespace attention::server
