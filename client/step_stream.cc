#include "attention/client/step_stream.h"

#include <utility>

#include "client/internal/base/future.h"

namespace attention::client {

std::future<absl::StatusOr<StepResult>> StepStream::StepFuture(const StepRequest& request) {
  return internal::FutureOf<absl::StatusOr<StepResult>>(
      [&](auto done) { StepAsync(request, std::move(done)); });
}

absl::StatusOr<StepResult> StepStream::Step(const StepRequest& request) {
  return StepFuture(request).get();
}

absl::StatusOr<SessionInfo> StepStream::CreateSession(const SessionOptions& request) {
  return internal::FutureOf<absl::StatusOr<SessionInfo>>(
             [&](auto done) { CreateSessionAsync(request, std::move(done)); })
      .get();
}

}  // namespace attention::client
