// Numbers of bytes as people write them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace attention::server {

// "1073741824", "1GiB", "1Gi" or "1G": a whole number with a unit of B, K, M, G or T, each 1024 of
// the one before. Nothing for anything else, for "1GB", which has two meanings, and for what 64
// bits do not hold.
std::optional<std::int64_t> ParseByteSize(absl::string_view text);

// With the largest unit of which it is a whole number: "1GiB", "1500".
std::string FormatByteSize(std::int64_t bytes);

}  // namespace attention::server
