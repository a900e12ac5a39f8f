#include "client/internal/credentials/tls_material.h"

#include <gmock/gmock.h>

#include "tests/support/certificates.h"
#include "tests/unit/client/scratch_folder.h"

namespace attention::client::internal {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class TlsMaterialTest : public ::testing::Test {
 protected:
  TlsMaterialTest() {
    options_.ca_file = folder_.Write("ca.pem", authority_.certificate());
    options_.certificate_file = folder_.Write("cert.pem", own_.certificate);
    options_.key_file = folder_.Write("key.pem", own_.key);
  }

  void ExpectRefused(const TlsOptions& options, const std::string& message) {
    const absl::Status status = ReadTlsMaterial(options).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(message), Not(HasSubstr("BEGIN")), Not(HasSubstr(own_.key))));
  }

  const ScratchFolder folder_;
  const attention::testing::CertificateAuthority authority_;
  const attention::testing::CertifiedKey own_ = authority_.Issue();
  TlsOptions options_;
};

TEST_F(TlsMaterialTest, FilesAndTextGiveTheSame) {
  for (const TlsOptions& options : {options_, TlsOptions{.ca_pem = authority_.certificate(),
                                              .certificate_pem = own_.certificate,
                                              .key_pem = own_.key}}) {
    const auto material = ReadTlsMaterial(options);
    ASSERT_TRUE(material.ok()) << material.status();
    EXPECT_EQ(material->ca, authority_.certificate());
    EXPECT_EQ(material->certificate, own_.certificate);
    EXPECT_EQ(material->key, own_.key);
  }
  EXPECT_TRUE(ReadTlsMaterial({}).ok()) << "the system's authorities, and no own certificate";
}

TEST_F(TlsMaterialTest, APartIsGivenOnce) {
  options_.ca_pem = authority_.certificate();
  ExpectRefused(options_, "tls.ca_file and tls.ca_pem: both are set");
}

TEST_F(TlsMaterialTest, ACertificateAndItsKeyComeTogether) {
  ExpectRefused({.certificate_file = options_.certificate_file},
                "tls.key_file: expected one for tls.certificate_file");
  ExpectRefused({.key_pem = own_.key}, "tls.certificate_file: expected one for tls.key_pem");
}

TEST_F(TlsMaterialTest, NamesTheFileThatCannotBeRead) {
  ExpectRefused({.ca_file = "/no/such.pem"},
                "tls.ca_file '/no/such.pem': expected a file that can be read: No such file");
  ExpectRefused({.ca_file = folder_.Write("empty.pem", "")}, "it is empty");
}

TEST_F(TlsMaterialTest, NamesThePartThatIsNoneOfItsKind) {
  ExpectRefused({.ca_pem = own_.key}, "tls.ca_pem: expected PEM with the certificate");
  ExpectRefused({.certificate_pem = "nonsense", .key_pem = own_.key},
                "tls.certificate_pem: expected PEM with a certificate");
  ExpectRefused({.certificate_pem = own_.certificate, .key_pem = own_.certificate},
                "tls.key_pem: expected PEM with a private key that no passphrase locks");
}

TEST_F(TlsMaterialTest, AKeyFitsItsCertificate) {
  options_.key_file = folder_.Write("other.pem", attention::testing::NewPrivateKey());
  ExpectRefused(options_, "expected the private key of the certificate in tls.certificate_file");
}

}  // namespace
}  // namespace attention::client::internal
