#include "client/loadgen/collector.h"

#include <gtest/gtest.h>

#include "attention/client/errors.h"

namespace attention::loadgen {
namespace {

RequestTimes Times(absl::Duration scheduled, absl::Duration sent, absl::Duration answered) {
  RequestTimes times;
  times.scheduled = scheduled;
  times.sent = sent;
  times.answered = answered;
  return times;
}

const RequestTimes kTimes =
    Times(absl::Seconds(1), absl::Milliseconds(1002), absl::Milliseconds(1012));
const client::Timing kTiming{absl::Microseconds(100), absl::Microseconds(200),
                             absl::Microseconds(300), 3};

TEST(CollectorTest, LatencyCountsFromTheScheduleAndTheRestFromSending) {
  Collector collector;
  collector.AddOk(kTimes, kTiming, {.tokens = 2, .flops = 5, .bytes_sent = 7, .bytes_received = 9},
                  true);
  const Totals totals = collector.totals();
  EXPECT_EQ(totals.num_ok, 1);
  EXPECT_EQ(totals.latency.max(), 12000000);
  EXPECT_EQ(totals.slip.max(), 2000000);
  EXPECT_EQ(totals.queue.max(), 100000);
  EXPECT_EQ(totals.batch_formation.max(), 200000);
  EXPECT_EQ(totals.compute.max(), 300000);
  EXPECT_EQ(totals.outside.max(), 9400000);
  EXPECT_EQ(totals.batch_size.max(), 3);
  EXPECT_EQ(totals.work.tokens, 2);
  EXPECT_EQ(totals.last_answer, absl::Milliseconds(1012));
}

TEST(CollectorTest, WarmUpShowsInProgressOnly) {
  Collector collector;
  collector.AddOk(kTimes, kTiming, {}, false);
  collector.AddFailure(kTimes, absl::UnavailableError("gone"), false);
  EXPECT_EQ(collector.totals().num_answered(), 0);
  EXPECT_EQ(collector.TakeInterval().num_ok, 1);
  EXPECT_EQ(collector.TakeInterval().num_ok, 0);
}

TEST(CollectorTest, FailuresAreCountedByCodeAndReason) {
  Collector collector;
  const absl::Status full =
      client::WithReason(absl::ResourceExhaustedError("256 waiting"), client::kQueueFull);
  collector.AddFailure(kTimes, full, true);
  collector.AddFailure(kTimes, full, true);
  collector.AddFailure(kTimes, absl::InternalError("oops"), true);
  collector.AddSetupFailure(absl::UnavailableError("gone"));
  const Totals totals = collector.totals();
  EXPECT_EQ(totals.num_refused, 2);
  EXPECT_EQ(totals.refusal.count(), 2);
  EXPECT_EQ(totals.refusal.max(), 10000000) << "from sending to the answer";
  EXPECT_EQ(totals.num_errors, 2);
  ASSERT_EQ(totals.errors.size(), 3u);
  const ErrorTally& tally = totals.errors.at({"RESOURCE_EXHAUSTED", "QUEUE_FULL"});
  EXPECT_EQ(tally.count, 2);
  EXPECT_EQ(tally.example, "256 waiting");
  EXPECT_EQ(totals.errors.at({"INTERNAL", "(none)"}).count, 1);
  EXPECT_EQ(totals.errors.at({"UNAVAILABLE", "session setup: (none)"}).count, 1);
  const Interval interval = collector.TakeInterval();
  EXPECT_EQ(interval.num_errors, 2);
  EXPECT_EQ(interval.num_refused, 2);
  EXPECT_EQ(totals.latency.count(), 0);
}

TEST(CollectorTest, AMessageThatIsTooLargeIsNoRefusal) {
  EXPECT_FALSE(IsRefusal(absl::ResourceExhaustedError("message larger than max")));
  EXPECT_TRUE(IsRefusal(
      client::WithRetryDelay(absl::ResourceExhaustedError("busy"), absl::Milliseconds(5))));
}

TEST(CollectorTest, LimitedRequestsDoNotCountAsSenderLag) {
  Collector collector;
  RequestTimes times = kTimes;
  times.is_limited = true;
  collector.AddOk(times, kTiming, {}, true);
  const Totals totals = collector.totals();
  EXPECT_EQ(totals.num_limited, 1);
  EXPECT_EQ(totals.send_lag.count(), 0);
  EXPECT_EQ(totals.slip.count(), 1);
}

}  // namespace
}  // namespace attention::loadgen
