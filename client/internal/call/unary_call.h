// A unary call with retries.
#pragma once

#include <memory>

#include "client/internal/call/answer.h"
#include "client/internal/call/call_settings.h"
#include "client/internal/call/outgoing_request.h"
#include "client/internal/call/transport.h"

namespace attention::client::internal {

struct UnaryCall {
  CallSettings settings;
  Route route;
  const char* method;  // ATTENTION_CLIENT_METHOD
};

// Sends the request, at each attempt anew, and calls `done` once.
void RunUnary(std::shared_ptr<Transport> transport, UnaryCall call,
              std::shared_ptr<OutgoingRequest> request, AnswerCallback done);

}  // namespace attention::client::internal
