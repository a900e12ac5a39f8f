#include "server/engine/bound_projection.h"

#include <gmock/gmock.h>

#include "server/engine/recovering_backend.h"
#include "tests/support/faulty_backend.h"

namespace attention::server {
namespace {

using ::attention::testing::Faults;
using ::attention::testing::FaultyBackend;

constexpr float kWeights[] = {1, 2, 3, 4};
constexpr ProjectionPart kPart{2, DType::kFloat32, kWeights, nullptr};
constexpr float kRow[] = {10, 1};

Faults WithMemoryThatIsLost() {
  Faults faults;
  faults.memory_outlives = false;
  return faults;
}

class ReplicatedProjectionsTest : public ::testing::Test {
 protected:
  std::unique_ptr<RecoveringBackend> NewDevice() {
    auto device =
        RecoveringBackend::Make([this]() -> absl::StatusOr<std::unique_ptr<AttentionBackend>> {
          return std::make_unique<FaultyBackend>(faults_);
        });
    return *std::move(device);
  }
  static absl::Status Project(RecoveringBackend& device, const PackedProjection& packed, float* y) {
    const ProjectionTask task{&packed, 1, kRow, DType::kFloat32, 2, y, DType::kFloat32, 2};
    return device.projections()->Project({&task, 1});
  }

  Faults faults_ = WithMemoryThatIsLost();
  std::unique_ptr<RecoveringBackend> first_ = NewDevice(), second_ = NewDevice(),
                                     other_ = NewDevice();
  ReplicatedProjections replicas_{{first_->projections(), second_->projections()}};
};

TEST_F(ReplicatedProjectionsTest, EachDeviceProjectsWithWeightsOfItsOwn) {
  const auto packed = *replicas_.Pack(2, {&kPart, 1});
  const auto alone = *first_->projections()->Pack(2, {&kPart, 1});
  EXPECT_EQ(packed->out_features(), 2);
  EXPECT_EQ(packed->bytes(), 2 * alone->bytes());
  EXPECT_LE(packed->bytes(), replicas_.PackedBytes(2, 2));
  for (RecoveringBackend* device : {first_.get(), second_.get()}) {
    float y[2] = {};
    ASSERT_TRUE(Project(*device, *packed, y).ok());
    EXPECT_THAT(y, ::testing::ElementsAre(12, 34));
  }
  float y[2] = {};
  EXPECT_EQ(Project(*other_, *packed, y).code(), absl::StatusCode::kUnimplemented);
  float weights[4], bias[2];
  ASSERT_TRUE(packed->Unpack(weights, bias).ok());
  EXPECT_THAT(weights, ::testing::ElementsAreArray(kWeights));
}

TEST_F(ReplicatedProjectionsTest, WhatOneDeviceLostIsLost) {
  const auto packed = *replicas_.Pack(2, {&kPart, 1});
  ASSERT_TRUE(second_->Recover().ok());
  EXPECT_TRUE(packed->is_lost());
  float y[2] = {};
  EXPECT_EQ(Project(*first_, *packed, y).code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace attention::server
