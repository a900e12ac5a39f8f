#include "server/listener/served_certificate.h"

#include <gmock/gmock.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/time/clock.h"
#include "tests/support/certificates.h"

namespace attention::server {
namespace {

using ::attention::testing::CertificateAuthority;
using ::attention::testing::CertifiedKey;
using ::testing::HasSubstr;

std::string Read(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

class ServedCertificateTest : public ::testing::Test {
 protected:
  ServedCertificateTest() {
    std::string name = ::testing::TempDir() + "served-XXXXXX";
    directory_ = mkdtemp(name.data());
    listener_.address = "localhost:0";
    listener_.tls_cert = directory_ + "/cert";
    listener_.tls_key = directory_ + "/key";
    listener_.tls_client_ca = directory_ + "/ca";
    Write(listener_.tls_client_ca, authority_.certificate());
  }
  ~ServedCertificateTest() override { std::filesystem::remove_all(directory_); }

  static void Write(const std::string& path, const std::string& text) {
    std::ofstream(path + ".new") << text;
    std::filesystem::rename(path + ".new", path);
  }
  void Write(const CertifiedKey& made) const {
    Write(listener_.tls_cert, made.certificate);
    Write(listener_.tls_key, made.key);
  }
  std::optional<absl::Status> Reload() { return served_->ReloadChanged(absl::Now()); }
  void ExpectServes(const CertifiedKey& made) const {
    EXPECT_EQ(Read(served_->certificate_path()), made.certificate);
    EXPECT_EQ(Read(served_->key_path()), made.key);
    // gRPC tells by them whether what it has read belongs together.
    EXPECT_EQ(std::filesystem::last_write_time(served_->certificate_path()),
              std::filesystem::last_write_time(served_->key_path()));
  }

  const CertificateAuthority authority_;
  Listener listener_;
  std::string directory_;
  std::unique_ptr<ServedCertificate> served_;
};

TEST_F(ServedCertificateTest, WhatFitsIsServedOnceItIsStill) {
  const CertifiedKey first = authority_.Issue(), second = authority_.Issue();
  Write(first);
  auto loaded = ServedCertificate::Load(listener_, absl::Now());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  served_ = *std::move(loaded);
  ExpectServes(first);
  EXPECT_EQ(Read(served_->client_ca_path()), authority_.certificate());
  EXPECT_FALSE(Reload().has_value());
  const auto first_time = std::filesystem::last_write_time(served_->key_path());

  Write(listener_.tls_cert, second.certificate);
  EXPECT_FALSE(Reload().has_value()) << "it may still be written";
  const std::optional<absl::Status> alone = Reload();
  ASSERT_TRUE(alone.has_value());
  EXPECT_THAT(std::string(alone->message()), HasSubstr("the private key of the certificate"));
  ExpectServes(first);
  EXPECT_FALSE(Reload().has_value()) << "told once";

  Write(listener_.tls_key, second.key);
  EXPECT_FALSE(Reload().has_value());
  const std::optional<absl::Status> both = Reload();
  ASSERT_TRUE(both.has_value());
  EXPECT_TRUE(both->ok()) << *both;
  ExpectServes(second);
  EXPECT_NE(std::filesystem::last_write_time(served_->key_path()), first_time);
}

TEST_F(ServedCertificateTest, WhatIsWrongIsNot) {
  const CertifiedKey good = authority_.Issue();
  Write(good);
  auto loaded = ServedCertificate::Load(listener_, absl::Now());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  served_ = *std::move(loaded);
  const auto expect_refused = [&](const std::string& part) {
    EXPECT_FALSE(Reload().has_value());
    const std::optional<absl::Status> status = Reload();
    ASSERT_TRUE(status.has_value()) << part;
    EXPECT_THAT(std::string(status->message()), HasSubstr(part));
    ExpectServes(good);
  };
  Write(authority_.Issue(attention::testing::Expired()));
  expect_refused("it expired on");
  Write(listener_.tls_cert, good.certificate.substr(0, 50));
  expect_refused("a PEM file with a certificate");
  std::filesystem::remove(listener_.tls_cert);
  expect_refused("No such file");
  Write(good);
  Write(listener_.tls_client_ca, "");
  expect_refused("it is empty");
}

}  // namespace
}  // namespace attention::server
