// The attention server in a process of its own, and the client's connections to it.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/benchmark/transport/caller.h"
#include "tests/benchmark/transport/child_process.h"

namespace attention::bench {

class AttentionProcess {
 public:
  // `binary`: of attention-server; `backend`: its kernels; `folder`: where its sockets and files
  // are. Exits with a message when it does not start.
  AttentionProcess(const std::string& binary, const std::string& backend,
                   const std::string& folder);

  struct Connection {
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<Caller> caller;
  };

  const ChildProcess& process() const { return process_; }
  const Connection& tcp() const { return tcp_; }
  const Connection& unix_socket() const { return unix_socket_; }
  // Where shared memory is registered.
  const std::string& channel_path() const { return channel_path_; }

 private:
  std::string ports_path_;
  ChildProcess process_;
  Connection tcp_;
  Connection unix_socket_;
  std::string channel_path_;
};

}  // namespace attention::bench
