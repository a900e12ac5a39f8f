// Where the token of a call comes from: a fixed text, a file that may change, or the program.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "attention/client/credentials.h"

namespace attention::client::internal {

// Thread-safe.
class TokenSource {
 public:
  virtual ~TokenSource() = default;
  // The token for a call that begins now, or the status with which the call is to end.
  virtual absl::StatusOr<std::string> Token() = 0;
};

// INVALID_ARGUMENT if the text is no bearer token (RFC 6750); says where and never what it holds.
absl::Status CheckToken(absl::string_view token);

// The newest whole token that a file held; see TokenOptions::file.
class TokenFile final : public TokenSource {
 public:
  TokenFile(std::string path, std::function<absl::Time()> now);

  absl::StatusOr<std::string> Token() override;

 private:
  // Tells a file's contents from earlier ones without reading them.
  struct Version {
    dev_t device = 0;
    ino_t file = 0;
    off_t size = 0;
    absl::Time changed = absl::InfinitePast();

    friend bool operator==(const Version&, const Version&) = default;
  };

  absl::StatusOr<Version> Look() const;
  absl::StatusOr<std::string> Read() const;

  const std::string path_;
  const std::function<absl::Time()> now_;

  absl::Mutex mutex_;
  std::string token_ ABSL_GUARDED_BY(mutex_);        // empty until the first could be read
  Version version_ ABSL_GUARDED_BY(mutex_);          // that token_ was read from
  bool is_settled_ ABSL_GUARDED_BY(mutex_) = false;  // later writes give a later version_.changed
};

// Null without a token.
std::shared_ptr<TokenSource> MakeTokenSource(const TokenOptions& options);

// INVALID_ARGUMENT names the option: more than one is set, the value is no token, or the file holds
// none.
absl::Status CheckTokenOptions(const TokenOptions& options);

}  // namespace attention::client::internal
