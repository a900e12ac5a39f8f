#include "server/rpc/prober.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel_posix.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "server/base/contain_exceptions.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

constexpr absl::Duration kPeriod = absl::Seconds(1);
// Answered on a thread that may have the tensors of a large message to copy first.
constexpr absl::Duration kTimeout = absl::Seconds(2);

// The first message of a TLS client. It is made apart from the socket: a handshake that went on
// would fail at a server that asks for a client's certificate, which gRPC logs each time.
absl::StatusOr<std::string> ClientHello() {
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()),
                                                                  SSL_CTX_free);
  if (context == nullptr) return absl::InternalError("no TLS context");
  const std::unique_ptr<SSL, decltype(&SSL_free)> tls(SSL_new(context.get()), SSL_free);
  if (tls == nullptr) return absl::InternalError("no TLS connection");
  BIO* const sent = BIO_new(BIO_s_mem());
  SSL_set_bio(tls.get(), BIO_new(BIO_s_mem()), sent);  // which owns both
  constexpr unsigned char kHttp2[] = {2, 'h', '2'};
  SSL_set_alpn_protos(tls.get(), kHttp2, sizeof(kHttp2));
  SSL_connect(tls.get());
  ERR_clear_error();
  char* bytes = nullptr;
  const auto size = BIO_get_mem_data(sent, &bytes);
  if (size <= 0) return absl::InternalError("the TLS handshake cannot begin");
  return std::string(bytes, static_cast<std::size_t>(size));
}

// Says hello and waits until the server's first bytes are there.
absl::Status BeginTls(const ProbeSocket& socket, absl::Time deadline) {
  ATTENTION_ASSIGN_OR_RETURN(const std::string hello, ClientHello());
  if (send(socket.fd(), hello.data(), hello.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(hello.size())) {
    return absl::UnavailableError("the TLS handshake cannot begin");
  }
  ATTENTION_RETURN_IF_ERROR(AwaitSocket(socket.fd(), POLLIN, deadline));
  // A close without a byte is no answer.
  char byte = 0;
  if (recv(socket.fd(), &byte, 1, MSG_PEEK) == 1) return absl::OkStatus();
  return absl::UnavailableError("the connection was closed during the TLS handshake");
}

}  // namespace

Prober::Prober(std::vector<Target> targets, ProbeAddresses& addresses, ListenerHealth& health,
               std::function<void()> after_each)
    : targets_(std::move(targets)),
      addresses_(addresses),
      health_(health),
      after_each_(std::move(after_each)),
      thread_([this] { Run(); }) {}

Prober::~Prober() {
  {
    MutexLock lock(&mutex_);
    is_stopping_ = true;
    if (call_ != nullptr) call_->TryCancel();
    is_stopping_changed_.NotifyAll();
  }
  thread_.join();
}

void Prober::Run() {
  while (AwaitNextRound()) {
    TryRun([this] {
      for (const Target& target : targets_) {
        health_.Record(target.address, ContainExceptions([&] { return Probe(target); }));
      }
      after_each_();
    });
  }
}

bool Prober::AwaitNextRound() {
  MutexLock lock(&mutex_);
  is_stopping_changed_.AwaitUntil(&mutex_, absl::Now() + kPeriod,
                                  [this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return is_stopping_; });
  return !is_stopping_;
}

absl::Status Prober::Probe(const Target& target) {
  const absl::Time deadline = absl::Now() + kTimeout;
  ATTENTION_ASSIGN_OR_RETURN(ProbeSocket socket,
                             ProbeSocket::Connect(target.listen_fd, deadline, addresses_));
  if (target.has_tls) return BeginTls(socket, deadline);
  return CallHealth(std::move(socket), deadline);
}

absl::Status Prober::CallHealth(ProbeSocket socket, absl::Time deadline) {
  const auto channel = grpc::CreateInsecureChannelFromFd("localhost", socket.Release());
  const auto stub = grpc::health::v1::Health::NewStub(channel);
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  {
    MutexLock lock(&mutex_);
    if (is_stopping_) return absl::CancelledError();
    call_ = &context;
  }
  const absl::Cleanup forget = [this] {
    MutexLock lock(&mutex_);
    call_ = nullptr;
  };
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, {}, &response);
  // Any answer will do: while it drains the server says NOT_SERVING.
  if (status.ok()) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("the health service does not answer: ", status.error_message()));
}

}  // namespace attention::server
