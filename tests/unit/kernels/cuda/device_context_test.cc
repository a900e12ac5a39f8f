#include "kernels/cuda/device/device_context.h"

#include <gmock/gmock.h>

#include <vector>

namespace attention::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(DeviceContextTest, NothingIsUsedOfALostContext) {
  DeviceContext context;
  int num_uses = 0;
  EXPECT_TRUE(context.IfAlive([&] { ++num_uses; }));
  context.Lose();
  EXPECT_FALSE(context.IfAlive([&] { ++num_uses; }));
  EXPECT_TRUE(context.is_lost());
  EXPECT_EQ(num_uses, 1);
}

TEST(ContextTableTest, DevicesOfAGpuShareItsContextUntilItIsLost) {
  std::vector<int> resets;
  ContextTable table([&](int ordinal) {
    resets.push_back(ordinal);
    return absl::OkStatus();
  });
  const auto first = *table.Enter(3);
  const auto other = *table.Enter(0);
  EXPECT_EQ(*table.Enter(3), first);
  EXPECT_NE(other, first);
  EXPECT_TRUE(resets.empty());

  first->Lose();
  const auto second = *table.Enter(3);
  EXPECT_NE(second, first);
  EXPECT_FALSE(second->is_lost());
  EXPECT_EQ(*table.Enter(3), second);
  EXPECT_EQ(*table.Enter(0), other) << "another GPU keeps its context";
  EXPECT_THAT(resets, ElementsAre(3));
}

TEST(ContextTableTest, ADriverThatRefusesIsAskedAgain) {
  absl::Status answer = absl::InternalError("illegal address");
  int num_resets = 0;
  ContextTable table([&](int) {
    ++num_resets;
    return answer;
  });
  (*table.Enter(0))->Lose();
  const absl::Status refused = table.Enter(0).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("illegal address; start the server again"));
  answer = absl::OkStatus();
  EXPECT_FALSE((*table.Enter(0))->is_lost());
  EXPECT_EQ(num_resets, 2);
}

}  // namespace
}  // namespace attention::cuda
