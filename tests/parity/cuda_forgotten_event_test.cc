// That the simulated device would show it if the backend forgot to order its streams: each thing
// that orders them is left out in turn.
#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "kernels/cuda/cuda_backend.h"
#include "tests/simt/simt_device.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"

namespace attention::testing {
namespace {

using cuda::Stream;

// The waits that a device leaves out.
struct Omissions {
  bool compute_waits = false;   // for uploads
  bool download_waits = false;  // for results
  bool host_waits = false;      // for either
};

class ForgetfulDevice final : public cuda::Device {
 public:
  ForgetfulDevice(std::shared_ptr<cuda::Device> real, const Omissions& omissions)
      : real_(std::move(real)), omissions_(omissions) {}

  const cuda::DeviceProperties& properties() const override { return real_->properties(); }
  MemoryAllocator& memory() override { return real_->memory(); }
  MemoryAllocator& host_memory() override { return real_->host_memory(); }
  absl::Status CopyToDevice(Stream stream, void* device, const void* host,
                            std::size_t bytes) override {
    return real_->CopyToDevice(stream, device, host, bytes);
  }
  absl::Status CopyToHost(Stream stream, void* host, const void* device,
                          std::size_t bytes) override {
    return real_->CopyToHost(stream, host, device, bytes);
  }
  absl::Status CopyOnDevice(void* to, const void* from, std::size_t bytes) override {
    return real_->CopyOnDevice(to, from, bytes);
  }
  bool IsPinned(const void* host) const override { return real_->IsPinned(host); }
  absl::Status Launch(const cuda::KernelId& id, int num_blocks,
                      const cuda::AttendArguments& arguments) override {
    return real_->Launch(id, num_blocks, arguments);
  }
  absl::Status Launch(const cuda::KernelId& id, int num_blocks,
                      const cuda::ProbeArguments& arguments) override {
    return real_->Launch(id, num_blocks, arguments);
  }
  absl::Status Launch(const cuda::KernelId& id, int num_blocks,
                      const cuda::AppendArguments& arguments) override {
    return real_->Launch(id, num_blocks, arguments);
  }
  absl::StatusOr<cuda::MatmulDevice*> matmuls() override { return real_->matmuls(); }
  absl::StatusOr<std::unique_ptr<cuda::Event>> MakeEvent() override { return real_->MakeEvent(); }
  absl::Status Record(cuda::Event& event, Stream stream) override {
    return real_->Record(event, stream);
  }
  absl::Status Wait(Stream stream, const cuda::Event& event) override {
    const bool is_left_out =
        stream == Stream::kCompute ? omissions_.compute_waits : omissions_.download_waits;
    return is_left_out ? absl::OkStatus() : real_->Wait(stream, event);
  }
  absl::Status Await(const cuda::Event& event) override {
    return omissions_.host_waits ? absl::OkStatus() : real_->Await(event);
  }
  absl::Status Synchronize() override { return real_->Synchronize(); }
  void Abandon() override { real_->Abandon(); }
  DeviceCeilings MeasureCeilings() override { return real_->MeasureCeilings(); }

 private:
  const std::shared_ptr<cuda::Device> real_;
  const Omissions omissions_;
};

// In how many orders of the streams a run of several parts, after appends, gives other bits.
int NumWrongOrders(const Omissions& omissions, std::size_t direct_bytes) {
  const AttentionProblem problem({.q_len = 300, .kv_len = 300, .is_causal = true});
  const TaskOutput expected = RunTask(Cuda(), problem.task());
  int num_wrong = 0;
  for (simt::EagerStreams eager = 0; eager <= simt::kAllEager; ++eager) {
    const auto device = std::make_shared<ForgetfulDevice>(
        simt::MakeSimtDevice(/*seed=*/1, /*has_wgmma=*/false, eager), omissions);
    const auto backend =
        cuda::MakeCudaBackend(device, {.part_bytes = 1, .direct_bytes = direct_bytes});
    const PagedKv paged(*backend, problem, {.append_tokens = 50});
    const TaskOutput output = RunTask(*backend, paged.Task(problem));
    if (!SameBits(expected, output)) ++num_wrong;
    // Work that nobody waited for still writes there.
    EXPECT_TRUE(device->Synchronize().ok());
  }
  return num_wrong;
}

TEST(CudaForgottenEventTest, EachIsAWrongResultInSomeOrder) {
  for (const std::size_t direct_bytes : {1, 1 << 30}) {
    EXPECT_EQ(NumWrongOrders({}, direct_bytes), 0);
    EXPECT_GT(NumWrongOrders({.compute_waits = true}, direct_bytes), 0);
    EXPECT_GT(NumWrongOrders({.download_waits = true}, direct_bytes), 0);
    EXPECT_GT(NumWrongOrders({.host_waits = true}, direct_bytes), 0);
  }
}

}  // namespace
}  // namespace attention::testing
