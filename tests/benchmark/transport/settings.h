// The settings in which the contenders of the transport benchmark differ.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace attention::bench {

// How the allocator treats memory that was freed.
enum class Memory {
  kDefault,   // glibc's own: big blocks are mapped and unmapped each time
  kKeep,      // what was freed stays mapped, see KeepFreedMemory
  kKeepHuge,  // the same, and backed by huge pages through glibc's tunable, set before the start
  kReserved,  // one heap, grown beforehand and advised to be huge: no environment needed
};
NLOHMANN_JSON_SERIALIZE_ENUM(Memory, {{Memory::kDefault, "default"},
                                      {Memory::kKeep, "keep"},
                                      {Memory::kKeepHuge, "keep-huge"},
                                      {Memory::kReserved, "reserved"}})

// The settings of one end of a connection; both ends of a contender get the same.
struct ChannelSettings {
  int socket_buffer_bytes = 0;    // SO_SNDBUF and SO_RCVBUF; 0: the system's
  int max_frame_bytes = 0;        // HTTP/2; 0: gRPC's 16 KiB
  bool has_keepalive = false;     // a ping after 30 s without data, also without calls
  int lookahead_bytes = 0;        // HTTP/2 flow control's window of a stream; 0: gRPC's 64 KiB
  bool has_fixed_window = false;  // it stays as it is; else gRPC moves it with what it measures
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(ChannelSettings, socket_buffer_bytes, max_frame_bytes,
                                   has_keepalive, lookahead_bytes, has_fixed_window)

// One echo server.
struct EchoSettings {
  std::string api = "cq";  // "cq", "callback" or "socket" (no gRPC: the floor)
  int num_queues = 1;      // completion queues
  int threads_per_queue = 1;
  bool has_worker = false;  // "cq": another thread answers, as where something is computed
  // "cq": the request is copied to one place and the answer written anew, as a server must that
  // computes its answers.
  bool is_copying = false;
  Memory memory = Memory::kKeep;
  ChannelSettings channel = {};
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(EchoSettings, api, num_queues, threads_per_queue, has_worker,
                                   is_copying, memory, channel)

// The first eight bytes of a request to an echo server, little-endian: how many bytes to answer
// with, or kEchoAll for the request itself.
using AnswerBytes = std::uint64_t;
inline constexpr AnswerBytes kEchoAll = ~AnswerBytes{0};

// The largest answer that an echo server has.
inline constexpr std::size_t kMaxAnswerBytes = std::size_t{32} << 20;

}  // namespace attention::bench
