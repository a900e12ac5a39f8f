#include "tests/unit/client/tls_server.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <utility>

namespace attention::client {
namespace {

using attention::testing::CertificateAuthority;

// Before any test, as gRPC reads the system's authorities once in a process.
class SystemsAuthorities : public ::testing::Environment {
 public:
  void SetUp() override {
    path_ = ::testing::TempDir() + "attention-roots-" + std::to_string(getpid());
    std::ofstream(path_) << SystemAuthority().certificate();
    setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", path_.c_str(), /*overwrite=*/1);
  }
  void TearDown() override { std::filesystem::remove(path_); }

 private:
  std::string path_;
};

[[maybe_unused]] const auto* const kSystemsAuthorities =
    ::testing::AddGlobalTestEnvironment(new SystemsAuthorities);

std::shared_ptr<grpc::ServerCredentials> CredentialsOf(const TlsServerOptions& options) {
  grpc::SslServerCredentialsOptions ssl(
      options.client_ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  ssl.pem_root_certs = options.client_ca;
  ssl.pem_key_cert_pairs.push_back({options.identity.key, options.identity.certificate});
  return grpc::SslServerCredentials(ssl);
}

std::string PeerOf(const grpc::ServerContext& context) {
  const auto auth = context.auth_context();
  const std::vector<grpc::string_ref> names = auth->GetPeerIdentity();
  return names.empty() ? "" : std::string(names[0].data(), names[0].size());
}

}  // namespace

const CertificateAuthority& SystemAuthority() {
  static const CertificateAuthority authority("the system's");
  return authority;
}

TlsServer::TlsServer(const TlsServerOptions& options)
    : server_(options.address, CredentialsOf(options)) {
  const auto note = [this](auto* context, auto&, auto*) {
    absl::MutexLock lock(&mutex_);
    peers_.push_back(PeerOf(*context));
    last_token_ = MetadataValue(*context, "authorization");
    return grpc::Status::OK;
  };
  server_.on_attend = note;
  server_.on_get_server_info = note;
}

std::shared_ptr<Client> TlsServer::Connect(ClientOptions options) const {
  options.shared_memory.use = SharedMemoryOptions::Use::kOff;
  return server_.Connect(std::move(options));
}

absl::Status TlsServer::Call(const TlsOptions& tls) const {
  const auto client = Connect({.tls = tls});
  if (client == nullptr) return absl::InternalError("the test's options are refused");
  return client->Attend({}, {.retry_policy = RetryPolicy::None()}).status();
}

std::vector<std::string> TlsServer::TakePeers() {
  absl::MutexLock lock(&mutex_);
  return std::exchange(peers_, {});
}

std::string TlsServer::last_token() const {
  absl::MutexLock lock(&mutex_);
  return last_token_;
}

}  // namespace attention::client
