// The part that Step and StepStream share: one StepRequest, from decoding to its response.
#pragma once

#include <memory>
#include <vector>

#include "attention/v1/session_service.pb.h"
#include "server/rpc/service_context.h"

namespace attention::server {

class StepCall {
 public:
  // Decodes the steps into `request`. Steps that cannot run get their error in `response` and take
  // no part; both messages must outlive the work. INVALID_ARGUMENT when the request as a whole is
  // wrong.
  absl::Status Begin(const ServiceContext& services, const CallFrame& frame,
                     const v1::StepRequest& wire, v1::StepResponse* response,
                     AttentionRequest* request);

  // Writes outcomes and timing into the response and ends the leases.
  void Complete(const ServiceContext& services, AttentionResult& result);

 private:
  absl::Status BeginStep(const ServiceContext& services, const CallFrame& frame,
                         const v1::SessionStep& wire, v1::SessionStepResult* result,
                         AttentionRequest* request);

  v1::StepResponse* response_ = nullptr;
  std::vector<SessionLease> leases_;
  std::vector<v1::SessionStepResult*> results_;  // of the steps that take part
};

// A SessionHandle from the wire.
SessionHandle DecodeHandle(const v1::SessionHandle& wire);

}  // namespace attention::server
