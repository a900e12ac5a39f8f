// Failures stop here: work that runs out of memory, or meets a bug, fails alone, and who looks
// after the device is told.
#pragma once

#include <exception>
#include <functional>
#include <new>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace attention::server {

// What `compute` returns, or, when it throws, RESOURCE_EXHAUSTED or INTERNAL.
template <typename Compute>
auto ContainExceptions(Compute compute) -> decltype(compute()) {
  try {
    return compute();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory while computing");
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("computing failed: ", error.what()));
  }
}

// Told of the status that a backend failed with.
using FailureHandler = std::function<void(const absl::Status&)>;

// Tells the handler, if there is one, of what is the device's failure and no request's.
inline void ReportFailure(const FailureHandler& on_failure, const absl::Status& status) {
  const bool is_devices = status.code() == absl::StatusCode::kInternal ||
                          status.code() == absl::StatusCode::kUnavailable;
  if (is_devices && on_failure) on_failure(status);
}

}  // namespace attention::server
