// A place where the server takes calls, and the settings of that place alone.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace attention::server {

// ADDRESS[?KEY=VALUE[&KEY=VALUE...]], for instance
//   127.0.0.1:7070
//   unix:/run/attention.sock?mode=0660
//   0.0.0.0:7070?tls-cert=server.pem&tls-key=server.key&tls-client-ca=clients.pem
struct Listener {
  std::string address;  // "host:port", port 0 picks one; or "unix:path"

  // unix sockets: permission bits of the file. Absent: what the process's umask leaves.
  std::optional<int> mode;

  // TCP with TLS: PEM files. With a client CA, clients must show a certificate that it signed.
  std::string tls_cert;
  std::string tls_key;
  std::string tls_client_ca;

  bool is_unix() const;
  // True if nobody beyond this host can reach it: a unix socket or a loopback address.
  bool is_local() const;
  std::string socket_path() const;  // of a unix socket
  bool has_tls() const { return !tls_cert.empty(); }
};

// INVALID_ARGUMENT says what is wrong with `text` and what is expected.
absl::StatusOr<Listener> ParseListener(absl::string_view text);

}  // namespace attention::server
