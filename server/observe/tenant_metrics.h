// Figures of each tenant, under a bounded number of labels: names are whatever callers say.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

namespace attention::server {

// The label of the tenants beyond those that have lines of their own.
inline constexpr char kOtherTenants[] = "other";

// The amounts under labels: tenants that are listed have lines of their own, and so have the
// `max_unlisted` of the others with the largest amounts; the rest are one line. The empty name is
// the rest's already.
std::map<std::string, std::int64_t> BoundedByTenant(
    const std::map<std::string, std::int64_t>& amounts,
    const std::function<bool(const std::string&)>& is_listed, std::size_t max_unlisted);

}  // namespace attention::server
