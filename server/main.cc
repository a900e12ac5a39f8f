// Wiring: read the configuration, build the rooms, run, drain.
//
// Exit codes: 0 after a drain, 1 when the server cannot start, 2 for a wrong flag, 3 when its last
// device was lost for good: whoever runs it should start it again.
#include <spdlog/spdlog.h>

#include <csignal>
#include <cstdio>
#include <string>

#include "absl/synchronization/mutex.h"
#include "server/base/descriptors.h"
#include "server/base/process_memory.h"
#include "server/config/server_config.h"
#include "server/observe/logging.h"
#include "server/server_app.h"

namespace attention::server {
namespace {

// The signal that came; 0: none, and the server is beyond help.
int AwaitEnd(const sigset_t& stop_signals, const ServerApp& app) {
  constexpr timespec kPeriod = {.tv_sec = 1, .tv_nsec = 0};
  while (!app.is_beyond_help()) {
    const int signal = sigtimedwait(&stop_signals, nullptr, &kPeriod);
    if (signal > 0) return signal;
  }
  return 0;
}

int Run(const ServerConfig& config) {
  // Blocked in every thread, so that only AwaitStop sees them.
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGTERM);
  sigaddset(&stop_signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop_signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);

  SetUpLogging(config.log_level, config.log_format);
  RaiseDescriptorLimit();
  auto app = ServerApp::Start(config);
  if (!app.ok()) {
    spdlog::error("cannot start: {}", std::string(app.status().message()));
    return 1;
  }
  const int signal = AwaitEnd(stop_signals, **app);
  if (signal == 0) {
    spdlog::error("no device has been usable for {}: ending, to be started again",
                  absl::FormatDuration(config.device_recovery_timeout));
  } else {
    spdlog::info("received {}, draining", signal == SIGTERM ? "SIGTERM" : "SIGINT");
  }
  (*app)->DrainAndStop();
  spdlog::info("stopped");
  return signal == 0 ? 3 : 0;
}

}  // namespace
}  // namespace attention::server

int main(int argc, char** argv) {
  attention::server::KeepFreedMemory();
  // Builds of Abseil without NDEBUG, as distributions ship, look for lock cycles at each lock of
  // gRPC's: 3 % of the processor time of a small call.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  const auto parsed = attention::server::ParseCommandLine(argc, argv);
  if (parsed.is_exit) {
    std::fputs(parsed.text.c_str(), parsed.exit_code == 0 ? stdout : stderr);
    return parsed.exit_code;
  }
  return attention::server::Run(parsed.config);
}
