// Bearer tokens of a file, of which the file holds salted hashes only.
//
// A line of the file names one token, in five words:
//
//   ID TENANT ROLE SALT HASH
//
// ID and SALT are letters and digits, TENANT a name without spaces, ROLE "use" or "admin", and HASH
// the SHA-256 of SALT followed by the token, in hexadecimal. A token is ID.SECRET: its id finds the
// line. Empty lines and those that begin with # say nothing. One round of SHA-256 is enough because
// a secret is 256 random bits (MakeToken), which nobody can try out; it is no place for passwords.
//
// Thread-safety: const methods.
#pragma once

#include <optional>
#include <string>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/auth/identity.h"

namespace attention::server {

class TokenTable {
 public:
  // INVALID_ARGUMENT names the line and what is wrong with it; a file without a token, one that
  // does not end with a line end (it is still being written) and an id that stands twice are wrong.
  static absl::StatusOr<TokenTable> Parse(absl::string_view text);

  // The identity of who shows the token; nothing when it is none of the file's.
  std::optional<Identity> Find(absl::string_view token) const;

  std::size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    Identity identity;
    std::string salt;
    std::string hash;  // 32 bytes
  };

  std::unordered_map<std::string, Entry> entries_;  // by id
};

struct NewToken {
  std::string token;  // for the client
  std::string line;   // for the file; without a line end
};

// A token of 256 random bits.
NewToken MakeToken(const Identity& identity);

}  // namespace attention::server
