#include "server/rpc/listening.h"

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <sys/socket.h>

#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/transport/socket_buffers.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

// How often gRPC looks whether the files in memory have changed.
constexpr unsigned int kLookPeriodSeconds = 1;

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

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> Listening::Credentials(
    const Listener& listener) {
  if (!listener.has_tls()) return grpc::InsecureServerCredentials();
  ATTENTION_ASSIGN_OR_RETURN(std::unique_ptr<ServedCertificate> served,
                             ServedCertificate::Load(listener, absl::Now()));
  grpc::experimental::TlsServerCredentialsOptions options(
      std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
          served->key_path(), served->certificate_path(), served->client_ca_path(),
          kLookPeriodSeconds));
  options.watch_identity_key_cert_pairs();
  if (served->has_client_ca()) {
    options.watch_root_certs();
    options.set_cert_request_type(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  }
  served_.push_back({listener.address, std::move(served)});
  return grpc::experimental::TlsServerCredentials(options);
}

std::vector<Listening::Reloaded> Listening::ReloadCertificates() {
  std::vector<Reloaded> reloaded;
  for (const Served& served : served_) {
    if (const auto status = served.certificate->ReloadChanged(absl::Now())) {
      reloaded.push_back({served.address, *status});
    }
  }
  return reloaded;
}

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
    probed_.push_back({addresses_.back(), socket.fd(), listener.has_tls()});
    sockets_.push_back(std::move(socket));
    grpc_acceptors_.push_back(builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, credentials));
  }
  return absl::OkStatus();
}

void Listening::Start(std::function<bool(int fd)> take, Connections& connections,
                      ServerMetrics& metrics, Acceptor::Warn warn, ListenerHealth& health,
                      std::function<void()> after_each_probe) {
  std::vector<Acceptor::Door> doors;
  for (std::size_t i = 0; i < sockets_.size(); ++i) {
    const auto admit = [listen_fd = sockets_[i].fd(), acceptor = grpc_acceptors_[i]](int fd) {
      transport::SetUnixSocketBuffers(transport::kUnixSocketBufferBytes, fd);
      GrpcAcceptor::NewConnectionParameters connection;
      connection.listener_fd = listen_fd;
      connection.fd = fd;
      acceptor->HandleNewConnection(&connection);
    };
    const bool is_unix = absl::StartsWith(probed_[i].address, "unix:");
    doors.push_back({sockets_[i].fd(), admit, is_unix ? take : nullptr});
  }
  acceptor_ = std::make_unique<Acceptor>(std::move(doors), own_addresses_, connections, metrics,
                                         std::move(warn));
  prober_ = std::make_unique<Prober>(probed_, own_addresses_, health, std::move(after_each_probe));
}

void Listening::Stop() {
  prober_.reset();
  acceptor_.reset();
  grpc_acceptors_.clear();
  sockets_.clear();
}

}  // namespace attention::server
