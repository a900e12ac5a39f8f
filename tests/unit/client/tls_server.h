// A gRPC server in this process that speaks TLS and notes who calls.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "attention/client/client.h"
#include "tests/support/certificates.h"
#include "tests/unit/client/fake_server.h"

namespace attention::client {

// The authority that gRPC takes for the system's, in a process that links tls_server.cc.
const attention::testing::CertificateAuthority& SystemAuthority();

struct TlsServerOptions {
  std::string address = "127.0.0.1:0";
  attention::testing::CertifiedKey identity;
  std::string client_ca = {};  // not empty: clients need a certificate of it
};

class TlsServer {
 public:
  explicit TlsServer(const TlsServerOptions& options);

  // A client with these options.
  std::shared_ptr<Client> Connect(ClientOptions options) const;
  // The outcome of one attempt of a call of a client with these options.
  absl::Status Call(const TlsOptions& tls) const;

  const std::string& address() const { return server_.address(); }
  // The callers since the last time: the name in each client's certificate, "" without one.
  std::vector<std::string> TakePeers();
  // The metadata `authorization` of the last call.
  std::string last_token() const;

 private:
  mutable absl::Mutex mutex_;
  std::vector<std::string> peers_;
  std::string last_token_;
  FakeServer server_;
};

}  // namespace attention::client
