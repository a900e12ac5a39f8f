#include "client/internal/call/unary_call.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/internal/call/plain_call.h"

namespace attention::client::internal {
namespace {

class RetryingUnaryCall final : public RetryingCall {
 public:
  RetryingUnaryCall(std::shared_ptr<Transport> transport, UnaryCall call,
                    std::shared_ptr<OutgoingRequest> request, AnswerCallback done)
      : RetryingCall(transport->timer(), transport->random(), std::move(call.settings)),
        transport_(std::move(transport)),
        route_(std::move(call.route)),
        method_(call.method),
        request_(std::move(request)),
        done_(std::move(done)) {}

 private:
  void StartAttempt(int attempt) override {
    target_ = route_(attempt);
    Endpoint& endpoint = transport_->targets().EndpointOf(target_);
    absl::StatusOr<grpc::ByteBuffer> bytes = request_->BytesFor(target_);
    if (!bytes.ok()) return OnOutcome({.status = std::move(bytes).status(), .can_retry = false});
    // Later attempts start on gRPC's threads, which must not block.
    const bool may_block = settings().may_block && attempt == 1;
    CallOnce(
        endpoint, settings(), method_, *std::move(bytes), may_block,
        [this, self = shared_from_this()](const absl::Status& status, grpc::ByteBuffer answer) {
          OnAnswer(status, std::move(answer));
        });
  }

  void OnAnswer(const absl::Status& status, grpc::ByteBuffer answer) {
    request_->OnOutcome(status);
    answer_ = std::move(answer);
    if (status.ok() && !answer_.Valid()) {
      return OnOutcome({absl::InternalError(
          absl::StrCat("the server answered ", method_, " without a message"))});
    }
    OnOutcome({status});
  }

  void OnDone(const absl::Status& status) override {
    if (!status.ok()) return done_(status, target_);
    done_(std::move(answer_), target_);
  }

  const std::shared_ptr<Transport> transport_;
  const Route route_;
  const char* const method_;
  const std::shared_ptr<OutgoingRequest> request_;
  const AnswerCallback done_;
  // The answer to the last attempt, and the target that gave it.
  grpc::ByteBuffer answer_;
  std::size_t target_ = 0;
};

}  // namespace

void RunUnary(std::shared_ptr<Transport> transport, UnaryCall call,
              std::shared_ptr<OutgoingRequest> request, AnswerCallback done) {
  std::make_shared<RetryingUnaryCall>(std::move(transport), std::move(call), std::move(request),
                                      std::move(done))
      ->Start();
}

}  // namespace attention::client::internal
