#include "client/internal/call/call_settings.h"

#include <random>

#include "absl/strings/str_cat.h"

namespace attention::client::internal {
namespace {

// Sixteen digits, drawn by each thread from a generator of its own.
std::string RandomDigits() {
  thread_local std::mt19937_64 generator = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  return absl::StrCat(absl::Hex(generator(), absl::kZeroPad16));
}

}  // namespace

std::string NewUniqueId() { return RandomDigits() + RandomDigits(); }

CallSettings ResolveSettings(const ClientOptions& client, const CallOptions& call, absl::Time now,
                             absl::Duration default_timeout) {
  return {.tenant = client.tenant,
          .request_id = call.request_id.empty() ? RandomDigits() : call.request_id,
          .deadline = call.deadline.value_or(now + call.timeout.value_or(default_timeout)),
          .cancellation = call.cancellation,
          .retry_policy = call.retry_policy.value_or(client.retry_policy),
          .may_block = call.may_block};
}

}  // namespace attention::client::internal
