// The questions that the transport benchmark answers, each a series of contests.
#pragma once

#include <string>
#include <vector>

#include "tests/benchmark/transport/contest.h"

namespace attention::bench {

struct StudyOptions {
  ContestOptions contest;
  std::string filter;           // only exchanges and transports whose "name/transport" contains it
  bool is_quick = false;        // small exchanges alone
  std::string server_binary;    // attention-server
  std::string backend = "cpu";  // of the server
};

// The settings of both ends of a connection where a study does not say otherwise.
ChannelSettings ChosenSettings();

// The attention server with next to nothing to compute, beside an echo of the same sizes.
std::vector<Figures> StudyServer(const StudyOptions& options);
// The same exchanges with their tensors in shared memory, beside messages by both sockets.
std::vector<Figures> StudySharedMemory(const StudyOptions& options);
// The choice of gRPC API, queues and threads: echo against echo, and the bare socket.
std::vector<Figures> StudyApis(const StudyOptions& options);
// The worth of each setting: the chosen ones, and each of them taken away or added alone.
std::vector<Figures> StudySettings(const StudyOptions& options);

}  // namespace attention::bench
