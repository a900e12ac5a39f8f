// The servers a client knows: channels to each, whose turn it is, and which of them is
// which server. Thread-safe.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/generic/generic_stub.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "attention/client/options.h"

namespace attention::client::internal {

// One channel, and calls of methods by their name on it. Messages are bytes, which proto/codec
// makes and reads.
struct Endpoint {
  explicit Endpoint(std::shared_ptr<grpc::Channel> channel_in)
      : channel(std::move(channel_in)), stub(channel) {}

  std::shared_ptr<grpc::Channel> channel;
  grpc::GenericStub stub;
};

class Targets {
 public:
  explicit Targets(const ClientOptions& options);

  std::size_t size() const { return targets_.size(); }
  // As ClientOptions::targets has it.
  const std::string& AddressOf(std::size_t target) const { return targets_[target]->address; }
  // The target whose turn it is.
  std::size_t TakeTurn() { return next_target_++ % targets_.size(); }
  // One of the target's channels, in turn.
  Endpoint& EndpointOf(std::size_t target);

  // Which target is this server; nullopt when not known. With one target it is that one.
  std::optional<std::size_t> TargetOf(const std::string& server_name) const;
  void Learn(const std::string& server_name, std::size_t target);

  // Blocks until every channel is connected or the deadline has passed, and then says why.
  absl::Status WaitUntilReady(absl::Time deadline);

 private:
  struct Target {
    std::string address;
    std::vector<std::unique_ptr<Endpoint>> endpoints;
    std::atomic<std::size_t> next_endpoint = 0;
  };

  const std::optional<TlsOptions> tls_;
  std::vector<std::unique_ptr<Target>> targets_;
  std::atomic<std::size_t> next_target_ = 0;
  mutable absl::Mutex mutex_;
  std::unordered_map<std::string, std::size_t> target_of_server_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace attention::client::internal
