// Socket buffers of a chosen size for gRPC's connections.
#pragma once

#include <grpcpp/server_builder.h>
#include <grpcpp/support/channel_arguments.h>

#include "tests/benchmark/transport/settings.h"

namespace attention::bench {

void Apply(const ChannelSettings& settings, grpc::ChannelArguments* arguments);
void Apply(const ChannelSettings& settings, grpc::ServerBuilder* builder);

// How many sockets have been given buffers so far: 0 tells that the hook is not called.
int NumSocketsSet();

}  // namespace attention::bench
