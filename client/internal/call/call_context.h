// What an attempt sends beside its message: deadline, metadata and the way to cancel it.
#ifndef ATTENTION_CLIENT_INTERNAL_CALL_CALL_CONTEXT_H_
#define ATTENTION_CLIENT_INTERNAL_CALL_CALL_CONTEXT_H_

#include <grpcpp/client_context.h>

#include <functional>
#include <optional>
#include <stop_token>
#include <string>

#include "absl/time/time.h"
#include "attention/client/options.h"
#include "attention/client/retry_policy.h"

namespace attention::client::internal {

inline constexpr char kTenantKey[] = "attention-tenant";
inline constexpr char kRequestIdKey[] = "x-request-id";

// ClientOptions and CallOptions resolved for one call, all its attempts together.
struct CallSettings {
  std::string tenant = {};
  std::string request_id = {};
  absl::Time deadline = absl::InfiniteFuture();
  std::stop_token cancellation = {};
  RetryPolicy retry_policy = {};
  // The first attempt may run on the thread that starts it.
  bool may_block = false;
};

// `default_timeout` counts when the call sets neither timeout nor deadline.
CallSettings ResolveSettings(const ClientOptions& client, const CallOptions& call, absl::Time now,
                             absl::Duration default_timeout);

// 128 random bits in hexadecimal: no two calls draw the same. Not a secret.
std::string NewUniqueId();

// The context of one attempt, cancelled by the call's token. Must outlive the attempt.
class CallContext {
 public:
  explicit CallContext(const CallSettings& settings);

  grpc::ClientContext* grpc() { return &context_; }

 private:
  grpc::ClientContext context_;
  std::optional<std::stop_callback<std::function<void()>>> on_cancel_;
};

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_CALL_CALL_CONTEXT_H_
