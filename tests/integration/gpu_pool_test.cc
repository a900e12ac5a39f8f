// A server with several GPUs, which are simulated (tests/simt): each is named, has its sessions,
// and leaves the others alone when it fails.
#include <array>
#include <set>

#include "kernels/cuda/cuda_backend.h"
#include "tests/simt/faulty_gpu.h"
#include "tests/support/session_driver.h"

namespace attention::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::int64_t kLength = 40;

class GpuPoolTest : public ::testing::Test {
 protected:
  // A server on the GPUs of those ordinals.
  void Start(std::vector<int> ordinals) {
    server_.emplace(
        [&ordinals](server::ServerConfig& config) {
          config.backend = "cuda";
          config.cuda_devices = ordinals;
          config.kv_capacity_bytes = 0;  // what each GPU has
        },
        [this](std::string_view,
               const BackendOptions& options) -> absl::StatusOr<std::unique_ptr<AttentionBackend>> {
          auto device = gpus_[options.cuda_device].MakeDevice();
          if (!device.ok()) return device.status();
          return cuda::MakeCudaBackend(*std::move(device));
        });
  }

  ~GpuPoolTest() override {
    server_.reset();
    for (const simt::FaultyGpu& gpu : gpus_) EXPECT_THAT(gpu.Misuse(), IsEmpty());
  }

  std::vector<v1::Device> Devices() {
    v1::GetServerInfoResponse info;
    const auto context = NewContext();
    EXPECT_TRUE(server_->info().GetServerInfo(context.get(), {}, &info).ok());
    return {info.devices().begin(), info.devices().end()};
  }

  v1::StepResponse StepAll(const std::vector<v1::SessionHandle>& handles, std::int64_t begin,
                           std::int64_t end) {
    v1::StepRequest request;
    for (const v1::SessionHandle& handle : handles) {
      *request.add_steps() = MakeStep(prompt_, handle, begin, end);
    }
    v1::StepResponse response;
    const auto context = NewContext();
    const grpc::Status status = server_->sessions().Step(context.get(), request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  std::array<simt::FaultyGpu, 3> gpus_ = {simt::FaultyGpu("simulated (GPU 0)"),
                                          simt::FaultyGpu("simulated (GPU 1)"),
                                          simt::FaultyGpu("simulated (GPU 2)")};
  const v1::AttendRequest prompt_ = MakePrompt(kLength);
  std::optional<TestServer> server_;
};

TEST_F(GpuPoolTest, EachGpuIsNamedAndHoldsItsPartOfTheSessions) {
  Start({0, 2});
  std::vector<v1::SessionHandle> handles;
  for (int i = 0; i < 4; ++i) handles.push_back(MustCreate(*server_).handle());
  const v1::StepResponse response = StepAll(handles, 0, kLength);
  ASSERT_EQ(response.results_size(), 4);
  for (const v1::SessionStepResult& result : response.results()) {
    ASSERT_FALSE(result.has_error()) << result.error().message();
    EXPECT_EQ(FindMismatch(prompt_, AsResponse(result)), "");
    EXPECT_TRUE(SameAnswer(AsResponse(result), AsResponse(response.results(0))));
  }
  std::vector<std::string> names;
  for (const v1::Device& device : Devices()) {
    if (!device.is_used()) continue;
    names.push_back(device.name());
    EXPECT_EQ(device.backend(), "cuda");
    EXPECT_LT(device.kv_free_bytes(), device.kv_capacity_bytes()) << "it holds sessions";
  }
  EXPECT_THAT(names, ElementsAre("simulated (GPU 0)", "simulated (GPU 2)"));
  EXPECT_EQ(gpus_[1].num_blocks(), 0u) << "it was not chosen";
}

TEST_F(GpuPoolTest, AFaultCostsTheSessionsOfItsGpuAndNoOther) {
  Start({0, 1, 2});
  std::vector<v1::SessionHandle> handles;
  for (int i = 0; i < 3; ++i) handles.push_back(MustCreate(*server_).handle());
  StepAll(handles, 0, kLength - 1);

  gpus_[1].FaultAfter(1);
  const v1::StepResponse faulted = StepAll(handles, kLength - 1, kLength);
  int num_lost = 0;
  for (int i = 0; i < 3; ++i) {
    if (!faulted.results(i).has_error()) continue;
    ++num_lost;
    EXPECT_THAT(faulted.results(i).error(), FailsWith(grpc::INTERNAL, "illegal address"));
    EXPECT_THAT(RunStep(*server_, MakeStep(prompt_, handles[i], kLength - 1, kLength)).error(),
                FailsBecause(grpc::NOT_FOUND, "SESSION_LOST"));
  }
  EXPECT_EQ(num_lost, 1);
  EXPECT_EQ(gpus_[1].num_resets(), 1);
  EXPECT_EQ(gpus_[0].num_resets() + gpus_[2].num_resets(), 0);
  for (const v1::Device& device : Devices()) {
    const bool is_simulated = device.name().find("simulated") == 0;
    EXPECT_TRUE(device.is_used() || !is_simulated) << device.name();
  }
  ExpectServes(*server_);
}

TEST_F(GpuPoolTest, AGpuThatDoesNotComeBackIsToldAndTheOthersServe) {
  Start({0, 1});
  std::vector<v1::SessionHandle> handles;
  for (int i = 0; i < 2; ++i) handles.push_back(MustCreate(*server_).handle());
  gpus_[0].set_reset_status(absl::InternalError("the process must be relaunched"));
  gpus_[0].FaultAfter(0);
  StepAll(handles, 0, kLength);

  std::set<std::string> unused;
  for (const v1::Device& device : Devices()) {
    if (!device.is_used()) unused.insert(device.name());
  }
  EXPECT_EQ(unused.count("simulated (GPU 0)"), 1u);
  EXPECT_EQ(server_->Get("/readyz").status, 200);
  // New sessions are made on the one that is left.
  const v1::SessionHandle fresh = MustCreate(*server_).handle();
  EXPECT_FALSE(RunStep(*server_, MakeStep(prompt_, fresh, 0, kLength)).has_error());
}

}  // namespace
}  // namespace attention::testing
