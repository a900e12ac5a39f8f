#include "server/config/byte_size.h"

#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace attention::server {
namespace {

constexpr absl::string_view kUnits = "KMGT";

// The power of 1024 that a unit stands for.
std::optional<int> PowerOf(absl::string_view unit) {
  if (unit.empty() || absl::EqualsIgnoreCase(unit, "B")) return 0;
  const auto power = kUnits.find(static_cast<char>(unit[0] & ~0x20));
  if (power == absl::string_view::npos) return std::nullopt;
  const absl::string_view rest = unit.substr(1);
  if (!rest.empty() && !absl::EqualsIgnoreCase(rest, "i") && !absl::EqualsIgnoreCase(rest, "iB")) {
    return std::nullopt;
  }
  return static_cast<int>(power) + 1;
}

}  // namespace

std::optional<std::int64_t> ParseByteSize(absl::string_view text) {
  const auto digits = text.find_first_not_of("0123456789");
  const absl::string_view number = text.substr(0, digits);
  absl::string_view unit = digits == absl::string_view::npos ? "" : text.substr(digits);
  if (!unit.empty() && unit[0] == ' ') unit.remove_prefix(1);
  std::int64_t value = 0;
  const std::optional<int> power = PowerOf(unit);
  if (!power || !absl::SimpleAtoi(number, &value)) return std::nullopt;
  for (int i = 0; i < *power; ++i) {
    if (value > std::numeric_limits<std::int64_t>::max() / 1024) return std::nullopt;
    value *= 1024;
  }
  return value;
}

std::string FormatByteSize(std::int64_t bytes) {
  int power = 0;
  while (bytes > 0 && bytes % 1024 == 0 && power < static_cast<int>(kUnits.size())) {
    bytes /= 1024;
    ++power;
  }
  if (power == 0) return absl::StrCat(bytes);
  return absl::StrCat(bytes, kUnits.substr(power - 1, 1), "iB");
}

}  // namespace attention::server
