// One AttendWithWeights over AttendStream: a single request on a stream of its own.
#pragma once

#include <memory>

#include "attention/client/connection.h"
#include "client/internal/call/outgoing_request.h"
#include "client/internal/call/transport.h"
#include "client/internal/shared_memory/shared_memory_request.h"

namespace attention::client::internal {

// The message to send, which asks for the weights.
absl::StatusOr<codec::OutgoingMessage> WeightsRequest(const AttendRequest& request,
                                                      const TensorRefs* refs);

// Runs the call, retrying as long as no block has come. `request` is a WeightsRequest; `shared` is
// the same one where its tensors lie in shared memory, else null.
void StartWeightsCall(std::shared_ptr<Transport> transport, Route route,
                      const CallSettings& settings, std::shared_ptr<OutgoingRequest> request,
                      std::shared_ptr<SharedMemoryRequest> shared, WeightsCallback on_block,
                      Callback<AttendResult> done);

}  // namespace attention::client::internal
