// Messages on their way: how much of them the server holds, who sends them, and for how long.
//
// gRPC hands over a message when all of it is there, and until then counts it nowhere. But the
// system counts what a connection has received; less what came out of it as messages, that is what
// the server holds for it. When all connections have more than the budget, calls of the one with
// the most are ended, the oldest first; and so is a call whose connection stands still. Others go
// on: gRPC's own quota, the last resort, would end whatever it finds first.
//
// The ledger decides alone, from what it is told; ReceivingWatch looks at it again and again.
//
// Thread-safety: all methods.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "server/base/clock.h"
#include "server/base/mutex.h"

namespace attention::server {

// A call that waits for a message.
class Receiver {
 public:
  // Both are called under the ledger's lock and not after the call has left it, so the ledger must
  // not be called under a lock that they take.

  // Since when the call waits; the infinite future while it does not, as a stream that is not read
  // because its answers are not.
  virtual absl::Time WaitsSince() const = 0;
  // Ends the call with the status. At most once.
  virtual void EndReceiving(const absl::Status& status) = 0;

 protected:
  ~Receiver() = default;
};

class ReceivingLedger {
 public:
  struct Limits {
    std::int64_t max_bytes = 0;
    absl::Duration timeout;
  };
  // Returns the bytes that the connection to this peer, as gRPC names it, has received since it was
  // made; nothing when the system does not say, as of unix sockets.
  using Counter = std::function<std::optional<std::int64_t>(const std::string& peer)>;

  // A unary call waits for one message. A stream waits for the next as long as it is open.
  enum class Kind { kUnary, kStream };

 private:
  struct Call {
    Kind kind;
    Receiver* receiver;
    std::int64_t held_before = 0;  // of its connection
    bool is_ended = false;
    std::int64_t part = 0;  // of what the connection held when the call was ended
  };
  struct Connection {
    std::list<Call> calls;
    // The bytes it had received when none of them was held, and those that have left since: handed
    // over, or dropped with a call.
    std::optional<std::int64_t> settled;
    std::int64_t left = 0;
    absl::Time settle_time = absl::InfinitePast();
    // The bytes received and held, as of the last look.
    std::optional<std::int64_t> received;
    std::int64_t held = 0;
    // A call has left without its message, of which more may have come since the last look.
    bool has_dropped = false;
    // The time when it was last seen to have moved on, and the bytes it had received by then.
    absl::Time move_time = absl::InfinitePast();
    std::int64_t moved_to = 0;
  };
  using Connections = std::map<std::string, Connection>;

 public:
  // The place of a call, from Begin until Leave.
  class Place {
   private:
    friend class ReceivingLedger;
    Connections::iterator connection_;
    std::list<Call>::iterator call_;
  };

  ReceivingLedger(Limits limits, Counter counter) : limits_(limits), counter_(std::move(counter)) {}
  ReceivingLedger(const ReceivingLedger&) = delete;
  ReceivingLedger& operator=(const ReceivingLedger&) = delete;

  const Limits& limits() const { return limits_; }

  Place Begin(const std::string& peer, Kind kind, Receiver* receiver, absl::Time now);
  // A message of so many bytes has come to a stream, which may wait for more.
  void Came(const Place& place, std::size_t bytes, absl::Time now);
  // The call waits no longer; with its message's bytes, or 0 when none came. False: it was ended.
  bool Leave(const Place& place, std::size_t bytes);

  // Ends what is to be ended. Returns for how long nothing can happen that needs another look.
  absl::Duration Look(absl::Time now);

  // Held for messages that have not wholly come, as of the last look.
  std::int64_t bytes() const;

 private:
  void Settle(const std::string& peer, Connection& connection, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Measure(const std::string& peer, Connection& connection, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void EndThoseThatStandStill(Connection& connection, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The call of a connection that goes first: of the unary calls, or else the streams, that which
  // began first. Null: all have been ended.
  static Call* OldestOf(Connection& connection);
  // Returns what is held then, as far as can be told.
  std::int64_t EndUntilWithinBudget(std::int64_t held) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Limits limits_;
  const Counter counter_;
  mutable Mutex mutex_;
  Connections connections_ ABSL_GUARDED_BY(mutex_);  // by peer
  std::int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Looks at a ledger from a thread of its own, which ends with the object.
class ReceivingWatch {
 public:
  // Both must outlive the object.
  ReceivingWatch(ReceivingLedger& ledger, const Clock& clock);
  ~ReceivingWatch();
  ReceivingWatch(const ReceivingWatch&) = delete;
  ReceivingWatch& operator=(const ReceivingWatch&) = delete;

 private:
  absl::Notification stop_;
  std::thread thread_;
};

}  // namespace attention::server
