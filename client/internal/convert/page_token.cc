#include "client/internal/convert/page_token.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace attention::client::internal {

absl::StatusOr<PageToken> ParsePageToken(const std::string& text, std::size_t num_targets) {
  if (num_targets == 1 || text.empty()) return PageToken{0, text};
  const std::size_t slash = text.find('/');
  PageToken result;
  if (slash == std::string::npos || !absl::SimpleAtoi(text.substr(0, slash), &result.target) ||
      result.target >= num_targets) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_token: \"", text, "\" is not one of this client's"));
  }
  result.token = text.substr(slash + 1);
  return result;
}

std::string NextPageToken(const PageToken& answered, std::size_t num_targets) {
  if (num_targets == 1) return answered.token;
  if (!answered.token.empty()) return absl::StrCat(answered.target, "/", answered.token);
  if (answered.target + 1 < num_targets) return absl::StrCat(answered.target + 1, "/");
  return "";
}

}  // namespace attention::client::internal
