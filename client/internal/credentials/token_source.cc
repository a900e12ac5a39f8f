#include "client/internal/credentials/token_source.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "attention/client/errors.h"

namespace attention::client::internal {
namespace {

// More than a server takes as headers.
constexpr std::size_t kMaxTokenBytes = 16384;

// A file that changed less long ago may be half written.
constexpr absl::Duration kWriteTime = absl::Milliseconds(100);
// File systems tell times apart that differ by this much.
constexpr absl::Duration kClockTick = absl::Seconds(2);

bool IsTokenByte(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
         absl::string_view("-._~+/").find(c) != absl::string_view::npos;
}

absl::Status NoToken(std::string_view reason, const std::string& message) {
  return WithReason(absl::UnauthenticatedError(message), reason);
}

class FixedToken final : public TokenSource {
 public:
  explicit FixedToken(std::string token) : token_(std::move(token)) {}
  absl::StatusOr<std::string> Token() override { return token_; }

 private:
  const std::string token_;
};

class TokenCallback final : public TokenSource {
 public:
  using Give = std::function<absl::StatusOr<std::string>()>;

  explicit TokenCallback(Give give) : give_(std::move(give)) {}
  absl::StatusOr<std::string> Token() override {
    absl::StatusOr<std::string> token = give_();
    if (!token.ok()) return token;
    const absl::Status status = CheckToken(*token);
    if (status.ok()) return token;
    return NoToken(kCredentialsInvalid, absl::StrCat("token.callback: ", status.message()));
  }

 private:
  const Give give_;
};

}  // namespace

absl::Status CheckToken(absl::string_view token) {
  if (token.empty()) return absl::InvalidArgumentError("the token is empty");
  if (token.size() > kMaxTokenBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the token has ", token.size(), " bytes, expected at most ", kMaxTokenBytes));
  }
  std::size_t end = token.size();
  while (end > 0 && token[end - 1] == '=') --end;
  for (std::size_t i = 0; i < end; ++i) {
    if (IsTokenByte(token[i])) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("byte ", i,
                     " of the token is none that tokens have: expected letters, digits "
                     "and -._~+/, with = at the end alone"));
  }
  return end > 0 ? absl::OkStatus() : absl::InvalidArgumentError("the token is nothing but =");
}

TokenFile::TokenFile(std::string path, std::function<absl::Time()> now)
    : path_(std::move(path)), now_(std::move(now)) {}

absl::StatusOr<std::string> TokenFile::Token() {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = now_();
  const absl::StatusOr<Version> seen = Look();
  absl::Status status = seen.status();
  const bool is_known = seen.ok() && !token_.empty() && *seen == version_;
  if (is_known && is_settled_) return token_;
  if (seen.ok() && !is_known && !token_.empty()) {
    const absl::Duration age = now - seen->changed;
    if (age >= absl::ZeroDuration() && age < kWriteTime) return token_;
  }
  if (status.ok()) {
    absl::StatusOr<std::string> token = Read();
    status = token.status();
    // Bytes that were read while the file changed may be of two tokens.
    const absl::StatusOr<Version> after = Look();
    const bool is_whole = after.ok() && *after == *seen;
    if (token.ok() && (is_whole || token_.empty())) {
      token_ = *std::move(token);
      version_ = *seen;
      is_settled_ = now - version_.changed > kClockTick;
    }
  }
  if (!token_.empty()) return token_;
  return NoToken(kCredentialsMissing, absl::StrCat("token.file: ", status.message()));
}

absl::StatusOr<TokenFile::Version> TokenFile::Look() const {
  struct stat found {};
  if (stat(path_.c_str(), &found) != 0) {
    return absl::NotFoundError(absl::StrCat("cannot read '", path_, "': ", std::strerror(errno)));
  }
  return Version{found.st_dev, found.st_ino, found.st_size, absl::TimeFromTimespec(found.st_mtim)};
}

absl::StatusOr<std::string> TokenFile::Read() const {
  errno = 0;
  std::ifstream file(path_, std::ios::binary);
  // One more than may be, with white space around it, so that what is longer is seen to be.
  std::string text(2 * kMaxTokenBytes, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.gcount() == 0 && (!file.is_open() || file.bad() || errno != 0)) {
    return absl::NotFoundError(
        absl::StrCat("cannot read '", path_, "': ", std::strerror(errno != 0 ? errno : EIO)));
  }
  text.resize(static_cast<std::size_t>(file.gcount()));
  const absl::string_view token = absl::StripAsciiWhitespace(text);
  const absl::Status status = CheckToken(token);
  if (status.ok()) return std::string(token);
  return absl::InvalidArgumentError(absl::StrCat("'", path_, "': ", status.message()));
}

std::shared_ptr<TokenSource> MakeTokenSource(const TokenOptions& options) {
  if (!options.value.empty()) return std::make_shared<FixedToken>(options.value);
  if (!options.file.empty()) return std::make_shared<TokenFile>(options.file, absl::Now);
  if (options.callback != nullptr) return std::make_shared<TokenCallback>(options.callback);
  return nullptr;
}

absl::Status CheckTokenOptions(const TokenOptions& options) {
  const int num_set = static_cast<int>(!options.value.empty()) +
                      static_cast<int>(!options.file.empty()) +
                      static_cast<int>(options.callback != nullptr);
  if (num_set > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("token.value, token.file and token.callback: ", num_set,
                     " of them are set, expected at most one"));
  }
  if (!options.value.empty()) {
    const absl::Status status = CheckToken(options.value);
    if (status.ok()) return status;
    return absl::InvalidArgumentError(absl::StrCat("token.value: ", status.message()));
  }
  if (options.file.empty()) return absl::OkStatus();
  const absl::Status status = TokenFile(options.file, absl::Now).Token().status();
  return status.ok() ? status : absl::InvalidArgumentError(status.message());
}

}  // namespace attention::client::internal
