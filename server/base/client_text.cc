#include "server/base/client_text.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace attention::server {

std::string Quoted(absl::string_view text) {
  if (text.size() <= kMaxQuotedBytes) return absl::StrCat("'", absl::CEscape(text), "'");
  return absl::StrCat("'", absl::CEscape(text.substr(0, kMaxQuotedBytes)), "...' (", text.size(),
                      " bytes)");
}

bool IsPrintable(char c) { return c >= 0x20 && c < 0x7f; }

std::string Printable(absl::string_view message, std::size_t max_bytes) {
  std::string printable;
  for (const char& c : message) {
    const std::string shown = IsPrintable(c) ? std::string(1, c) : absl::CEscape({&c, 1});
    if (printable.size() + shown.size() > max_bytes) {
      return absl::StrCat(printable, "... (", message.size(), " bytes)");
    }
    printable += shown;
  }
  return printable;
}

}  // namespace attention::server
