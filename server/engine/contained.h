// Tells a device's own failures from those that requests cause.
#pragma once

#include "absl/status/status.h"
#include "server/base/contain_exceptions.h"

namespace attention::server {

// True if a backend that failed with the status did so by its own fault, and not by a request's.
inline bool IsDeviceFailure(const absl::Status& status) {
  return status.code() == absl::StatusCode::kInternal ||
         status.code() == absl::StatusCode::kUnavailable;
}

}  // namespace attention::server
