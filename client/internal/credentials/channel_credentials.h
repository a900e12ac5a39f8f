// TlsOptions as gRPC takes them.
#pragma once

#include <grpcpp/security/credentials.h>

#include <memory>
#include <optional>

#include "attention/client/credentials.h"

namespace attention::client::internal {

// Credentials for any number of channels: without options, those of plain connections. `tls` has
// passed ReadTlsMaterial.
std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(
    const std::optional<TlsOptions>& tls);

}  // namespace attention::client::internal
