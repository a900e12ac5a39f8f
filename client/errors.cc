#include "attention/client/errors.h"

#include "absl/strings/numbers.h"
#include "client/internal/convert/error_details.h"

namespace attention::client {

std::optional<std::string> ErrorReason(const absl::Status& status) {
  return internal::ReasonOf(status);
}

std::optional<std::string> ErrorMetadata(const absl::Status& status, std::string_view key) {
  return internal::MetadataOf(status, key);
}

std::optional<std::int64_t> ActualPosition(const absl::Status& status) {
  const std::optional<std::string> text = ErrorMetadata(status, kActualPosition);
  std::int64_t position = 0;
  if (!text.has_value() || !absl::SimpleAtoi(*text, &position)) return std::nullopt;
  return position;
}

std::optional<absl::Duration> RetryDelay(const absl::Status& status) {
  return internal::RetryDelayOf(status);
}

absl::Status WithReason(absl::Status status, std::string_view reason,
                        const std::map<std::string, std::string>& metadata) {
  internal::AttachReason(reason, metadata, &status);
  return status;
}

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  internal::AttachRetryDelay(delay, &status);
  return status;
}

}  // namespace attention::client
