#include "server/rpc/receiving.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/base/contain_exceptions.h"
#include "server/base/error_reason.h"

namespace attention::server {
namespace {

// Nothing comes faster (bytes a second), so a budget that is far away need not be watched closely.
constexpr double kFastest = 4e9;
constexpr absl::Duration kMinPeriod = absl::Milliseconds(5);
constexpr absl::Duration kMaxPeriod = absl::Milliseconds(250);

// Asking the system once for every small call would cost some of them 1 % of their time.
constexpr absl::Duration kSettlePeriod = absl::Milliseconds(5);
// Connections that nobody uses are forgotten after this.
constexpr absl::Duration kForgetAfter = absl::Minutes(1);

// Frames, headers and TLS records are received and never handed over: rather more is taken off for
// each message than those of most. What is left of that, and pings, is a small difference on a
// connection that says nothing.
constexpr std::int64_t kOverheadBytes = 512;
constexpr int kOverheadShare = 256;
constexpr std::int64_t kIdleSlack = 1 << 10;

// Progress of less in a whole timeout counts as standing still.
constexpr std::int64_t kLeastProgress = 64 << 10;
// A stream is ended for what its connection holds only if that is more than an error of counting.
constexpr std::int64_t kLeastHeld = 1 << 20;
// However it moves, an upload may take so many timeouts.
constexpr int kMaxTimeouts = 10;

std::int64_t OnTheWire(std::size_t bytes) {
  const auto size = static_cast<std::int64_t>(bytes);
  return size + size / kOverheadShare + kOverheadBytes;
}

absl::Status StoodStill(absl::Duration timeout) {
  return absl::DeadlineExceededError(absl::StrCat(
      "the request's message has not wholly come: its connection sent less than ", kLeastProgress,
      " bytes in upload-stall-timeout (", absl::FormatDuration(timeout), "), or the message took ",
      kMaxTimeouts, " times that"));
}

absl::Status TooMuch(std::int64_t held, std::int64_t all, std::int64_t max) {
  return ReasonedError(absl::StatusCode::kResourceExhausted, ErrorReason::kQueueFull,
                       absl::StrCat("the server holds ", all,
                                    " bytes of requests that have not wholly come, "
                                    "expected at most max-receiving-bytes (",
                                    max, "); this call's connection has the most of them, ", held),
                       {}, absl::Seconds(1));
}

}  // namespace

ReceivingLedger::Place ReceivingLedger::Begin(const std::string& peer, Kind kind,
                                              Receiver* receiver, absl::Time now) {
  MutexLock lock(&mutex_);
  Place place;
  place.connection_ = connections_.try_emplace(peer).first;
  Connection& connection = place.connection_->second;
  if (connection.calls.empty()) Settle(peer, connection, now);
  place.call_ = connection.calls.insert(connection.calls.end(), {kind, receiver, connection.held});
  return place;
}

void ReceivingLedger::Came(const Place& place, std::size_t bytes, absl::Time now) {
  MutexLock lock(&mutex_);
  Connection& connection = place.connection_->second;
  connection.left += OnTheWire(bytes);
  if (connection.calls.size() == 1) Settle(place.connection_->first, connection, now);
}

bool ReceivingLedger::Leave(const Place& place, std::size_t bytes) {
  MutexLock lock(&mutex_);
  Connection& connection = place.connection_->second;
  const Call call = *place.call_;
  connection.calls.erase(place.call_);
  if (bytes > 0) {
    connection.left += OnTheWire(bytes);
  } else {
    // gRPC drops what has come of the message: as much as the connection holds more than before the
    // call.
    const std::int64_t more = std::max<std::int64_t>(0, connection.held - call.held_before);
    const std::int64_t dropped = call.part > 0 ? call.part : more;
    connection.left += dropped;
    connection.held -= std::min(connection.held, dropped);
    // Another upload's bytes must not pass for this one's.
    connection.has_dropped =
        std::all_of(connection.calls.begin(), connection.calls.end(),
                    [](const Call& other) { return other.kind == Kind::kStream; });
  }
  return !call.is_ended;
}

// Nothing that was received is held.
void ReceivingLedger::Settle(const std::string& peer, Connection& connection, absl::Time now) {
  if (now - connection.settle_time < kSettlePeriod) return;
  connection.settled = counter_(peer);
  connection.left = 0;
  connection.has_dropped = false;
  connection.settle_time = now;
  connection.move_time = now;
  connection.moved_to = connection.settled.value_or(0);
}

void ReceivingLedger::Measure(const std::string& peer, Connection& connection, absl::Time now) {
  const std::optional<std::int64_t> before = std::exchange(connection.received, counter_(peer));
  const std::int64_t held_before = std::exchange(connection.held, 0);
  if (!connection.received) return;
  const std::int64_t received = *connection.received;
  if (!connection.settled) connection.settled = received;
  std::int64_t held = received - *connection.settled - connection.left;
  for (const Call& call : connection.calls) held -= call.part;
  if (std::exchange(connection.has_dropped, false) && held > held_before) {
    connection.left += held - held_before;
    held = held_before;
  }
  connection.held = std::max<std::int64_t>(0, held);
  if (connection.held <= (received == before ? kIdleSlack : 0)) {
    connection.settled = received;
    connection.left = 0;
    connection.held = 0;
  }
  if (received - connection.moved_to < kLeastProgress) return;
  connection.moved_to = received;
  connection.move_time = now;
}

void ReceivingLedger::EndThoseThatStandStill(Connection& connection, absl::Time now) {
  const bool stands_still = !connection.received || now - connection.move_time >= limits_.timeout;
  // A stream that waits for its next message looks like one that stopped within it: only a
  // connection that holds much has one of those.
  const bool ends_streams = stands_still && connection.held >= kLeastHeld;
  for (Call& call : connection.calls) {
    if (call.is_ended) continue;
    const absl::Duration age = now - call.receiver->WaitsSince();
    if (age < limits_.timeout) continue;
    const bool ends = call.kind == Kind::kStream
                          ? ends_streams
                          : stands_still || age >= kMaxTimeouts * limits_.timeout;
    if (!ends) continue;
    call.is_ended = true;
    call.receiver->EndReceiving(StoodStill(limits_.timeout));
  }
}

ReceivingLedger::Call* ReceivingLedger::OldestOf(Connection& connection) {
  Call* oldest = nullptr;
  for (Call& call : connection.calls) {  // by begin
    if (call.is_ended || (oldest != nullptr && call.kind >= oldest->kind)) continue;
    oldest = &call;
  }
  return oldest;
}

std::int64_t ReceivingLedger::EndUntilWithinBudget(std::int64_t held) {
  while (held > limits_.max_bytes) {
    Connection* most = nullptr;
    for (auto& [peer, connection] : connections_) {
      if ((most == nullptr || connection.held > most->held) && OldestOf(connection) != nullptr) {
        most = &connection;
      }
    }
    if (most == nullptr || most->held == 0) return held;
    Call* const oldest = OldestOf(*most);
    const auto others = std::count_if(
        most->calls.begin(), most->calls.end(),
        [&](const Call& call) { return call.kind == oldest->kind && !call.is_ended; });
    oldest->is_ended = true;
    oldest->receiver->EndReceiving(TooMuch(most->held, held, limits_.max_bytes));
    oldest->part = most->held / others;  // about
    most->held -= oldest->part;
    held -= oldest->part;
  }
  return held;
}

absl::Duration ReceivingLedger::Look(absl::Time now) {
  MutexLock lock(&mutex_);
  std::int64_t held = 0;
  for (auto it = connections_.begin(); it != connections_.end();) {
    auto& [peer, connection] = *it;
    if (connection.calls.empty()) {
      connection.held = 0;
      it = now - connection.settle_time > kForgetAfter ? connections_.erase(it) : std::next(it);
      continue;
    }
    Measure(peer, connection, now);
    EndThoseThatStandStill(connection, now);
    held += connection.held;
    ++it;
  }
  bytes_ = held;
  held = EndUntilWithinBudget(held);
  const double seconds = static_cast<double>(limits_.max_bytes - held) / kFastest;
  return std::clamp(absl::Seconds(seconds), kMinPeriod, kMaxPeriod);
}

std::int64_t ReceivingLedger::bytes() const {
  MutexLock lock(&mutex_);
  return bytes_;
}

ReceivingWatch::ReceivingWatch(ReceivingLedger& ledger, const Clock& clock)
    : thread_([this, &ledger, &clock] {
        absl::Duration rest;
        do {
          rest = kMaxPeriod;
          TryRun([&] { rest = ledger.Look(clock.Now()); });
        } while (!stop_.WaitForNotificationWithTimeout(rest));
      }) {}

ReceivingWatch::~ReceivingWatch() {
  stop_.Notify();
  thread_.join();
}

}  // namespace attention::server
