// An echo server in a process of its own, the client's connections to it, and what it is sent.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tests/benchmark/transport/caller.h"
#include "tests/benchmark/transport/child_process.h"
#include "tests/benchmark/transport/settings.h"

namespace attention::bench {

inline constexpr char kUnaryEcho[] = "/attention.v1.AttentionService/Attend";
inline constexpr char kStreamEcho[] = "/attention.v1.AttentionService/AttendStream";

class EchoProcess {
 public:
  // `folder`: where its socket is. Exits with a message when the server does not start.
  EchoProcess(const EchoSettings& settings, const std::string& folder);

  const ChildProcess& process() const { return process_; }
  Caller* tcp() const { return tcp_.get(); }
  Caller* unix_socket() const { return unix_socket_.get(); }

 private:
  std::string path_;
  ChildProcess process_;
  std::unique_ptr<Caller> tcp_;
  std::unique_ptr<Caller> unix_socket_;
};

// One request, sent again and again: slices of `slice_bytes`, of which the first begins with the
// header. 0: one slice.
std::unique_ptr<Requests> MakeEchoRequests(std::size_t request_bytes, AnswerBytes answer_bytes,
                                           std::size_t num_slices = 1);

}  // namespace attention::bench
