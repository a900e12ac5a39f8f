// SessionStep to the domain's step, whose result lands in the tensors of a SessionStepResult.
#pragma once

#include "absl/status/statusor.h"
#include "attention/v1/session_service.pb.h"
#include "server/domain/attention_request.h"
#include "server/rpc/request_tensors.h"
#include "server/rpc/response_tensors.h"
#include "server/session/session_table.h"

namespace attention::server {

struct DecodedStep {
  SessionStep step;  // points into the tensors
  ResponseTensor output;
  ResponseTensor lse;
  WorkEstimate work;  // with the session's present length
};

// Checks the step, places its tensors and gets memory for those of its result. INVALID_ARGUMENT
// names the field. Throws std::bad_alloc when memory is out.
absl::StatusOr<DecodedStep> DecodeStep(const v1::SessionStep& wire, const Session& session,
                                       RequestTensors& tensors, const ResponseAllocator& allocator);

}  // namespace attention::server
