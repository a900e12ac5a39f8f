// StepStream over SessionService.StepStream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "attention/client/step_stream.h"
#include "client/internal/call/call_settings.h"
#include "client/internal/call/transport.h"
#include "client/internal/shared_memory/shared_memory_channels.h"

namespace attention::client::internal {

// The caller's end. The reactor behind it lives until gRPC is done with it, however soon this is
// destroyed.
class GrpcStepStream final : public StepStream {
 public:
  // `shared_memory` is null where no memory is shared. Not OK: there is no token for the stream.
  static absl::StatusOr<std::unique_ptr<StepStream>> Open(
      const std::shared_ptr<Transport>& transport,
      std::shared_ptr<SharedMemoryChannels> shared_memory, std::size_t target,
      const CallSettings& settings, int max_outstanding);
  ~GrpcStepStream() override;

  void StepAsync(const StepRequest& request, Callback done) override;
  void CreateSessionAsync(const SessionOptions& request, SessionCallback done) override;
  absl::Status Finish() override;
  void Cancel() override;
  absl::Status status() const override;

 private:
  class Reactor;

  explicit GrpcStepStream(std::shared_ptr<Reactor> reactor) : reactor_(std::move(reactor)) {}

  const std::shared_ptr<Reactor> reactor_;
};

}  // namespace attention::client::internal
