#include "client/internal/stream/archive_calls.h"

#include <google/protobuf/io/zero_copy_stream_impl.h>
#include <google/protobuf/util/delimited_message_util.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "attention/v1/session_service.pb.h"
#include "client/internal/base/status_macros.h"
#include "client/internal/call/answer.h"
#include "client/internal/convert/convert.h"
#include "client/internal/convert/error_details.h"
#include "client/internal/stream/blocking_stream.h"
#include "proto/codec/outgoing_message.h"

namespace attention::client::internal {
namespace {

// Requests that are sent before the first of them is answered: one is computed, one is on its way.
constexpr std::int64_t kAhead = 4;

template <typename Request>
absl::Status Send(BlockingStream& stream, const Request& request) {
  return stream.Write(codec::OutgoingMessage(request).Serialize());
}

// The next answer, which is no error.
template <typename Response>
absl::StatusOr<Response> Receive(BlockingStream& stream) {
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(const grpc::ByteBuffer bytes, stream.Read());
  return ReadAnswer<Response>(
      bytes, [](Response& message, const codec::ReceivedMessage&) -> absl::StatusOr<Response> {
        if (message.has_error()) return FromStreamError(message.error());
        return std::move(message);
      });
}

template <typename Message>
absl::Status WritePart(const Message& part, std::ostream& archive) {
  if (google::protobuf::util::SerializeDelimitedToOstream(part, &archive) && archive.good()) {
    return absl::OkStatus();
  }
  return absl::DataLossError("the archive could not be written");
}

class Export {
 public:
  Export(const std::shared_ptr<Transport>& transport, std::size_t target,
         const CallSettings& settings, const ExportSessionRequest& request, std::ostream& archive)
      : transport_(transport),
        target_(target),
        settings_(settings),
        request_(request),
        archive_(archive) {}

  absl::Status Run() {
    for (int attempt = 1;; ++attempt) {
      const std::int64_t before = next_chunk_;
      const absl::Status status = Attempt();
      if (status.ok()) return status;
      if (next_chunk_ > before) attempt = 1;
      const std::optional<absl::Duration> delay =
          NextDelay(settings_.retry_policy, attempt, status, transport_->random()());
      if (!delay.has_value() || absl::Now() + *delay >= settings_.deadline) return status;
      absl::SleepFor(*delay);
    }
  }

 private:
  absl::Status Attempt() {
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(
        const std::unique_ptr<BlockingStream> stream,
        BlockingStream::Open(transport_, target_, settings_,
                             ATTENTION_CLIENT_METHOD(SessionService, ExportSession)));
    ATTENTION_CLIENT_RETURN_IF_ERROR(Begin(*stream));
    std::int64_t asked = next_chunk_;
    while (next_chunk_ < description_->num_chunks()) {
      for (; asked < std::min(next_chunk_ + kAhead, description_->num_chunks()); ++asked) {
        v1::ExportSessionRequest request;
        request.set_chunk(asked);
        ATTENTION_CLIENT_RETURN_IF_ERROR(Send(*stream, request));
      }
      ATTENTION_CLIENT_ASSIGN_OR_RETURN(const v1::ExportSessionResponse answer,
                                        Receive<v1::ExportSessionResponse>(*stream));
      if (answer.chunk().index() != next_chunk_) {
        return absl::InternalError(absl::StrCat(
            "the server answered with chunk ", answer.chunk().index(), " for chunk ", next_chunk_));
      }
      ATTENTION_CLIENT_RETURN_IF_ERROR(WritePart(answer.chunk(), archive_));
      ++next_chunk_;
    }
    return absl::OkStatus();
  }

  absl::Status Begin(BlockingStream& stream) {
    v1::ExportSessionRequest request;
    v1::ExportBegin& begin = *request.mutable_begin();
    ToProto(request_.handle, begin.mutable_handle());
    if (request_.length.has_value()) begin.set_length(*request_.length);
    if (description_.has_value()) {
      begin.set_length(description_->length());
      begin.set_archive_id(description_->archive_id());
    }
    ATTENTION_CLIENT_RETURN_IF_ERROR(Send(stream, request));
    ATTENTION_CLIENT_ASSIGN_OR_RETURN(v1::ExportSessionResponse answer,
                                      Receive<v1::ExportSessionResponse>(stream));
    if (!description_.has_value()) {
      description_ = std::move(*answer.mutable_archive());
      return WritePart(*description_, archive_);
    }
    if (answer.archive().SerializeAsString() == description_->SerializeAsString()) {
      return absl::OkStatus();
    }
    return absl::FailedPreconditionError("the session was changed while it was exported");
  }

  const std::shared_ptr<Transport>& transport_;
  const std::size_t target_;
  const CallSettings& settings_;
  const ExportSessionRequest& request_;
  std::ostream& archive_;
  std::optional<v1::SessionArchive> description_;
  std::int64_t next_chunk_ = 0;
};

// The parts of an archive, one after the other.
class ArchiveReader {
 public:
  explicit ArchiveReader(std::istream& archive) : input_(&archive) {}

  template <typename Message>
  absl::Status Read(Message* part) {
    bool is_at_end = false;
    if (google::protobuf::util::ParseDelimitedFromZeroCopyStream(part, &input_, &is_at_end)) {
      return absl::OkStatus();
    }
    return absl::DataLossError(is_at_end ? "the archive ends too early"
                                         : "the archive holds something else than a session");
  }

 private:
  google::protobuf::io::IstreamInputStream input_;
};

}  // namespace

absl::Status ExportSession(const std::shared_ptr<Transport>& transport, std::size_t target,
                           const CallSettings& settings, const ExportSessionRequest& request,
                           std::ostream& archive) {
  return Export(transport, target, settings, request, archive).Run();
}

absl::StatusOr<SessionInfo> ImportSession(const std::shared_ptr<Transport>& transport,
                                          std::size_t target, const CallSettings& settings,
                                          const ImportSessionRequest& request,
                                          std::istream& archive) {
  ArchiveReader reader(archive);
  v1::ImportSessionRequest message;
  v1::ImportBegin& begin = *message.mutable_begin();
  ATTENTION_CLIENT_RETURN_IF_ERROR(reader.Read(begin.mutable_archive()));
  const std::int64_t num_chunks = begin.archive().num_chunks();
  begin.set_name(request.name);
  begin.mutable_labels()->insert(request.labels.begin(), request.labels.end());
  if (request.ttl.has_value()) ToProto(*request.ttl, begin.mutable_ttl());
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(
      const std::unique_ptr<BlockingStream> stream,
      BlockingStream::Open(transport, target, settings,
                           ATTENTION_CLIENT_METHOD(SessionService, ImportSession)));
  ATTENTION_CLIENT_RETURN_IF_ERROR(Send(*stream, message));
  std::int64_t answered = -1;  // the begin's answer is still to come
  for (std::int64_t sent = 0; sent < num_chunks; ++sent) {
    message.Clear();
    ATTENTION_CLIENT_RETURN_IF_ERROR(reader.Read(message.mutable_chunk()));
    ATTENTION_CLIENT_RETURN_IF_ERROR(Send(*stream, message));
    for (; answered < sent - kAhead; ++answered) {
      ATTENTION_CLIENT_RETURN_IF_ERROR(Receive<v1::ImportSessionResponse>(*stream).status());
    }
  }
  message.Clear();
  message.mutable_end();
  ATTENTION_CLIENT_RETURN_IF_ERROR(Send(*stream, message));
  for (; answered < num_chunks; ++answered) {
    ATTENTION_CLIENT_RETURN_IF_ERROR(Receive<v1::ImportSessionResponse>(*stream).status());
  }
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(v1::ImportSessionResponse last,
                                    Receive<v1::ImportSessionResponse>(*stream));
  return FromProto(std::move(*last.mutable_session()));
}

}  // namespace attention::client::internal
