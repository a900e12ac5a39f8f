#include "server/rpc/layer_work.h"

#include <gmock/gmock.h>

#include "absl/synchronization/notification.h"
#include "server/base/error_reason.h"

namespace attention::server {
namespace {

std::string ReasonOf(const absl::Status& status) {
  const auto detail = GetErrorDetail(status);
  return detail && detail->retry_delay ? detail->reason : "";
}

TEST(LayerWorkTest, SoManyLayersAreMadeAtATimeOfATenantAndInAll) {
  LayerWork work({.max_pending = 3, .max_pending_per_tenant = 2});
  auto first = work.TakeSlot("a");
  auto second = work.TakeSlot("a");
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(ReasonOf(work.TakeSlot("a").status()), "QUOTA_EXCEEDED");
  auto third = work.TakeSlot("b");
  ASSERT_TRUE(third.ok());
  EXPECT_EQ(ReasonOf(work.TakeSlot("c").status()), "QUEUE_FULL");
  *second = {};
  EXPECT_TRUE(work.TakeSlot("c").ok()) << "given back at once, as nobody keeps it";
  EXPECT_TRUE(work.TakeSlot("a").ok());
  LayerWork::Slot moved = *std::move(third);
  EXPECT_EQ(ReasonOf([&] {
              auto held = work.TakeSlot("a");
              return work.TakeSlot("c").status();
            }()),
            "QUEUE_FULL")
      << "a slot that has moved is still taken";
}

TEST(LayerWorkTest, StoppingTellsWhatRunsAndWaitsForIt) {
  LayerWork work({.max_pending = 2, .max_pending_per_tenant = 2});
  EXPECT_TRUE(work.CheckGoing().ok());
  absl::Notification has_begun;
  absl::Status seen, next_seen;
  work.Post([&] {
    has_begun.Notify();
    while (seen.ok()) seen = work.CheckGoing();
  });
  work.Post([&] { next_seen = work.CheckGoing(); });
  has_begun.WaitForNotification();
  work.Stop();
  for (const absl::Status& status : {seen, next_seen}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    ASSERT_TRUE(GetErrorDetail(status).has_value());
    EXPECT_EQ(GetErrorDetail(status)->reason, "DRAINING");
  }
}

}  // namespace
}  // namespace attention::server
