// Each mistake about TLS is told from the others by WaitUntilReady.
#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"
#include "client/internal/targets/target_probe.h"
#include "tests/support/certificates.h"
#include "tests/unit/client/scratch_folder.h"
#include "tests/unit/client/tls_server.h"

namespace attention::client {
namespace {

using attention::testing::CertificateAuthority;
using attention::testing::CertifiedKey;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// The cause as WaitUntilReady gives it, but with all the time that it may take to be found.
std::string WhyNotReady(const std::string& address, const std::optional<TlsOptions>& tls) {
  return internal::DiagnoseTarget(address, tls, absl::Seconds(60));
}

class TlsReadinessTest : public ::testing::Test {
 protected:
  std::string WhyNotReady(const TlsServer& server, const TlsOptions& tls) {
    return client::WhyNotReady(server.address(), tls);
  }

  const CertificateAuthority authority_{"ours"}, other_{"theirs"};
  const std::string& ca_ = authority_.certificate();
};

TEST_F(TlsReadinessTest, AGoodServerIsReady) {
  const TlsServer server({.identity = authority_.Issue()});
  EXPECT_TRUE(
      server.Connect({.tls = TlsOptions{.ca_pem = ca_}})->WaitUntilReady(absl::Seconds(60)).ok());
}

TEST_F(TlsReadinessTest, WaitUntilReadyNamesTheTargetAndTheCause) {
  const TlsServer server({.identity = other_.Issue()});
  const auto client = server.Connect({.tls = TlsOptions{.ca_pem = ca_}});
  ASSERT_NE(client, nullptr);
  // On an idle machine a hundredth of the time would do.
  const absl::Status status = client->WaitUntilReady(absl::Seconds(3));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("no connection to " + server.address()),
                    HasSubstr("is issued by an unknown authority")));
}

TEST_F(TlsReadinessTest, APlainClientOfATlsPort) {
  const TlsServer server({.identity = authority_.Issue()});
  EXPECT_THAT(client::WhyNotReady(server.address(), std::nullopt),
              HasSubstr(server.address() + " speaks TLS, expected a server without it"));
}

TEST_F(TlsReadinessTest, ATlsClientOfAPlainPort) {
  const FakeServer server;
  EXPECT_THAT(client::WhyNotReady(server.address(), TlsOptions{.ca_pem = ca_}),
              HasSubstr(server.address() + " speaks HTTP/2 without TLS"));
}

TEST_F(TlsReadinessTest, AClosedPortAndAnUnknownHost) {
  std::string closed;
  { closed = FakeServer().address(); }
  EXPECT_THAT(client::WhyNotReady(closed, TlsOptions{.ca_pem = ca_}),
              HasSubstr("connection refused by " + closed));
  EXPECT_THAT(client::WhyNotReady("nobody.invalid:7070", TlsOptions{.ca_pem = ca_}),
              HasSubstr("host 'nobody.invalid' cannot be resolved"));
}

TEST_F(TlsReadinessTest, ACertificateOfAnotherName) {
  const TlsServer server(
      {.identity = authority_.Issue({.dns_names = {"a.example"}, .ip_addresses = {"192.0.2.1"}})});
  EXPECT_THAT(WhyNotReady(server, {.ca_pem = ca_}),
              HasSubstr("is for a.example, 192.0.2.1, expected one for 127.0.0.1"));
  EXPECT_THAT(WhyNotReady(server, {.ca_pem = ca_, .server_name = "b.example"}),
              HasSubstr("is for a.example, 192.0.2.1, expected one for b.example"));
}

TEST_F(TlsReadinessTest, AnUnknownAuthority) {
  const TlsServer server({.identity = other_.Issue()});
  EXPECT_THAT(WhyNotReady(server, {.ca_pem = ca_}),
              HasSubstr("is issued by an unknown authority, 'CN=theirs'"));
  EXPECT_THAT(WhyNotReady(server, {}), HasSubstr("is issued by an unknown authority"));
  const TlsServer alone({.identity = attention::testing::SelfSigned()});
  EXPECT_THAT(WhyNotReady(alone, {.ca_pem = ca_}), HasSubstr("is signed by itself"));
}

TEST_F(TlsReadinessTest, ACertificateOutOfItsTime) {
  const TlsServer expired({.identity = authority_.Issue(attention::testing::Expired())});
  EXPECT_THAT(WhyNotReady(expired, {.ca_pem = ca_}),
              HasSubstr("has expired: it was valid until 2"));
  const TlsServer early({.identity = authority_.Issue(attention::testing::NotYetValid())});
  EXPECT_THAT(WhyNotReady(early, {.ca_pem = ca_}),
              HasSubstr("is not valid yet: it is valid from 2"));
}

TEST_F(TlsReadinessTest, AServerThatWantsACertificate) {
  const TlsServer server({.identity = authority_.Issue(), .client_ca = ca_});
  EXPECT_THAT(WhyNotReady(server, {.ca_pem = ca_}),
              HasSubstr("asks for a client's certificate, expected tls.certificate_file"));
  const auto with = [&](const CertifiedKey& own) {
    return WhyNotReady(server,
                       {.ca_pem = ca_, .certificate_pem = own.certificate, .key_pem = own.key});
  };
  EXPECT_THAT(with(other_.Issue()),
              AllOf(HasSubstr("refuses the client's certificate"), Not(HasSubstr("expired"))));
  EXPECT_THAT(with(authority_.Issue(attention::testing::Expired())),
              HasSubstr("refuses the client's certificate: it expired on 2"));
}

TEST_F(TlsReadinessTest, ARefusedTokenIsNoMatterOfTls) {
  FakeServer server;
  server.on_get_server_info = [](auto*, auto&, auto*) {
    return ServerError(grpc::StatusCode::UNAUTHENTICATED, "unknown token", "CREDENTIALS_INVALID");
  };
  const absl::Status status =
      server.Connect({.token = {.value = "secret"}})->WaitUntilReady(absl::Seconds(60));
  EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
}

}  // namespace
}  // namespace attention::client
