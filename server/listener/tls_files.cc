#include "server/listener/tls_files.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "server/base/client_text.h"
#include "server/base/status_macros.h"

namespace attention::server {
namespace {

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

absl::Status Wrong(absl::string_view setting, const std::string& path, absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("listen: ", setting, " is ", Quoted(path), ", expected ", expected));
}

absl::StatusOr<std::string> ReadFile(absl::string_view setting, const std::string& path) {
  errno = 0;
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || text.str().empty()) {
    return Wrong(setting, path,
                 absl::StrCat("a file that can be read: ",
                              errno != 0 ? std::strerror(errno) : "it is empty"));
  }
  return text.str();
}

Bio Open(const std::string& pem) {
  return {BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free};
}

// Keys are read without a terminal to ask at.
int NoPassphrase(char*, int, int, void*) { return 0; }

absl::StatusOr<Certificate> FirstCertificate(absl::string_view setting, const std::string& path,
                                             const std::string& pem) {
  const Bio bio = Open(pem);
  Certificate certificate(PEM_read_bio_X509(bio.get(), nullptr, NoPassphrase, nullptr), X509_free);
  ERR_clear_error();
  if (certificate == nullptr) return Wrong(setting, path, "a PEM file with a certificate");
  return certificate;
}

absl::StatusOr<Key> PrivateKey(const std::string& path, const std::string& pem) {
  const Bio bio = Open(pem);
  Key key(PEM_read_bio_PrivateKey(bio.get(), nullptr, NoPassphrase, nullptr), EVP_PKEY_free);
  ERR_clear_error();
  if (key == nullptr) {
    return Wrong("tls-key", path, "a PEM file with a private key that no passphrase locks");
  }
  return key;
}

absl::Status CheckNotExpired(absl::string_view setting, const std::string& path,
                             const X509& certificate, absl::Time now) {
  std::time_t seconds = absl::ToTimeT(now);
  if (X509_cmp_time(X509_get0_notAfter(&certificate), &seconds) >= 0) return absl::OkStatus();
  std::tm end{};
  ASN1_TIME_to_tm(X509_get0_notAfter(&certificate), &end);
  const std::string day =
      absl::FormatTime("%Y-%m-%d", absl::FromTM(end, absl::UTCTimeZone()), absl::UTCTimeZone());
  return Wrong(setting, path, absl::StrCat("a certificate that is valid: it expired on ", day));
}

}  // namespace

absl::StatusOr<TlsFiles> ReadTlsFiles(const Listener& listener, absl::Time now) {
  TlsFiles files;
  ATTENTION_ASSIGN_OR_RETURN(files.certificate, ReadFile("tls-cert", listener.tls_cert));
  ATTENTION_ASSIGN_OR_RETURN(files.key, ReadFile("tls-key", listener.tls_key));
  ATTENTION_ASSIGN_OR_RETURN(const Certificate certificate,
                             FirstCertificate("tls-cert", listener.tls_cert, files.certificate));
  ATTENTION_ASSIGN_OR_RETURN(const Key key, PrivateKey(listener.tls_key, files.key));
  const bool fits = X509_check_private_key(certificate.get(), key.get()) == 1;
  ERR_clear_error();
  if (!fits) {
    return Wrong("tls-key", listener.tls_key,
                 absl::StrCat("the private key of the certificate in ", Quoted(listener.tls_cert)));
  }
  ATTENTION_RETURN_IF_ERROR(CheckNotExpired("tls-cert", listener.tls_cert, *certificate, now));
  if (listener.tls_client_ca.empty()) return files;
  ATTENTION_ASSIGN_OR_RETURN(files.client_ca, ReadFile("tls-client-ca", listener.tls_client_ca));
  ATTENTION_ASSIGN_OR_RETURN(
      const Certificate authority,
      FirstCertificate("tls-client-ca", listener.tls_client_ca, files.client_ca));
  ATTENTION_RETURN_IF_ERROR(
      CheckNotExpired("tls-client-ca", listener.tls_client_ca, *authority, now));
  return files;
}

}  // namespace attention::server
