// Wiring: read the configuration, build the rooms, run, drain.
//
// Exit codes: 0 after a drain, 1 when the server cannot start, 2 for a wrong flag.
#include <spdlog/spdlog.h>

#include <csignal>
#include <cstdio>
#include <string>

#include "absl/synchronization/mutex.h"
#include "server/base/process_memory.h"
#include "server/config/server_config.h"
#include "server/observe/logging.h"
#include "server/server_app.h"

namespace attention::server {
namespace {

int Run(const ServerConfig& config) {
  // Blocked in every thread, so that only AwaitStop sees them.
  sigset_t stop_signals;
  sigemptyset(&stop_signals);
  sigaddset(&stop_signals, SIGTERM);
  sigaddset(&stop_signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &stop_signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);

  SetUpLogging(config.log_level, config.log_format);
  auto app = ServerApp::Start(config);
  if (!app.ok()) {
    spdlog::error("cannot start: {}", std::string(app.status().message()));
    return 1;
  }
  int signal = 0;
  sigwait(&stop_signals, &signal);
  spdlog::info("received {}, draining", signal == SIGTERM ? "SIGTERM" : "SIGINT");
  (*app)->DrainAndStop();
  spdlog::info("stopped");
  return 0;
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
