#include "client/loadgen/tickets.h"

#include <gtest/gtest.h>

#include "tests/unit/client/loadgen/test_options.h"

namespace attention::loadgen {
namespace {

constexpr absl::Duration kStart = absl::Seconds(100);

Options OpenOptions() {
  Options options = SmallOptions();
  options.mode = LoopMode::kOpen;
  options.arrivals = Arrivals::kConstant;
  options.rate = 10;
  options.warmup = absl::Seconds(1);
  options.duration = absl::Seconds(2);
  options.requests.reset();
  return options;
}

TEST(TicketsTest, OpenLoopRecordsAfterTheWarmUpAndEndsByTime) {
  Tickets tickets(OpenOptions(), kStart);
  int warmup = 0;
  int recorded = 0;
  while (const auto ticket = tickets.TakeNext(kStart)) {
    ++(ticket->is_recorded ? recorded : warmup);
    EXPECT_LT(ticket->scheduled, kStart + absl::Seconds(3));
  }
  EXPECT_EQ(warmup, 10);
  EXPECT_EQ(recorded, 20);
  EXPECT_EQ(tickets.CloseAndCountUntaken(kStart + absl::Seconds(9)), 0);
}

TEST(TicketsTest, RequestsLimitCountsRecordedOnesOnly) {
  Options options = OpenOptions();
  options.requests = 5;
  Tickets tickets(options, kStart);
  int all = 0;
  while (tickets.TakeNext(kStart).has_value()) ++all;
  EXPECT_EQ(all, 15);
  EXPECT_TRUE(tickets.has_used_up_requests());
}

TEST(TicketsTest, UntakenArrivalsThatWereDueAreCounted) {
  Tickets tickets(OpenOptions(), kStart);
  for (int i = 0; i < 14; ++i) tickets.TakeNext(kStart);
  EXPECT_EQ(tickets.CloseAndCountUntaken(kStart + absl::Seconds(2)), 6);
  EXPECT_FALSE(tickets.TakeNext(kStart).has_value());
}

TEST(TicketsTest, ABacklogOfTheWarmUpIsRecordedOnceItIsOver) {
  Tickets tickets(OpenOptions(), kStart);
  EXPECT_FALSE(tickets.TakeNext(kStart + absl::Milliseconds(999))->is_recorded);
  EXPECT_TRUE(tickets.TakeNext(kStart + absl::Seconds(1))->is_recorded);
}

TEST(TicketsTest, NothingIsUntakenBeforeTheWarmUpIsOver) {
  Tickets tickets(OpenOptions(), kStart);
  EXPECT_EQ(tickets.CloseAndCountUntaken(kStart + absl::Milliseconds(900)), 0);
}

TEST(TicketsTest, ClosedLoopSendsNowUntilTheEnd) {
  Options options = SmallOptions();
  options.warmup = absl::Seconds(1);
  options.duration = absl::Seconds(1);
  options.requests.reset();
  Tickets tickets(options, kStart);
  EXPECT_FALSE(tickets.TakeNow(kStart)->is_recorded);
  const absl::Duration later = kStart + absl::Milliseconds(1500);
  EXPECT_TRUE(tickets.TakeNow(later)->is_recorded);
  EXPECT_EQ(tickets.TakeNow(later)->scheduled, later);
  EXPECT_FALSE(tickets.TakeNow(kStart + absl::Seconds(2)).has_value());
}

}  // namespace
}  // namespace attention::loadgen
