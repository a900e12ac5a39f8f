// CreateLayer: a stream of messages to one target, retried as a whole.
#pragma once

#include <memory>
#include <vector>

#include "attention/client/connection.h"
#include "client/internal/call/transport.h"

namespace attention::client::internal {

// The messages hold their own bytes. `done` is called once.
void StartUpload(std::shared_ptr<Transport> transport, const CallSettings& settings,
                 std::size_t target, std::shared_ptr<const std::vector<grpc::ByteBuffer>> messages,
                 Callback<LayerInfo> done);

}  // namespace attention::client::internal
