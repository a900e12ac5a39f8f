#include "server/auth/identity_map.h"

#include <toml++/toml.h>

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

absl::Status Wrong(const toml::node& node, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("line ", node.source().begin.line, ": ", what));
}

absl::Status CheckKeys(const toml::table& entry, std::initializer_list<std::string_view> known) {
  for (const auto& [key, node] : entry) {
    if (std::find(known.begin(), known.end(), key.str()) == known.end()) {
      return Wrong(node, absl::StrCat("has the key ", Quoted(std::string(key.str()))));
    }
  }
  return absl::OkStatus();
}

// The text at the key; nothing when the key is absent.
absl::StatusOr<std::optional<std::string>> TextAt(const toml::table& entry, const char* key) {
  const toml::node* node = entry.get(key);
  if (node == nullptr) return std::nullopt;
  if (!node->is_string() || node->as_string()->get().empty()) {
    return Wrong(*node, absl::StrCat(key, " is expected to be a text that is not empty"));
  }
  return std::string(node->as_string()->get());
}

absl::StatusOr<std::optional<std::uint32_t>> NumberAt(const toml::table& entry, const char* key) {
  const toml::node* node = entry.get(key);
  if (node == nullptr) return std::nullopt;
  const auto* number = node->as_integer();
  if (number == nullptr || number->get() < 0 ||
      number->get() > std::numeric_limits<std::uint32_t>::max()) {
    return Wrong(*node, absl::StrCat(key, " is expected to be a number from 0 to 2^32 - 1"));
  }
  return static_cast<std::uint32_t>(number->get());
}

absl::StatusOr<Identity> IdentityOf(const toml::table& entry) {
  Identity identity;
  ATTENTION_ASSIGN_OR_RETURN(const std::optional<std::string> tenant, TextAt(entry, "tenant"));
  if (!tenant || !IsTenantName(*tenant)) {
    return Wrong(entry, "tenant is expected to be 1 to 128 printable ASCII characters");
  }
  identity.tenant = *tenant;
  ATTENTION_ASSIGN_OR_RETURN(const std::optional<std::string> role, TextAt(entry, "role"));
  if (role && !ParseRole(*role, &identity.role)) {
    return Wrong(entry, "role is expected to be use or admin");
  }
  return identity;
}

}  // namespace

class IdentityMap::Reader {
 public:
  explicit Reader(IdentityMap& map) : map_(map) {}

  absl::Status Read(const toml::table& file) {
    ATTENTION_RETURN_IF_ERROR(CheckKeys(file, {"certificate", "user"}));
    for (const auto& [key, node] : file) {
      const toml::array* entries = node.as_array();
      if (entries == nullptr || !entries->is_array_of_tables()) {
        return Wrong(node, absl::StrCat("expected [[", std::string(key.str()), "]]"));
      }
      for (const toml::node& entry : *entries) {
        ATTENTION_RETURN_IF_ERROR(key.str() == "user" ? AddUser(*entry.as_table())
                                                      : AddCertificate(*entry.as_table()));
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status AddCertificate(const toml::table& entry) {
    ATTENTION_RETURN_IF_ERROR(CheckKeys(entry, {"uri", "dns", "tenant", "role"}));
    ATTENTION_ASSIGN_OR_RETURN(Identity identity, IdentityOf(entry));
    ATTENTION_ASSIGN_OR_RETURN(const std::optional<std::string> uri, TextAt(entry, "uri"));
    ATTENTION_ASSIGN_OR_RETURN(const std::optional<std::string> dns, TextAt(entry, "dns"));
    if (uri.has_value() == dns.has_value()) return Wrong(entry, "expected either uri or dns");
    const bool is_new =
        uri ? map_.uris_.emplace(*uri, std::move(identity)).second
            : map_.dns_names_.emplace(absl::AsciiStrToLower(*dns), std::move(identity)).second;
    return is_new ? absl::OkStatus() : Wrong(entry, "an entry before it has the same name");
  }

  absl::Status AddUser(const toml::table& entry) {
    ATTENTION_RETURN_IF_ERROR(CheckKeys(entry, {"uid", "gid", "tenant", "role"}));
    User user;
    ATTENTION_ASSIGN_OR_RETURN(user.identity, IdentityOf(entry));
    ATTENTION_ASSIGN_OR_RETURN(user.uid, NumberAt(entry, "uid"));
    ATTENTION_ASSIGN_OR_RETURN(user.gid, NumberAt(entry, "gid"));
    if (!user.uid && !user.gid) return Wrong(entry, "expected uid, gid or both");
    if (std::find(map_.users_.begin(), map_.users_.end(), user) != map_.users_.end()) {
      return Wrong(entry, "an entry before it has the same uid and gid");
    }
    map_.users_.push_back(std::move(user));
    return absl::OkStatus();
  }

  IdentityMap& map_;
};

absl::StatusOr<IdentityMap> IdentityMap::Parse(absl::string_view text) {
  IdentityMap map;
  try {
    const toml::table file = toml::parse(std::string_view(text.data(), text.size()));
    if (file.empty()) return absl::InvalidArgumentError("expected [[certificate]] or [[user]]");
    ATTENTION_RETURN_IF_ERROR(Reader(map).Read(file));
  } catch (const toml::parse_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat("line ", error.source().begin.line,
                     ": this is no TOML: ", std::string(error.description())));
  }
  return map;
}

std::optional<Identity> IdentityMap::OfCertificate(
    const std::vector<std::string>& uris, const std::vector<std::string>& dns_names) const {
  for (const std::string& uri : uris) {
    if (const auto found = uris_.find(uri); found != uris_.end()) return found->second;
  }
  for (const std::string& name : dns_names) {
    const auto found = dns_names_.find(absl::AsciiStrToLower(name));
    if (found != dns_names_.end()) return found->second;
  }
  return std::nullopt;
}

bool IdentityMap::HasUserOf(const Identity& identity) const {
  return std::any_of(users_.begin(), users_.end(),
                     [&](const User& user) { return user.identity == identity; });
}

std::optional<Identity> IdentityMap::OfUser(std::uint32_t uid, std::uint32_t gid) const {
  for (const User& user : users_) {
    if (user.uid.value_or(uid) == uid && user.gid.value_or(gid) == gid) return user.identity;
  }
  return std::nullopt;
}

}  // namespace attention::server
