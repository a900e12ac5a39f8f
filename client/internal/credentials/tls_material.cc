#include "client/internal/credentials/tls_material.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "client/internal/base/status_macros.h"

namespace attention::client::internal {
namespace {

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

// One part of TlsOptions: the names of its two options, and their values.
struct Part {
  absl::string_view file_option;
  absl::string_view pem_option;
  const std::string& file;
  const std::string& pem;

  bool is_given() const { return !file.empty() || !pem.empty(); }
  // Names the part in a message.
  std::string name() const {
    return file.empty() ? absl::StrCat("tls.", pem_option)
                        : absl::StrCat("tls.", file_option, " '", file, "'");
  }
};

absl::Status Wrong(const Part& part, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(part.name(), ": expected ", expected));
}

absl::StatusOr<std::string> Read(const Part& part) {
  if (!part.file.empty() && !part.pem.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("tls.", part.file_option, " and tls.",
                                                   part.pem_option,
                                                   ": both are set, expected at most one"));
  }
  if (part.file.empty()) return part.pem;
  errno = 0;
  std::ifstream file(part.file);
  std::ostringstream text;
  text << file.rdbuf();
  if (file && !text.str().empty()) return text.str();
  return Wrong(part, absl::StrCat("a file that can be read: ",
                                  errno != 0 ? std::strerror(errno) : "it is empty"));
}

Bio Open(const std::string& pem) {
  return {BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free};
}

// Keys are read without a terminal to ask at.
int NoPassphrase(char*, int, int, void*) { return 0; }

Certificate FirstCertificate(const std::string& pem) {
  Certificate certificate(PEM_read_bio_X509(Open(pem).get(), nullptr, NoPassphrase, nullptr),
                          X509_free);
  ERR_clear_error();
  return certificate;
}

absl::Status CheckPair(const Part& certificate_part, const Part& key_part,
                       const TlsMaterial& material) {
  if (certificate_part.is_given() != key_part.is_given()) {
    const Part& missing = certificate_part.is_given() ? key_part : certificate_part;
    const Part& given = certificate_part.is_given() ? certificate_part : key_part;
    return absl::InvalidArgumentError(
        absl::StrCat("tls.", missing.file_option, ": expected one for ", given.name()));
  }
  if (!key_part.is_given()) return absl::OkStatus();
  const Certificate certificate = FirstCertificate(material.certificate);
  if (certificate == nullptr) return Wrong(certificate_part, "PEM with a certificate");
  const Key key(PEM_read_bio_PrivateKey(Open(material.key).get(), nullptr, NoPassphrase, nullptr),
                EVP_PKEY_free);
  ERR_clear_error();
  if (key == nullptr) return Wrong(key_part, "PEM with a private key that no passphrase locks");
  const bool fits = X509_check_private_key(certificate.get(), key.get()) == 1;
  ERR_clear_error();
  if (fits) return absl::OkStatus();
  return Wrong(key_part,
               absl::StrCat("the private key of the certificate in ", certificate_part.name()));
}

}  // namespace

absl::StatusOr<TlsMaterial> ReadTlsMaterial(const TlsOptions& options) {
  const Part ca{"ca_file", "ca_pem", options.ca_file, options.ca_pem};
  const Part certificate{"certificate_file", "certificate_pem", options.certificate_file,
                         options.certificate_pem};
  const Part key{"key_file", "key_pem", options.key_file, options.key_pem};
  TlsMaterial material;
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(material.ca, Read(ca));
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(material.certificate, Read(certificate));
  ATTENTION_CLIENT_ASSIGN_OR_RETURN(material.key, Read(key));
  if (ca.is_given() && FirstCertificate(material.ca) == nullptr) {
    return Wrong(ca, "PEM with the certificate of an authority");
  }
  ATTENTION_CLIENT_RETURN_IF_ERROR(CheckPair(certificate, key, material));
  return material;
}

}  // namespace attention::client::internal
