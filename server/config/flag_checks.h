// Values that flags may have: the checks as CLI11 takes them, and the parsers of lists. Errors
// follow the flag's name: "is 'x', expected y".
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace attention::server {

// Accepts "15m", "1h30m", "250ms".
CLI::Validator DurationCheck(absl::Duration least);
CLI::Validator MessageSizeCheck();
CLI::Validator ByteSizeCheck(std::int64_t least);
CLI::Validator AtLeast(std::int64_t least);
CLI::Validator PageSizeCheck();
CLI::Validator ListenCheck();
CLI::Validator AdminListenCheck();
CLI::Validator SharedMemoryListenCheck();
CLI::Validator OrdinalsCheck();

// The entries of a list, which commas part.
std::vector<std::string> Split(const std::string& list);

// Says what is wrong, or nothing.
std::string ParseOrdinals(const std::string& text, std::vector<int>* ordinals);

}  // namespace attention::server
