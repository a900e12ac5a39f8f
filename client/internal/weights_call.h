// One AttendWithWeights over AttendStream: a single request on a stream of its own.
#ifndef ATTENTION_CLIENT_INTERNAL_WEIGHTS_CALL_H_
#define ATTENTION_CLIENT_INTERNAL_WEIGHTS_CALL_H_

#include <memory>

#include "attention/v1/attention_service.pb.h"
#include "client/connection.h"
#include "client/internal/call_context.h"
#include "client/internal/transport.h"

namespace attention::client::internal {

// Runs the call, retrying as long as no block has come. `request` has returns.weights set.
void StartWeightsCall(const std::shared_ptr<Transport>& transport, const CallSettings& settings,
                      v1::AttendRequest request, WeightsCallback on_block,
                      Callback<AttendResult> done);

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_WEIGHTS_CALL_H_
