#include "server/rpc/listening.h"

#include <grpcpp/security/server_credentials.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

absl::StatusOr<std::string> ReadFile(const std::string& key, const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || text.str().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("listen: ", key, " is '", path, "', expected a file that can be read"));
  }
  return text.str();
}

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> Credentials(const Listener& listener) {
  if (!listener.has_tls()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options;
  grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
  ATTENTION_ASSIGN_OR_RETURN(pair.cert_chain, ReadFile("tls-cert", listener.tls_cert));
  ATTENTION_ASSIGN_OR_RETURN(pair.private_key, ReadFile("tls-key", listener.tls_key));
  options.pem_key_cert_pairs.push_back(std::move(pair));
  if (!listener.tls_client_ca.empty()) {
    ATTENTION_ASSIGN_OR_RETURN(options.pem_root_certs,
                               ReadFile("tls-client-ca", listener.tls_client_ca));
    options.client_certificate_request = GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY;
  }
  return grpc::SslServerCredentials(options);
}

// "127.0.0.1:0" and 50051 give "127.0.0.1:50051".
std::string WithPort(const Listener& listener, int port) {
  if (listener.is_unix()) return listener.address;
  return absl::StrCat(listener.address.substr(0, listener.address.rfind(':')), ":", port);
}

}  // namespace

Listening::Listening(std::vector<Listener> listeners)
    : listeners_(std::move(listeners)), ports_(listeners_.size(), -1) {}

absl::Status Listening::AddTo(grpc::ServerBuilder& builder) {
  for (std::size_t i = 0; i < listeners_.size(); ++i) {
    ATTENTION_ASSIGN_OR_RETURN(std::shared_ptr<grpc::ServerCredentials> credentials,
                               Credentials(listeners_[i]));
    builder.AddListeningPort(listeners_[i].address, std::move(credentials), &ports_[i]);
  }
  return absl::OkStatus();
}

absl::Status Listening::Finish(bool has_started) {
  for (std::size_t i = 0; i < listeners_.size(); ++i) {
    const Listener& listener = listeners_[i];
    if (!has_started || ports_[i] <= 0) {
      return absl::UnavailableError(absl::StrCat(
          "listen: cannot bind ", listener.address, ", expected a free host:port or unix:path",
          listener.has_tls() ? ", and a certificate with its key" : ""));
    }
    if (listener.mode && chmod(listener.socket_path().c_str(), *listener.mode) != 0) {
      return absl::UnavailableError(absl::StrCat("listen: cannot set the mode of ",
                                                 listener.address, ": ", std::strerror(errno)));
    }
  }
  return absl::OkStatus();
}

std::vector<std::string> Listening::addresses() const {
  std::vector<std::string> addresses;
  for (std::size_t i = 0; i < listeners_.size(); ++i) {
    addresses.push_back(WithPort(listeners_[i], ports_[i]));
  }
  return addresses;
}

}  // namespace attention::server
