#include "client/internal/call_context.h"

#include <cstdint>
#include <random>

#include "absl/strings/str_cat.h"

namespace attention::client::internal {
namespace {

// Unique enough to find one call in a log; not a secret.
std::string NewRequestId() {
  thread_local std::mt19937_64 generator((static_cast<uint64_t>(std::random_device{}()) << 32) |
                                         std::random_device{}());
  return absl::StrCat(absl::Hex(generator(), absl::kZeroPad16));
}

}  // namespace

CallSettings ResolveSettings(const ClientOptions& client, const CallOptions& call, absl::Time now,
                             absl::Duration default_timeout) {
  return {.tenant = client.tenant,
          .request_id = call.request_id.empty() ? NewRequestId() : call.request_id,
          .deadline = call.deadline.value_or(now + call.timeout.value_or(default_timeout)),
          .cancellation = call.cancellation,
          .retry_policy = call.retry_policy.value_or(client.retry_policy),
          .may_block = call.may_block};
}

CallContext::CallContext(const CallSettings& settings) {
  if (settings.deadline != absl::InfiniteFuture()) {
    context_.set_deadline(absl::ToChronoTime(settings.deadline));
  }
  context_.AddMetadata(kTenantKey, settings.tenant);
  context_.AddMetadata(kRequestIdKey, settings.request_id);
  if (settings.cancellation.stop_possible()) {
    // A cancel before the attempt starts is remembered by the context.
    on_cancel_.emplace(settings.cancellation, [this] { context_.TryCancel(); });
  }
}

}  // namespace attention::client::internal
