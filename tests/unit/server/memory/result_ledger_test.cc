#include "server/memory/result_ledger.h"

#include <gmock/gmock.h>

#include "server/base/error_reason.h"

namespace attention::server {
namespace {

TEST(ResultLedgerTest, AChargeCountsUntilItsLastCopyIsGone) {
  ResultLedger ledger(1000);
  auto charge = *ledger.Take("a", 300);
  auto copy = charge;
  EXPECT_EQ(ledger.bytes(), 300);
  charge.reset();
  EXPECT_EQ(ledger.bytes(), 300);
  copy.reset();
  EXPECT_EQ(ledger.bytes(), 0);
}

TEST(ResultLedgerTest, WhoHoldsMuchLeavesRoomForOthers) {
  ResultLedger ledger(1000);
  std::vector<ResultLedger::Charge> held;
  for (;;) {
    auto charge = ledger.Take("slow reader", 100);
    if (!charge.ok()) {
      EXPECT_EQ(charge.status().code(), absl::StatusCode::kResourceExhausted);
      EXPECT_EQ(GetErrorDetail(charge.status())->reason, "QUEUE_FULL");
      EXPECT_TRUE(GetErrorDetail(charge.status())->retry_delay.has_value());
      break;
    }
    held.push_back(*std::move(charge));
  }
  EXPECT_EQ(held.size(), 8u) << "four times of what it leaves";
  EXPECT_TRUE(ledger.Take("another", 200).ok());
  EXPECT_FALSE(ledger.Take("another", 201).ok());
  held.pop_back();
  EXPECT_TRUE(ledger.Take("slow reader", 100).ok()) << "room again";
}

TEST(ResultLedgerTest, AChargeMayOutliveTheLedger) {
  auto ledger = std::make_unique<ResultLedger>(1000);
  auto charge = *ledger->Take("a", 300);
  ledger.reset();
  charge.reset();
}

}  // namespace
}  // namespace attention::server
