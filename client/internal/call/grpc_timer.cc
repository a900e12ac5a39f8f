#include "client/internal/call/grpc_timer.h"

#include <grpcpp/alarm.h>

#include <memory>
#include <utility>

#include "absl/time/clock.h"

namespace attention::client::internal {

absl::Time GrpcTimer::Now() { return absl::Now(); }

void GrpcTimer::RunAt(absl::Time when, std::function<void()> action) {
  // The alarm lives until it has rung, and frees itself then; gRPC keeps its own reference to what
  // it needs while the callback runs.
  auto* alarm = new grpc::Alarm;
  alarm->Set(absl::ToChronoTime(when), [alarm, action = std::move(action)](bool) {
    const std::unique_ptr<grpc::Alarm> owner(alarm);
    action();
  });
}

}  // namespace attention::client::internal
