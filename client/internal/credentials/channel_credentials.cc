#include "client/internal/credentials/channel_credentials.h"

#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_certificate_verifier.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <utility>
#include <vector>

#include "client/internal/credentials/tls_material.h"

namespace attention::client::internal {
namespace {

using Provider = std::shared_ptr<grpc::experimental::CertificateProviderInterface>;

// How often files are looked at for a change.
constexpr unsigned int kRefreshSeconds = 5;

Provider FromFiles(const TlsOptions& tls) {
  return std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(
      tls.key_file, tls.certificate_file, tls.ca_file, kRefreshSeconds);
}

Provider FromText(const TlsOptions& tls) {
  // A file that has changed since it was checked gives no connection, and never a plain one.
  const TlsMaterial material = ReadTlsMaterial(tls).value_or(TlsMaterial());
  std::vector<grpc::experimental::IdentityKeyCertPair> pairs;
  if (!material.key.empty()) pairs.push_back({material.key, material.certificate});
  return std::make_shared<grpc::experimental::StaticDataCertificateProvider>(material.ca, pairs);
}

}  // namespace

std::shared_ptr<grpc::ChannelCredentials> MakeChannelCredentials(
    const std::optional<TlsOptions>& tls) {
  if (!tls.has_value()) return grpc::InsecureChannelCredentials();
  const bool has_text =
      !tls->ca_pem.empty() || !tls->certificate_pem.empty() || !tls->key_pem.empty();
  const bool has_ca = !tls->ca_file.empty() || !tls->ca_pem.empty();
  const bool has_key = !tls->key_file.empty() || !tls->key_pem.empty();
  grpc::experimental::TlsChannelCredentialsOptions options;
  options.set_certificate_verifier(
      std::make_shared<grpc::experimental::HostNameCertificateVerifier>());
  // A part that is not watched is the system's authorities, or no certificate of the client's.
  if (has_ca || has_key)
    options.set_certificate_provider(has_text ? FromText(*tls) : FromFiles(*tls));
  if (has_ca) options.watch_root_certs();
  if (has_key) options.watch_identity_key_cert_pairs();
  return grpc::experimental::TlsCredentials(options);
}

}  // namespace attention::client::internal
