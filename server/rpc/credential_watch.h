// Ends connections on which call after call is refused for its credentials: a refusal costs little,
// but 10,000 a second would take a core from those who have credentials.
//
// Thread-safety: all methods.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "server/base/mutex.h"

namespace attention::server {

class CredentialWatch {
 public:
  static constexpr int kMaxRefusals = 100;  // of a connection, in a second

  // `close` ends the connection of a peer's address; false when there is none, or several of it.
  // `warn` is told at most once in five seconds.
  CredentialWatch(std::function<bool(const std::string& address)> close,
                  std::function<void(const std::string& text)> warn)
      : close_(std::move(close)), warn_(std::move(warn)) {}

  // A call that came over the connection was refused for its credentials.
  void OnRefused(const std::string& address, absl::Time now);

 private:
  struct Count {
    absl::Time since;
    int refusals = 0;
  };

  const std::function<bool(const std::string& address)> close_;
  const std::function<void(const std::string& text)> warn_;
  Mutex mutex_;
  std::unordered_map<std::string, Count> counts_ ABSL_GUARDED_BY(mutex_);
  std::int64_t untold_ ABSL_GUARDED_BY(mutex_) = 0;  // connections that were ended
  absl::Time last_told_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
};

}  // namespace attention::server
