#include "client/internal/call/upload_call.h"

#include <grpcpp/support/client_callback.h>

#include <optional>
#include <utility>

#include "attention/v1/layer_service.pb.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/convert/convert.h"
#include "client/internal/convert/error_details.h"
#include "client/internal/targets/callback_threads.h"

namespace attention::client::internal {
namespace {

// What all attempts of a call share.
struct UploadState {
  std::shared_ptr<Transport> transport;
  CallSettings settings;
  size_t target = 0;
  std::shared_ptr<const std::vector<grpc::ByteBuffer>> messages;
  std::optional<LayerInfo> result;
};

// One attempt; deletes itself when gRPC is done with it.
class UploadReactor final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  UploadReactor(std::shared_ptr<UploadState> state, std::function<void(AttemptOutcome)> finished)
      : state_(std::move(state)), finished_(std::move(finished)), context_(state_->settings) {}

  void Start(Endpoint& endpoint) {
    endpoint.stub.PrepareBidiStreamingCall(context_.grpc(), ATTN_METHOD(LayerService, CreateLayer),
                                           {}, this);
    WriteNext();
    StartRead(&response_);
    StartCall();
  }

  void OnWriteDone(bool ok) override {
    if (ok) WriteNext();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    auto info = ReadAnswer<v1::CreateLayerResponse>(
        response_, [](auto& message, const codec::ReceivedMessage&) {
          return FromProto(std::move(*message.mutable_layer()));
        });
    if (info.ok()) {
      state_->result = *std::move(info);
    } else {
      failure_ = info.status();
    }
  }

  void OnDone(const grpc::Status& status) override {
    absl::Status outcome = failure_;
    outcome.Update(FromGrpcStatus(status));
    if (outcome.ok() && !state_->result.has_value()) {
      outcome = absl::InternalError("the server answered CreateLayer without a message");
    }
    finished_({.status = outcome});
    delete this;
  }

 private:
  void WriteNext() {
    if (next_ == state_->messages->size()) return;
    const grpc::ByteBuffer* message = &(*state_->messages)[next_++];
    if (next_ == state_->messages->size()) {
      StartWriteLast(message, grpc::WriteOptions());
    } else {
      StartWrite(message);
    }
  }

  const std::shared_ptr<UploadState> state_;
  const std::function<void(AttemptOutcome)> finished_;
  CallContext context_;
  grpc::ByteBuffer response_;
  size_t next_ = 0;
  absl::Status failure_;
};

}  // namespace

void StartUpload(std::shared_ptr<Transport> transport, const CallSettings& settings, size_t target,
                 std::shared_ptr<const std::vector<grpc::ByteBuffer>> messages,
                 Callback<LayerInfo> done) {
  auto state = std::make_shared<UploadState>();
  state->transport = transport;
  state->settings = settings;
  state->target = target;
  state->messages = std::move(messages);
  transport->Retry(
      settings,
      [state](int, std::function<void(AttemptOutcome)> finished) {
        KeepCallbackThreads();
        auto* reactor = new UploadReactor(state, std::move(finished));
        reactor->Start(state->transport->targets().EndpointOf(state->target));
      },
      [state, done = std::move(done)](absl::Status status) {
        if (!status.ok()) return done(std::move(status));
        done(*std::move(state->result));
      });
}

}  // namespace attention::client::internal
