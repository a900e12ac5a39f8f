// SessionStep to the domain's step, whose result lands in a SessionStepResult.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "attention/v1/session_service.pb.h"
#include "server/domain/attention_request.h"
#include "server/session/session_table.h"

namespace attention::server {

struct DecodedStep {
  SessionStep step;  // points into the message and the result
  double flops = 0;  // estimated with the session's present length
};

// Both messages must stay where they are until the step has run. INVALID_ARGUMENT names the field.
absl::StatusOr<DecodedStep> DecodeStep(const v1::SessionStep& wire, const Session& session,
                                       std::int64_t max_output_bytes,
                                       v1::SessionStepResult* result);

}  // namespace attention::server
