#include "tests/benchmark/transport/socket_buffers.h"

#include <grpcpp/impl/server_builder_option.h>
#include <sys/socket.h>

#include <atomic>
#include <cstdint>
#include <memory>

// gRPC lets an application set options of its sockets through a grpc_socket_mutator, whose
// definition no installed header has: the channel argument is public, its type is opaque. The
// layout below is that of gRPC 1.33 to 1.62; grpc_socket_mutator_init is exported by libgrpc and
// fills in the private reference count, so only the size of that count (a word) is assumed.
struct grpc_socket_mutator_vtable;
struct grpc_mutate_socket_info {
  int fd;
  int usage;
};

struct grpc_socket_mutator {
  const grpc_socket_mutator_vtable* vtable;
  std::intptr_t reference_count;
};

struct grpc_socket_mutator_vtable {
  bool (*mutate_fd)(int fd, grpc_socket_mutator* mutator);
  int (*compare)(grpc_socket_mutator* a, grpc_socket_mutator* b);
  void (*destroy)(grpc_socket_mutator* mutator);
  bool (*mutate_fd_2)(const grpc_mutate_socket_info* info, grpc_socket_mutator* mutator);
};

void grpc_socket_mutator_init(grpc_socket_mutator* mutator,
                              const grpc_socket_mutator_vtable* vtable);

namespace attention::bench {
namespace {

std::atomic<int> num_sockets_set{0};

struct BufferMutator : grpc_socket_mutator {
  int bytes = 0;
};

bool SetBuffers(int fd, grpc_socket_mutator* mutator) {
  sockaddr_storage address = {};
  socklen_t length = sizeof(address);
  // On TCP an explicit size turns the kernel's own sizing off, which costs throughput.
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0 ||
      address.ss_family != AF_UNIX) {
    return true;
  }
  const int bytes = static_cast<BufferMutator*>(mutator)->bytes;
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
  ++num_sockets_set;
  return true;
}

bool SetBuffersOf(const grpc_mutate_socket_info* info, grpc_socket_mutator* mutator) {
  return SetBuffers(info->fd, mutator);
}

int Compare(grpc_socket_mutator* a, grpc_socket_mutator* b) {
  return static_cast<BufferMutator*>(a)->bytes - static_cast<BufferMutator*>(b)->bytes;
}

void Destroy(grpc_socket_mutator* mutator) { delete static_cast<BufferMutator*>(mutator); }

constexpr grpc_socket_mutator_vtable kVtable = {SetBuffers, Compare, Destroy, SetBuffersOf};

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
    auto* mutator = new BufferMutator();
    grpc_socket_mutator_init(mutator, &kVtable);
    mutator->bytes = settings.socket_buffer_bytes;
    arguments->SetSocketMutator(mutator);  // takes the reference
  }
  if (settings.max_frame_bytes > 0) {
    arguments->SetInt(GRPC_ARG_HTTP2_MAX_FRAME_SIZE, settings.max_frame_bytes);
  }
  if (settings.lookahead_bytes > 0) {
    arguments->SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, settings.lookahead_bytes);
  }
  if (settings.has_keepalive) {
    arguments->SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30000);
    arguments->SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
    arguments->SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  }
}

void Apply(const ChannelSettings& settings, grpc::ServerBuilder* builder) {
  builder->SetOption(std::make_unique<ArgumentsOption>(settings));
}

int NumSocketsSet() { return num_sockets_set; }

}  // namespace attention::bench
