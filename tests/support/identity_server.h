// A server that asks for credentials, and callers who show some.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "server/auth/token_table.h"
#include "tests/support/certificates.h"
#include "tests/support/jwt.h"
#include "tests/support/server_process.h"

namespace attention::testing {

// A channel, and the metadata that each call on it carries.
struct Caller {
  std::shared_ptr<grpc::Channel> channel;
  std::string token = {};   // empty: no metadata `authorization`
  std::string tenant = {};  // empty: no metadata `attention-tenant`

  std::unique_ptr<grpc::ClientContext> Context() const;
};

// A process that listens at loopback, at loopback with TLS and client certificates, and at a unix
// socket; with tokens, JSON Web Tokens, certificates and the user who runs the test mapped to
// tenants.
class IdentityServer {
 public:
  explicit IdentityServer(const std::vector<std::string>& more_flags = {});
  IdentityServer(const IdentityServer&) = delete;
  IdentityServer& operator=(const IdentityServer&) = delete;

  ServerProcess& process() { return *process_; }
  const std::string& directory() const { return directory_; }
  std::string channel_path() const { return directory_ + "/channel.sock"; }

  // By TCP, without TLS.
  Caller Plain(const std::string& token = "", const std::string& tenant = "");
  // By mutual TLS, with a certificate of the URI.
  Caller WithCertificate(const CertifiedKey& certificate);
  // By the unix socket.
  Caller AtSocket(const std::string& token = "");

  // Claims that are good for five minutes, and tokens of them, signed by jwt_key.
  static nlohmann::json Claims(const std::string& tenant);
  std::string Jwt(const nlohmann::json& claims) const { return jwt_key.Sign("ES256", claims); }

  // The tokens of tenants acme and rival, and of ops, an admin.
  const server::NewToken acme = server::MakeToken({"acme", server::Role::kUse});
  const server::NewToken rival = server::MakeToken({"rival", server::Role::kUse});
  const server::NewToken ops = server::MakeToken({"ops", server::Role::kAdmin});
  const JwtKey jwt_key = JwtKey::Ec("one");
  const CertificateAuthority clients{"clients"};
  const CertificateAuthority servers{"servers"};

  // Replaces a file of the server's, in one step: tokens, identities, keys (a key set),
  // clients.pem.
  void Write(const std::string& name, const std::string& text) const;
  void WriteTokens(const std::vector<server::NewToken>& tokens) const;
  void WriteServerCertificate(const CertifiedKey& certificate) const;
  // Waits until the log says so, which it does once for each reload.
  bool AwaitLog(const std::string& text) const;

 private:
  const std::string directory_;
  std::unique_ptr<ServerProcess> process_;
};

}  // namespace attention::testing
