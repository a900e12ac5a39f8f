#include "tests/support/certificates.h"

#include <gmock/gmock.h>
#include <openssl/bio.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

namespace attention::testing {
namespace {

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using Store = std::unique_ptr<X509_STORE, decltype(&X509_STORE_free)>;
using Context = std::unique_ptr<X509_STORE_CTX, decltype(&X509_STORE_CTX_free)>;

Bio Open(const std::string& pem) {
  return {BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free};
}

Certificate Read(const std::string& pem) {
  return {PEM_read_bio_X509(Open(pem).get(), nullptr, nullptr, nullptr), X509_free};
}

// X509_V_OK, or why the authority does not vouch for the certificate.
int Verify(const std::string& authority, const std::string& pem) {
  const Certificate root = Read(authority), certificate = Read(pem);
  const Store store(X509_STORE_new(), X509_STORE_free);
  X509_STORE_add_cert(store.get(), root.get());
  const Context context(X509_STORE_CTX_new(), X509_STORE_CTX_free);
  X509_STORE_CTX_init(context.get(), store.get(), certificate.get(), nullptr);
  X509_verify_cert(context.get());
  return X509_STORE_CTX_get_error(context.get());
}

TEST(CertificatesTest, AnAuthorityVouchesForWhatItIssues) {
  const CertificateAuthority authority, other;
  const CertifiedKey issued = authority.Issue();
  EXPECT_EQ(Verify(authority.certificate(), issued.certificate), X509_V_OK);
  EXPECT_NE(Verify(other.certificate(), issued.certificate), X509_V_OK);
  EXPECT_NE(Verify(authority.certificate(), SelfSigned().certificate), X509_V_OK);
}

TEST(CertificatesTest, TimesAreKept) {
  const CertificateAuthority authority;
  EXPECT_EQ(Verify(authority.certificate(), authority.Issue(Expired()).certificate),
            X509_V_ERR_CERT_HAS_EXPIRED);
  EXPECT_EQ(Verify(authority.certificate(), authority.Issue(NotYetValid()).certificate),
            X509_V_ERR_CERT_NOT_YET_VALID);
}

TEST(CertificatesTest, NamesAreKept) {
  const CertificateAuthority authority;
  const Certificate server = Read(authority.Issue().certificate);
  EXPECT_EQ(X509_check_host(server.get(), "localhost", 0, 0, nullptr), 1);
  EXPECT_EQ(X509_check_host(server.get(), "example.org", 0, 0, nullptr), 0);
  EXPECT_EQ(X509_check_ip_asc(server.get(), "127.0.0.1", 0), 1);
  EXPECT_EQ(X509_check_ip_asc(server.get(), "::1", 0), 1);

  const std::string uri = "spiffe://example.org/tenant/acme";
  const Certificate client = Read(authority.Issue(NamedByUri(uri)).certificate);
  const std::unique_ptr<GENERAL_NAMES, decltype(&GENERAL_NAMES_free)> names(
      static_cast<GENERAL_NAMES*>(
          X509_get_ext_d2i(client.get(), NID_subject_alt_name, nullptr, nullptr)),
      GENERAL_NAMES_free);
  ASSERT_NE(names, nullptr);
  ASSERT_EQ(sk_GENERAL_NAME_num(names.get()), 1);
  const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), 0);
  ASSERT_EQ(name->type, GEN_URI);
  EXPECT_EQ(
      std::string(
          reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.uniformResourceIdentifier)),
          static_cast<std::size_t>(ASN1_STRING_length(name->d.uniformResourceIdentifier))),
      uri);
}

TEST(CertificatesTest, AKeyFitsItsCertificateAndNoOther) {
  const CertifiedKey issued = SelfSigned(NamedByDns("client"));
  const auto fits = [&](const std::string& pem) {
    const Key key(PEM_read_bio_PrivateKey(Open(pem).get(), nullptr, nullptr, nullptr),
                  EVP_PKEY_free);
    return X509_check_private_key(Read(issued.certificate).get(), key.get()) == 1;
  };
  EXPECT_TRUE(fits(issued.key));
  EXPECT_FALSE(fits(NewPrivateKey()));
}

}  // namespace
}  // namespace attention::testing
