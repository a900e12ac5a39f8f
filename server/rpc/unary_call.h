// Unary calls: of methods that carry tensors, on completion queues; of the others, answered at
// once.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/async_stream.h>

#include <atomic>
#include <functional>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "proto/codec/outgoing_message.h"
#include "proto/codec/received_message.h"
#include "server/base/contain_exceptions.h"
#include "server/rpc/calls_in_flight.h"
#include "server/rpc/completion_threads.h"
#include "server/rpc/service_context.h"
#include "server/rpc/status_mapping.h"

namespace attention::server {

class UnaryCall;

// A unary method. Outlives its calls.
struct UnaryMethod {
  // Unary to the client (taken_at_headers.h).
  using Channel = grpc::ServerAsyncReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>;

  const ServiceContext& services;
  const char* rpc;  // for logs
  // TakenAtHeaders::RequestAtHeaders: asks gRPC for the next call.
  std::function<void(grpc::ServerContext*, Channel*, void* tag)> request_next;
  // Must lead, now or later and on any thread, to exactly one Finish of the call; or throws, which
  // is answered for it.
  std::function<void(UnaryCall&)> handle;
};

// The UnaryMethod NAME of a service that is derived from TakenAtHeaders, in the service's own
// constructor: it is handled by the service's member NAME.
#define ATTENTION_UNARY_METHOD(SERVICE, NAME)                                     \
  ::attention::server::UnaryMethod {                                              \
    services_, #SERVICE "/" #NAME,                                                \
        [this, index = IndexOf(#NAME)](auto* context, auto* channel, void* tag) { \
          RequestAtHeaders(index, context, channel, queue_, tag);                 \
        },                                                                        \
        [this](::attention::server::UnaryCall& call) { NAME(call); }              \
  }

// One call: waits for a client, then for its message, is handled, and deletes itself when gRPC is
// done with it.
class UnaryCall final : private Receiver {
 public:
  // Offers gRPC one more call of the method, unless no more are waited for.
  static void Listen(const UnaryMethod& method);

  UnaryCall(const UnaryCall&) = delete;
  UnaryCall& operator=(const UnaryCall&) = delete;

  CallFrame& frame() { return *frame_; }
  const grpc::ByteBuffer& request() const { return request_; }
  // Lets the received bytes go.
  void ReleaseRequest() { request_.Clear(); }
  // Set when the client has gone.
  const std::atomic<bool>& is_cancelled() const { return *is_cancelled_; }

  // The call may be gone when these return.
  void Finish(const absl::Status& status);
  void Finish(grpc::ByteBuffer response);
  // Finishes with what `make` returns, an absl::StatusOr<grpc::ByteBuffer>, or the error that it
  // throws.
  template <typename Make>
  void FinishWith(Make make) {
    absl::StatusOr<grpc::ByteBuffer> response = ContainExceptions(std::move(make));
    if (response.ok()) {
      Finish(*std::move(response));
    } else {
      Finish(response.status());
    }
  }

 private:
  explicit UnaryCall(const UnaryMethod& method)
      : place_(method.services.calls_in_flight), method_(method) {}

  absl::Status Begin();
  absl::Status Handle();

  absl::Time WaitsSince() const override { return waits_since_; }
  void EndReceiving(const absl::Status& status) override { Finish(status); }

  void OnArrived(bool ok);
  void OnReceived(bool ok);
  void OnDone(bool ok);
  void OnFinished(bool ok);
  void Release();

  CallsInFlight::Place place_;
  const UnaryMethod& method_;
  grpc::ServerContext context_;
  grpc::ByteBuffer request_;
  UnaryMethod::Channel channel_{&context_};
  // Not the frame's: the client may have gone before the call's arrival is handled.
  const CancelFlag is_cancelled_ = MakeCancelFlag();
  std::optional<CallFrame> frame_;
  ReceivingLedger::Place receiving_;  // from Begin until OnReceived
  absl::Time waits_since_;
  std::atomic<int> pending_events_{3};  // arrived, done and finished at first
  EventOf<UnaryCall, &UnaryCall::OnArrived> arrived_{this};
  EventOf<UnaryCall, &UnaryCall::OnReceived> received_{this};
  EventOf<UnaryCall, &UnaryCall::OnDone> done_{this};
  EventOf<UnaryCall, &UnaryCall::OnFinished> finished_{this};
};

// Parses a message whose tensors, if any, are small. INVALID_ARGUMENT says where the bytes stop
// being a message.
template <typename Message>
absl::Status ParseSmall(const grpc::ByteBuffer& bytes, Message* message) {
  codec::ReceivedMessage received;
  const absl::Status status = received.Parse(bytes, message);
  if (status.ok()) received.FillInData();
  return status;
}

// Answers a call at once: `handle(frame, request, &response)` returns the status.
template <typename Request, typename Response, typename Handle>
void AnswerNow(UnaryCall& call, Handle handle) {
  Request request;
  Response response;
  absl::Status status = ParseSmall(call.request(), &request);
  if (status.ok()) status = handle(std::as_const(call.frame()), std::as_const(request), &response);
  if (!status.ok()) return call.Finish(status);
  call.Finish(codec::OutgoingMessage(response).Serialize());
}

}  // namespace attention::server
