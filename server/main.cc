// Wiring: read the configuration, build the rooms, run, drain.
//
// Exit codes: 0 after a drain, and when it was told to stop before it was up; 1 when the server
// cannot start; 2 for a wrong flag; 3 when its last device was lost for good: whoever runs it
// should start it again; 4 when a drain has not ended a second after its time-out; 128 and the
// signal's number when it was told to stop a second time.
#include <spdlog/spdlog.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "server/base/descriptors.h"
#include "server/base/mutex.h"
#include "server/base/process_memory.h"
#include "server/config/server_config.h"
#include "server/observe/logging.h"
#include "server/server_app.h"

namespace attention::server {
namespace {

constexpr int kExitBeyondHelp = 3;
constexpr int kExitStuck = 4;
constexpr int kExitSignal = 128;

const char* NameOf(int signal) { return signal == SIGTERM ? "SIGTERM" : "SIGINT"; }

// SIGTERM and SIGINT: the first asks for a drain, the second ends the process. SIGHUP asks for the
// files that may change to be read again.
class Signals {
 public:
  // Hears them from now on. Before there are threads: they are blocked in every later one, so that
  // only a thread of this gets them.
  static Signals& Hear() {
    static Signals* const signals = new Signals;  // as long as its thread, which never ends
    return *signals;
  }

  bool has_come() const { return first_.HasBeenNotified(); }
  // False when none has come for so long.
  bool Await(absl::Duration timeout) const {
    return first_.WaitForNotificationWithTimeout(timeout);
  }

  // Runs at each SIGHUP, on a thread of its own; null: nothing does. The one before does not run
  // any more when it returns.
  void OnHangup(std::function<void()> reload) {
    MutexLock lock(&mutex_);
    reload_ = std::move(reload);
  }

 private:
  Signals() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGHUP);
    sigaddset(&set_, SIGTERM);
    sigaddset(&set_, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    std::thread([this] { Listen(); }).detach();
  }

  [[noreturn]] void Listen() {
    spdlog::info("received {}, draining", NameOf(NextStop()));
    first_.Notify();
    const int signal = NextStop();
    spdlog::warn("received {} while draining, ending at once", NameOf(signal));
    std::_Exit(kExitSignal + signal);
  }

  int NextStop() {
    for (;;) {
      int signal = 0;
      sigwait(&set_, &signal);
      if (signal != SIGHUP) return signal;
      MutexLock lock(&mutex_);
      spdlog::info("received SIGHUP{}", reload_ ? "" : ": there is nothing to read again now");
      if (reload_) reload_();
    }
  }

  sigset_t set_;
  Mutex mutex_;
  std::function<void()> reload_ ABSL_GUARDED_BY(mutex_);
  absl::Notification first_;
};

// A drain whose end hangs on somebody else, be it a kernel that computes or a bug, must not keep
// the process from being replaced.
void EndProcessAfter(absl::Duration timeout) {
  std::thread([timeout] {
    std::this_thread::sleep_for(absl::ToChronoNanoseconds(timeout));
    spdlog::error("the drain has not ended after {}, ending the process without it",
                  absl::FormatDuration(timeout));
    std::_Exit(kExitStuck);
  }).detach();
}

// Waits for the signal to stop, an administrator's call that asks for it, or until the server is
// beyond help; false then.
bool AwaitEnd(const Signals& signals, const ServerApp& app) {
  while (!signals.Await(absl::Milliseconds(100))) {
    if (app.is_beyond_help()) return false;
    if (app.is_asked_to_stop()) return true;
  }
  return true;
}

int Run(const ParsedCommandLine& parsed) {
  const ServerConfig& config = parsed.config;
  SetUpLogging(config.log_level, config.log_format);
  Signals& signals = Signals::Hear();
  // A log whose reader has gone, or that has reached its size, must not end the process.
  for (const int signal : {SIGPIPE, SIGXFSZ}) std::signal(signal, SIG_IGN);

  for (const std::string& warning : parsed.warnings) spdlog::warn("{}", warning);
  RaiseDescriptorLimit();
  auto app = ServerApp::Start(config, MakeBackend, [&signals] {
    return signals.has_come() ? absl::CancelledError("told to stop") : absl::OkStatus();
  });
  if (!app.ok() && signals.has_come()) {
    spdlog::info("stopped before it was up");
    return 0;
  }
  if (!app.ok()) {
    spdlog::error("cannot start: {}", std::string(app.status().message()));
    return 1;
  }
  signals.OnHangup([&app] { (*app)->ReloadFiles(); });
  const bool was_told = AwaitEnd(signals, **app);
  if (!was_told) {
    spdlog::error("no device has been usable for {}: ending, to be started again",
                  absl::FormatDuration(config.device_recovery_timeout));
  }
  EndProcessAfter(config.drain_delay + config.drain_timeout + absl::Seconds(1));
  (*app)->DrainAndStop();
  signals.OnHangup(nullptr);
  spdlog::info("stopped");
  return was_told ? 0 : kExitBeyondHelp;
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
  return attention::server::Run(parsed);
}
