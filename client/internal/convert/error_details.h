// Between the wire's errors and absl::Status. The details travel as payloads under their standard
// type URLs, serialised as google.rpc messages, so that a program which links googleapis can read
// them too.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace grpc {
class Status;
}
namespace attention::v1 {
class StreamError;
}

namespace attention::client::internal {

// Keeps code, message and every detail that the status carries.
absl::Status FromGrpcStatus(const grpc::Status& status);
// The failure of one request on a stream, or of one step.
absl::Status FromStreamError(const v1::StreamError& error);

std::optional<std::string> ReasonOf(const absl::Status& status);
std::optional<std::string> MetadataOf(const absl::Status& status, std::string_view key);
std::optional<absl::Duration> RetryDelayOf(const absl::Status& status);

// Do nothing to an OK status.
void AttachReason(std::string_view reason, const std::map<std::string, std::string>& metadata,
                  absl::Status* status);
void AttachRetryDelay(absl::Duration delay, absl::Status* status);

// The same status with `note` behind its message in parentheses; payloads are kept.
absl::Status Annotate(const absl::Status& status, const std::string& note);

}  // namespace attention::client::internal
