#include "server/engine/device.h"

#include <gmock/gmock.h>

#include <deque>
#include <optional>

#include "server/base/error_reason.h"
#include "server/cache/kv_cache_factory.h"
#include "tests/support/fake_clock.h"
#include "tests/support/faulty_backend.h"
#include "tests/unit/server/engine/one_head_step.h"

namespace attention::server {
namespace {

using ::attention::testing::Faults;
using ::attention::testing::FaultyBackend;
using ::attention::testing::OneHeadStep;
using ::testing::HasSubstr;

constexpr int kDim = 4;

class DeviceTest : public ::testing::Test {
 protected:
  void Start() {
    auto backend =
        RecoveringBackend::Make([this]() -> absl::StatusOr<std::unique_ptr<AttentionBackend>> {
          if (!faults_.make_status.ok()) return faults_.make_status;
          return std::make_unique<FaultyBackend>(faults_);
        });
    ASSERT_TRUE(backend.ok());
    Device::Options options;
    options.kv_capacity_bytes = std::size_t{8} << 20;
    options.on_failure = [this](const absl::Status& failure, const absl::Status& recovery) {
      reported_.push_back(absl::StrCat(failure.message(), " / ", recovery.message()));
    };
    device_.emplace(*std::move(backend), std::move(options), clock_, metrics_);
    factory_.emplace(std::vector<KvCacheFactory::Place>{{device_->backend(), device_->pages()}},
                     16);
  }

  std::shared_ptr<KvCache> NewCache() {
    return *factory_->Create({1, kDim, kDim, DType::kFloat32}, 1, 0);
  }

  // Appends and attends with one token.
  std::unique_ptr<AttentionRequest> Request(const std::shared_ptr<KvCache>& cache,
                                            std::int64_t position) {
    const SessionStep step =
        OneHeadStep(cache, position, /*num_tokens=*/1, /*q_len=*/1, kDim, row_, output_);
    auto request = std::make_unique<AttentionRequest>();
    request->arrival = clock_.Now();
    request->steps.push_back(step);
    request->completion = [this](std::unique_ptr<AttentionRequest>, AttentionResult result) {
      // The failure of the device must have been reported before the request is completed.
      num_reported_at_completion_ = reported_.size();
      result_ = std::move(result);
    };
    return request;
  }

  // The status of the step, or of the request that failed as a whole.
  absl::Status Run(const std::shared_ptr<KvCache>& cache, std::int64_t position) {
    std::vector<std::unique_ptr<AttentionRequest>> requests;
    requests.push_back(Request(cache, position));
    device_->worker().Execute({std::move(requests), clock_.Now()});
    return Outcome();
  }
  absl::Status Outcome() {
    if (device_->worker().needs_recovery()) device_->worker().Recover();
    const AttentionResult result = *std::exchange(result_, std::nullopt);
    return result.status.ok() ? result.steps[0].status : result.status;
  }

  Faults faults_;
  FakeClock clock_;
  ServerMetrics metrics_;
  std::optional<Device> device_;
  std::optional<KvCacheFactory> factory_;
  std::vector<std::string> reported_;
  std::size_t num_reported_at_completion_ = 0;
  std::optional<AttentionResult> result_;
  const float row_[kDim] = {1, 2, 3, 4};
  float output_[kDim] = {};
};

TEST_F(DeviceTest, AFailureCostsItsBatchAndSessionsGoOnWhereMemoryOutlivesIt) {
  Start();
  const auto cache = NewCache();
  ASSERT_TRUE(Run(cache, 0).ok());
  faults_.run_status = absl::InternalError("illegal instruction");
  EXPECT_EQ(Run(cache, 1).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(num_reported_at_completion_, 1u);
  faults_.run_status = absl::OkStatus();
  EXPECT_TRUE(Run(cache, 1).ok());
  EXPECT_EQ(cache->length(0), 2);
  EXPECT_EQ(faults_.num_made, 2);
  EXPECT_EQ(faults_.num_alive, 1) << "the one that failed is gone";
  EXPECT_EQ(metrics_.device_failures.value(), 1);
  EXPECT_THAT(reported_, ::testing::ElementsAre("illegal instruction / "));
}

TEST_F(DeviceTest, MemoryThatGoesWithItsDeviceTakesItsSessionsAlongByName) {
  faults_.memory_outlives = false;
  Start();
  const auto cache = NewCache();
  ASSERT_TRUE(Run(cache, 0).ok());
  faults_.run_status = absl::InternalError("context is corrupt");
  EXPECT_EQ(Run(cache, 1).code(), absl::StatusCode::kInternal);
  faults_.run_status = absl::OkStatus();
  const absl::Status status = Run(cache, 1);
  ASSERT_TRUE(GetErrorDetail(status).has_value()) << status;
  EXPECT_EQ(GetErrorDetail(status)->reason, "SESSION_LOST");
  EXPECT_TRUE(Run(NewCache(), 0).ok());
}

TEST_F(DeviceTest, MemoryThatGoesWithItsDeviceTakesItsLayersAlongByName) {
  faults_.memory_outlives = false;
  Start();
  const float weights[kDim] = {1, 2, 3, 4};
  const ProjectionPart part{1, DType::kFloat32, weights, nullptr};
  ProjectionBackend& projections = *device_->backend().projections();
  const auto packed = *projections.Pack(kDim, {&part, 1});
  float y = 0;
  ProjectionTask task{packed.get(), 1, row_, DType::kFloat32, kDim, &y, DType::kFloat32, 1};
  ASSERT_TRUE(projections.Project({&task, 1}).ok());
  EXPECT_EQ(y, 30.0f);
  EXPECT_FALSE(packed->is_lost());

  const auto cache = NewCache();
  faults_.run_status = absl::InternalError("context is corrupt");
  EXPECT_EQ(Run(cache, 0).code(), absl::StatusCode::kInternal);
  faults_.run_status = absl::OkStatus();
  EXPECT_TRUE(packed->is_lost());
  EXPECT_EQ(projections.Project({&task, 1}).code(), absl::StatusCode::kUnavailable);
  std::vector<float> unpacked(kDim + 1);
  EXPECT_EQ(packed->Unpack(unpacked.data(), &y).code(), absl::StatusCode::kUnavailable);

  // Its neighbours in the batch are computed.
  std::vector<std::unique_ptr<AttentionRequest>> requests;
  std::vector<absl::Status> outcomes;
  for (const bool has_layer : {true, false}) {
    requests.push_back(Request(NewCache(), 0));
    if (has_layer) requests.back()->inputs.push_back({task, 0});
    requests.back()->completion = [&](std::unique_ptr<AttentionRequest>, AttentionResult result) {
      outcomes.push_back(result.status);
    };
  }
  device_->worker().Execute({std::move(requests), clock_.Now()});
  ASSERT_TRUE(GetErrorDetail(outcomes[0]).has_value()) << outcomes[0];
  EXPECT_EQ(GetErrorDetail(outcomes[0])->reason, "LAYER_NOT_FOUND");
  EXPECT_TRUE(outcomes[1].ok()) << outcomes[1];

  const auto again = *projections.Pack(kDim, {&part, 1});
  task.projection = again.get();
  EXPECT_TRUE(projections.Project({&task, 1}).ok());
}

TEST_F(DeviceTest, LayersGoOnWhereMemoryOutlivesTheDevice) {
  Start();
  const float weights[kDim] = {1, 2, 3, 4};
  const ProjectionPart part{1, DType::kFloat32, weights, nullptr};
  ProjectionBackend& projections = *device_->backend().projections();
  const auto packed = *projections.Pack(kDim, {&part, 1});
  faults_.run_status = absl::InternalError("illegal instruction");
  EXPECT_EQ(Run(NewCache(), 0).code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(packed->is_lost());
  float y = 0;
  const ProjectionTask task{packed.get(), 1, row_, DType::kFloat32, kDim, &y, DType::kFloat32, 1};
  ASSERT_TRUE(projections.Project({&task, 1}).ok());
  EXPECT_EQ(y, 30.0f);
}

TEST_F(DeviceTest, WhatIsTheRequestsFaultLeavesTheDeviceAsItIs) {
  Start();
  for (const absl::Status& status :
       {absl::ResourceExhaustedError("out of memory"), absl::InvalidArgumentError("bad task")}) {
    faults_.run_status = status;
    EXPECT_EQ(Run(NewCache(), 0), status);
  }
  EXPECT_EQ(faults_.num_made, 1);
  EXPECT_TRUE(reported_.empty());
}

TEST_F(DeviceTest, ADeviceThatDoesNotComeBackRefusesAndIsTriedOnceASecond) {
  Start();
  const auto cache = NewCache();
  faults_.run_status = absl::InternalError("fell off the bus");
  faults_.make_status = absl::UnavailableError("no such device");
  EXPECT_EQ(Run(cache, 0).code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(device_->backend().is_usable());
  const absl::Status refused = Run(cache, 0);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("no such device"));
  EXPECT_EQ(factory_->Create({1, kDim, kDim, DType::kFloat32}, 1, 0).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_EQ(metrics_.device_failures.value(), 1);

  faults_.run_status = faults_.make_status = absl::OkStatus();
  clock_.Advance(absl::Seconds(2));
  // The one that finds it unusable is refused, and has it set up for those that follow.
  EXPECT_EQ(Run(cache, 0).code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Run(cache, 0).ok());
  EXPECT_TRUE(device_->backend().is_usable());
}

TEST_F(DeviceTest, ALongRequestBetweenItsSlicesIsToldToComeAgain) {
  Start();
  const std::atomic<bool> yields{true};
  const auto cache = NewCache();
  auto sliced = device_->worker().BeginSliced(Request(cache, 0), clock_.Now());
  ASSERT_FALSE(sliced->RunSlice(yields)) << "appends";
  ASSERT_FALSE(sliced->RunSlice(yields)) << "plans and begins to attend";
  faults_.run_status = absl::InternalError("broken");
  EXPECT_EQ(Run(NewCache(), 0).code(), absl::StatusCode::kInternal);
  faults_.run_status = absl::OkStatus();
  ASSERT_EQ(faults_.num_made, 2);
  // Its plan was made by the backend that is gone.
  EXPECT_TRUE(sliced->RunSlice(yields));
  EXPECT_EQ(Outcome().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(cache->length(0), 0);
  EXPECT_EQ(faults_.num_made, 2) << "no second failure";
  EXPECT_TRUE(Run(cache, 0).ok());
}

}  // namespace
}  // namespace attention::server
