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

std::string NewRequestId() { return RandomDigits(); }

std::string NewUniqueId() { return RandomDigits() + RandomDigits(); }

absl::Time DeadlineOf(const CallOptions& call, absl::Time now, absl::Duration default_timeout) {
  return call.deadline.value_or(now + call.timeout.value_or(default_timeout));
}

}  // namespace attention::client::internal
