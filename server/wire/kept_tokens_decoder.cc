#include "server/wire/kept_tokens_decoder.h"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/api/attention_params.h"
#include "kernels/base/divide.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

absl::Status CheckBits(const std::string& field, const v1::KeptTokens& wire) {
  if (wire.num_tokens() < 0 || wire.num_tokens() > kMaxPosition) {
    return absl::InvalidArgumentError(absl::StrCat(field, ".num_tokens is ", wire.num_tokens(),
                                                   ", expected 0 to ", kMaxPosition));
  }
  const auto num_bytes = static_cast<std::size_t>(CeilDiv<std::int64_t>(wire.num_tokens(), 8));
  if (wire.kept().size() != num_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".kept has ", wire.kept().size(), " bytes, expected ", num_bytes,
                     ", a bit for each of ", wire.num_tokens(), " tokens"));
  }
  const int num_last = static_cast<int>(wire.num_tokens() % 8);
  if (num_last == 0) return absl::OkStatus();
  const auto last = static_cast<std::uint8_t>(wire.kept().back());
  if (last >> num_last == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ".kept has bits behind token ",
                                                 wire.num_tokens() - 1, ", expected zeros"));
}

std::vector<std::int64_t> TokensOf(const std::string& bits) {
  std::vector<std::int64_t> tokens;
  for (std::size_t i = 0; i < bits.size(); ++i) {
    for (auto byte = static_cast<std::uint8_t>(bits[i]); byte != 0; byte &= byte - 1) {
      tokens.push_back(static_cast<std::int64_t>(i) * 8 + std::countr_zero(byte));
    }
  }
  return tokens;
}

}  // namespace

absl::StatusOr<std::vector<KeptTokens>> DecodeKeptTokens(const v1::KeepTokensRequest& wire) {
  if (wire.keep().empty()) {
    return absl::InvalidArgumentError("keep is empty, expected the tokens that stay");
  }
  std::vector<KeptTokens> kept;
  std::set<std::pair<int, int>> seen;  // layer and head, -1 for all
  for (int i = 0; i < wire.keep_size(); ++i) {
    const v1::KeptTokens& entry = wire.keep(i);
    const std::string field = absl::StrCat("keep[", i, "]");
    ATTENTION_RETURN_IF_ERROR(CheckBits(field, entry));
    if (entry.has_layer() && entry.layer() < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ".layer is ", entry.layer(), ", expected 0 or more"));
    }
    if (entry.has_kv_head() && entry.kv_head() < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ".kv_head is ", entry.kv_head(), ", expected 0 or more"));
    }
    const int layer = entry.has_layer() ? entry.layer() : -1;
    const int head = entry.has_kv_head() ? entry.kv_head() : -1;
    if (!seen.insert({layer, head}).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, " is about a layer and head of an entry before it"));
    }
    KeptTokens& tokens = kept.emplace_back();
    if (entry.has_layer()) tokens.layer = entry.layer();
    if (entry.has_kv_head()) tokens.kv_head = entry.kv_head();
    tokens.num_tokens = entry.num_tokens();
    tokens.tokens = TokensOf(entry.kept());
  }
  return kept;
}

}  // namespace attention::server
