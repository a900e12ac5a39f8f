// Calls over TLS and mutual TLS, with certificates that the test makes.
#include <gmock/gmock.h>

#include <optional>

#include "absl/time/clock.h"
#include "tests/support/certificates.h"
#include "tests/unit/client/scratch_folder.h"
#include "tests/unit/client/tls_server.h"

namespace attention::client {
namespace {

using attention::testing::CertificateAuthority;
using attention::testing::CertifiedKey;
using attention::testing::NamedByUri;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr char kUri[] = "spiffe://example.org/tenant/acme";

class GrpcTlsTest : public ::testing::Test {
 protected:
  const ScratchFolder folder_;
  const CertificateAuthority authority_, other_;
  const std::string& ca_ = authority_.certificate();
};

TEST_F(GrpcTlsTest, AnAuthoritysTextOrFileVouchesForTheServer) {
  const TlsServer server({.identity = authority_.Issue()});
  EXPECT_TRUE(server.Call({.ca_pem = ca_}).ok());
  EXPECT_TRUE(server.Call({.ca_file = folder_.Write("ca.pem", ca_)}).ok());
}

TEST_F(GrpcTlsTest, WithoutAuthoritiesTheSystemsVouch) {
  const TlsServer known({.identity = SystemAuthority().Issue()});
  EXPECT_TRUE(known.Call({}).ok());
  const TlsServer unknown({.identity = authority_.Issue()});
  EXPECT_FALSE(unknown.Call({}).ok());
}

TEST_F(GrpcTlsTest, AServerWithoutAGoodCertificateIsNotCalled) {
  for (const CertifiedKey& identity : {other_.Issue(), attention::testing::SelfSigned(),
                                       authority_.Issue(attention::testing::Expired()),
                                       authority_.Issue(attention::testing::NotYetValid())}) {
    TlsServer server({.identity = identity});
    EXPECT_TRUE(absl::IsUnavailable(server.Call({.ca_pem = ca_})));
    EXPECT_THAT(server.TakePeers(), IsEmpty());
  }
}

TEST_F(GrpcTlsTest, TheServersNameIsTheTargetsUnlessItIsGiven) {
  TlsServer server({.identity = authority_.Issue(attention::testing::NamedByDns("a.example"))});
  EXPECT_TRUE(absl::IsUnavailable(server.Call({.ca_pem = ca_})));
  EXPECT_TRUE(absl::IsUnavailable(server.Call({.ca_pem = ca_, .server_name = "b.example"})));
  EXPECT_THAT(server.TakePeers(), IsEmpty());
  EXPECT_TRUE(server.Call({.ca_pem = ca_, .server_name = "a.example"}).ok());
}

TEST_F(GrpcTlsTest, AUnixSocketsServerIsLocalhost) {
  const TlsServer server(
      {.address = "unix:" + folder_.PathOf("socket"),
       .identity = authority_.Issue(attention::testing::NamedByDns("localhost"))});
  EXPECT_TRUE(server.Call({.ca_pem = ca_}).ok());
}

TEST_F(GrpcTlsTest, AClientsCertificateTellsTheServerWhoItIs) {
  TlsServer server({.identity = authority_.Issue(), .client_ca = ca_});
  const CertifiedKey own = authority_.Issue(NamedByUri(kUri));
  const TlsOptions text = {.ca_pem = ca_, .certificate_pem = own.certificate, .key_pem = own.key};
  const TlsOptions files = {.ca_file = folder_.Write("ca.pem", ca_),
                            .certificate_file = folder_.Write("cert.pem", own.certificate),
                            .key_file = folder_.Write("key.pem", own.key)};
  const TlsOptions both = {
      .ca_file = files.ca_file, .certificate_pem = own.certificate, .key_file = files.key_file};
  for (const TlsOptions& tls : {text, files, both}) EXPECT_TRUE(server.Call(tls).ok());
  EXPECT_THAT(server.TakePeers(), ElementsAre(kUri, kUri, kUri));
}

TEST_F(GrpcTlsTest, AClientWithoutAGoodCertificateIsNotServed) {
  TlsServer server({.identity = authority_.Issue(), .client_ca = ca_});
  EXPECT_TRUE(absl::IsUnavailable(server.Call({.ca_pem = ca_})));
  for (const CertifiedKey& own : {other_.Issue(), attention::testing::SelfSigned(),
                                  authority_.Issue(attention::testing::Expired()),
                                  authority_.Issue(attention::testing::NotYetValid())}) {
    EXPECT_TRUE(absl::IsUnavailable(
        server.Call({.ca_pem = ca_, .certificate_pem = own.certificate, .key_pem = own.key})));
  }
  EXPECT_THAT(server.TakePeers(), IsEmpty());
}

TEST_F(GrpcTlsTest, ATokenTravelsByTls) {
  const TlsServer server({.identity = authority_.Issue()});
  const auto client =
      server.Connect({.tls = TlsOptions{.ca_pem = ca_}, .token = {.value = "secret"}});
  ASSERT_NE(client, nullptr);
  EXPECT_TRUE(client->Attend({}).ok());
  EXPECT_EQ(server.last_token(), "Bearer secret");
}

TEST_F(GrpcTlsTest, NewConnectionsUseTheFilesOfTheirTime) {
  constexpr char kNextUri[] = "spiffe://example.org/tenant/next";
  const TlsServerOptions options = {.address = "unix:" + folder_.PathOf("socket"),
                                    .identity = authority_.Issue(),
                                    .client_ca = ca_};
  std::optional<TlsServer> server(std::in_place, options);
  const CertifiedKey own = authority_.Issue(NamedByUri(kUri));
  const auto client = server->Connect(
      {.tls = TlsOptions{.ca_file = folder_.Write("ca.pem", ca_),
                         .certificate_file = folder_.Write("cert.pem", own.certificate),
                         .key_file = folder_.Write("key.pem", own.key)}});
  ASSERT_TRUE(client->Attend({}).ok());
  EXPECT_THAT(server->TakePeers(), ElementsAre(kUri));

  const CertifiedKey next = authority_.Issue(NamedByUri(kNextUri));
  folder_.Replace("cert.pem", next.certificate);
  folder_.Replace("key.pem", next.key);
  std::vector<std::string> peers;
  for (int i = 0; i < 600 && (peers.empty() || peers.back() != kNextUri); ++i) {
    absl::SleepFor(absl::Milliseconds(100));
    server.reset();
    server.emplace(options);  // the client connects anew
    (void)client->Attend({});
    peers = server->TakePeers();
  }
  EXPECT_THAT(peers, ::testing::Contains(kNextUri));
}

}  // namespace
}  // namespace attention::client
