// What calls in flight share and keep alive: targets, timer, chance, options; and how a unary call
// runs over them.
#ifndef ATTENTION_CLIENT_INTERNAL_CALL_TRANSPORT_H_
#define ATTENTION_CLIENT_INTERNAL_CALL_TRANSPORT_H_

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "attention/client/connection.h"
#include "attention/client/options.h"
#include "client/internal/call/call_context.h"
#include "client/internal/call/retry_loop.h"
#include "client/internal/call/timer.h"
#include "client/internal/convert/error_details.h"
#include "client/internal/shared_memory/outgoing_request.h"
#include "client/internal/shared_memory/shared_memory_channels.h"
#include "client/internal/targets/targets.h"
#include "proto/codec/outgoing_message.h"
#include "proto/codec/received_message.h"

namespace attention::client::internal {

// Which target an attempt, numbered from 1, goes to.
using Route = std::function<size_t(int attempt)>;

// What an answer is made of, or why there is none, and which target answered.
using AnswerCallback = std::function<void(absl::StatusOr<grpc::ByteBuffer>, size_t target)>;

// Names a method to gRPC: "/attention.v1.AttentionService/Attend".
#define ATTN_METHOD(service, method) "/attention.v1." #service "/" #method

class Transport : public std::enable_shared_from_this<Transport> {
 public:
  Transport(ClientOptions options, std::shared_ptr<Timer> timer, RandomSource random)
      : options_(std::move(options)),
        timer_(std::move(timer)),
        random_(std::move(random)),
        targets_(options_),
        shared_memory_(options_.shared_memory.use == SharedMemoryOptions::Use::kOff
                           ? nullptr
                           : std::make_unique<SharedMemoryChannels>(options_, targets_)) {}

  const ClientOptions& options() const { return options_; }
  Timer& timer() { return *timer_; }
  Targets& targets() { return targets_; }
  // Null when the options turn it off.
  SharedMemoryChannels* shared_memory() { return shared_memory_.get(); }

  CallSettings Settings(const CallOptions& call) {
    return ResolveSettings(options_, call, timer_->Now(), options_.default_timeout);
  }

  // The target whose turn it is; each retry goes to the next one.
  Route AnyTarget();
  static Route OneTarget(size_t target);

  // Calls `ready` with the target that is `worker`, or with its failure; asks every target for its
  // name first if that is not known. Once no target answers to the name, the first is given, whose
  // server then says what it knows of the session.
  void FindOwner(const std::string& worker, const CallSettings& settings,
                 std::function<void(absl::StatusOr<size_t>)> ready);

  // The bytes to send, independent of the caller's tensors. RESOURCE_EXHAUSTED if the message is
  // larger than the client's options allow, before anything is copied, or memory is out.
  absl::StatusOr<grpc::ByteBuffer> Serialize(codec::OutgoingMessage message) const;

  void Retry(const CallSettings& settings, Attempt attempt,
             std::function<void(absl::Status)> done) {
    RunWithRetries(timer_, random_,
                   {.policy = settings.retry_policy,
                    .deadline = settings.deadline,
                    .cancellation = settings.cancellation},
                   std::move(attempt), std::move(done));
  }

  // The bytes of an attempt at the target.
  absl::StatusOr<grpc::ByteBuffer> Serialize(OutgoingRequest& request, size_t target) const;

  // Runs a unary call with retries, which send the same tensors.
  void Unary(const CallSettings& settings, Route route, const char* method,
             std::shared_ptr<OutgoingRequest> request, AnswerCallback done);
  void Unary(const CallSettings& settings, Route route, const char* method,
             absl::StatusOr<grpc::ByteBuffer> request, AnswerCallback done);

 private:
  const ClientOptions options_;
  const std::shared_ptr<Timer> timer_;
  const RandomSource random_;
  Targets targets_;
  const std::unique_ptr<SharedMemoryChannels> shared_memory_;
};

// Reads an answer: `convert(message, received)` has its tensors' bytes in `received`. INTERNAL: the
// bytes are no message of the type.
template <typename Message, typename Convert>
auto ReadAnswer(const grpc::ByteBuffer& bytes, Convert convert)
    -> decltype(convert(std::declval<Message&>(), codec::ReceivedMessage())) {
  Message message;
  codec::ReceivedMessage received;
  if (absl::Status status = received.Parse(bytes, &message); !status.ok()) {
    return absl::InternalError(
        absl::StrCat("the server's answer is no ", message.GetTypeName(), ": ", status.message()));
  }
  return convert(message, received);
}

// Adapts a callback for a public result to one for the answer it is read from;
// `convert(message, received)` makes the one of the other.
template <typename Message, typename Result, typename Convert>
AnswerCallback Reading(Callback<Result> done, Convert convert) {
  return [done = std::move(done), convert](const absl::StatusOr<grpc::ByteBuffer>& answer, size_t) {
    if (!answer.ok()) return done(answer.status());
    done(ReadAnswer<Message>(*answer, convert));
  };
}

}  // namespace attention::client::internal

#endif  // ATTENTION_CLIENT_INTERNAL_CALL_TRANSPORT_H_
