// The limits of tenants: a TOML file,
//
//   [default]                     # of each tenant that is not listed
//   kv-bytes = "2GiB"
//
//   [tenant.batch-jobs]           # what is not said here is as in [default]
//   share = 0.5
//   highest-priority = "low"
//
// with the keys of TenantLimitKey. Sizes are numbers or texts with a unit; "none" takes the limit
// away.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/domain/tenant_limits.h"

namespace attention::server {

// `base`: what [default] does not say. NOT_FOUND when the file cannot be read; INVALID_ARGUMENT
// names the file, the line, the key and what was expected.
absl::StatusOr<TenantLimitsSet> ReadLimitsFile(const std::string& path, const TenantLimits& base);

// The same of a file's text.
absl::StatusOr<TenantLimitsSet> ParseLimits(absl::string_view text, const std::string& path,
                                            const TenantLimits& base);

}  // namespace attention::server
