// The server's binary as a process of its own, for what only a process shows: signals, exit codes,
// logs, files. Killed with the object, if it still runs.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "tests/support/service_fixture.h"

namespace attention::testing {

// Starts a program, arguments[0], whose output goes to the file `log`. The caller waits for it.
pid_t Spawn(const std::vector<std::string>& arguments, const std::string& log);

class ServerProcess {
 public:
  // Starts `attention-server` on free ports with small limits; `flags` come last and win. Does not
  // wait until it is up. `limits`: what a shell does before, such as "ulimit -n 256".
  explicit ServerProcess(const std::vector<std::string>& flags = {},
                         const std::string& limits = "");
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  // Waits for the port file; fails the test when the process ends first.
  ServerClient& client();
  // From the port file; valid after client().
  const std::vector<std::string>& addresses() const { return addresses_; }

  void Signal(int signal);
  // The exit code, or minus the signal that ended it; nothing when it still runs after `timeout`.
  std::optional<int> WaitForExit(absl::Duration timeout = absl::Seconds(60));

  // Its resident memory; 0 when it has ended.
  std::int64_t ResidentBytes() const;

  // Its stdout and stderr so far.
  std::string Log() const;
  // A directory of its own, removed with the object.
  const std::string& directory() const { return directory_; }

 private:
  bool HasPorts();

  std::string directory_;
  pid_t pid_ = -1;
  std::optional<int> exit_;
  std::vector<std::string> addresses_;
  std::unique_ptr<ServerClient> client_;
};

}  // namespace attention::testing
