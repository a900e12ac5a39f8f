// A running server: makes its state, listens, drains and stops.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/base/interrupt.h"
#include "server/config/server_config.h"
#include "server/make_devices.h"

namespace attention::server {

class ServerApp {
 public:
  // Serving when it returns. Errors say which key of the configuration is at fault, or are the
  // interrupt's, which is asked between the layers that are preloaded.
  static absl::StatusOr<std::unique_ptr<ServerApp>> Start(
      const ServerConfig& config, const BackendFactory& factory = MakeBackend,
      const Interrupt& interrupt = nullptr);
  virtual ~ServerApp() = default;

  virtual const std::vector<std::string>& addresses() const = 0;
  virtual const std::string& admin_address() const = 0;  // empty: none

  // True when no device has been usable for longer than device-recovery-timeout: then only another
  // process can help, and this one should end. Thread-safe.
  virtual bool is_beyond_help() const = 0;
  // True once an administrator has asked by a call for a drain. Thread-safe.
  virtual bool is_asked_to_stop() const = 0;

  // Reads the files again that may change while the server runs. The log says what was wrong with
  // one, which is as it was then. From one thread at a time, until DrainAndStop has returned.
  virtual void ReloadFiles() = 0;

  // Refuses new work, lets what is in flight finish within the configured time, stops.
  virtual void DrainAndStop() = 0;
};

}  // namespace attention::server
