// TenantLimits as messages.
#pragma once

#include "absl/status/statusor.h"
#include "attention/v1/server_service.pb.h"
#include "server/domain/tenant_limits.h"

namespace attention::server {

// `present` with what the message says instead. INVALID_ARGUMENT names the field, its value and
// what was expected.
absl::StatusOr<TenantLimits> DecodeTenantLimits(const v1::TenantLimits& wire,
                                                const TenantLimits& present);

// Limits that are none are absent.
void EncodeTenantLimits(const TenantLimits& limits, v1::TenantLimits* wire);

}  // namespace attention::server
