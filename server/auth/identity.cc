#include "server/auth/identity.h"

#include <algorithm>

#include "server/base/client_text.h"

namespace attention::server {

bool IsTenantName(absl::string_view name) {
  return !name.empty() && name.size() <= kMaxTenantBytes &&
         std::all_of(name.begin(), name.end(), IsPrintable);
}

bool ParseRole(absl::string_view name, Role* role) {
  if (name != "use" && name != "admin") return false;
  *role = name == "admin" ? Role::kAdmin : Role::kUse;
  return true;
}

absl::string_view RoleName(Role role) { return role == Role::kAdmin ? "admin" : "use"; }

}  // namespace attention::server
