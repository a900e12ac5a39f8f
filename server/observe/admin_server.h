// The HTTP port for operators: /metrics, /healthz (the process lives), /readyz (it takes work).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "server/observe/metrics_page.h"

namespace attention::server {

class AdminServer {
 public:
  struct Pages {
    std::function<MetricsPage(std::string_view accept)> metrics;
    // The reasons why the server does not take work, and why it should be started again; empty when
    // it does, and when it should not.
    std::function<std::string()> why_not_ready;
    std::function<std::string()> why_not_alive;
  };

  // Listens on "host:port" (port 0 picks one) and serves from a thread of its own, which waits for
  // no client: one that is idle or slow holds up nobody, and the oldest of too many are closed.
  // UNAVAILABLE says why the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<AdminServer>> Start(const std::string& address,
                                                            Pages pages);
  virtual ~AdminServer() = default;

  // With the port that was picked.
  virtual const std::string& address() const = 0;
};

}  // namespace attention::server
