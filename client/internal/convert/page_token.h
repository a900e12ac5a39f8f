// Page tokens of a listing that goes through several targets, one after the other: a token tells at
// which target the listing is. With one target it is the server's own token.
#pragma once

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace attention::client::internal {

struct PageToken {
  std::size_t target = 0;
  // The token that the target gave; empty for its first page.
  std::string token;
};

// INVALID_ARGUMENT: not a token that NextPageToken made for as many targets.
absl::StatusOr<PageToken> ParsePageToken(const std::string& text, std::size_t num_targets);

// `answered` is the page's target and the token it gave for the next page. Empty after the last
// page of the last target.
std::string NextPageToken(const PageToken& answered, std::size_t num_targets);

}  // namespace attention::client::internal
