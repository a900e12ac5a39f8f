// An attempt's deadline, metadata and cancellation, as gRPC takes them.
#pragma once

#include <grpcpp/client_context.h>

#include <functional>
#include <optional>
#include <stop_token>

#include "absl/status/status.h"
#include "client/internal/call/call_settings.h"

namespace attention::client::internal {

inline constexpr char kRequestIdKey[] = "x-request-id";

// The context of one attempt, cancelled by the call's token. Must outlive the attempt.
class CallContext {
 public:
  explicit CallContext(const CallSettings& settings);

  // OK, or why the attempt must not be made: there is no token for it.
  const absl::Status& status() const { return status_; }
  grpc::ClientContext* grpc() { return &context_; }

 private:
  grpc::ClientContext context_;
  absl::Status status_;
  std::optional<std::stop_callback<std::function<void()>>> on_cancel_;
};

}  // namespace attention::client::internal
