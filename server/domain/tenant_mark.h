// A tenant's name as a number, for memory that remembers who had it last.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"

namespace attention::server {

using TenantMark = std::uint64_t;

// The marks of memory that no tenant has had yet, and that several have had.
inline constexpr TenantMark kNobody = 0, kSeveral = ~TenantMark{0};

// Neither of these. A keyed hash whose key this process has drawn at random: two names that callers
// choose have one mark with a chance of 2^-64.
TenantMark MarkOf(absl::string_view tenant);

}  // namespace attention::server
