#include "client/internal/convert/error_details.h"

#include <grpcpp/support/status.h>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "attention/v1/attention_service.pb.h"
#include "attention/v1/errors.pb.h"
#include "client/internal/convert/convert.h"

namespace attention::client::internal {
namespace {

constexpr char kErrorInfoUrl[] = "type.googleapis.com/google.rpc.ErrorInfo";
constexpr char kRetryInfoUrl[] = "type.googleapis.com/google.rpc.RetryInfo";
constexpr char kErrorDomain[] = "attention.v1";

template <typename Message>
std::optional<Message> Payload(const absl::Status& status, const char* url) {
  const absl::optional<absl::Cord> payload = status.GetPayload(url);
  Message message;
  if (!payload.has_value() || !message.ParseFromString(std::string(*payload))) return std::nullopt;
  return message;
}

// Codes past the canonical ones come only from a defective peer.
absl::StatusCode CanonicalCode(int code) {
  const bool is_known = code > 0 && code <= static_cast<int>(absl::StatusCode::kUnauthenticated);
  return is_known ? static_cast<absl::StatusCode>(code) : absl::StatusCode::kUnknown;
}

}  // namespace

absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(CanonicalCode(status.error_code()), status.error_message());
  v1::StatusDetails details;
  if (details.ParseFromString(status.error_details())) {
    for (const auto& detail : details.details()) {
      result.SetPayload(detail.type_url(), absl::Cord(detail.value()));
    }
  }
  return result;
}

absl::Status FromStreamError(const v1::StreamError& error) {
  absl::Status result(CanonicalCode(error.code()), error.message());
  if (!error.reason().empty() || !error.metadata().empty()) {
    AttachReason(error.reason(), {error.metadata().begin(), error.metadata().end()}, &result);
  }
  if (error.has_retry_delay()) AttachRetryDelay(FromProto(error.retry_delay()), &result);
  return result;
}

std::optional<std::string> ReasonOf(const absl::Status& status) {
  const auto info = Payload<v1::ErrorInfo>(status, kErrorInfoUrl);
  if (!info.has_value() || info->reason().empty()) return std::nullopt;
  // The enum's full name and its short form are the same reason.
  return std::string(absl::StripPrefix(info->reason(), "ERROR_REASON_"));
}

std::optional<std::string> MetadataOf(const absl::Status& status, std::string_view key) {
  const auto info = Payload<v1::ErrorInfo>(status, kErrorInfoUrl);
  if (!info.has_value()) return std::nullopt;
  const auto found = info->metadata().find(std::string(key));
  if (found == info->metadata().end()) return std::nullopt;
  return found->second;
}

std::optional<absl::Duration> RetryDelayOf(const absl::Status& status) {
  const auto info = Payload<v1::RetryInfo>(status, kRetryInfoUrl);
  if (!info.has_value() || !info->has_retry_delay()) return std::nullopt;
  return FromProto(info->retry_delay());
}

void AttachReason(std::string_view reason, const std::map<std::string, std::string>& metadata,
                  absl::Status* status) {
  v1::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(kErrorDomain);
  info.mutable_metadata()->insert(metadata.begin(), metadata.end());
  status->SetPayload(kErrorInfoUrl, absl::Cord(info.SerializeAsString()));
}

void AttachRetryDelay(absl::Duration delay, absl::Status* status) {
  v1::RetryInfo info;
  ToProto(delay, info.mutable_retry_delay());
  status->SetPayload(kRetryInfoUrl, absl::Cord(info.SerializeAsString()));
}

absl::Status Annotate(const absl::Status& status, const std::string& note) {
  absl::Status result(status.code(), absl::StrCat(status.message(), " (", note, ")"));
  status.ForEachPayload([&result](absl::string_view url, const absl::Cord& payload) {
    result.SetPayload(url, payload);
  });
  return result;
}

}  // namespace attention::client::internal
