#include "client/internal/targets/target_probe.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "client/internal/credentials/target_address.h"
#include "client/internal/credentials/tls_material.h"
#include "client/internal/targets/probe_socket.h"
#include "client/internal/targets/tls_probe.h"

namespace attention::client::internal {
namespace {

struct Resolved {
  ~Resolved() {
    if (list != nullptr) freeaddrinfo(list);
  }
  absl::Mutex mutex;
  bool is_done ABSL_GUARDED_BY(mutex) = false;
  int error ABSL_GUARDED_BY(mutex) = 0;
  addrinfo* list ABSL_GUARDED_BY(mutex) = nullptr;
};

// The system's resolver cannot be interrupted, so a thread of its own waits for it, and is left to
// itself when time is up.
std::shared_ptr<Resolved> Resolve(const TargetAddress& to, absl::Time deadline) {
  auto resolved = std::make_shared<Resolved>();
  std::thread([resolved, to] {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* list = nullptr;
    const int error = getaddrinfo(to.host.c_str(), to.port.c_str(), &hints, &list);
    absl::MutexLock lock(&resolved->mutex);
    resolved->is_done = true;
    resolved->error = error;
    resolved->list = list;
  }).detach();
  absl::MutexLock lock(&resolved->mutex);
  resolved->mutex.AwaitWithDeadline(absl::Condition(&resolved->is_done), deadline);
  return resolved;
}

// The name that a server's certificate is expected to hold, as gRPC does.
std::string TlsNameOf(const std::optional<TlsOptions>& tls, const std::string& host) {
  return tls.has_value() && !tls->server_name.empty() ? tls->server_name : host;
}

// The preface of HTTP/2 and an empty SETTINGS frame: what a gRPC client sends first.
std::string Http2Hello() {
  return absl::StrCat("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                      absl::string_view("\0\0\0\x04\0\0\0\0\0", 9));
}

bool IsHttp2(const std::string& answer) {
  constexpr char kSettings = 4;
  return answer.size() >= 9 && answer[3] == kSettings;
}

// A server: where it listens, resolved, and how the client would speak to it.
struct Server {
  std::string name;
  int family;
  const sockaddr* address;
  socklen_t size;
  const std::optional<TlsOptions>& tls;
  std::string tls_name;  // expected in its certificate
};

class Connection {
 public:
  Connection(const Server& server, absl::Time deadline)
      : socket(server.family, SOCK_STREAM),
        error(socket.Connect(server.address, server.size, deadline)) {}

  const ProbeSocket socket;
  const int error;  // an errno, or 0
};

// The first bytes of the answer to a plain client; empty when there is none.
std::string AskPlain(const Connection& connection, absl::Time deadline) {
  constexpr std::size_t kEnough = 9;
  connection.socket.Send(Http2Hello());
  std::string answer;
  while (answer.size() < kEnough) {
    const std::string received = connection.socket.Receive(deadline);
    if (received.empty()) break;
    answer += received;
  }
  return answer;
}

std::string ConnectFault(const Server& server, int error) {
  if (error == ECONNREFUSED) return absl::StrCat("connection refused by ", server.name);
  if (error == ETIMEDOUT) return absl::StrCat("no answer from ", server.name);
  if (error == EPROTOTYPE) {
    return absl::StrCat(server.name, " is a socket of another kind, expected the one for gRPC");
  }
  return absl::StrCat("cannot connect to ", server.name, ": ", strerror(error));
}

// `expected` is the protocol that the client speaks.
std::string DescribePlain(const Server& server, const std::string& answer, const char* expected) {
  if (absl::StartsWith(answer, "HTTP/1")) {
    return absl::StrCat(server.name,
                        " speaks HTTP/1, expected the port for gRPC (is it the admin port?)");
  }
  return answer.empty() ? absl::StrCat(server.name, " takes connections and does not answer")
                        : absl::StrCat(server.name, " answers something else than ", expected);
}

// A client without TLS.
std::string DiagnosePlain(const Server& server, const Connection& connection, absl::Time deadline) {
  const std::string answer = AskPlain(connection, deadline);
  if (IsHttp2(answer)) return absl::StrCat(server.name, " answers, but was not ready in time");
  // Some servers of TLS hang up on others without a word (gRPC's do), some refuse them in TLS.
  const Connection again(server, deadline);
  if (again.error == 0 && !absl::StartsWith(answer, "HTTP/1")) {
    TlsProbe probe(again.socket, {}, server.tls_name);
    probe.Handshake(deadline);
    if (probe.is_tls()) {
      return absl::StrCat(server.name,
                          " speaks TLS, expected a server without it, or ClientOptions::tls");
    }
  }
  return DescribePlain(server, answer, "HTTP/2");
}

// After a handshake that found the server's certificate good, on the client's side complete or not.
std::string DescribeRefusal(const Server& server, const TlsProbe& probe,
                            const TlsMaterial& material) {
  const std::string words = probe.failure().empty() ? "" : absl::StrCat(" (", probe.failure(), ")");
  if (probe.has_asked_for_certificate() && material.certificate.empty()) {
    return absl::StrCat(server.name,
                        " asks for a client's certificate, expected tls.certificate_file", words);
  }
  if (probe.has_asked_for_certificate()) {
    const std::string expiry = ExpiryOf(material);
    return absl::StrCat(server.name, " refuses the client's certificate",
                        expiry.empty() ? "" : ": ", expiry, words);
  }
  if (!probe.is_complete()) {
    return absl::StrCat("no TLS handshake with ", server.name, words);
  }
  if (!probe.speaks_http2()) {
    return absl::StrCat(server.name, " speaks TLS, but not HTTP/2, expected the port for gRPC");
  }
  return absl::StrCat(server.name, " ends connections after the TLS handshake", words);
}

std::string DiagnoseTls(const Server& server, const Connection& connection, absl::Time deadline) {
  const absl::StatusOr<TlsMaterial> material = ReadTlsMaterial(*server.tls);
  if (!material.ok()) return std::string(material.status().message());
  TlsProbe probe(connection.socket, *material, server.tls_name);
  probe.Handshake(deadline);
  if (!probe.is_tls()) {
    const Connection again(server, deadline);
    const std::string answer = again.error == 0 ? AskPlain(again, deadline) : "";
    if (!IsHttp2(answer)) return DescribePlain(server, answer, "TLS");
    return absl::StrCat(server.name,
                        " speaks HTTP/2 without TLS, expected TLS, or ClientOptions::tls unset");
  }
  if (const std::string fault = probe.CertificateFault(); !fault.empty()) {
    return absl::StrCat("the certificate of ", server.name, " ", fault);
  }
  if (probe.is_complete() && IsHttp2(probe.Ask(Http2Hello(), deadline))) {
    return absl::StrCat(server.name, " answers, but was not ready in time");
  }
  return DescribeRefusal(server, probe, *material);
}

std::string DiagnoseServer(const Server& server, absl::Time deadline) {
  const Connection connection(server, deadline);
  if (connection.error != 0) return ConnectFault(server, connection.error);
  return server.tls.has_value() ? DiagnoseTls(server, connection, deadline)
                                : DiagnosePlain(server, connection, deadline);
}

std::string DiagnoseSocket(const std::string& path, const std::optional<TlsOptions>& tls,
                           absl::Time deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::StrCat("the path of the socket has ", path.size(), " bytes, expected less than ",
                        sizeof(address.sun_path));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return DiagnoseServer({.name = absl::StrCat("unix:", path),
                         .family = AF_UNIX,
                         .address = reinterpret_cast<const sockaddr*>(&address),
                         .size = sizeof(address),
                         .tls = tls,
                         .tls_name = TlsNameOf(tls, "localhost")},
                        deadline);
}

std::string DiagnoseHost(const TargetAddress& to, const std::optional<TlsOptions>& tls,
                         absl::Time deadline) {
  const std::shared_ptr<Resolved> resolved = Resolve(to, deadline);
  absl::MutexLock lock(&resolved->mutex);
  if (!resolved->is_done || resolved->error != 0) {
    return absl::StrCat("host '", to.host, "' cannot be resolved: ",
                        resolved->is_done ? gai_strerror(resolved->error) : "no answer in time");
  }
  const addrinfo* chosen = resolved->list;
  for (const addrinfo* at = chosen; at != nullptr; at = at->ai_next) {
    const ProbeSocket socket(at->ai_family, SOCK_STREAM);
    if (socket.Connect(at->ai_addr, at->ai_addrlen, deadline) != 0) continue;
    chosen = at;
    break;
  }
  return DiagnoseServer({.name = absl::StrCat(to.host, ":", to.port),
                         .family = chosen->ai_family,
                         .address = chosen->ai_addr,
                         .size = chosen->ai_addrlen,
                         .tls = tls,
                         .tls_name = TlsNameOf(tls, to.host)},
                        deadline);
}

}  // namespace

std::string DiagnoseTarget(const std::string& target, const std::optional<TlsOptions>& tls,
                           absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  const TargetAddress address = ParseTarget(target);
  return address.is_unix ? DiagnoseSocket(address.path, tls, deadline)
                         : DiagnoseHost(address, tls, deadline);
}

}  // namespace attention::client::internal
