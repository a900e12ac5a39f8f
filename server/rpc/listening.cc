#include "server/rpc/listening.h"

#include <grpcpp/security/server_credentials.h>
#include <sys/socket.h>

#include <fstream>
#include <memory>
#include <sstream>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "proto/transport/socket_buffers.h"
#include "server/base/client_text.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

absl::StatusOr<std::string> ReadFile(const std::string& key, const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || text.str().empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("listen: ", key, " is ", Quoted(path), ", expected a file that can be read"));
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
std::string WithPort(const std::string& address, int port) {
  return absl::StrCat(address.substr(0, address.rfind(':')), ":", port);
}

absl::StatusOr<std::vector<ListenSocket>> Bind(const Listener& listener) {
  if (!listener.is_unix()) return ListenSocket::BindTcp(listener.address);
  ATTENTION_ASSIGN_OR_RETURN(
      ListenSocket socket,
      ListenSocket::BindUnix(listener.socket_path(), SOCK_STREAM, listener.mode));
  std::vector<ListenSocket> sockets;
  sockets.push_back(std::move(socket));
  return sockets;
}

absl::Status Prefixed(const absl::Status& status) {
  return {status.code(), absl::StrCat("listen: ", status.message())};
}

}  // namespace

Listening::Listening(std::vector<Listener> listeners) : listeners_(std::move(listeners)) {}

absl::Status Listening::AddTo(grpc::ServerBuilder& builder) {
  for (const Listener& listener : listeners_) {
    ATTENTION_RETURN_IF_ERROR(Add(listener, builder));
  }
  return absl::OkStatus();
}

absl::Status Listening::Add(const Listener& listener, grpc::ServerBuilder& builder) {
  ATTENTION_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::ServerCredentials> credentials,
                             Credentials(listener));
  absl::StatusOr<std::vector<ListenSocket>> bound = Bind(listener);
  if (!bound.ok()) return Prefixed(bound.status());
  addresses_.push_back(listener.is_unix() ? listener.address
                                          : WithPort(listener.address, bound->front().port()));
  for (ListenSocket& socket : *bound) {
    sockets_.push_back(std::move(socket));
    grpc_acceptors_.push_back(builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, credentials));
  }
  return absl::OkStatus();
}

void Listening::Start(Connections& connections, ServerMetrics& metrics, Acceptor::Warn warn) {
  std::vector<Acceptor::Door> doors;
  for (std::size_t i = 0; i < sockets_.size(); ++i) {
    const auto admit = [listen_fd = sockets_[i].fd(), acceptor = grpc_acceptors_[i]](int fd) {
      transport::SetUnixSocketBuffers(transport::kUnixSocketBufferBytes, fd);
      GrpcAcceptor::NewConnectionParameters connection;
      connection.listener_fd = listen_fd;
      connection.fd = fd;
      acceptor->HandleNewConnection(&connection);
    };
    doors.push_back({sockets_[i].fd(), admit});
  }
  acceptor_ = std::make_unique<Acceptor>(std::move(doors), connections, metrics, std::move(warn));
}

void Listening::Stop() {
  acceptor_.reset();
  grpc_acceptors_.clear();
  sockets_.clear();
}

}  // namespace attention::server
