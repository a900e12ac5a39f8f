// Larger socket buffers for gRPC's connections over unix sockets.
//
// A unix socket holds 208 KiB by default and, unlike TCP, never grows: a message of 1 MiB crosses
// in twice the time that it takes with 1 MiB of buffer on both ends (measured by
// tests/benchmark/transport). TCP is left alone: an explicit size turns the kernel's own sizing
// off, which costs throughput.
#pragma once

#include <grpcpp/support/channel_arguments.h>

namespace attention::transport {

inline constexpr int kUnixSocketBufferBytes = 1 << 20;

// For every connection over a unix socket that is made or accepted with these arguments. Does
// nothing with a gRPC whose hook is not known to be the same (before 1.33, after 1.62).
void SetUnixSocketBuffers(int bytes, grpc::ChannelArguments* arguments);

// For one socket; does nothing with one of another family.
void SetUnixSocketBuffers(int bytes, int fd);

}  // namespace attention::transport
