// Tests that only a GPU can pass or fail, beside those of tests/parity that run there too: a
// thousand runs give the same bits, while other work comes and goes; and a few small shapes of
// every kernel for the memory and race checkers.
#include <gmock/gmock.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/plugin/plugin_loader.h"
#include "tests/support/attention_problem.h"
#include "tests/support/backend_checks.h"
#include "tests/support/cuda_backends.h"
#include "tests/support/projection_problem.h"
#include "tests/support/tolerance.h"

namespace attention::testing {

std::unique_ptr<AttentionBackend> MakeCuda(std::uint32_t, double launch_flops) {
  auto backend = cuda::LoadCudaBackend({.has_managed_memory = true, .launch_flops = launch_flops});
  if (!backend.ok()) {
    std::printf("skipped: %s\n", std::string(backend.status().message()).c_str());
    std::exit(77);
  }
  return std::move(*backend);
}

std::unique_ptr<AttentionBackend> MakeCudaOverlapping(std::size_t part_bytes, int,
                                                      double launch_flops) {
  auto backend = cuda::LoadCudaBackend(
      {.has_managed_memory = true, .launch_flops = launch_flops, .part_bytes = part_bytes});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return std::move(*backend);
}

AttentionBackend& Cuda() {
  static auto* backend = MakeCuda().release();
  return *backend;
}

std::unique_ptr<AttentionBackend> MakeCudaHopper(std::uint32_t seed, double launch_flops) {
  return MakeCuda(seed, launch_flops);
}

AttentionBackend& CudaHopper() { return Cuda(); }

namespace {

constexpr DType kKvDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kInt8,
                               DType::kFloat8E4M3};

// Prefill, decode, and decode split over ranges, for each type and compiled head dim. Prefill
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

// A layer of a large model, beside the blocks and algorithms that its rows take here.
class LargeProjectionTest : public ::testing::TestWithParam<std::pair<DType, DType>> {
 protected:
  static constexpr std::int64_t kIn = 4096, kOut = 6144, kRows = 2500;

  void SetUp() override {
    projections_ = Cuda().projections();
    if (projections_ == nullptr) GTEST_SKIP() << Cuda().info().no_projections;
    const ProjectionPart part = PartOf(w_, &b_);
    auto packed = projections_->Pack(kIn, {&part, 1});
    ASSERT_TRUE(packed.ok()) << packed.status();
    packed_ = *std::move(packed);
  }
  std::vector<float> Project(std::int64_t begin, std::int64_t end) {
    std::vector<float> y((end - begin) * kOut);
    ProjectionTask rows = RowsOf(TaskOf(*packed_, x_, nullptr, DType::kFloat32), begin, end);
    rows.y = y.data();
    EXPECT_TRUE(projections_->Project({&rows, 1}).ok());
    return y;
  }
  static bool SameRows(const std::vector<float>& all, std::int64_t begin,
                       const std::vector<float>& some) {
    return std::memcmp(all.data() + begin * kOut, some.data(), some.size() * sizeof(float)) == 0;
  }

  const Matrix w_{kOut, kIn, GetParam().first, 1, 0.02f}, b_{1, kOut, GetParam().first, 2};
  const Matrix x_{kRows, kIn, GetParam().second, 3};
  ProjectionBackend* projections_ = nullptr;
  std::shared_ptr<const PackedProjection> packed_;
};

INSTANTIATE_TEST_SUITE_P(Types, LargeProjectionTest,
                         ::testing::Values(std::pair{DType::kBFloat16, DType::kBFloat16},
                                           std::pair{DType::kBFloat16, DType::kFloat32},
                                           std::pair{DType::kFloat16, DType::kFloat16},
                                           std::pair{DType::kFloat16, DType::kFloat32},
                                           std::pair{DType::kFloat32, DType::kFloat32}));

TEST_P(LargeProjectionTest, IsAsExactAsThePlainComputation) {
  constexpr std::int64_t kSome = 4;
  Matrix some(kSome, kIn, x_.dtype, 4);
  std::memcpy(some.bytes.data(), x_.bytes.data(), some.bytes.size());
  std::vector<double> exact;
  const double tolerance = ToleranceOf(some, w_, b_, DType::kFloat32, &exact);
  const std::vector<float> y = Project(0, kRows);
  for (std::size_t i = 0; i < exact.size(); ++i) ASSERT_NEAR(y[i], exact[i], tolerance) << i;
}

TEST_P(LargeProjectionTest, ARowsBitsDoNotDependOnItsCompany) {
  const std::vector<float> all = Project(0, kRows);
  for (std::int64_t begin = 0, count = 1; begin < kRows;
       begin += count, count = count * 3 / 2 + 1) {
    const std::int64_t end = std::min(kRows, begin + count);
    EXPECT_TRUE(SameRows(all, begin, Project(begin, end))) << "rows " << begin << " to " << end;
  }
}

TEST_P(LargeProjectionTest, RepeatedRunsGiveTheSameBits) {
  const std::vector<float> all = Project(0, 300);
  const AttentionProblem other({.q_len = 30, .kv_len = 300});
  for (int run = 0; run < 1000; ++run) {
    if (run % 10 == 3) RunTask(Cuda(), other.task());
    const std::int64_t begin = run % 7 * 13, end = begin + 1 + run % 200;
    ASSERT_TRUE(SameRows(all, begin, Project(begin, end))) << "run " << run;
  }
}

}  // namespace
}  // namespace attention::testing

// Prints the device that the tests run on; skips them at once when there is none.
int main(int argc, char** argv) {
  ::testing::InitGoogleMock(&argc, argv);
  const attention::BackendInfo& info = attention::testing::Cuda().info();
  std::printf("on %s (%s)\n", info.device.c_str(), info.isa.c_str());
  return RUN_ALL_TESTS();
}
