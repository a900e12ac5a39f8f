// Targets, timer, chance and options: what calls in flight share and keep alive.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "attention/client/options.h"
#include "client/internal/call/call_settings.h"
#include "client/internal/call/retrying_call.h"
#include "client/internal/call/timer.h"
#include "client/internal/credentials/identity.h"
#include "client/internal/targets/targets.h"
#include "proto/codec/outgoing_message.h"

namespace attention::client::internal {

// The target to which an attempt, numbered from 1, goes.
using Route = std::function<std::size_t(int attempt)>;

// Names a method to gRPC: "/attention.v1.AttentionService/Attend".
#define ATTENTION_CLIENT_METHOD(service, method) "/attention.v1." #service "/" #method

class Transport {
 public:
  Transport(ClientOptions options, std::shared_ptr<Timer> timer, RandomSource random)
      : options_(std::move(options)),
        timer_(std::move(timer)),
        random_(std::move(random)),
        identity_(std::make_shared<const Identity>(options_)),
        targets_(options_) {}

  const ClientOptions& options() const { return options_; }
  const std::shared_ptr<Timer>& timer() const { return timer_; }
  const RandomSource& random() const { return random_; }
  Targets& targets() { return targets_; }

  const std::shared_ptr<const Identity>& identity() const { return identity_; }

  // ClientOptions and CallOptions resolved for a call that begins now.
  CallSettings Settings(const CallOptions& call) const {
    return Settings(call, options_.default_timeout);
  }
  // The same for a stream, which is meant to last: the client's default timeout is not for it.
  CallSettings StreamSettings(const CallOptions& call) const {
    return Settings(call, absl::InfiniteDuration());
  }

  // The target whose turn it is; each retry goes to the next one.
  Route AnyTarget();
  static Route OneTarget(std::size_t target);

  // The bytes to send, independent of the caller's tensors. RESOURCE_EXHAUSTED if the message is
  // larger than the client's options allow, before anything is copied, or memory is out.
  absl::StatusOr<grpc::ByteBuffer> Serialize(codec::OutgoingMessage message) const;

 private:
  CallSettings Settings(const CallOptions& call, absl::Duration default_timeout) const;

  const ClientOptions options_;
  const std::shared_ptr<Timer> timer_;
  const RandomSource random_;
  const std::shared_ptr<const Identity> identity_;
  Targets targets_;
};

}  // namespace attention::client::internal
