#include "client/internal/call/transport.h"

#include <new>

#include "absl/strings/str_cat.h"

namespace attention::client::internal {

CallSettings Transport::Settings(const CallOptions& call, absl::Duration default_timeout) const {
  return {.identity = identity_,
          .request_id = call.request_id.empty() ? NewRequestId() : call.request_id,
          .deadline = DeadlineOf(call, timer_->Now(), default_timeout),
          .cancellation = call.cancellation,
          .retry_policy = call.retry_policy.value_or(options_.retry_policy),
          .may_block = call.may_block};
}

Route Transport::AnyTarget() {
  return [first = targets_.TakeTurn(), count = targets_.size()](int attempt) {
    return (first + static_cast<std::size_t>(attempt) - 1) % count;
  };
}

Route Transport::OneTarget(std::size_t target) {
  return [target](int) { return target; };
}

absl::StatusOr<grpc::ByteBuffer> Transport::Serialize(codec::OutgoingMessage message) const {
  if (message.size() > static_cast<std::size_t>(options_.max_message_bytes)) {
    return absl::ResourceExhaustedError(absl::StrCat("the request has ", message.size(),
                                                     " bytes, max_message_bytes is ",
                                                     options_.max_message_bytes));
  }
  try {
    return std::move(message).SerializeInOnePiece();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("out of memory for a request of ", message.size(), " bytes"));
  }
}

}  // namespace attention::client::internal
