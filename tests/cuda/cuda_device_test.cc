// What only a GPU can show, beside the tests of tests/parity that run there too: that a thousand
// runs give the same bits, while other work comes and goes; and a few small shapes of every kernel
// for the memory and race checkers.
#include <gmock/gmock.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/plugin_loader.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"
#include "tests/support/tolerance.h"

namespace attention::testing {

std::unique_ptr<AttentionBackend> MakeCuda(std::uint32_t, double step_flops) {
  auto backend = cuda::LoadCudaBackend({.has_managed_memory = true, .step_flops = step_flops});
  if (!backend.ok()) {
    std::printf("skipped: %s\n", std::string(backend.status().message()).c_str());
    std::exit(77);
  }
  return std::move(*backend);
}

std::unique_ptr<AttentionBackend> MakeCudaOverlapping(std::size_t part_bytes, int,
                                                      double step_flops) {
  auto backend = cuda::LoadCudaBackend(
      {.has_managed_memory = true, .step_flops = step_flops, .part_bytes = part_bytes});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return std::move(*backend);
}

AttentionBackend& Cuda() {
  static auto* backend = MakeCuda().release();
  return *backend;
}

std::unique_ptr<AttentionBackend> MakeCudaHopper(std::uint32_t seed, double step_flops) {
  return MakeCuda(seed, step_flops);
}

AttentionBackend& CudaHopper() { return Cuda(); }

namespace {

constexpr DType kKvDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                               DType::kFloat8E4M3};

// A prompt, a step and a step split over ranges, for each type and compiled head dim. The prompt
// has enough rows for the kernel of Hopper.
std::vector<ProblemSpec> Shapes() {
  std::vector<ProblemSpec> specs;
  for (DType dtype : kKvDTypes) {
    for (int dim : {64, 128, 256}) {
      for (const auto& [q_len, kv_len] : {std::pair{70, 90}, {1, 40}, {2, 600}}) {
        specs.push_back({.num_q_heads = 4,
                         .num_kv_heads = 2,
                         .head_dim_qk = dim,
                         .head_dim_v = dim,
                         .dtype = RowTypeFor(dtype),
                         .kv_dtype = dtype,
                         .q_len = q_len,
                         .kv_len = kv_len,
                         .is_causal = true});
      }
    }
  }
  return specs;
}

TEST(CudaDeviceTest, SmallShapes) {
  for (const ProblemSpec& spec : Shapes()) {
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec);
    EXPECT_EQ(FindMismatch(MakeExpectation(problem), RunTask(Cuda(), problem.task())), "");
  }
}

TEST(CudaDeviceTest, RepeatedRunsGiveTheSameBits) {
  for (ProblemSpec spec : Shapes()) {
    if (spec.q_len == 70) spec.q_len = 200, spec.kv_len = 900;
    if (spec.q_len == 1) spec.kv_len = 5000;
    SCOPED_TRACE(spec.Describe());
    const AttentionProblem problem(spec), other({.q_len = 30, .kv_len = 300});
    const PagedKv paged(Cuda(), problem, {.page_size = 64});
    const TaskOutput expected = RunTask(Cuda(), paged.Task(problem));
    for (int run = 0; run < 1000; ++run) {
      if (run % 10 == 3) RunTask(Cuda(), other.task());
      ASSERT_TRUE(SameBits(expected, RunTask(Cuda(), paged.Task(problem)))) << "run " << run;
    }
  }
}

}  // namespace
}  // namespace attention::testing

// Says at once when there is no device, and on which one it runs.
int main(int argc, char** argv) {
  ::testing::InitGoogleMock(&argc, argv);
  const attention::BackendInfo& info = attention::testing::Cuda().info();
  std::printf("on %s (%s)\n", info.device.c_str(), info.isa.c_str());
  return RUN_ALL_TESTS();
}
