#include "client/internal/credentials/token_source.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>

#include "attention/client/errors.h"
#include "tests/unit/client/scratch_folder.h"

namespace attention::client::internal {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(CheckTokenTest, TakesWhatBearerTokensAreMadeOf) {
  for (const char* token : {"a", "AZaz09-._~+/", "bG9uZw==", "header.payload.signature"}) {
    EXPECT_TRUE(CheckToken(token).ok()) << token;
  }
  EXPECT_TRUE(CheckToken(std::string(16384, 'x')).ok());
  EXPECT_FALSE(CheckToken(std::string(16385, 'x')).ok());
}

TEST(CheckTokenTest, SaysWhereATokenIsWrongAndNotWhatItHolds) {
  for (const char* token :
       {"", "=", "secret secret", "secret\n", "secret\"", "sec=ret", "s\xffz"}) {
    const absl::Status status = CheckToken(token);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << token;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("secret")));
  }
  EXPECT_THAT(std::string(CheckToken("secret secret").message()), HasSubstr("byte 6 "));
}

// The time that the source sees is the test's own, and so are the times of its file.
class TokenFileTest : public testing::Test {
 protected:
  // Writes over the file, as if at this time.
  void Write(const std::string& text, absl::Time when) {
    const std::string path = folder_.Write("token", text);
    const timespec times[] = {absl::ToTimespec(when), absl::ToTimespec(when)};
    ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  }
  std::string TokenAt(absl::Time now) {
    now_ = now;
    const absl::StatusOr<std::string> token = source_.Token();
    return token.ok() ? *token : token.status().ToString();
  }

  const ScratchFolder folder_;
  const absl::Time start_ = absl::FromUnixSeconds(1'700'000'000);
  absl::Time now_ = start_;
  TokenFile source_{folder_.PathOf("token"), [this] { return now_; }};
};

TEST_F(TokenFileTest, WhiteSpaceAroundATokenDoesNotCount) {
  Write(" one\r\n\n", start_);
  EXPECT_EQ(TokenAt(start_), "one");
}

TEST_F(TokenFileTest, ATokenThatIsReplacedIsReadAgain) {
  Write("one", start_);
  EXPECT_EQ(TokenAt(start_ + absl::Hours(1)), "one");
  Write("two", start_ + absl::Hours(2));
  EXPECT_EQ(TokenAt(start_ + absl::Hours(3)), "two");
  // This one has the same length, and for the file system the same time.
  Write("thr", start_ + absl::Hours(4));
  EXPECT_EQ(TokenAt(start_ + absl::Hours(4) + absl::Seconds(1)), "thr");
  Write("fou", start_ + absl::Hours(4));
  EXPECT_EQ(TokenAt(start_ + absl::Hours(4) + absl::Seconds(1)), "fou");
}

TEST_F(TokenFileTest, AFileThatMayBeHalfWrittenWaits) {
  const absl::Time write = start_ + absl::Hours(1);
  Write("one", start_);
  EXPECT_EQ(TokenAt(start_ + absl::Minutes(1)), "one");
  Write("tw", write);
  EXPECT_EQ(TokenAt(write), "one");
  EXPECT_EQ(TokenAt(write + absl::Milliseconds(99)), "one");
  Write("two", write + absl::Milliseconds(99));
  EXPECT_EQ(TokenAt(write + absl::Milliseconds(150)), "one");
  EXPECT_EQ(TokenAt(write + absl::Milliseconds(200)), "two");
}

TEST_F(TokenFileTest, TheFirstTokenDoesNotWait) {
  Write("one", start_);
  EXPECT_EQ(TokenAt(start_), "one");
}

TEST_F(TokenFileTest, AClockThatIsBehindTheFilesDoesNotHoldATokenBack) {
  Write("one", start_);
  EXPECT_EQ(TokenAt(start_ + absl::Hours(1)), "one");
  Write("two", start_ + absl::Hours(3));
  EXPECT_EQ(TokenAt(start_ + absl::Hours(2)), "two");
}

TEST_F(TokenFileTest, TheOldTokenIsKeptWhileThereIsNoNewOne) {
  Write("one", start_);
  EXPECT_EQ(TokenAt(start_ + absl::Hours(1)), "one");
  Write("", start_ + absl::Hours(2));
  EXPECT_EQ(TokenAt(start_ + absl::Hours(3)), "one") << "empty";
  Write("not a token", start_ + absl::Hours(4));
  EXPECT_EQ(TokenAt(start_ + absl::Hours(5)), "one") << "no token";
  std::filesystem::remove(folder_.PathOf("token"));
  EXPECT_EQ(TokenAt(start_ + absl::Hours(6)), "one") << "removed";
  std::filesystem::create_directory(folder_.PathOf("token"));
  EXPECT_EQ(TokenAt(start_ + absl::Hours(7)), "one") << "a folder";
  std::filesystem::remove(folder_.PathOf("token"));
  Write("two", start_ + absl::Hours(8));
  EXPECT_EQ(TokenAt(start_ + absl::Hours(9)), "two") << "there again";
}

TEST_F(TokenFileTest, WithoutAnyTokenTheCallIsUnauthenticated) {
  EXPECT_TRUE(absl::IsUnauthenticated(source_.Token().status()));
  EXPECT_EQ(ErrorReason(source_.Token().status()), std::string(kCredentialsMissing));
  EXPECT_THAT(std::string(source_.Token().status().message()),
              AllOf(HasSubstr("token.file"), HasSubstr("No such file or directory")));
  Write("secret secret", start_);
  const absl::Status status = source_.Token().status();
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("byte 6"), Not(HasSubstr("secret"))));
  Write("one", start_);
  EXPECT_EQ(TokenAt(start_), "one");
}

TEST(TokenCallbackTest, ItsFailureIsTheCallsAndItsTokenIsChecked) {
  absl::StatusOr<std::string> next = "one";
  const auto source = MakeTokenSource({.callback = [&next] { return next; }});
  EXPECT_EQ(*source->Token(), "one");
  next = absl::UnavailableError("the issuer is away");
  EXPECT_TRUE(absl::IsUnavailable(source->Token().status()));
  next = "secret secret";
  const absl::Status status = source->Token().status();
  EXPECT_TRUE(absl::IsUnauthenticated(status));
  EXPECT_EQ(ErrorReason(status), std::string(kCredentialsInvalid));
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("token.callback"), Not(HasSubstr("secret"))));
}

TEST(TokenOptionsTest, AreAtMostOneOfTheThree) {
  EXPECT_EQ(MakeTokenSource({}), nullptr);
  EXPECT_TRUE(CheckTokenOptions({}).ok());
  const absl::Status status = CheckTokenOptions({.value = "a", .file = "/no/such/file"});
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("token.value, token.file"));
}

}  // namespace
}  // namespace attention::client::internal
