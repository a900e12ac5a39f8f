#include "server/rpc/status_mapping.h"

#include <new>
#include <string>

#include "attention/v1/errors.pb.h"
#include "server/base/client_text.h"
#include "server/base/error_reason.h"

namespace attention::server {
namespace {

constexpr char kTypeUrlPrefix[] = "type.googleapis.com/google.rpc.";
constexpr char kDomain[] = "attention.v1";

// Message and metadata travel in headers, of which clients take 8 KiB in all.
constexpr std::size_t kMaxMetadataValueBytes = 256;

// Any::PackFrom would name our own message type; the wire must name google.rpc's.
template <typename Message>
void AddDetail(v1::StatusDetails& details, const char* type, const Message& message) {
  google::protobuf::Any* any = details.add_details();
  any->set_type_url(std::string(kTypeUrlPrefix) + type);
  message.SerializeToString(any->mutable_value());
}

void AddMetadata(const ErrorDetail& detail, google::protobuf::Map<std::string, std::string>* out) {
  for (const auto& [key, value] : detail.metadata) {
    (*out)[key] = Printable(value, kMaxMetadataValueBytes);
  }
}

std::string SerializedDetails(const absl::Status& status, const ErrorDetail& detail) {
  v1::StatusDetails details;
  details.set_code(static_cast<int>(status.code()));
  details.set_message(Printable(status.message()));
  v1::ErrorInfo info;
  info.set_reason(detail.reason);
  info.set_domain(kDomain);
  AddMetadata(detail, info.mutable_metadata());
  AddDetail(details, "ErrorInfo", info);
  if (detail.retry_delay) {
    v1::RetryInfo retry;
    const timespec delay = absl::ToTimespec(*detail.retry_delay);
    retry.mutable_retry_delay()->set_seconds(delay.tv_sec);
    retry.mutable_retry_delay()->set_nanos(static_cast<int>(delay.tv_nsec));
    AddDetail(details, "RetryInfo", retry);
  }
  return details.SerializeAsString();
}

}  // namespace

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const auto code = static_cast<grpc::StatusCode>(status.code());
  try {
    const auto detail = GetErrorDetail(status);
    if (!detail) return grpc::Status(code, Printable(status.message()));
    return grpc::Status(code, Printable(status.message()), SerializedDetails(status, *detail));
  } catch (const std::bad_alloc&) {
    return grpc::Status(code, "");  // an answer without words instead of none
  }
}

v1::StreamError ToStreamError(const absl::Status& status) {
  v1::StreamError error;
  error.set_code(static_cast<int>(status.code()));
  error.set_message(Printable(status.message()));
  if (const auto detail = GetErrorDetail(status)) {
    error.set_reason(detail->reason);
    AddMetadata(*detail, error.mutable_metadata());
    if (detail->retry_delay) {
      const timespec delay = absl::ToTimespec(*detail->retry_delay);
      error.mutable_retry_delay()->set_seconds(delay.tv_sec);
      error.mutable_retry_delay()->set_nanos(static_cast<int>(delay.tv_nsec));
    }
  }
  return error;
}

}  // namespace attention::server
