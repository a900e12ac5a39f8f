// SessionStep to the domain's step, whose result lands in the tensors of a SessionStepResult.
#pragma once

#include "absl/status/statusor.h"
#include "attention/v1/session_service.pb.h"
#include "server/domain/attention_request.h"
#include "server/domain/step_target.h"
#include "server/wire/request_tensors.h"
#include "server/wire/response_tensors.h"

namespace attention::server {

struct DecodedStep {
  SessionStep step;       // points into the tensors
  ResponseTensor output;  // declared
  ResponseTensor lse;     // declared, if it is wanted
  WorkEstimate work;
};

// Checks the step, places its tensors and counts those of its result in the budget.
// INVALID_ARGUMENT names the field. Throws std::bad_alloc when memory is out.
absl::StatusOr<DecodedStep> DecodeStep(const v1::SessionStep& wire, const StepTarget& target,
                                       RequestTensors& tensors, ResponseBudget& budget);

// Gets memory for the results of a decoded step and points the step at it; to be called once they
// have been admitted. Throws std::bad_alloc when memory is out.
void AllocateResult(const ResponseAllocator& allocator, SessionStep& step, ResponseTensor& output,
                    ResponseTensor& lse);

}  // namespace attention::server
