#include "tests/support/identity_server.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/base/check.h"

namespace attention::testing {
namespace {

constexpr char kIssuer[] = "https://issuer.example.org";
constexpr char kAudience[] = "attention";

std::string NewDirectory() {
  std::string name = ::testing::TempDir() + "identity-XXXXXX";
  ATTENTION_CHECK(mkdtemp(name.data()) != nullptr);
  return name;
}

std::string Mapping() {
  return absl::StrCat("[[certificate]]\nuri = 'spiffe://example.org/acme'\ntenant = 'acme'\n",
                      "[[certificate]]\ndns = 'rival.example.org'\ntenant = 'rival'\n",
                      "[[user]]\nuid = ", getuid(), "\ntenant = 'local'\n");
}

}  // namespace

std::unique_ptr<grpc::ClientContext> Caller::Context() const {
  auto context = NewContext(tenant);
  if (!token.empty()) context->AddMetadata("authorization", "Bearer " + token);
  return context;
}

IdentityServer::IdentityServer(const std::vector<std::string>& more_flags)
    : directory_(NewDirectory()) {
  WriteTokens({acme, rival, ops});
  Write("identities", Mapping());
  Write("keys", KeySet({jwt_key.PublicJson()}));
  Write("clients.pem", clients.certificate());
  WriteServerCertificate(servers.Issue());
  const auto path = [this](const char* name) { return absl::StrCat(directory_, "/", name); };
  std::vector<std::string> flags = {
      absl::StrCat("--listen=127.0.0.1:0,localhost:0?tls-cert=", path("server.pem"),
                   "&tls-key=", path("server.key"), "&tls-client-ca=", path("clients.pem"),
                   ",unix:", path("grpc.sock")),
      "--shared-memory-listen=unix:" + channel_path(),
      "--auth-tokens=" + path("tokens"),
      "--auth-identities=" + path("identities"),
      "--auth-jwt-keys=" + path("keys"),
      absl::StrCat("--auth-jwt-issuer=", kIssuer),
      absl::StrCat("--auth-jwt-audience=", kAudience),
  };
  flags.insert(flags.end(), more_flags.begin(), more_flags.end());
  process_ = std::make_unique<ServerProcess>(flags);
}

nlohmann::json IdentityServer::Claims(const std::string& tenant) {
  return {{"iss", kIssuer},
          {"aud", kAudience},
          {"sub", tenant},
          {"exp", absl::ToUnixSeconds(absl::Now() + absl::Minutes(5))}};
}

Caller IdentityServer::Plain(const std::string& token, const std::string& tenant) {
  process_->client();
  return {grpc::CreateChannel(process_->addresses()[0], grpc::InsecureChannelCredentials()), token,
          tenant};
}

Caller IdentityServer::WithCertificate(const CertifiedKey& certificate) {
  process_->client();
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = servers.certificate();
  options.pem_cert_chain = certificate.certificate;
  options.pem_private_key = certificate.key;
  // Each with connections of its own.
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return {grpc::CreateCustomChannel(process_->addresses()[1], grpc::SslCredentials(options),
                                    arguments)};
}

Caller IdentityServer::AtSocket(const std::string& token) {
  process_->client();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return {grpc::CreateCustomChannel(absl::StrCat("unix:", directory_, "/grpc.sock"),
                                    grpc::InsecureChannelCredentials(), arguments),
          token};
}

void IdentityServer::Write(const std::string& name, const std::string& text) const {
  const std::string path = absl::StrCat(directory_, "/", name);
  std::ofstream(path + ".new") << text;
  std::filesystem::rename(path + ".new", path);
}

void IdentityServer::WriteTokens(const std::vector<server::NewToken>& tokens) const {
  std::string text;
  for (const server::NewToken& token : tokens) absl::StrAppend(&text, token.line, "\n");
  Write("tokens", text);
}

void IdentityServer::WriteServerCertificate(const CertifiedKey& certificate) const {
  Write("server.pem", certificate.certificate);
  Write("server.key", certificate.key);
}

bool IdentityServer::AwaitLog(const std::string& text) const {
  return WaitUntil([&] { return absl::StrContains(process_->Log(), text); });
}

}  // namespace attention::testing
