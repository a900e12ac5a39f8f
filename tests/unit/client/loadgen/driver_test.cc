#include "client/loadgen/driver.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "attention/client/errors.h"
#include "tests/unit/client/loadgen/fake_server.h"
#include "tests/unit/client/loadgen/test_options.h"

namespace attention::loadgen {
namespace {

bool GoOn(const DriverState&) { return false; }

class DriverTest : public ::testing::Test {
 protected:
  DriverTest() { server_->is_computing = false; }

  RunFacts Run(const Options& options, const std::function<bool(const DriverState&)>& poll) {
    const TensorPool pool(options.shape.dtype, LargestTensor(options), 1);
    Verifier verifier(pool, 0, 1);
    const auto workload = MakeWorkload(options, pool, std::make_shared<client::Client>(server_));
    Driver driver(options, *workload, collector_, verifier, clock_);
    EXPECT_TRUE(driver.Prepare([] { return false; }).ok());
    const RunFacts facts = driver.Run(poll);
    driver.Close();
    return facts;
  }

  static Options OpenOptions(double rate, std::int64_t requests) {
    Options options = SmallOptions();
    options.mode = LoopMode::kOpen;
    options.arrivals = Arrivals::kConstant;
    options.rate = rate;
    options.requests = requests;
    return options;
  }

  std::shared_ptr<FakeServer> server_ = std::make_shared<FakeServer>();
  FakeClock clock_;
  Collector collector_;
};

// The share of requests, in percent, that took longer than `limit`.
double PercentAbove(const Histogram& latency, absl::Duration limit) {
  double above = 0;
  for (double percent = 1; percent <= 100; ++percent) {
    if (latency.DurationPercentile(percent) > limit) ++above;
  }
  return above;
}

TEST_F(DriverTest, AStallIsChargedToEveryRequestThatWasDueMeanwhile) {
  // One request in a hundred takes 500 ms, the others 1 ms; 100 requests a second are due. Latency
  // from the moment of sending would show one slow request.
  server_->on_request = [this](std::int64_t number) {
    clock_.Advance(number == 10 ? absl::Milliseconds(500) : absl::Milliseconds(1));
    return absl::OkStatus();
  };
  const RunFacts facts = Run(OpenOptions(100, 100), GoOn);
  const Totals totals = collector_.totals();
  EXPECT_EQ(totals.num_ok, 100);
  EXPECT_EQ(facts.num_unsent, 0);
  EXPECT_EQ(totals.latency.max(), absl::ToInt64Nanoseconds(absl::Milliseconds(500)));
  // Request 10 + k is due at 10 k ms and answered at 500 + k ms: above 100 ms up to k = 44.
  EXPECT_NEAR(PercentAbove(totals.latency, absl::Milliseconds(100)), 45, 1);
  EXPECT_NEAR(absl::ToDoubleSeconds(facts.recorded), 0.991, 0.001);
}

TEST_F(DriverTest, AFullFlightSlipsTheScheduleAndIsCountedFromIt) {
  server_->Hold();
  Options options = OpenOptions(100, 100);
  options.max_in_flight = 2;
  int polls = 0;
  Run(options, [&](const DriverState& state) {
    // The second look: by then the sender waits for a user, at 20 ms of the schedule.
    if (++polls == 2) {
      EXPECT_EQ(state.in_flight, 2);
      clock_.Advance(absl::Milliseconds(500));
      server_->Release();
    }
    return false;
  });
  const Totals totals = collector_.totals();
  EXPECT_EQ(server_->max_held(), 2);
  EXPECT_EQ(totals.num_ok, 100);
  EXPECT_EQ(totals.latency.max(), absl::ToInt64Nanoseconds(absl::Milliseconds(520)));
  EXPECT_NEAR(PercentAbove(totals.latency, absl::Milliseconds(100)), 42, 1);
  // All that were overdue are the limit's doing, none the sender's.
  EXPECT_NEAR(static_cast<double>(totals.num_limited), 51, 1);
  EXPECT_EQ(totals.send_lag.max(), 0);
}

TEST_F(DriverTest, RequestsThatAreDueButUnsentAtTheEndAreCounted) {
  server_->Hold();
  Options options = OpenOptions(100, 1);
  options.requests.reset();
  options.duration = absl::Seconds(1);
  options.max_in_flight = 2;
  int polls = 0;
  const RunFacts facts = Run(options, [&](const DriverState&) {
    if (++polls == 2) clock_.Advance(absl::Seconds(2));
    if (polls == 5) server_->Release();
    return false;
  });
  EXPECT_EQ(collector_.totals().num_ok, 2);
  EXPECT_EQ(facts.num_unsent, 98);
}

TEST_F(DriverTest, ASlowSenderStopsSoonAfterTheEnd) {
  // Every send takes ten times its interval.
  server_->on_request = [this](std::int64_t) {
    clock_.Advance(absl::Milliseconds(100));
    return absl::OkStatus();
  };
  Options options = OpenOptions(100, 1);
  options.requests.reset();
  options.duration = absl::Seconds(2);
  const RunFacts facts = Run(options, GoOn);
  EXPECT_EQ(server_->num_requests(), 30);
  EXPECT_EQ(facts.num_unsent, 170);
  EXPECT_EQ(collector_.totals().num_limited, 0);
  EXPECT_GE(collector_.totals().send_lag.DurationPercentile(99), absl::Seconds(2));
}

TEST_F(DriverTest, OpenLoopSendsOnTime) {
  const RunFacts facts = Run(OpenOptions(1000, 500), GoOn);
  const Totals totals = collector_.totals();
  EXPECT_EQ(totals.num_ok, 500);
  EXPECT_EQ(totals.slip.max(), 0);
  EXPECT_NEAR(absl::ToDoubleSeconds(facts.recorded), 0.499, 1e-6);
}

TEST_F(DriverTest, ClosedLoopKeepsExactlyNInFlight) {
  server_->Hold();
  Options options = SmallOptions();
  options.concurrency = 5;
  options.threads = 3;
  options.requests = 25;
  int batches = 0;
  Run(options, [&](const DriverState& state) {
    if (server_->num_held() < 5) return false;
    EXPECT_EQ(state.in_flight, 5);
    ++batches;
    server_->ReleaseHeld();
    return false;
  });
  EXPECT_EQ(batches, 5);
  EXPECT_EQ(server_->max_held(), 5);
  EXPECT_EQ(collector_.totals().num_ok, 25);
}

TEST_F(DriverTest, ClosedLoopEndsByTime) {
  server_->on_request = [this](std::int64_t) {
    clock_.Advance(absl::Milliseconds(10));
    return absl::OkStatus();
  };
  Options options = SmallOptions();
  options.requests.reset();
  options.warmup = absl::Milliseconds(200);
  options.duration = absl::Seconds(1);
  const RunFacts facts = Run(options, GoOn);
  EXPECT_EQ(server_->num_requests(), 120);
  EXPECT_EQ(collector_.totals().num_ok, 100);
  EXPECT_EQ(facts.recorded, absl::Seconds(1));
  EXPECT_FALSE(facts.is_interrupted);
}

TEST_F(DriverTest, AnInterruptStopsSendingAndKeepsWhatWasAnswered) {
  Options options = SmallOptions();
  options.requests.reset();
  const RunFacts facts =
      Run(options, [this](const DriverState&) { return server_->num_requests() > 0; });
  EXPECT_TRUE(facts.is_interrupted);
  EXPECT_EQ(collector_.totals().num_ok, server_->num_requests());
}

TEST_F(DriverTest, AClosedLoopDoesNotSpinOnADeadServer) {
  server_->on_request = [](std::int64_t) { return absl::UnavailableError("connection refused"); };
  Options options = SmallOptions();
  options.requests.reset();
  options.duration = absl::Seconds(1);
  Run(options, GoOn);
  EXPECT_LE(server_->num_requests(), 11);
  EXPECT_EQ(collector_.totals().num_errors, server_->num_requests());
}

TEST_F(DriverTest, AClosedLoopHonoursTheServersRetryDelay) {
  server_->on_request = [](std::int64_t) {
    return client::WithRetryDelay(absl::ResourceExhaustedError("full"), absl::Milliseconds(250));
  };
  Options options = SmallOptions();
  options.requests.reset();
  options.duration = absl::Seconds(1);
  Run(options, GoOn);
  EXPECT_LE(server_->num_requests(), 5);
  EXPECT_EQ(collector_.totals().num_refused, server_->num_requests());
}

TEST_F(DriverTest, AnOpenLoopKeepsItsPaceOnErrors) {
  server_->on_request = [](std::int64_t) { return absl::UnavailableError("connection refused"); };
  Run(OpenOptions(1000, 200), GoOn);
  EXPECT_EQ(collector_.totals().num_errors, 200);
  EXPECT_EQ(collector_.totals().slip.max(), 0);
}

TEST_F(DriverTest, SessionsAreReplacedDuringTheRunAndDeletedAfterIt) {
  Options options = SmallSessionOptions(WorkloadKind::kPrefill);
  options.sessions = 3;
  options.concurrency = 3;
  options.threads = 2;
  options.requests = 20;
  Run(options, GoOn);
  EXPECT_EQ(collector_.totals().num_ok, 20);
  EXPECT_GE(server_->num_created(), 10);
  EXPECT_EQ(server_->num_sessions(), 0);
}

TEST_F(DriverTest, ASessionThatCannotBeReplacedIsAnErrorAndTriedAgain) {
  Options options = SmallSessionOptions(WorkloadKind::kPrefill);
  options.layers = 1;
  server_->on_request = [this](std::int64_t number) {
    if (number == 3) server_->SetCreateStatus(absl::ResourceExhaustedError("too many sessions"));
    return absl::OkStatus();
  };
  int polls = 0;
  Run(options, [&](const DriverState&) {
    if (++polls == 4) server_->SetCreateStatus(absl::OkStatus());
    return false;
  });
  const Totals totals = collector_.totals();
  EXPECT_EQ(totals.num_ok, 10);
  EXPECT_GE(totals.num_errors, 1);
  EXPECT_EQ(totals.errors.begin()->first.second, "session setup: (none)");
}

}  // namespace
}  // namespace attention::loadgen
