// Reads results from the bytes of answers.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <functional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "attention/client/connection.h"
#include "proto/codec/received_message.h"

namespace attention::client::internal {

// The bytes of an answer, or why there is none, and the target that answered.
using AnswerCallback =
    std::function<void(const absl::StatusOr<grpc::ByteBuffer>&, std::size_t target)>;

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

// Makes a callback that takes an answer of one that takes a public result, which
// `convert(message, received)` reads from the answer.
template <typename Message, typename Result, typename Convert>
AnswerCallback Reading(Callback<Result> done, Convert convert) {
  return [done = std::move(done), convert](const absl::StatusOr<grpc::ByteBuffer>& answer,
                                           std::size_t) {
    if (!answer.ok()) return done(answer.status());
    done(ReadAnswer<Message>(*answer, convert));
  };
}

}  // namespace attention::client::internal
