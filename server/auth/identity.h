// A caller's tenant, and what the caller may do.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace attention::server {

enum class Role {
  kUse,    // calls about what is the tenant's own
  kAdmin,  // of other tenants too, and of the server: load figures, limits, drain
};

struct Identity {
  std::string tenant;
  Role role = Role::kUse;

  bool operator==(const Identity&) const = default;
};

inline constexpr std::size_t kMaxTenantBytes = 128;

// 1 to kMaxTenantBytes printable ASCII characters.
bool IsTenantName(absl::string_view name);

// "use" and "admin". False for another name.
bool ParseRole(absl::string_view name, Role* role);
absl::string_view RoleName(Role role);

}  // namespace attention::server
