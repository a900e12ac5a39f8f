// The caller of a gRPC call: the credentials that a call and its connection show.
#pragma once

#include <grpcpp/server_context.h>

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/auth/authenticator.h"

namespace attention::server {

// The metadata entry at the key, nothing when there is none. INVALID_ARGUMENT unless it is 1 to 128
// printable ASCII characters.
absl::StatusOr<std::optional<std::string>> ReadMetadata(const grpc::ServerContextBase& context,
                                                        const char* key);

// INVALID_ARGUMENT for a tenant's name that is none; UNAUTHENTICATED and PERMISSION_DENIED as
// Authenticator::Check. `of_connection` may be null.
absl::StatusOr<Identity> IdentifyCaller(const Authenticator& authenticator,
                                        const grpc::ServerContextBase& context,
                                        const Identity* of_connection, absl::Time now);

}  // namespace attention::server
