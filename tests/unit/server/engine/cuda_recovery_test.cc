// The recovery of a device whose GPU loses its context: the CUDA backend over a simulated GPU,
// behind everything that a server has before it.
#include <gmock/gmock.h>

#include <deque>
#include <optional>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "server/base/error_reason.h"
#include "server/cache/kv_cache_factory.h"
#include "server/engine/device.h"
#include "tests/simt/faulty_gpu.h"
#include "tests/support/fake_clock.h"
#include "tests/unit/server/engine/one_head_step.h"

namespace attention::server {
namespace {

using ::attention::testing::OneHeadStep;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kDim = 64;
// The flops of a launch, so few that each block of a request of a few rows is a launch of its own.
constexpr double kTinyLaunch = 1;

class CudaRecoveryTest : public ::testing::Test {
 protected:
  CudaRecoveryTest() : rows_(256 * kDim, 0.5f), output_(256 * kDim) {
    auto backend =
        RecoveringBackend::Make([this]() -> absl::StatusOr<std::unique_ptr<AttentionBackend>> {
          auto device = gpu_.MakeDevice();
          if (!device.ok()) return device.status();
          return cuda::MakeCudaBackend(*std::move(device), {.launch_flops = kTinyLaunch});
        });
    Device::Options options;
    options.kv_capacity_bytes = std::size_t{8} << 20;
    options.kv_spill_bytes = std::size_t{8} << 20;
    options.on_failure = [this](const absl::Status& failure, const absl::Status& recovery) {
      reported_.push_back(absl::StrCat(failure.message(), " / ", recovery.message()));
    };
    device_.emplace(*std::move(backend), std::move(options), clock_, metrics_);
    factory_.emplace(std::vector<KvCacheFactory::Place>{{device_->backend(), device_->pages()}},
                     16);
  }

  ~CudaRecoveryTest() override {
    device_.reset();
    EXPECT_THAT(gpu_.Misuse(), IsEmpty());
    EXPECT_EQ(gpu_.num_blocks(), 0u) << "what the present context holds is given back";
  }

  std::shared_ptr<KvCache> NewCache() {
    return *factory_->Create({1, kDim, kDim, DType::kFloat32}, 1, 0);
  }

  // Appends `num_tokens` tokens and attends with all of them.
  std::unique_ptr<AttentionRequest> Request(const std::shared_ptr<KvCache>& cache,
                                            std::int64_t position, std::int64_t num_tokens) {
    const SessionStep step =
        OneHeadStep(cache, position, num_tokens, num_tokens, kDim, rows_.data(), output_.data());
    auto request = std::make_unique<AttentionRequest>();
    request->arrival = clock_.Now();
    request->steps.push_back(step);
    request->completion = [this](std::unique_ptr<AttentionRequest>, AttentionResult result) {
      result_ = std::move(result);
    };
    return request;
  }

  // The status of the step, or of the request that failed as a whole.
  absl::Status Run(const std::shared_ptr<KvCache>& cache, std::int64_t position) {
    std::vector<std::unique_ptr<AttentionRequest>> requests;
    requests.push_back(Request(cache, position, 1));
    device_->worker().Execute({std::move(requests), clock_.Now()});
    return Outcome();
  }
  absl::Status Outcome() {
    if (device_->worker().needs_recovery()) device_->worker().Recover();
    const AttentionResult result = *std::exchange(result_, std::nullopt);
    return result.status.ok() ? result.steps[0].status : result.status;
  }
  static std::string ReasonOf(const absl::Status& status) {
    return GetErrorDetail(status).has_value() ? std::string(GetErrorDetail(status)->reason) : "";
  }

  simt::FaultyGpu gpu_;
  FakeClock clock_;
  ServerMetrics metrics_;
  std::vector<float> rows_;
  std::vector<float> output_;
  std::optional<Device> device_;
  std::optional<KvCacheFactory> factory_;
  std::vector<std::string> reported_;
  std::optional<AttentionResult> result_;
};

TEST_F(CudaRecoveryTest, AFaultCostsItsContextAndTheServerGoesOnInAnother) {
  const auto cache = NewCache();
  ASSERT_TRUE(Run(cache, 0).ok());
  gpu_.FaultAfter(1);  // the append goes well, the attention does not
  EXPECT_EQ(Run(cache, 1).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(gpu_.num_resets(), 1);
  EXPECT_THAT(reported_, ElementsAre("illegal address / "));

  EXPECT_EQ(ReasonOf(Run(cache, 1)), "SESSION_LOST");
  output_.assign(output_.size(), 0);
  const auto fresh = NewCache();
  ASSERT_TRUE(Run(fresh, 0).ok());
  EXPECT_THAT(std::vector<float>(output_.begin(), output_.begin() + kDim), Each(0.5f));
}

TEST_F(CudaRecoveryTest, ASessionThatLiesOnTheHostGoesOnInTheNextContext) {
  const auto cache = NewCache(), other = NewCache();
  ASSERT_TRUE(Run(cache, 0).ok());
  ASSERT_TRUE(cache->Spill(device_->backend(), device_->host_pages()).ok());
  gpu_.FaultAfter(0);
  EXPECT_EQ(Run(other, 0).code(), absl::StatusCode::kInternal);
  output_.assign(output_.size(), 0);
  ASSERT_TRUE(Run(cache, 1).ok());
  EXPECT_THAT(std::vector<float>(output_.begin(), output_.begin() + kDim), Each(0.5f));
  EXPECT_EQ(cache->length(0), 2);
  EXPECT_FALSE(cache->is_spilled());
}

TEST_F(CudaRecoveryTest, EachLaunchMayBeTheOneThatFaults) {
  for (int launch = 0; launch < 4; ++launch) {
    const auto cache = NewCache();
    gpu_.FaultAfter(launch % 2);
    EXPECT_EQ(Run(cache, 0).code(), absl::StatusCode::kInternal);
    EXPECT_TRUE(Run(NewCache(), 0).ok());
  }
  EXPECT_EQ(gpu_.num_resets(), 4);
}

TEST_F(CudaRecoveryTest, ALongRequestThatOutlivesItsContextGivesNothingBackToTheNext) {
  const std::atomic<bool> yields{true};
  const auto cache = NewCache();
  auto sliced = device_->worker().BeginSliced(Request(cache, 0, 200), clock_.Now());
  ASSERT_FALSE(sliced->RunSlice(yields)) << "appends";
  ASSERT_FALSE(sliced->RunSlice(yields)) << "begins to attend, and holds memory of the context";
  gpu_.FaultAfter(0);
  EXPECT_EQ(Run(NewCache(), 0).code(), absl::StatusCode::kInternal);
  ASSERT_TRUE(Run(NewCache(), 0).ok());
  EXPECT_TRUE(sliced->RunSlice(yields));
  EXPECT_EQ(Outcome().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(gpu_.num_resets(), 1) << "no second failure";
}

// A failure that is not the GPU's leaves its context whole, but nobody can tell what it has done.
TEST_F(CudaRecoveryTest, AFailureOfAnotherKindLeavesNoMemoryBehind) {
  const auto cache = NewCache();
  ASSERT_TRUE(Run(cache, 0).ok());
  const std::size_t num_blocks = gpu_.num_blocks();
  ASSERT_GT(num_blocks, 0u);
  device_->pages().LoseAll();
  ASSERT_TRUE(device_->backend().Recover().ok());
  EXPECT_EQ(gpu_.num_resets(), 1);
  ASSERT_TRUE(Run(NewCache(), 0).ok());
  EXPECT_EQ(gpu_.num_blocks(), num_blocks);
}

TEST_F(CudaRecoveryTest, ADriverThatDoesNotGiveTheDeviceBackIsNamedAndAskedAgain) {
  const auto cache = NewCache();
  gpu_.set_reset_status(absl::InternalError("the process must be relaunched"));
  gpu_.FaultAfter(0);
  EXPECT_EQ(Run(cache, 0).code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(device_->backend().is_usable());
  EXPECT_TRUE(cache->is_lost());
  EXPECT_EQ(Run(cache, 0).code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(
      std::string(factory_->Create({1, kDim, kDim, DType::kFloat32}, 1, 0).status().message()),
      HasSubstr("the process must be relaunched; start the server again"));

  gpu_.set_reset_status(absl::OkStatus());
  clock_.Advance(absl::Seconds(2));
  EXPECT_FALSE(Run(cache, 0).ok()) << "but it has the device set up for those that follow";
  EXPECT_TRUE(Run(NewCache(), 0).ok());
}

}  // namespace
}  // namespace attention::server
