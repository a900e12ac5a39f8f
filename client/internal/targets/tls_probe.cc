#include "client/internal/targets/tls_probe.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <cstdlib>
#include <ctime>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace attention::client::internal {
namespace {

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using Names = std::unique_ptr<GENERAL_NAMES, decltype(&GENERAL_NAMES_free)>;

constexpr unsigned char kHttp2[] = {2, 'h', '2'};

// Names are the server's text: bounded, and without what would not print.
constexpr std::size_t kMaxTextBytes = 200;
constexpr std::size_t kMaxNames = 5;

std::string Shown(absl::string_view text) {
  return absl::CHexEscape(text.substr(0, kMaxTextBytes));
}

Bio Open(const std::string& pem) {
  return {BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free};
}

// Keys are read without a terminal to ask at.
int NoPassphrase(char*, int, int, void*) { return 0; }

std::vector<Certificate> ReadCertificates(const std::string& pem) {
  std::vector<Certificate> certificates;
  const Bio bio = Open(pem);
  for (;;) {
    Certificate next(PEM_read_bio_X509(bio.get(), nullptr, NoPassphrase, nullptr), X509_free);
    if (next == nullptr) break;
    certificates.push_back(std::move(next));
  }
  ERR_clear_error();
  return certificates;
}

// The authorities of `pem`, or the system's where gRPC takes them from.
void LoadAuthorities(const std::string& pem, SSL_CTX* context) {
  for (const Certificate& authority : ReadCertificates(pem)) {
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context), authority.get());
  }
  if (!pem.empty()) return;
  const char* roots = std::getenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH");
  if (roots == nullptr || SSL_CTX_load_verify_locations(context, roots, nullptr) != 1) {
    SSL_CTX_set_default_verify_paths(context);
  }
}

void LoadCertificate(const TlsMaterial& material, SSL_CTX* context) {
  std::vector<Certificate> chain = ReadCertificates(material.certificate);
  if (chain.empty()) return;
  SSL_CTX_use_certificate(context, chain.front().get());
  for (std::size_t i = 1; i < chain.size(); ++i) {
    SSL_CTX_add1_chain_cert(context, chain[i].get());
  }
  const Key key(PEM_read_bio_PrivateKey(Open(material.key).get(), nullptr, NoPassphrase, nullptr),
                EVP_PKEY_free);
  if (key != nullptr) SSL_CTX_use_PrivateKey(context, key.get());
}

SSL_CTX* NewContext(const TlsMaterial& material) {
  SSL_CTX* context = SSL_CTX_new(TLS_client_method());
  LoadAuthorities(material.ca, context);
  LoadCertificate(material, context);
  return context;
}

int NoteAsked(SSL*, void* has_asked) {
  *static_cast<bool*>(has_asked) = true;
  return 1;
}

std::string TimeOf(const ASN1_TIME* time) {
  std::tm parts{};
  ASN1_TIME_to_tm(time, &parts);
  return absl::FormatTime("%Y-%m-%d %H:%M UTC", absl::FromTM(parts, absl::UTCTimeZone()),
                          absl::UTCTimeZone());
}

std::string NameOf(const X509_NAME* name) {
  const Bio bio(BIO_new(BIO_s_mem()), BIO_free);
  X509_NAME_print_ex(bio.get(), name, 0, XN_FLAG_RFC2253);
  char* text = nullptr;
  const auto size = BIO_get_mem_data(bio.get(), &text);
  return Shown({text, static_cast<std::size_t>(size)});
}

std::string AddressOf(const ASN1_OCTET_STRING* bytes) {
  char text[INET6_ADDRSTRLEN] = "";
  const int family = ASN1_STRING_length(bytes) == 4 ? AF_INET : AF_INET6;
  const bool is_address = ASN1_STRING_length(bytes) == 4 || ASN1_STRING_length(bytes) == 16;
  if (is_address) inet_ntop(family, ASN1_STRING_get0_data(bytes), text, sizeof(text));
  return text;
}

// The hosts that the certificate is for.
std::string HostsOf(const X509* certificate) {
  const Names names(static_cast<GENERAL_NAMES*>(
                        X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)),
                    GENERAL_NAMES_free);
  std::vector<std::string> hosts;
  for (int i = 0; i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type == GEN_DNS) {
      hosts.push_back(Shown({reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.dNSName)),
                             static_cast<std::size_t>(ASN1_STRING_length(name->d.dNSName))}));
    } else if (name->type == GEN_IPADD) {
      hosts.push_back(AddressOf(name->d.iPAddress));
    }
  }
  if (hosts.empty()) return NameOf(X509_get_subject_name(certificate));
  const bool has_more = hosts.size() > kMaxNames;
  if (has_more) hosts.resize(kMaxNames);
  return absl::StrCat(absl::StrJoin(hosts, ", "), has_more ? ", ..." : "");
}

bool IsAddress(const std::string& name) {
  unsigned char bytes[sizeof(in6_addr)];
  return inet_pton(AF_INET, name.c_str(), bytes) == 1 ||
         inet_pton(AF_INET6, name.c_str(), bytes) == 1;
}

bool IsFor(X509* certificate, const std::string& name) {
  if (IsAddress(name)) return X509_check_ip_asc(certificate, name.c_str(), 0) == 1;
  return X509_check_host(certificate, name.data(), name.size(), 0, nullptr) == 1;
}

std::string VerifyFault(long result, const X509* certificate) {
  switch (result) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return absl::StrCat("has expired: it was valid until ",
                          TimeOf(X509_get0_notAfter(certificate)));
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return absl::StrCat("is not valid yet: it is valid from ",
                          TimeOf(X509_get0_notBefore(certificate)));
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
      return "is signed by itself, expected one that a trusted authority has issued "
             "(tls.ca_file; else the system's)";
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
      return absl::StrCat("is issued by an unknown authority, '",
                          NameOf(X509_get_issuer_name(certificate)),
                          "', expected a trusted one (tls.ca_file; else the system's)");
    default:
      return absl::StrCat("is not accepted: ", X509_verify_cert_error_string(result));
  }
}

}  // namespace

TlsProbe::TlsProbe(const ProbeSocket& socket, const TlsMaterial& material, std::string name)
    : socket_(socket),
      name_(std::move(name)),
      context_(NewContext(material), SSL_CTX_free),
      ssl_(SSL_new(context_.get()), SSL_free) {
  SSL* ssl = ssl_.get();
  SSL_set_min_proto_version(ssl, TLS1_2_VERSION);
  // The handshake goes on, so that all that is wrong shows; the result is kept.
  SSL_set_verify(ssl, SSL_VERIFY_NONE, nullptr);
  SSL_set_alpn_protos(ssl, kHttp2, sizeof(kHttp2));
  SSL_set_cert_cb(ssl, NoteAsked, &has_asked_);
  if (!IsAddress(name_)) SSL_set_tlsext_host_name(ssl, name_.c_str());
  SSL_set_bio(ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
  SSL_set_connect_state(ssl);
  ERR_clear_error();
}

TlsProbe::~TlsProbe() { ERR_clear_error(); }

void TlsProbe::Send() {
  char* bytes = nullptr;
  BIO* written = SSL_get_wbio(ssl_.get());
  const auto size = BIO_get_mem_data(written, &bytes);
  if (size > 0) socket_.Send({bytes, static_cast<std::size_t>(size)});
  (void)BIO_reset(written);
}

bool TlsProbe::Exchange(absl::Time deadline) {
  Send();
  const std::string received = socket_.Receive(deadline);
  if (received.empty()) return false;
  if (first_bytes_.size() < 2) first_bytes_ += received;
  BIO_write(SSL_get_rbio(ssl_.get()), received.data(), static_cast<int>(received.size()));
  return true;
}

template <typename Operation>
bool TlsProbe::Run(absl::Time deadline, Operation operation) {
  for (;;) {
    ERR_clear_error();
    const int result = operation();
    if (result > 0) return true;
    if (SSL_get_error(ssl_.get(), result) != SSL_ERROR_WANT_READ) break;
    if (!Exchange(deadline)) return false;
  }
  const char* reason = ERR_reason_error_string(ERR_peek_last_error());
  if (reason != nullptr) failure_ = reason;
  Send();  // an alert
  return false;
}

void TlsProbe::Handshake(absl::Time deadline) {
  is_complete_ = Run(deadline, [this] { return SSL_do_handshake(ssl_.get()); });
  if (is_complete_) Send();
}

bool TlsProbe::is_tls() const {
  const bool is_alert_or_handshake =
      first_bytes_.size() >= 2 && (first_bytes_[0] == 0x15 || first_bytes_[0] == 0x16);
  return is_alert_or_handshake && first_bytes_[1] == 0x03;
}

bool TlsProbe::speaks_http2() const {
  const unsigned char* chosen = nullptr;
  unsigned int size = 0;
  SSL_get0_alpn_selected(ssl_.get(), &chosen, &size);
  return size == 2 && chosen[0] == 'h' && chosen[1] == '2';
}

std::string TlsProbe::CertificateFault() const {
  const Certificate certificate(SSL_get1_peer_certificate(ssl_.get()), X509_free);
  if (certificate == nullptr) return "";
  const long result = SSL_get_verify_result(ssl_.get());
  if (result != X509_V_OK) return VerifyFault(result, certificate.get());
  if (IsFor(certificate.get(), name_)) return "";
  return absl::StrCat("is for ", HostsOf(certificate.get()), ", expected one for ", name_,
                      " (tls.server_name names another)");
}

std::string TlsProbe::Ask(absl::string_view bytes, absl::Time deadline) {
  const int size = static_cast<int>(bytes.size());
  if (!Run(deadline, [&] { return SSL_write(ssl_.get(), bytes.data(), size); })) return "";
  Send();
  char buffer[64];
  int received = 0;
  const bool is_there =
      Run(deadline, [&] { return received = SSL_read(ssl_.get(), buffer, sizeof(buffer)); });
  return is_there ? std::string(buffer, static_cast<std::size_t>(received)) : "";
}

std::string ExpiryOf(const TlsMaterial& material) {
  const std::vector<Certificate> chain = ReadCertificates(material.certificate);
  if (chain.empty()) return "";
  const ASN1_TIME* end = X509_get0_notAfter(chain.front().get());
  return X509_cmp_current_time(end) < 0 ? absl::StrCat("it expired on ", TimeOf(end)) : "";
}

}  // namespace attention::client::internal
