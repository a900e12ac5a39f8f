// The client that all contenders share: it sends bytes that are encoded already, from one thread.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/benchmark/transport/settings.h"

namespace attention::bench {

// Encoded requests, one after another.
class Requests {
 public:
  virtual ~Requests() = default;
  virtual grpc::ByteBuffer Next() = 0;
};

// How to send them.
struct Load {
  std::string method;                // "/package.Service/Method"
  bool is_stream = false;            // all on one stream of that method, or a call each
  int in_flight = 1;                 // unanswered at once
  double seconds = 1;                // the last is sent by then
  std::size_t min_answer_bytes = 0;  // fewer are an error, which ends the program
  std::size_t shared_bytes = 0;      // of each exchange, which lie in shared memory
};

struct Sample {
  std::vector<double> latencies;  // seconds, of each exchange but the first few
  double elapsed = 0;             // that they took
  std::size_t bytes = 0;          // of their requests and answers
};

class Caller {
 public:
  virtual ~Caller() = default;
  virtual Sample Run(const Load& load, Requests& requests) = 0;
};

std::unique_ptr<Caller> MakeGrpcCaller(const std::shared_ptr<grpc::Channel>& channel);
// Over a bare socket to the echo "socket"; streams and calls are one to it.
std::unique_ptr<Caller> MakeSocketCaller(const std::string& target,
                                         const ChannelSettings& settings);

// `target`: as gRPC has it. Each channel has a connection of its own.
std::shared_ptr<grpc::Channel> Connect(const std::string& target, const ChannelSettings& settings);

// Seconds of a clock that does not go back.
double Now();

// Collects what every kind of caller measures.
class Recorder {
 public:
  explicit Recorder(double seconds) : deadline_(Now() + seconds) {}

  void Add(double started, std::size_t bytes);
  // True when the time is over and enough exchanges were recorded.
  bool IsOver() const;
  Sample Finish();

 private:
  const double deadline_;
  int num_skipped_ = 0;
  double begin_ = 0;
  double end_ = 0;
  Sample sample_;
};

}  // namespace attention::bench
