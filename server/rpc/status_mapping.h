// From absl::Status to what travels: grpc::Status with google.rpc details, or a StreamError.
#pragma once

#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "attention/v1/attention_service.pb.h"

namespace attention::server {

// Canonical codes are the same numbers. A reason becomes google.rpc.ErrorInfo (domain
// "attention.v1"), a retry delay google.rpc.RetryInfo. Texts are bounded and printable, as those of
// Printable, so that whatever a client sent its answer's trailers fit.
grpc::Status ToGrpcStatus(const absl::Status& status);

v1::StreamError ToStreamError(const absl::Status& status);

}  // namespace attention::server
