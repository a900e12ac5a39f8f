// The one path of requests with tensors through rpc: parse, look for room, decode, submit; then
// encode the result.
//
// A Call (AttendCall, StepCall, ForwardCall) knows one message:
//   absl::Status Begin(const CallFrame&, const Message&, AttentionRequest*)
//   absl::StatusOr<codec::OutgoingMessage> Complete(AttentionResult&)
//   static constexpr bool kReadsReceivedBytes   whether what is queued reads the received bytes
#pragma once

#include <google/protobuf/arena.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "proto/codec/received_message.h"
#include "server/base/status_macros.h"
#include "server/rpc/pipelined_stream.h"
#include "server/rpc/service_context.h"
#include "server/rpc/unary_call.h"

namespace attention::server {

// One request from its arrival to its answer. WireMessage is the message that came, of which the
// request is all (unary calls) or a part (streams).
template <typename WireMessage, typename CallType>
class TensorExchange {
  // Memory of the message's parts: a step is some ten, which cost more to allocate one by one than
  // to parse. The first block holds those of a step or two.
  alignas(std::max_align_t) char first_block_[2048];
  google::protobuf::Arena arena_{first_block_, sizeof(first_block_)};

 public:
  TensorExchange(const ServiceContext& services, const CallFrame& frame)
      : call(services, frame, received) {}

  absl::Status Parse(const grpc::ByteBuffer& message) {
    bytes = message.Length();
    return received.Parse(message, &wire);
  }

  // Decodes `request`, the message that came or a part of it, into `task`.
  template <typename Request>
  absl::Status Begin(const CallFrame& frame, const Request& request, AttentionRequest* task) {
    absl::Status status = frame.CheckRoom(bytes);
    if (status.ok()) status = call.Begin(frame, request, task);
    if (!CallType::kReadsReceivedBytes) received.Release();
    return status;
  }

  codec::ReceivedMessage received;
  std::size_t bytes = 0;  // of the received message
  WireMessage& wire = *google::protobuf::Arena::CreateMessage<WireMessage>(&arena_);
  CallType call;
};

// Serves a unary call whose request is of the type WireMessage.
template <typename WireMessage, typename CallType>
void ServeTensorCall(UnaryCall& call, const ServiceContext& services) {
  using Exchange = TensorExchange<WireMessage, CallType>;
  auto exchange = std::make_shared<Exchange>(services, call.frame());
  std::unique_ptr<AttentionRequest> request = call.frame().MakeRequest();
  absl::Status status = exchange->Parse(call.request());
  if (status.ok()) status = exchange->Begin(call.frame(), exchange->wire, request.get());
  call.ReleaseRequest();
  request->completion = [&call, exchange](std::unique_ptr<AttentionRequest>,
                                          AttentionResult result) {
    call.FinishWith([&]() -> absl::StatusOr<grpc::ByteBuffer> {
      ATTENTION_RETURN_IF_ERROR(result.status);
      ATTENTION_ASSIGN_OR_RETURN(codec::OutgoingMessage response, exchange->call.Complete(result));
      return std::move(response).Serialize();
    });
  };
  if (status.ok()) status = services.scheduler.Submit(request, Scheduler::Start::kWithPending);
  if (!status.ok()) call.Finish(status);
}

// A stream of such requests, each a TensorExchange or what derives from it.
template <typename ExchangeType>
class TensorStream : public PipelinedStream {
 public:
  using PipelinedStream::PipelinedStream;

 protected:
  using Exchange = ExchangeType;
  using ExchangePtr = std::shared_ptr<Exchange>;

  // True when the message is no request to compute, and has been answered.
  virtual bool AnswerAtOnce(const Exchange&) { return false; }
  // Sends what the result becomes; an error is sent in its place.
  virtual absl::Status Answer(const ExchangePtr& exchange, AttentionResult& result) = 0;
  // The serialized answer to a request that has failed.
  virtual grpc::ByteBuffer ErrorAnswer(const Exchange& exchange, const absl::Status& status) = 0;

  // Unless `status` is an error, which is sent.
  void Submit(const ExchangePtr& exchange, absl::Status status,
              std::unique_ptr<AttentionRequest> request) {
    if (status.ok()) {
      status = services().scheduler.Submit(request, Scheduler::Start::kWithPending);
    }
    if (!status.ok()) SendError(*exchange, status);
  }

  // Runs `send`, which returns a status; an error, also one that it throws, is sent in place.
  template <typename Send>
  void SendOrError(const Exchange& exchange, Send send) {
    const absl::Status status = ContainExceptions(std::move(send));
    if (!status.ok()) SendError(exchange, status);
  }

 private:
  absl::Status OnRequest(const grpc::ByteBuffer& bytes) final {
    auto exchange = std::make_shared<Exchange>(services(), frame());
    std::unique_ptr<AttentionRequest> request = frame().MakeRequest();
    ATTENTION_RETURN_IF_ERROR(exchange->Parse(bytes));
    if (AnswerAtOnce(*exchange)) return absl::OkStatus();
    const absl::Status status = exchange->Begin(frame(), exchange->wire.request(), request.get());
    auto self = std::static_pointer_cast<TensorStream>(shared_from_this());
    request->completion = [self = std::move(self), exchange](std::unique_ptr<AttentionRequest>,
                                                             AttentionResult result) {
      self->SendOrError(*exchange, [&]() -> absl::Status {
        ATTENTION_RETURN_IF_ERROR(result.status);
        return self->Answer(exchange, result);
      });
    };
    Submit(exchange, status, std::move(request));
    return absl::OkStatus();
  }

  void SendError(const Exchange& exchange, const absl::Status& status) {
    SendLast(exchange.bytes, [&] { return ErrorAnswer(exchange, status); });
  }
};

}  // namespace attention::server
