// The messages of a step stream to one target: makes those that are sent, reads those that come.
//
// Thread-safety: all methods.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "attention/client/session_types.h"
#include "attention/v1/session_service.pb.h"
#include "client/internal/call/transport.h"
#include "client/internal/shared_memory/shared_memory_channels.h"
#include "client/internal/stream/pending_steps.h"
#include "proto/codec/outgoing_message.h"
#include "proto/codec/received_message.h"

namespace attention::client::internal {

class StepMessages {
 public:
  // `shared_memory` is null where no memory is shared.
  StepMessages(std::shared_ptr<Transport> transport,
               std::shared_ptr<SharedMemoryChannels> shared_memory, std::size_t target)
      : transport_(std::move(transport)),
        shared_memory_(std::move(shared_memory)),
        target_(target) {}

  // The bytes of a request, which the stream knows by its id. What sending it again takes is noted
  // in `step`.
  absl::StatusOr<grpc::ByteBuffer> Make(std::uint64_t id, const StepRequest& request,
                                        PendingStep& step) const;
  absl::StatusOr<grpc::ByteBuffer> Make(std::uint64_t id, const SessionOptions& request) const;
  absl::StatusOr<grpc::ByteBuffer> MakeAgain(std::uint64_t id, PendingStep& step) const;

  struct Answer {
    absl::StatusOr<StepResult> result;
    bool is_lost;  // the server did not know the memory: the step is to be sent again
  };
  Answer Read(const v1::StepStreamResponse& response, const codec::ReceivedMessage& received,
              PendingStep& step) const;
  absl::StatusOr<SessionInfo> ReadSession(const v1::StepStreamResponse& response) const;

 private:
  absl::StatusOr<grpc::ByteBuffer> Serialize(std::uint64_t id,
                                             absl::StatusOr<codec::OutgoingMessage> wire) const;

  const std::shared_ptr<Transport> transport_;
  const std::shared_ptr<SharedMemoryChannels> shared_memory_;
  const std::size_t target_;
};

}  // namespace attention::client::internal
