#include "server/auth/authenticator.h"

#include <gmock/gmock.h>

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "server/base/error_reason.h"
#include "tests/support/jwt.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const absl::Time kNow = absl::FromUnixSeconds(1'800'000'000);
const Identity kAcme = {"acme", Role::kUse};
const Identity kOps = {"ops", Role::kAdmin};

class AuthenticatorTest : public ::testing::Test {
 protected:
  AuthenticatorTest() {
    std::string name = ::testing::TempDir() + "auth-XXXXXX";
    directory_ = mkdtemp(name.data());
  }
  ~AuthenticatorTest() override { std::filesystem::remove_all(directory_); }

  // In one step, as tools that rotate files do.
  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = absl::StrCat(directory_, "/", name);
    std::ofstream(path + ".new") << text;
    std::filesystem::rename(path + ".new", path);
    return path;
  }
  std::string WriteTokens(const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& line : lines) absl::StrAppend(&text, line, "\n");
    return Write("tokens", text);
  }
  void Start(AuthFiles files) {
    auto created = Authenticator::Create(std::move(files));
    ASSERT_TRUE(created.ok()) << created.status();
    authenticator_ = *std::move(created);
  }
  // Two looks: a change counts once the file has been still.
  std::vector<Authenticator::Reloaded> Reload() {
    EXPECT_TRUE(authenticator_->ReloadChanged().empty());
    return authenticator_->ReloadChanged();
  }

  absl::StatusOr<Identity> CheckToken(const std::string& token) const {
    const std::string authorization = "Bearer " + token;
    return Check({.authorization = authorization});
  }
  absl::StatusOr<Identity> Check(const Credentials& credentials) const {
    return authenticator_->Check(credentials, kNow);
  }
  static std::string ReasonOf(const absl::StatusOr<Identity>& result) {
    const auto detail = GetErrorDetail(result.status());
    return detail ? detail->reason : std::string(result.status().message());
  }

  const NewToken token_ = MakeToken(kAcme);
  const NewToken admin_ = MakeToken(kOps);
  std::string directory_;
  std::unique_ptr<Authenticator> authenticator_;
};

TEST_F(AuthenticatorTest, WithoutCredentialsTheCallNamesItsTenant) {
  Start({});
  EXPECT_TRUE(authenticator_->is_open());
  EXPECT_EQ(*Check({}), (Identity{"default", Role::kUse}));
  EXPECT_EQ(*Check({.tenant = "acme"}), kAcme);
  EXPECT_EQ(*Check({.authorization = "Bearer x", .tenant = "acme"}), kAcme);
}

TEST_F(AuthenticatorTest, ATokenTellsWhoCalls) {
  Start({.tokens = WriteTokens({token_.line, admin_.line})});
  EXPECT_FALSE(authenticator_->is_open());
  EXPECT_EQ(*CheckToken(token_.token), kAcme);
  EXPECT_EQ(*CheckToken(admin_.token), kOps);
  EXPECT_EQ(*Check({.authorization = "bearer  " + token_.token}), kAcme);
  EXPECT_EQ(ReasonOf(Check({})), "CREDENTIALS_MISSING");
  EXPECT_EQ(ReasonOf(Check({.tenant = "acme"})), "CREDENTIALS_MISSING");
  EXPECT_EQ(ReasonOf(CheckToken(token_.token + "x")), "CREDENTIALS_INVALID");
  for (const char* authorization : {"", "Bearer", "Bearer ", "Basic YTpi"}) {
    EXPECT_EQ(ReasonOf(Check({.authorization = authorization})), "CREDENTIALS_INVALID");
  }
}

TEST_F(AuthenticatorTest, AnotherTenantThanTheCredentialsIsRefused) {
  Start({.tokens = WriteTokens({token_.line, admin_.line})});
  const std::string user = "Bearer " + token_.token, admin = "Bearer " + admin_.token;
  EXPECT_EQ(*Check({.authorization = user, .tenant = "acme"}), kAcme);
  for (const char* tenant : {"ops", "default", "Acme", ""}) {
    EXPECT_EQ(ReasonOf(Check({.authorization = user, .tenant = tenant})), "TENANT_MISMATCH");
  }
  EXPECT_EQ(ReasonOf(Check({.authorization = admin, .tenant = "acme"})), "TENANT_MISMATCH");
}

// A certificate that an authority of the listener has signed.
std::function<std::optional<CertificateNames>()> OfUri(const std::string& uri) {
  return [uri] { return CertificateNames{.uris = {uri}}; };
}

TEST_F(AuthenticatorTest, ACertificateIsKnownByTheMapping) {
  Start({.identities = Write("ids",
                             "[[certificate]]\nuri = 'spiffe://a/b'\ntenant = 'acme'\n"
                             "[[certificate]]\ndns = 'ops.a'\ntenant = 'ops'\nrole = 'admin'\n")});
  EXPECT_EQ(*Check({.read_certificate = OfUri("spiffe://a/b")}), kAcme);
  EXPECT_EQ(*Check({.read_certificate = [] { return CertificateNames{.dns_names = {"ops.a"}}; }}),
            kOps);
  EXPECT_EQ(ReasonOf(Check({.read_certificate = OfUri("spiffe://a/c")})), "CREDENTIALS_INVALID");
  // Names that no authority has vouched for.
  EXPECT_EQ(ReasonOf(Check({.read_certificate = [] { return std::nullopt; }})),
            "CREDENTIALS_MISSING");
  EXPECT_EQ(ReasonOf(Check({.read_certificate = OfUri("spiffe://a/b"), .tenant = "ops"})),
            "TENANT_MISMATCH");
}

TEST_F(AuthenticatorTest, ATokenDecidesBeforeACertificateAndThatBeforeTheConnection) {
  Start({.tokens = WriteTokens({token_.line}),
         .identities = Write("ids",
                             "[[certificate]]\nuri = 'spiffe://a/b'\ntenant = 'cert'\n"
                             "[[user]]\nuid = 5\ntenant = 'socket'\n")});
  const Identity connection = {"socket", Role::kUse};
  Credentials all = {.read_certificate = OfUri("spiffe://a/b"), .of_connection = &connection};
  EXPECT_EQ(Check(all)->tenant, "cert");
  const std::string good = "Bearer " + token_.token, bad = good + "x";
  all.authorization = good;
  EXPECT_EQ(Check(all)->tenant, "acme");
  all.authorization = bad;  // not made up for by anything else
  EXPECT_EQ(ReasonOf(Check(all)), "CREDENTIALS_INVALID");
  EXPECT_EQ(Check({.of_connection = &connection})->tenant, "socket");
  EXPECT_EQ(ReasonOf(Check({.of_connection = &connection, .tenant = "acme"})), "TENANT_MISMATCH");
}

TEST_F(AuthenticatorTest, AConnectionsUserIsKnownAsLongAsTheFileSaysSo) {
  Start({.identities = Write("ids", "[[user]]\nuid = 5\ntenant = 'socket'\n")});
  EXPECT_TRUE(authenticator_->has_users());
  const std::optional<Identity> connection = authenticator_->OfUser(5, 1);
  ASSERT_TRUE(connection.has_value());
  EXPECT_FALSE(authenticator_->OfUser(6, 1).has_value());
  EXPECT_EQ(Check({.of_connection = &*connection})->tenant, "socket");
  Write("ids", "[[user]]\nuid = 5\ntenant = 'other'\n");
  EXPECT_EQ(Reload().size(), 1u);
  EXPECT_EQ(ReasonOf(Check({.of_connection = &*connection})), "CREDENTIALS_INVALID");
  EXPECT_EQ(authenticator_->OfUser(5, 1)->tenant, "other");
}

TEST_F(AuthenticatorTest, TokensOfBothKindsStandBesideEachOther) {
  const auto key = testing::JwtKey::Ec("k");
  AuthFiles files = {.tokens = WriteTokens({token_.line}),
                     .jwt_keys = Write("keys", testing::KeySet({key.PublicJson()}))};
  files.jwt.issuer = "me";
  files.jwt.audience = "attention";
  Start(files);
  nlohmann::json claims = {
      {"iss", "me"}, {"aud", "attention"}, {"sub", "jwt"}, {"exp", 1'800'000'001}};
  EXPECT_EQ(*CheckToken(token_.token), kAcme);
  EXPECT_EQ(CheckToken(key.Sign("ES256", claims))->tenant, "jwt");
  claims["exp"] = 1'700'000'000;
  EXPECT_EQ(ReasonOf(CheckToken(key.Sign("ES256", claims))), "CREDENTIALS_EXPIRED");
  EXPECT_EQ(ReasonOf(CheckToken("unknown")), "CREDENTIALS_INVALID");
  // The set shrinks: what the key has signed is worth nothing from then on.
  Write("keys", testing::KeySet({testing::JwtKey::Ec("other").PublicJson()}));
  const auto reloaded = Reload();
  ASSERT_EQ(reloaded.size(), 1u);
  EXPECT_TRUE(reloaded[0].status.ok()) << reloaded[0].status;
  claims["exp"] = 1'800'000'001;
  EXPECT_EQ(ReasonOf(CheckToken(key.Sign("ES256", claims))), "CREDENTIALS_INVALID");
}

TEST_F(AuthenticatorTest, NoMessageRepeatsACredential) {
  Start({.tokens = WriteTokens({token_.line})});
  const std::string secret = "s3cr3t" + token_.token;
  for (const std::string& authorization : {"Bearer " + secret, "Basic " + secret, secret}) {
    const absl::Status status = Check({.authorization = authorization}).status();
    EXPECT_THAT(status.ToString(), Not(HasSubstr("s3cr3t")));
  }
}

TEST_F(AuthenticatorTest, AChangedFileIsReadOnceItIsStill) {
  Start({.tokens = WriteTokens({token_.line})});
  EXPECT_TRUE(authenticator_->ReloadChanged().empty());
  WriteTokens({admin_.line});
  EXPECT_TRUE(authenticator_->ReloadChanged().empty());  // it may still be written
  EXPECT_TRUE(CheckToken(token_.token).ok());
  const auto reloaded = authenticator_->ReloadChanged();
  ASSERT_EQ(reloaded.size(), 1u);
  EXPECT_STREQ(reloaded[0].setting, "auth-tokens");
  EXPECT_TRUE(reloaded[0].status.ok());
  EXPECT_EQ(ReasonOf(CheckToken(token_.token)), "CREDENTIALS_INVALID");
  EXPECT_EQ(*CheckToken(admin_.token), kOps);
  EXPECT_TRUE(authenticator_->ReloadChanged().empty());  // told once
}

TEST_F(AuthenticatorTest, AWrongFileIsNotTakenAndTheOneBeforeStays) {
  const std::string path = WriteTokens({token_.line});
  Start({.tokens = path});
  const std::string half = admin_.line.substr(0, 40);
  for (const std::string& text :
       {std::string(), half, half + "\n", admin_.line, admin_.line + "\n" + admin_.line + "\n",
        std::string((1 << 20) + 1, '#')}) {
    Write("tokens", text);
    const auto reloaded = Reload();
    ASSERT_EQ(reloaded.size(), 1u) << text.size();
    EXPECT_TRUE(absl::IsInvalidArgument(reloaded[0].status));
    EXPECT_THAT(std::string(reloaded[0].status.message()), HasSubstr(path));
    EXPECT_EQ(*CheckToken(token_.token), kAcme);
    EXPECT_TRUE(authenticator_->ReloadChanged().empty());
  }
  std::filesystem::remove(path);
  EXPECT_EQ(Reload().size(), 1u);
  EXPECT_EQ(*CheckToken(token_.token), kAcme);
  WriteTokens({admin_.line});
  EXPECT_EQ(Reload().size(), 1u);
  EXPECT_EQ(*CheckToken(admin_.token), kOps);
}

TEST_F(AuthenticatorTest, AFileThatIsStillBeingWrittenWaits) {
  const std::string path = WriteTokens({token_.line});
  Start({.tokens = path});
  std::ofstream file(path);
  for (int i = 0; i < 5; ++i) {
    file << admin_.line.substr(0, 10) << i << std::flush;
    EXPECT_TRUE(authenticator_->ReloadChanged().empty()) << i;
  }
  EXPECT_EQ(*CheckToken(token_.token), kAcme);
}

TEST_F(AuthenticatorTest, AWrongFileAtTheStartIsTold) {
  const auto message = [](const AuthFiles& files) {
    return std::string(Authenticator::Create(files).status().message());
  };
  EXPECT_THAT(message({.tokens = "/nowhere/tokens"}),
              HasSubstr("auth-tokens is '/nowhere/tokens': cannot be read: No such file"));
  EXPECT_THAT(message({.tokens = Write("a", "one two\n")}), HasSubstr("line 1"));
  EXPECT_THAT(message({.identities = Write("b", "x")}), HasSubstr("auth-identities is"));
  EXPECT_THAT(message({.jwt_keys = Write("c", "{}")}), HasSubstr("auth-jwt-keys is"));
}

TEST_F(AuthenticatorTest, CallsAreCheckedWhileFilesAreReloaded) {
  Start({.tokens = WriteTokens({token_.line})});
  std::atomic<bool> is_done = false;
  std::atomic<int> num_wrong = 0;
  std::thread caller([&] {
    while (!is_done) {
      const auto identity = CheckToken(token_.token);
      if (!identity.ok() || *identity != kAcme) ++num_wrong;
    }
  });
  for (int i = 0; i < 20; ++i) {
    WriteTokens({token_.line, MakeToken(kOps).line});
    EXPECT_EQ(Reload().size(), 1u);
  }
  is_done = true;
  caller.join();
  EXPECT_EQ(num_wrong, 0);
}

}  // namespace
}  // namespace attention::server
