// Ends connections that begin calls and reset them by the thousand: each costs gRPC some 30 us on
// the threads that serve everybody, is gone before a bound on concurrent calls counts it, and
// mostly before a service sees it.
//
// Thread-safety: none.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/time/time.h"
#include "server/base/metrics.h"

namespace attention::server {

// The number of calls of one connection that may be reset: a thousand at once, and as many in each
// second.
class ResetBudget {
 public:
  static constexpr double kMost = 1000;
  static constexpr double kPerSecond = 1000;

  explicit ResetBudget(absl::Time now) : last_(now) {}

  // Takes the counts of all calls of the connection so far. False: more were reset than may be, and
  // than succeeded.
  bool Spend(std::int64_t reset, std::int64_t succeeded, absl::Time now);

 private:
  std::int64_t reset_ = 0;
  std::int64_t succeeded_ = 0;
  double left_ = kMost;
  absl::Time last_;
};

// The counts that gRPC keeps of one connection.
struct ConnectionCounts {
  std::int64_t id = 0;
  std::string address;  // of the peer, as Connections::Close takes it
  std::int64_t reset = 0;
  std::int64_t succeeded = 0;
};

class ResetWatch {
 public:
  // Calls of one connection that gRPC lets be open. Those that seem to be open beyond it have been
  // reset: while a flood comes, gRPC reads on and ends them later.
  static constexpr int kMaxConcurrentCalls = 2048;

  // `close` ends the connection of an address; false: it cannot be told which one that is.
  ResetWatch(std::function<bool(const std::string& address)> close,
             std::function<void(const std::string& text)> warn, ServerMetrics& metrics);

  // Looks at what gRPC has counted, of some hundred connections each time.
  void Look(absl::Time now);

  void Judge(const ConnectionCounts& counts, absl::Time now);

 private:
  struct Watched {
    explicit Watched(absl::Time now) : budget(now) {}
    ResetBudget budget;
    bool is_told = false;
    int round = 0;  // in which it was seen last
  };

  void LookAtServer(std::int64_t server, absl::Time now);

  const std::function<bool(const std::string& address)> close_;
  const std::function<void(const std::string& text)> warn_;
  ServerMetrics& metrics_;
  std::map<std::int64_t, std::int64_t> unanswered_calls_;  // by server, as of the last look
  std::map<std::int64_t, Watched> watched_;                // by connection
  std::int64_t next_id_ = 0;                               // where the next look begins
  int round_ = 0;                                          // of looks at all connections
};

}  // namespace attention::server
