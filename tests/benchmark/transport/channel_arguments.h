// ChannelSettings as gRPC takes them.
#pragma once

#include <grpcpp/server_builder.h>
#include <grpcpp/support/channel_arguments.h>

#include "tests/benchmark/transport/settings.h"

namespace attention::bench {

void Apply(const ChannelSettings& settings, grpc::ChannelArguments* arguments);
void Apply(const ChannelSettings& settings, grpc::ServerBuilder* builder);

}  // namespace attention::bench
