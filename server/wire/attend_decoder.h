// AttendRequest to tasks whose results land in the tensors of an AttendResponse.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "attention/v1/attention_service.pb.h"
#include "kernels/api/attention_params.h"
#include "server/wire/request_tensors.h"
#include "server/wire/response_tensors.h"

namespace attention::server {

struct DecodedAttend {
  std::vector<AttentionTask> tasks;  // one a sequence; point into the tensors
  ResponseTensor output;
  ResponseTensor lse;
  ResponseTensor column_sums;
  std::vector<ResponseTensor> weights;  // of each sequence, where they are part of the answer
  ResultLedger::Charge charge;          // for blocks of weights, one at a time
  std::int64_t result_bytes = 0;
  WorkEstimate work;
};

// Blocks of weights are about this large: big enough that a message's fixed cost (some 50 us)
// vanishes beside its transfer (some 700 us), small enough that a slow reader holds little.
inline constexpr std::int64_t kWeightsBlockBytes = std::int64_t{1} << 20;

// How weights are answered, if they are asked for.
enum class WeightsForm { kInAnswer, kInBlocks };

// Checks the request, gets memory for the tensors of the response, places those of the request and
// builds the tasks. INVALID_ARGUMENT names the field. Throws std::bad_alloc when memory is out.
absl::StatusOr<DecodedAttend> DecodeAttend(const v1::AttendRequest& request, WeightsForm form,
                                           RequestTensors& tensors, ResponseAllocator& allocator);

}  // namespace attention::server
