#include "client/loadgen/progress.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <sstream>

#include "tests/unit/client/loadgen/test_options.h"

namespace attention::loadgen {
namespace {

using ::testing::HasSubstr;

DriverState At(absl::Duration elapsed) {
  return {.elapsed = elapsed, .is_recording = true, .in_flight = 8};
}

// Options with which progress is written.
Options Loud() {
  Options options = SmallOptions();
  options.is_quiet = false;
  options.force_progress = true;
  return options;
}

TEST(ProgressTest, LineShowsRatePercentilesErrorsAndInFlight) {
  Options options = SmallOptions();
  options.warmup = absl::Seconds(2);
  options.duration = absl::Seconds(10);
  Interval interval;
  interval.num_ok = 30;
  interval.num_errors = 3;
  interval.num_refused = 1;
  for (int i = 1; i <= 100; ++i) interval.latency.Add(absl::Milliseconds(1));
  const std::string line =
      FormatProgress(options, At(absl::Seconds(5)), interval, absl::Seconds(2));
  EXPECT_THAT(line, HasSubstr("5s/12s recording"));
  EXPECT_THAT(line,
              HasSubstr("15.0 req/s  p50 1.00 ms  p99 1.00 ms  errors 3  refused 1  in flight 8"));
}

TEST(ProgressTest, WritesOnceASecond) {
  const Options options = Loud();
  Collector collector;
  std::ostringstream out;
  Progress progress(options, collector, out, /*is_terminal=*/false);
  for (int i = 1; i <= 60; ++i) progress.Update(At(i * absl::Milliseconds(50)));
  const std::string text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
}

TEST(ProgressTest, RewritesOneLineOnATerminalAndEndsIt) {
  const Options options = Loud();
  Collector collector;
  std::ostringstream out;
  {
    Progress progress(options, collector, out, /*is_terminal=*/true);
    progress.Update(At(absl::Seconds(1)));
    progress.Update(At(absl::Seconds(2)));
  }
  const std::string text = out.str();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\r'), 2);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  EXPECT_EQ(text.back(), '\n');
}

TEST(ProgressTest, ChecksAreToldWhereTheLoadIsNot) {
  Options options = Loud();
  options.force_progress = false;
  Collector collector;
  std::ostringstream out;
  Progress progress(options, collector, out, /*is_terminal=*/false);
  progress.Update(At(absl::Seconds(1)));
  progress.UpdateVerifying(3);
  progress.UpdateVerifying(2);
  EXPECT_EQ(out.str(), "checking answers against float64: 3 left\n");
}

TEST(ProgressTest, QuietIsSilent) {
  const Options options = SmallOptions();
  Collector collector;
  std::ostringstream out;
  Progress progress(options, collector, out, /*is_terminal=*/true);
  progress.Update(At(absl::Seconds(1)));
  progress.UpdateVerifying(3);
  EXPECT_EQ(out.str(), "");
}

}  // namespace
}  // namespace attention::loadgen
