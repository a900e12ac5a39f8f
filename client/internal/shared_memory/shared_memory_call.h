// A unary call by shared memory: runs the call with retries, and once more, with the tensors in the
// message, if the server does not know the memory.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "attention/client/connection.h"
#include "client/internal/call/answer.h"
#include "client/internal/call/transport.h"
#include "client/internal/call/unary_call.h"
#include "client/internal/convert/convert.h"
#include "client/internal/shared_memory/shared_memory_request.h"

namespace attention::client::internal {

// `Message` is the answer's, from which FromWire makes the result.
template <typename Message, typename Result>
class SharedMemoryCall : public std::enable_shared_from_this<SharedMemoryCall<Message, Result>> {
 public:
  SharedMemoryCall(std::shared_ptr<Transport> transport, UnaryCall call,
                   std::shared_ptr<SharedMemoryRequest> request, Callback<Result> done)
      : transport_(std::move(transport)),
        call_(std::move(call)),
        request_(std::move(request)),
        done_(std::move(done)) {}

  void Start() {
    RunUnary(
        transport_, call_, request_,
        [self = this->shared_from_this()](const absl::StatusOr<grpc::ByteBuffer>& answer,
                                          std::size_t target) { self->OnAnswer(answer, target); });
  }

 private:
  void OnAnswer(const absl::StatusOr<grpc::ByteBuffer>& answer, std::size_t target) {
    absl::StatusOr<Result> result = Read(answer);
    if (!request_->FallBackToBytes(RegionStatus(result), target)) return done_(std::move(result));
    call_.route = Transport::OneTarget(target);
    call_.settings.may_block = false;  // this may be one of gRPC's threads
    Start();
  }

  absl::StatusOr<Result> Read(const absl::StatusOr<grpc::ByteBuffer>& answer) const {
    if (!answer.ok()) return answer.status();
    return ReadAnswer<Message>(
        *answer, [this](const Message& message, const codec::ReceivedMessage& received) {
          return FromWire(message, received, request_->refs());
        });
  }

  const std::shared_ptr<Transport> transport_;
  UnaryCall call_;
  const std::shared_ptr<SharedMemoryRequest> request_;
  const Callback<Result> done_;
};

template <typename Message, typename Result>
void RunShared(std::shared_ptr<Transport> transport, UnaryCall call,
               std::shared_ptr<SharedMemoryRequest> request, Callback<Result> done) {
  std::make_shared<SharedMemoryCall<Message, Result>>(std::move(transport), std::move(call),
                                                      std::move(request), std::move(done))
      ->Start();
}

}  // namespace attention::client::internal
