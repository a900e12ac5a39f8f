#include "server/upkeep.h"

#include <spdlog/spdlog.h>

#include <string>

#include "absl/time/time.h"
#include "server/base/contain_exceptions.h"
#include "server/engine/device_watch.h"
#include "server/observe/logging.h"

namespace attention::server {

void Upkeep::Stop() {
  if (!thread_.joinable()) return;
  stop_.Notify();
  thread_.join();
}

void Upkeep::ReloadCredentials() {
  for (const auto& [setting, status] : state_.authenticator->ReloadChanged()) {
    if (status.ok()) {
      spdlog::info("{} has changed and is in use", setting);
    } else {
      spdlog::error("{} has changed and is not used, what it was before still is: {}", setting,
                    std::string(status.message()));
    }
  }
  for (const auto& [address, status] : grpc_.ReloadCertificates()) {
    if (status.ok()) {
      spdlog::info("the certificate files of {} have changed and are in use", address);
    } else {
      spdlog::error(
          "the certificate files of {} have changed and are not used, those before still "
          "are: {}",
          address, std::string(status.message()));
    }
  }
}

void Upkeep::Loop() {
  constexpr absl::Duration kPeriod = absl::Seconds(1);
  constexpr int kLooksAtMemory = 20;  // in a period
  DeviceWatch watch(state_.config.device_recovery_timeout);
  for (int look = 1; !stop_.WaitForNotificationWithTimeout(kPeriod / kLooksAtMemory); ++look) {
    state_.freed_memory.TendLimit();
    if (look % kLooksAtMemory != 0) continue;
    TryRun([this] {
      const int count = state_.sessions.ExpireIdle();
      if (count > 0) spdlog::info("dropped {} idle or lost sessions", count);
      EndLogPeriod();
      state_.freed_memory.Tend();
      grpc_.EndStalled(state_.clock.Now());
      ReloadCredentials();
    });
    recovery_timed_out_.store(
        watch.RecoveryTimedOut(state_.IsAnyDeviceUsable(), state_.clock.Now()));
  }
}

}  // namespace attention::server
