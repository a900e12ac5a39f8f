#include "client/internal/stream/upload_call.h"

#include <grpcpp/support/client_callback.h>

#include <optional>
#include <utility>

#include "attention/v1/layer_service.pb.h"
#include "client/internal/call/answer.h"
#include "client/internal/call/call_context.h"
#include "client/internal/convert/convert.h"
#include "client/internal/convert/error_details.h"
#include "client/internal/targets/callback_threads.h"

namespace attention::client::internal {
namespace {

class UploadCall final : public RetryingCall {
 public:
  using Messages = std::vector<grpc::ByteBuffer>;

  UploadCall(std::shared_ptr<Transport> transport, const CallSettings& settings, std::size_t target,
             std::shared_ptr<const Messages> messages, Callback<LayerInfo> done)
      : RetryingCall(transport->timer(), transport->random(), settings),
        transport_(std::move(transport)),
        target_(target),
        messages_(std::move(messages)),
        done_(std::move(done)) {}

  // The end of an attempt.
  void Finish(absl::StatusOr<LayerInfo> result) {
    result_ = std::move(result);
    OnOutcome({result_.status()});
  }

 private:
  void StartAttempt(int attempt) override;
  void OnDone(const absl::Status& status) override {
    if (!status.ok()) return done_(status);
    done_(std::move(result_));
  }

  const std::shared_ptr<Transport> transport_;
  const std::size_t target_;
  const std::shared_ptr<const Messages> messages_;
  const Callback<LayerInfo> done_;
  absl::StatusOr<LayerInfo> result_;  // of the last attempt
};

// One attempt; deletes itself when gRPC is done with it.
class UploadReactor final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  UploadReactor(std::shared_ptr<UploadCall> call, const CallSettings& settings,
                std::shared_ptr<const UploadCall::Messages> messages)
      : call_(std::move(call)), messages_(std::move(messages)), context_(settings) {}

  void Start(Endpoint& endpoint) {
    if (!context_.status().ok()) return Finish(context_.status());
    endpoint.stub.PrepareBidiStreamingCall(
        context_.grpc(), ATTENTION_CLIENT_METHOD(LayerService, CreateLayer), {}, this);
    WriteNext();
    StartRead(&response_);
    StartCall();
  }

  void OnWriteDone(bool ok) override {
    if (ok) WriteNext();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    result_ = ReadAnswer<v1::CreateLayerResponse>(
        response_, [](auto& message, const codec::ReceivedMessage&) {
          return FromProto(std::move(*message.mutable_layer()));
        });
  }

  void OnDone(const grpc::Status& status) override {
    absl::Status outcome = result_.has_value() ? result_->status() : absl::OkStatus();
    outcome.Update(FromGrpcStatus(status));
    if (outcome.ok() && !result_.has_value()) {
      outcome = absl::InternalError("the server answered CreateLayer without a message");
    }
    Finish(outcome.ok() ? *std::move(result_) : std::move(outcome));
  }

 private:
  void Finish(absl::StatusOr<LayerInfo> result) {
    call_->Finish(std::move(result));
    delete this;
  }

  void WriteNext() {
    if (next_ == messages_->size()) return;
    const grpc::ByteBuffer* message = &(*messages_)[next_++];
    if (next_ == messages_->size()) {
      StartWriteLast(message, grpc::WriteOptions());
    } else {
      StartWrite(message);
    }
  }

  const std::shared_ptr<UploadCall> call_;
  const std::shared_ptr<const UploadCall::Messages> messages_;
  CallContext context_;
  grpc::ByteBuffer response_;
  std::size_t next_ = 0;
  std::optional<absl::StatusOr<LayerInfo>> result_;  // none without an answer
};

void UploadCall::StartAttempt(int) {
  KeepCallbackThreads();
  auto self = std::static_pointer_cast<UploadCall>(shared_from_this());
  auto* reactor = new UploadReactor(std::move(self), settings(), messages_);
  reactor->Start(transport_->targets().EndpointOf(target_));
}

}  // namespace

void StartUpload(std::shared_ptr<Transport> transport, const CallSettings& settings,
                 std::size_t target, std::shared_ptr<const std::vector<grpc::ByteBuffer>> messages,
                 Callback<LayerInfo> done) {
  std::make_shared<UploadCall>(std::move(transport), settings, target, std::move(messages),
                               std::move(done))
      ->Start();
}

}  // namespace attention::client::internal
