#include "server/listener/tls_files.h"

#include <gmock/gmock.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <filesystem>
#include <fstream>
#include <memory>

#include "absl/time/clock.h"

namespace attention::server {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

Key MakeKey() { return {EVP_EC_gen("P-256"), EVP_PKEY_free}; }

std::string TextOf(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  return {data, static_cast<std::size_t>(size)};
}

std::string PemOf(EVP_PKEY* key, const char* passphrase = nullptr) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new(BIO_s_mem()), BIO_free);
  PEM_write_bio_PKCS8PrivateKey(bio.get(), key, passphrase ? EVP_aes_128_cbc() : nullptr, nullptr,
                                0, nullptr, const_cast<char*>(passphrase));
  return TextOf(bio.get());
}

// Signed by itself, for a day from now.
std::string CertificateOf(EVP_PKEY* key) {
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(X509_new(), X509_free);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -60);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 24 * 3600);
  X509_set_pubkey(certificate.get(), key);
  X509_sign(certificate.get(), key, EVP_sha256());
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new(BIO_s_mem()), BIO_free);
  PEM_write_bio_X509(bio.get(), certificate.get());
  return TextOf(bio.get());
}

class TlsFilesTest : public ::testing::Test {
 protected:
  TlsFilesTest() {
    std::string name = ::testing::TempDir() + "tls-XXXXXX";
    directory_ = mkdtemp(name.data());
    listener_.address = "localhost:0";
    listener_.tls_cert = Write("cert.pem", CertificateOf(key_.get()));
    listener_.tls_key = Write("key.pem", PemOf(key_.get()));
  }
  ~TlsFilesTest() override { std::filesystem::remove_all(directory_); }

  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(directory_ + "/" + name) << text;
    return directory_ + "/" + name;
  }
  std::string Error(absl::Time now = absl::Now()) const {
    return std::string(ReadTlsFiles(listener_, now).status().message());
  }

  std::string directory_;
  const Key key_ = MakeKey();
  Listener listener_;
};

TEST_F(TlsFilesTest, APairThatFitsIsTaken) {
  const auto files = ReadTlsFiles(listener_, absl::Now());
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_THAT(files->certificate, HasSubstr("BEGIN CERTIFICATE"));
  EXPECT_THAT(files->key, HasSubstr("PRIVATE KEY"));
}

TEST_F(TlsFilesTest, AKeyOfAnotherCertificateIsRefused) {
  listener_.tls_key = Write("other.pem", PemOf(MakeKey().get()));
  EXPECT_THAT(Error(), AllOf(HasSubstr("tls-key is '" + listener_.tls_key + "'"),
                             HasSubstr("the certificate in '" + listener_.tls_cert + "'")));
}

TEST_F(TlsFilesTest, AFileOfAnotherKindIsRefused) {
  std::swap(listener_.tls_cert, listener_.tls_key);
  EXPECT_THAT(Error(), AllOf(HasSubstr("tls-cert is"), HasSubstr("a PEM file with a certificate")));
  listener_.tls_cert = listener_.tls_key;
  EXPECT_THAT(Error(), AllOf(HasSubstr("tls-key is"), HasSubstr("with a private key")));
}

TEST_F(TlsFilesTest, AKeyBehindAPassphraseIsRefusedAndNobodyIsAsked) {
  listener_.tls_key = Write("locked.pem", PemOf(key_.get(), "secret"));
  EXPECT_THAT(Error(), HasSubstr("that no passphrase locks"));
}

TEST_F(TlsFilesTest, AnExpiredCertificateIsRefusedWithItsDay) {
  EXPECT_EQ(Error(), "");
  EXPECT_THAT(Error(absl::Now() + absl::Hours(48)),
              AllOf(HasSubstr("tls-cert is"), HasSubstr("it expired on 2")));
}

TEST_F(TlsFilesTest, WhyAFileCannotBeReadIsSaid) {
  listener_.tls_client_ca = directory_ + "/missing.pem";
  EXPECT_THAT(Error(),
              AllOf(HasSubstr("tls-client-ca is '"), HasSubstr("No such file or directory")));
  listener_.tls_client_ca = Write("empty.pem", "");
  EXPECT_THAT(Error(), AllOf(HasSubstr("tls-client-ca is '"), HasSubstr("it is empty")));
}

}  // namespace
}  // namespace attention::server
