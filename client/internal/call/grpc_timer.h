// Real time: the system's clock, and actions on gRPC's own threads, so that the SDK starts none.
#pragma once

#include <functional>

#include "absl/time/time.h"
#include "client/internal/call/timer.h"

namespace attention::client::internal {

class GrpcTimer final : public Timer {
 public:
  absl::Time Now() override;
  void RunAt(absl::Time when, std::function<void()> action) override;
};

}  // namespace attention::client::internal
