#include "tests/benchmark/transport/channel_arguments.h"

#include <grpcpp/impl/server_builder_option.h>

#include <memory>

#include "proto/transport/socket_buffers.h"

namespace attention::bench {
namespace {

class ArgumentsOption final : public grpc::ServerBuilderOption {
 public:
  explicit ArgumentsOption(const ChannelSettings& settings) : settings_(settings) {}
  void UpdateArguments(grpc::ChannelArguments* arguments) override { Apply(settings_, arguments); }
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>*) override {}

 private:
  ChannelSettings settings_;
};

}  // namespace

void Apply(const ChannelSettings& settings, grpc::ChannelArguments* arguments) {
  if (settings.socket_buffer_bytes > 0) {
    transport::SetUnixSocketBuffers(settings.socket_buffer_bytes, arguments);
  }
  if (settings.max_frame_bytes > 0) {
    arguments->SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, settings.max_frame_bytes);
  }
  if (settings.lookahead_bytes > 0) {
    arguments->SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, settings.lookahead_bytes);
  }
  if (settings.has_fixed_window) arguments->SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  if (settings.has_keepalive) {
    arguments->SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
    arguments->SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
    arguments->SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  }
}

void Apply(const ChannelSettings& settings, grpc::ServerBuilder* builder) {
  builder->SetOption(std::make_unique<ArgumentsOption>(settings));
}

}  // namespace attention::bench
