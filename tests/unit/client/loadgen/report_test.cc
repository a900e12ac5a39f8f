#include "client/loadgen/report.h"

#include <gmock/gmock.h>

#include "tests/unit/client/loadgen/test_options.h"

namespace attention::loadgen {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Report GoodReport() {
  Report report;
  report.options = SmallOptions();
  report.facts.recorded = absl::Seconds(2);
  report.facts.cpu = {.cores_used = 0.5, .cores = 2};
  report.totals.num_ok = 100;
  report.totals.work = {
      .tokens = 300, .flops = 4e9, .bytes_sent = 6000000, .bytes_received = 2000000};
  for (int i = 1; i <= 100; ++i) report.totals.latency.Add(absl::Milliseconds(i));
  return report;
}

TEST(ReportTest, RatesAreMeansOverTheRecordedTime) {
  const Rates rates = RatesOf(GoodReport());
  EXPECT_EQ(rates.requests_per_second, 50);
  EXPECT_EQ(rates.tokens_per_second, 150);
  EXPECT_EQ(rates.gflops, 2);
  EXPECT_EQ(rates.sent_mb_per_second, 3);
  EXPECT_EQ(rates.received_mb_per_second, 1);
  EXPECT_EQ(RatesOf(Report()).requests_per_second, 0);
}

TEST(ReportTest, ExitCodes) {
  EXPECT_EQ(ExitCodeOf(GoodReport()), kExitOk);
  Report report = GoodReport();
  report.totals.num_errors = 1;
  EXPECT_EQ(ExitCodeOf(report), kExitFailed);
  report = GoodReport();
  report.verified.num_mismatches = 1;
  EXPECT_EQ(ExitCodeOf(report), kExitFailed);
  report = GoodReport();
  report.totals.num_refused = 1;
  EXPECT_EQ(ExitCodeOf(report), kExitFailed);
  report.options.allow_refused = true;
  EXPECT_EQ(ExitCodeOf(report), kExitOk);
  report = GoodReport();
  report.totals.num_ok = 0;
  EXPECT_EQ(ExitCodeOf(report), kExitFailed);
  report = GoodReport();
  report.facts.is_interrupted = true;
  EXPECT_EQ(ExitCodeOf(report), kExitInterrupted);
}

TEST(ReportTest, WarnsWhenTheClientWasTheBottleneck) {
  Report report = GoodReport();
  EXPECT_THAT(WarningsOf(report), IsEmpty());
  report.facts.sender_busy_share = 0.95;
  EXPECT_THAT(WarningsOf(report), ElementsAre(HasSubstr("senders were busy 95 % of the time")));
  report = GoodReport();
  report.facts.cpu.cores_used = 1.9;
  EXPECT_THAT(WarningsOf(report), ElementsAre(HasSubstr("used 1.9 of 2 cores")));
  report = GoodReport();
  report.options.mode = LoopMode::kOpen;
  for (int i = 0; i < 100; ++i) report.totals.send_lag.Add(absl::Milliseconds(i < 97 ? 0 : 3));
  EXPECT_THAT(WarningsOf(report), ElementsAre(HasSubstr("at p99 it sent 3.0 ms late")));
}

TEST(ReportTest, WarnsOfAScheduleThatWasNotKept) {
  Report report = GoodReport();
  report.options.mode = LoopMode::kOpen;
  report.totals.num_limited = 5;
  EXPECT_THAT(WarningsOf(report), ElementsAre(HasSubstr("5 requests were sent late because 256")));
  report.facts.num_unsent = 100;
  EXPECT_THAT(WarningsOf(report), ElementsAre(HasSubstr("--rate was not kept: 100 of 200")));
}

TEST(ReportTest, TableShowsTheFiguresErrorsAndWarnings) {
  Report report = GoodReport();
  report.totals.num_errors = 2;
  report.totals.errors[{"UNAVAILABLE", "DRAINING"}] = {2, "shutting down"};
  report.options.verify_fraction = 0.5;
  report.verified.num_checked = 50;
  report.verified.rows_checked = 150;
  report.facts.is_interrupted = true;
  report.facts.sender_busy_share = 1;
  const std::string table = FormatTable(report);
  EXPECT_THAT(table, HasSubstr("attend, closed loop, concurrency 1"));
  EXPECT_THAT(table, HasSubstr("q_len 3, kv_len 5, heads 4/2, head_dim 8/6, float32, causal"));
  EXPECT_THAT(table, HasSubstr("100 ok        0 refused        2 errors"));
  EXPECT_THAT(table, HasSubstr("in 2.00 s (interrupted)"));
  EXPECT_THAT(table, HasSubstr("2 x UNAVAILABLE, reason DRAINING: shutting down"));
  EXPECT_THAT(table, HasSubstr("50.0 requests/s"));
  EXPECT_THAT(table, HasSubstr("p99.9"));
  EXPECT_THAT(table, HasSubstr("50 answers (150 query rows), 0 mismatches"));
  EXPECT_THAT(table, HasSubstr("WARNING: the client was the bottleneck"));
}

TEST(ReportTest, TableNamesSessionsAndSchedule) {
  Report report = GoodReport();
  report.options = SmallSessionOptions(WorkloadKind::kDecode);
  report.options.mode = LoopMode::kOpen;
  report.options.rate = 12.5;
  report.options.shape.window = 4;
  const std::string table = FormatTable(report);
  EXPECT_THAT(table, HasSubstr("decode, open loop, 12.5 requests/s, poisson arrivals"));
  EXPECT_THAT(table, HasSubstr("context 7 + up to 1024"));
  EXPECT_THAT(table, HasSubstr("window 4, 1 sessions of 2 layers"));
  EXPECT_THAT(table, HasSubstr("sent late by"));
}

}  // namespace
}  // namespace attention::loadgen
