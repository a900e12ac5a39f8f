#include "proto/transport/socket_buffers.h"

#include <grpcpp/grpcpp.h>
#include <sys/socket.h>

#include <cstdint>
#include <cstdio>

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

namespace attention::transport {
namespace {

struct BufferMutator : grpc_socket_mutator {
  int bytes = 0;
};

bool SetBuffers(int fd, grpc_socket_mutator* mutator) {
  SetUnixSocketBuffers(static_cast<BufferMutator*>(mutator)->bytes, fd);
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

bool IsLayoutKnown() {
  int major = 0;
  int minor = 0;
  return std::sscanf(grpc::Version().c_str(), "%d.%d", &major, &minor) == 2 && major == 1 &&
         minor >= 33 && minor <= 62;
}

}  // namespace

void SetUnixSocketBuffers(int bytes, grpc::ChannelArguments* arguments) {
  if (!IsLayoutKnown()) return;
  auto* mutator = new BufferMutator();
  grpc_socket_mutator_init(mutator, &kVtable);
  mutator->bytes = bytes;
  arguments->SetSocketMutator(mutator);  // takes the reference
}

void SetUnixSocketBuffers(int bytes, int fd) {
  sockaddr_storage address = {};
  socklen_t length = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0 ||
      address.ss_family != AF_UNIX) {
    return;
  }
  // Best effort: smaller buffers work, only slower.
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
}

}  // namespace attention::transport
