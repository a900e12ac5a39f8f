#include "server/auth/token_table.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/base/check.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

constexpr std::size_t kMaxWordBytes = 64;
constexpr std::size_t kMaxTokenBytes = 256;

using Digest = std::array<unsigned char, SHA256_DIGEST_LENGTH>;

// SHA256() of OpenSSL 3 looks the algorithm up at each call: 0.33 us for a token, here 0.11.
Digest HashOf(absl::string_view salt, absl::string_view token) {
  static const EVP_MD* const sha256 = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  thread_local const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> state(EVP_MD_CTX_new(),
                                                                                   EVP_MD_CTX_free);
  Digest digest;
  ATTENTION_CHECK(EVP_DigestInit_ex2(state.get(), sha256, nullptr) == 1 &&
                  EVP_DigestUpdate(state.get(), salt.data(), salt.size()) == 1 &&
                  EVP_DigestUpdate(state.get(), token.data(), token.size()) == 1 &&
                  EVP_DigestFinal_ex(state.get(), digest.data(), nullptr) == 1);
  return digest;
}

bool IsWord(absl::string_view text) {
  return !text.empty() && text.size() <= kMaxWordBytes &&
         std::all_of(text.begin(), text.end(), absl::ascii_isalnum);
}

bool IsHash(absl::string_view text) {
  return text.size() == 2 * SHA256_DIGEST_LENGTH &&
         std::all_of(text.begin(), text.end(), absl::ascii_isxdigit);
}

std::string HexOf(const Digest& digest) {
  return absl::BytesToHexString({reinterpret_cast<const char*>(digest.data()), digest.size()});
}

// No word of the line is repeated: a token may stand there by mistake.
absl::Status Wrong(std::size_t line, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat("line ", line, ": expected ", expected));
}

std::string RandomHex(std::size_t num_bytes) {
  std::string bytes(num_bytes, '\0');
  ATTENTION_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(bytes.data()),
                             static_cast<int>(bytes.size())) == 1);
  return absl::BytesToHexString(bytes);
}

}  // namespace

absl::StatusOr<TokenTable> TokenTable::Parse(absl::string_view text) {
  TokenTable table;
  std::vector<absl::string_view> lines = absl::StrSplit(text, '\n');
  if (!lines.back().empty()) return Wrong(lines.size(), "a line end, as a whole file has");
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const absl::string_view line = absl::StripAsciiWhitespace(lines[i]);
    if (line.empty() || absl::StartsWith(line, "#")) continue;
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (words.size() != 5) return Wrong(i + 1, "five words: ID TENANT ROLE SALT HASH");
    Entry entry;
    if (!IsWord(words[0])) return Wrong(i + 1, "an id of 1 to 64 letters and digits");
    if (!IsTenantName(words[1])) return Wrong(i + 1, "a tenant of 1 to 128 printable characters");
    entry.identity.tenant = std::string(words[1]);
    if (!ParseRole(words[2], &entry.identity.role)) return Wrong(i + 1, "the role use or admin");
    if (!IsWord(words[3])) return Wrong(i + 1, "a salt of 1 to 64 letters and digits");
    entry.salt = std::string(words[3]);
    if (!IsHash(words[4])) return Wrong(i + 1, "a hash of 64 hexadecimal digits");
    entry.hash = absl::HexStringToBytes(words[4]);
    if (!table.entries_.emplace(words[0], std::move(entry)).second) {
      return Wrong(i + 1, "an id that no line before it has");
    }
  }
  if (table.entries_.empty()) return absl::InvalidArgumentError("expected a line with a token");
  return table;
}

std::optional<Identity> TokenTable::Find(absl::string_view token) const {
  if (token.size() > kMaxTokenBytes) return std::nullopt;
  const auto found = entries_.find(std::string(token.substr(0, token.find('.'))));
  if (found == entries_.end()) return std::nullopt;
  const Entry& entry = found->second;
  const Digest hash = HashOf(entry.salt, token);
  if (CRYPTO_memcmp(hash.data(), entry.hash.data(), hash.size()) != 0) return std::nullopt;
  return entry.identity;
}

NewToken MakeToken(const Identity& identity) {
  const std::string id = RandomHex(8);
  const std::string salt = RandomHex(16);
  NewToken made;
  made.token = absl::StrCat(id, ".", RandomHex(32));
  made.line = absl::StrCat(id, " ", identity.tenant, " ", RoleName(identity.role), " ", salt, " ",
                           HexOf(HashOf(salt, made.token)));
  return made;
}

}  // namespace attention::server
