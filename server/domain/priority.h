// The order of a tenant's own requests.
#pragma once

#include <optional>

#include "absl/strings/string_view.h"

namespace attention::server {

// Between tenants only their shares count.
enum class Priority { kHigh, kNormal, kLow };
inline constexpr int kNumPriorities = 3;

// As calls and files write it: "high", "normal" or "low".
constexpr absl::string_view PriorityName(Priority priority) {
  constexpr absl::string_view kNames[kNumPriorities] = {"high", "normal", "low"};
  return kNames[static_cast<int>(priority)];
}

// Nothing for another name.
constexpr std::optional<Priority> ParsePriority(absl::string_view name) {
  for (int i = 0; i < kNumPriorities; ++i) {
    const auto priority = static_cast<Priority>(i);
    if (name == PriorityName(priority)) return priority;
  }
  return std::nullopt;
}

}  // namespace attention::server
