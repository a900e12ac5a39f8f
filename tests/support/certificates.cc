#include "tests/support/certificates.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"

namespace attention::testing {
namespace {

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using Extension = std::unique_ptr<X509_EXTENSION, decltype(&X509_EXTENSION_free)>;

void Require(bool condition, const char* what) {
  if (condition) return;
  std::cerr << "certificates: cannot make " << what << std::endl;
  std::abort();
}

Key NewKey() {
  Key key(EVP_EC_gen("P-256"), EVP_PKEY_free);
  Require(key != nullptr, "a key");
  return key;
}

template <typename Write>
std::string ToPem(Write write) {
  const Bio bio(BIO_new(BIO_s_mem()), BIO_free);
  Require(bio != nullptr && write(bio.get()) == 1, "PEM");
  char* text = nullptr;
  const auto size = BIO_get_mem_data(bio.get(), &text);
  return {text, static_cast<std::size_t>(size)};
}

std::string ToPem(X509* certificate) {
  return ToPem([&](BIO* bio) { return PEM_write_bio_X509(bio, certificate); });
}

std::string ToPem(EVP_PKEY* key) {
  return ToPem([&](BIO* bio) {
    return PEM_write_bio_PKCS8PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr);
  });
}

void SetTime(ASN1_TIME* field, absl::Time given, absl::Duration from_now) {
  const absl::Time time = given == absl::Time() ? absl::Now() + from_now : given;
  Require(ASN1_TIME_set(field, absl::ToTimeT(time)) != nullptr, "a time");
}

// Subject, serial number and times; a certificate without extensions, not signed yet.
Certificate Blank(const CertificateOptions& options, EVP_PKEY* key) {
  Certificate made(X509_new(), X509_free);
  Require(made != nullptr && X509_set_version(made.get(), X509_VERSION_3) == 1, "a certificate");
  std::uint32_t serial = 0;
  Require(RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof(serial)) == 1, "a number");
  ASN1_INTEGER_set_uint64(X509_get_serialNumber(made.get()), std::uint64_t{serial} + 1);
  SetTime(X509_getm_notBefore(made.get()), options.not_before, -absl::Hours(1));
  SetTime(X509_getm_notAfter(made.get()), options.not_after, absl::Hours(24));
  X509_NAME* subject = X509_get_subject_name(made.get());
  const auto* name = reinterpret_cast<const unsigned char*>(options.common_name.c_str());
  Require(options.common_name.empty() ||
              X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, name, -1, -1, 0) == 1,
          "a subject");
  Require(X509_set_pubkey(made.get(), key) == 1, "a public key");
  return made;
}

void AddExtension(X509* certificate, X509* issuer, int id, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, id, value.c_str()),
                            X509_EXTENSION_free);
  Require(extension != nullptr && X509_add_ext(certificate, extension.get(), -1) == 1,
          "an extension");
}

std::string AlternativeNames(const CertificateOptions& options) {
  std::vector<std::string> names;
  for (const std::string& name : options.dns_names) names.push_back("DNS:" + name);
  for (const std::string& address : options.ip_addresses) names.push_back("IP:" + address);
  for (const std::string& uri : options.uris) names.push_back("URI:" + uri);
  return absl::StrJoin(names, ",");
}

void Sign(X509* certificate, EVP_PKEY* key, X509* issuer) {
  Require(X509_set_issuer_name(certificate, X509_get_subject_name(issuer)) == 1, "an issuer");
  AddExtension(certificate, issuer, NID_subject_key_identifier, "hash");
  AddExtension(certificate, issuer, NID_authority_key_identifier, "keyid");
  Require(X509_sign(certificate, key, EVP_sha256()) > 0, "a signature");
}

// A certificate that may not issue others.
Certificate Leaf(const CertificateOptions& options, EVP_PKEY* key) {
  Certificate made = Blank(options, key);
  AddExtension(made.get(), made.get(), NID_basic_constraints, "critical,CA:FALSE");
  AddExtension(made.get(), made.get(), NID_key_usage, "critical,digitalSignature");
  AddExtension(made.get(), made.get(), NID_ext_key_usage, "serverAuth,clientAuth");
  const std::string names = AlternativeNames(options);
  if (!names.empty()) AddExtension(made.get(), made.get(), NID_subject_alt_name, names);
  return made;
}

}  // namespace

CertificateOptions NamedByUri(const std::string& uri) {
  return {.common_name = "", .dns_names = {}, .ip_addresses = {}, .uris = {uri}};
}

CertificateOptions NamedByDns(const std::string& name) {
  return {.common_name = "", .dns_names = {name}, .ip_addresses = {}};
}

CertificateOptions Expired(CertificateOptions options) {
  options.not_before = absl::Now() - absl::Hours(24);
  options.not_after = absl::Now() - absl::Hours(1);
  return options;
}

CertificateOptions NotYetValid(CertificateOptions options) {
  options.not_before = absl::Now() + absl::Hours(24);
  options.not_after = absl::Now() + absl::Hours(48);
  return options;
}

struct CertificateAuthority::Parts {
  Key key{nullptr, EVP_PKEY_free};
  Certificate certificate{nullptr, X509_free};

  static std::unique_ptr<const Parts> Make(const std::string& name) {
    auto made = std::make_unique<Parts>();
    made->key = NewKey();
    made->certificate = Blank({.common_name = name}, made->key.get());
    X509* certificate = made->certificate.get();
    AddExtension(certificate, certificate, NID_basic_constraints, "critical,CA:TRUE");
    AddExtension(certificate, certificate, NID_key_usage, "critical,keyCertSign,cRLSign");
    Sign(certificate, made->key.get(), certificate);
    return made;
  }
};

CertificateAuthority::CertificateAuthority(const std::string& name)
    : parts_(Parts::Make(name)), certificate_(ToPem(parts_->certificate.get())) {}

CertificateAuthority::~CertificateAuthority() = default;

CertifiedKey CertificateAuthority::Issue(const CertificateOptions& options) const {
  const Key key = NewKey();
  const Certificate made = Leaf(options, key.get());
  Sign(made.get(), parts_->key.get(), parts_->certificate.get());
  return {ToPem(made.get()), ToPem(key.get())};
}

CertifiedKey SelfSigned(const CertificateOptions& options) {
  const Key key = NewKey();
  const Certificate made = Leaf(options, key.get());
  Sign(made.get(), key.get(), made.get());
  return {ToPem(made.get()), ToPem(key.get())};
}

std::string NewPrivateKey() { return ToPem(NewKey().get()); }

}  // namespace attention::testing
