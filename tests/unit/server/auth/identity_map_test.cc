#include "server/auth/identity_map.h"

#include <gmock/gmock.h>

namespace attention::server {
namespace {

using ::testing::HasSubstr;

constexpr char kFile[] = R"(
[[certificate]]
uri = "spiffe://example.org/engine"
tenant = "acme"

[[certificate]]
dns = "Ops.Example.org"
tenant = "ops"
role = "admin"

[[user]]
uid = 1000
gid = 7
tenant = "narrow"

[[user]]
uid = 1000
tenant = "acme"

[[user]]
gid = 50
tenant = "group"
)";

const Identity kAcme = {"acme", Role::kUse};
const Identity kOps = {"ops", Role::kAdmin};

TEST(IdentityMapTest, ACertificateIsKnownByItsNames) {
  const auto map = IdentityMap::Parse(kFile);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_TRUE(map->has_certificates());
  EXPECT_EQ(map->OfCertificate({"spiffe://example.org/engine"}, {}), kAcme);
  EXPECT_EQ(map->OfCertificate({}, {"other", "ops.example.ORG"}), kOps);
  // URIs come first, whatever the order in the file.
  EXPECT_EQ(map->OfCertificate({"spiffe://example.org/engine"}, {"ops.example.org"}), kAcme);
  EXPECT_FALSE(map->OfCertificate({"spiffe://example.org/engine/x"}, {"example.org"}).has_value());
  EXPECT_FALSE(map->OfCertificate({"SPIFFE://example.org/ENGINE"}, {}).has_value());
  EXPECT_FALSE(map->OfCertificate({}, {"spiffe://example.org/engine"}).has_value());
}

TEST(IdentityMapTest, TheFirstEntryThatFitsAUserCounts) {
  const auto map = IdentityMap::Parse(kFile);
  ASSERT_TRUE(map.ok()) << map.status();
  EXPECT_TRUE(map->has_users());
  EXPECT_EQ(map->OfUser(1000, 7)->tenant, "narrow");
  EXPECT_EQ(map->OfUser(1000, 50)->tenant, "acme");
  EXPECT_EQ(map->OfUser(2, 50)->tenant, "group");
  EXPECT_FALSE(map->OfUser(2, 7).has_value());
  EXPECT_FALSE(map->OfUser(0, 0).has_value());
}

TEST(IdentityMapTest, AWrongFileIsRefusedWithItsLine) {
  const struct {
    const char* text;
    const char* message;
  } cases[] = {
      {"", "expected [[certificate]] or [[user]]"},
      {"[[user]]\nuid = \n", "line 2: this is no TOML"},
      {"[[users]]\nuid = 1\n", "'users'"},
      {"user = 3\n", "line 1: expected [[user]]"},
      {"[user]\nuid = 1\n", "expected [[user]]"},
      {"[[user]]\nuid = 1\n", "tenant is expected"},
      {"[[user]]\ntenant = \"a\"\n", "expected uid, gid or both"},
      {"[[user]]\ntenant = \"a\"\nuid = -1\n", "line 3: uid is expected to be a number"},
      {"[[user]]\ntenant = \"a\"\nuid = \"root\"\n", "line 3: uid is expected to be a number"},
      {"[[user]]\ntenant = \"a\"\nuid = 4294967296\n", "line 3: uid is expected to be a number"},
      {"[[user]]\ntenant = \"a\"\nuid = 1\n[[user]]\ntenant = \"b\"\nuid = 1\n",
       "line 4: an entry before it has the same uid and gid"},
      {"[[certificate]]\ntenant = \"a\"\n", "expected either uri or dns"},
      {"[[certificate]]\ntenant = \"a\"\nuri = \"u\"\ndns = \"d\"\n", "expected either uri or dns"},
      {"[[certificate]]\ntenant = \"a\"\nuri = \"\"\n", "line 3: uri is expected to be a text"},
      {"[[certificate]]\ntenant = \"\\n\"\nuri = \"u\"\n", "tenant is expected"},
      {"[[certificate]]\ntenant = \"a\"\nrole = \"root\"\nuri = \"u\"\n", "role is expected"},
      {"[[certificate]]\ntenant = \"a\"\nurl = \"u\"\n", "line 3: has the key 'url'"},
      {"[[certificate]]\ntenant = \"a\"\ndns = \"d\"\n[[certificate]]\ntenant = \"b\"\ndns = "
       "\"D\"\n",
       "line 4: an entry before it has the same name"},
  };
  for (const auto& [text, message] : cases) {
    const auto map = IdentityMap::Parse(text);
    EXPECT_TRUE(absl::IsInvalidArgument(map.status())) << text;
    EXPECT_THAT(std::string(map.status().message()), HasSubstr(message)) << text;
  }
}

}  // namespace
}  // namespace attention::server
