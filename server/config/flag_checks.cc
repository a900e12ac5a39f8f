#include "server/config/flag_checks.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/config/byte_size.h"
#include "server/listener/listener.h"

namespace attention::server {
namespace {

// Says what is wrong, or nothing.
std::string CheckListener(const std::string& text) {
  return std::string(ParseListener(text).status().message());
}

}  // namespace

// Accepts "15m", "1h30m", "250ms".
CLI::Validator DurationCheck(absl::Duration least) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        absl::Duration duration;
        if (absl::ParseDuration(text, &duration) && duration >= least &&
            duration < absl::InfiniteDuration()) {
          return {};
        }
        return absl::StrCat("is '", text, "', expected a ",
                            least > absl::ZeroDuration() ? "positive duration" : "duration",
                            " such as 90s, 15m or 1h30m");
      },
      "DURATION", "duration");
}

CLI::Validator MessageSizeCheck() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        constexpr std::int64_t kLeast = 1024;
        constexpr std::int64_t kMost = (std::int64_t{1} << 31) - 1;
        const auto bytes = ParseByteSize(text);
        if (bytes && (*bytes == 0 || (*bytes >= kLeast && *bytes <= kMost))) return {};
        return absl::StrCat("is '", text, "', expected 0 or ", kLeast, " to ", kMost, " bytes");
      },
      "BYTES", "message size");
}

CLI::Validator ByteSizeCheck(std::int64_t least) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        const auto bytes = ParseByteSize(text);
        if (bytes && *bytes >= least) return {};
        return absl::StrCat("is '", text, "', expected a whole number of bytes of at least ", least,
                            ", such as 1073741824, 512MiB or 2GiB");
      },
      "BYTES", "byte size");
}

CLI::Validator AtLeast(std::int64_t least) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        std::int64_t value = 0;
        if (absl::SimpleAtoi(text, &value) && value >= least) return {};
        return absl::StrCat("is '", text, "', expected a whole number of at least ", least);
      },
      "NUMBER", "number");
}

CLI::Validator PageSizeCheck() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        const long long value = std::atoll(text.c_str());
        if (value >= 16 && value <= 65536 && value % 16 == 0) return {};
        return "is '" + text + "', expected a multiple of 16 from 16 to 65536";
      },
      "TOKENS", "page size");
}

std::vector<std::string> Split(const std::string& list) { return absl::StrSplit(list, ','); }

CLI::Validator ListenCheck() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        for (const std::string& address : Split(text)) {
          if (std::string error = CheckListener(address); !error.empty()) return error;
        }
        return {};
      },
      "ADDRESS[,ADDRESS...]", "address list");
}

CLI::Validator AdminListenCheck() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        if (text.empty()) return {};
        if (absl::StartsWith(text, "unix:") || absl::StrContains(text, '?')) {
          return "is '" + text + "', expected host:port";
        }
        return CheckListener(text);
      },
      "ADDRESS", "address");
}

CLI::Validator SharedMemoryListenCheck() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        if (text.empty()) return {};
        const auto listener = ParseListener(text);
        if (listener.ok() && listener->is_unix()) return {};
        return "is '" + text + "', expected unix:path";
      },
      "ADDRESS", "unix socket");
}

// Says what is wrong, or nothing.
std::string ParseOrdinals(const std::string& text, std::vector<int>* ordinals) {
  if (text.empty()) return {};
  for (const std::string& entry : Split(text)) {
    int ordinal = 0;
    if (!absl::SimpleAtoi(entry, &ordinal) || ordinal < 0 || ordinal > 255) {
      return "has '" + entry + "', expected ordinals from 0 to 255";
    }
    if (std::find(ordinals->begin(), ordinals->end(), ordinal) != ordinals->end()) {
      return "has '" + entry + "' twice, expected each GPU once";
    }
    ordinals->push_back(ordinal);
  }
  return {};
}

CLI::Validator OrdinalsCheck() {
  return CLI::Validator(
      [](std::string& text) {
        std::vector<int> ordinals;
        return ParseOrdinals(text, &ordinals);
      },
      "ORDINAL[,...]", "ordinals");
}

}  // namespace attention::server
