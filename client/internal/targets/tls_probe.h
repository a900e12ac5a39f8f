// A TLS handshake with a server, made to see what is in its way.
#pragma once

#include <openssl/ssl.h>

#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "client/internal/credentials/tls_material.h"
#include "client/internal/targets/probe_socket.h"

namespace attention::client::internal {

class TlsProbe {
 public:
  // `name` is the one that the server's certificate is expected to hold.
  TlsProbe(const ProbeSocket& socket, const TlsMaterial& material, std::string name);
  ~TlsProbe();
  TlsProbe(const TlsProbe&) = delete;
  TlsProbe& operator=(const TlsProbe&) = delete;

  // Runs the handshake until it ends, whatever the server's certificate says, or time is up.
  void Handshake(absl::Time deadline);

  // True if the server answered in TLS, be it with a refusal.
  bool is_tls() const;
  bool is_complete() const { return is_complete_; }
  bool speaks_http2() const;
  bool has_asked_for_certificate() const { return has_asked_; }
  // Why the server's certificate is not to be trusted; empty if it is.
  std::string CertificateFault() const;
  // The library's word for what ended the handshake or the connection; empty if it has none.
  const std::string& failure() const { return failure_; }

  // The first bytes of the answer; empty when there is none.
  std::string Ask(absl::string_view bytes, absl::Time deadline);

 private:
  // Sends what the library wrote, and gives it what the server answers: false when nothing comes.
  bool Exchange(absl::Time deadline);
  void Send();
  // Repeats an operation of the library until it ends: true if well.
  template <typename Operation>
  bool Run(absl::Time deadline, Operation operation);

  const ProbeSocket& socket_;
  const std::string name_;
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context_;
  const std::unique_ptr<SSL, decltype(&SSL_free)> ssl_;
  bool is_complete_ = false;
  bool has_asked_ = false;
  std::string first_bytes_;  // as they came
  std::string failure_;
};

// The end of the client's own certificate where that is over, as "it expired on ..."; else empty.
std::string ExpiryOf(const TlsMaterial& material);

}  // namespace attention::client::internal
