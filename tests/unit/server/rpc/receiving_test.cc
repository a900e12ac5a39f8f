#include "server/rpc/receiving.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <new>

#include "server/base/error_reason.h"
#include "tests/support/fake_clock.h"

namespace attention::server {
namespace {

using ::testing::HasSubstr;
using Kind = ReceivingLedger::Kind;

constexpr std::int64_t kMib = std::int64_t{1} << 20;

// A peer whose bytes the system does not tell.
constexpr char kUncounted[] = "unix:";

struct FakeCall final : Receiver {
  absl::Time WaitsSince() const override { return since; }
  void EndReceiving(const absl::Status& status) override {
    EXPECT_TRUE(end.ok()) << "ended twice";
    end = status;
  }
  bool is_ended() const { return !end.ok(); }

  absl::Time since = absl::InfiniteFuture();
  absl::Status end;
};

class ReceivingTest : public ::testing::Test {
 protected:
  using Place = ReceivingLedger::Place;

  Place Begin(const std::string& peer, FakeCall& call, Kind kind = Kind::kUnary) {
    if (peer != kUncounted) received_.try_emplace(peer, 0);
    call.since = now_;
    return ledger_.Begin(peer, kind, &call, now_);
  }
  void Receive(const std::string& peer, std::int64_t bytes) { received_[peer] += bytes; }
  void Look() { ledger_.Look(now_); }
  // Looks often enough to see what moves.
  void Wait(absl::Duration duration) {
    for (const absl::Time end = now_ + duration; now_ < end; now_ += absl::Seconds(1)) Look();
    Look();
  }

  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  std::map<std::string, std::int64_t> received_;
  std::atomic<int> num_failures_ = 0;  // looks that memory is out for
  ReceivingLedger ledger_{{.max_bytes = 100 * kMib, .timeout = absl::Seconds(30)},
                          [this](const std::string& peer) -> std::optional<std::int64_t> {
                            if (num_failures_ > 0 && num_failures_-- > 0) throw std::bad_alloc();
                            const auto found = received_.find(peer);
                            if (found == received_.end()) return std::nullopt;
                            return found->second;
                          }};
  FakeCall hog_;
  FakeCall other_;
};

TEST_F(ReceivingTest, WhatHasComeButNotWhollyIsCounted) {
  Receive("a", 7 * kMib);  // of earlier calls
  const Place place = Begin("a", hog_);
  Receive("a", 30 * kMib);
  Look();
  EXPECT_EQ(ledger_.bytes(), 30 * kMib);
  Receive("a", 10 * kMib);
  EXPECT_TRUE(ledger_.Leave(place, 40 * kMib));
  Look();
  EXPECT_EQ(ledger_.bytes(), 0);
}

TEST_F(ReceivingTest, OverTheBudgetTheConnectionWithTheMostIsEndedAndNoOther) {
  const Place small = Begin("a", other_);
  Receive("a", 20 * kMib);
  const Place large = Begin("b", hog_);
  Receive("b", 90 * kMib);
  Look();
  EXPECT_EQ(hog_.end.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(hog_.end.message()), HasSubstr("max-receiving-bytes (104857600)"));
  EXPECT_EQ(GetErrorDetail(hog_.end)->reason, "QUEUE_FULL");
  EXPECT_FALSE(other_.is_ended());
  // Until it has left, it is not counted again.
  Look();
  EXPECT_FALSE(other_.is_ended());
  EXPECT_FALSE(ledger_.Leave(large, 0)) << "the call is told that it was ended";
  Look();
  EXPECT_TRUE(ledger_.Leave(small, 20 * kMib));
}

TEST_F(ReceivingTest, OfOneConnectionTheOldestIsEndedFirst) {
  const Place first = Begin("a", hog_);
  now_ += absl::Seconds(2);
  const Place second = Begin("a", other_);
  Receive("a", 150 * kMib);
  Look();
  EXPECT_TRUE(hog_.is_ended());
  EXPECT_FALSE(other_.is_ended()) << "with half of it gone the rest is within the budget";
  ledger_.Leave(first, 0);
  ledger_.Leave(second, 75 * kMib);
}

TEST_F(ReceivingTest, AnUploadThatStandsStillIsEnded) {
  const Place place = Begin("a", hog_);
  Receive("a", 5 * kMib);
  Wait(absl::Seconds(29));
  EXPECT_FALSE(hog_.is_ended());
  Wait(absl::Seconds(2));
  EXPECT_EQ(hog_.end.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(hog_.end.message()), HasSubstr("upload-stall-timeout (30s)"));
  ledger_.Leave(place, 0);
}

TEST_F(ReceivingTest, ASlowUploadThatMovesGoesOnButNotForEver) {
  const Place place = Begin("a", hog_);
  for (int i = 0; i < 9; ++i) {
    Receive("a", 2 * kMib);
    Wait(absl::Seconds(29));
  }
  EXPECT_FALSE(hog_.is_ended());
  for (int i = 0; i < 2; ++i) {
    Receive("a", 2 * kMib);
    Wait(absl::Seconds(29));
  }
  EXPECT_TRUE(hog_.is_ended());
  ledger_.Leave(place, 0);
}

TEST_F(ReceivingTest, WhereTheSystemDoesNotCountTimeAloneEndsAnUpload) {
  const Place place = Begin(kUncounted, hog_);
  Wait(absl::Seconds(29));
  EXPECT_FALSE(hog_.is_ended());
  Wait(absl::Seconds(2));
  EXPECT_TRUE(hog_.is_ended());
  EXPECT_EQ(ledger_.bytes(), 0);
  ledger_.Leave(place, 0);
}

TEST_F(ReceivingTest, AnIdleStreamIsLeftAlone) {
  const Place stream = Begin("a", hog_, Kind::kStream);
  for (int i = 0; i < 1000; ++i) {
    Receive("a", 100 + 60);
    ledger_.Came(stream, 100, now_);
    now_ += absl::Milliseconds(1);
  }
  for (int i = 0; i < 100; ++i) {  // pings
    Receive("a", 17);
    Wait(absl::Seconds(20));
  }
  EXPECT_FALSE(hog_.is_ended());
  EXPECT_EQ(ledger_.bytes(), 0);
  ledger_.Leave(stream, 0);
}

TEST_F(ReceivingTest, AStreamThatStoppedWithinALargeMessageIsEnded) {
  const Place stream = Begin("a", hog_, Kind::kStream);
  Receive("a", 1000);
  ledger_.Came(stream, 1000, now_);
  Receive("a", 50 * kMib);
  Wait(absl::Seconds(31));
  EXPECT_TRUE(hog_.is_ended());
  ledger_.Leave(stream, 0);
}

TEST_F(ReceivingTest, AStreamThatTheServerDoesNotReadIsNotToBlame) {
  const Place stream = Begin("a", hog_, Kind::kStream);
  Receive("a", 50 * kMib);  // into gRPC's window
  hog_.since = absl::InfiniteFuture();
  Wait(absl::Minutes(10));
  EXPECT_FALSE(hog_.is_ended());
  hog_.since = now_;  // read again
  Wait(absl::Seconds(29));
  EXPECT_FALSE(hog_.is_ended());
  Wait(absl::Seconds(2));
  EXPECT_TRUE(hog_.is_ended());
  ledger_.Leave(stream, 0);
}

TEST_F(ReceivingTest, AStreamHoldsMoreThanTheBudgetAndIsEnded) {
  const Place idle = Begin("a", other_, Kind::kStream);
  const Place stream = Begin("b", hog_, Kind::kStream);
  Receive("b", 101 * kMib);
  Look();
  EXPECT_TRUE(hog_.is_ended());
  EXPECT_FALSE(other_.is_ended());
  ledger_.Leave(stream, 0);
  ledger_.Leave(idle, 0);
}

TEST_F(ReceivingTest, WhatACancelledUploadSentIsNotHeldAgainstItsConnectionsStream) {
  const Place stream = Begin("a", other_, Kind::kStream);
  for (int i = 0; i < 20; ++i) {
    const Place upload = Begin("a", hog_);
    Receive("a", 40 * kMib);
    Look();
    Receive("a", 20 * kMib);
    ledger_.Leave(upload, 0);  // the client gave up
    Look();
  }
  EXPECT_LT(ledger_.bytes(), kMib);
  Wait(absl::Minutes(10));
  EXPECT_FALSE(other_.is_ended());
  ledger_.Leave(stream, 0);
}

TEST_F(ReceivingTest, MillionsOfSmallCallsLeaveNothingBehind) {
  const Place stream = Begin("a", other_, Kind::kStream);  // keeps the connection in use
  for (int i = 0; i < 200'000; ++i) {
    const Place call = Begin("a", hog_);
    Receive("a", 300);  // headers, and no message to speak of
    EXPECT_TRUE(ledger_.Leave(call, 1));
    if (i % 100 == 0) Look();
    now_ += absl::Microseconds(100);
  }
  EXPECT_LT(ledger_.bytes(), kMib);
  ledger_.Leave(stream, 0);
}

TEST_F(ReceivingTest, FarFromTheBudgetItNeedNotBeWatchedClosely) {
  const Place place = Begin("a", hog_);
  const absl::Duration idle = ledger_.Look(now_);
  Receive("a", 90 * kMib);
  EXPECT_LT(ledger_.Look(now_), idle);
  ledger_.Leave(place, 0);
}

TEST_F(ReceivingTest, TheWatchLooksByItselfAndAgainWhenMemoryWasOut) {
  FakeClock clock;
  received_["a"] = 0;
  now_ = clock.Now();
  absl::Notification ended;
  struct Notifying final : Receiver {
    explicit Notifying(absl::Notification& done) : done(done) {}
    absl::Time WaitsSince() const override { return absl::InfiniteFuture(); }
    void EndReceiving(const absl::Status&) override { done.Notify(); }
    absl::Notification& done;
  } call(ended);
  const Place place = ledger_.Begin("a", Kind::kUnary, &call, now_);
  received_["a"] = 200 * kMib;
  num_failures_ = 2;
  {
    ReceivingWatch watch(ledger_, clock);
    ended.WaitForNotification();
  }
  ledger_.Leave(place, 0);
}

}  // namespace
}  // namespace attention::server
