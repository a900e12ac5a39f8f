#include "kernels/cpu/cpu_backend.h"

#include <gmock/gmock.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/base/cpu_affinity.h"
#include "kernels/cpu/huge_page_memory.h"

namespace attention::cpu {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<AttentionBackend> Make(int num_threads = 2) {
  auto backend = MakeCpuBackend({.num_threads = num_threads});
  EXPECT_TRUE(backend.ok()) << backend.status();
  return std::move(*backend);
}

AttentionTask ValidTask() {
  static float data[64];
  AttentionTask task;
  task.params.num_q_heads = task.params.num_kv_heads = 1;
  task.params.head_dim_qk = task.params.head_dim_v = 4;
  task.params.softmax_scale = 1;
  task.q_len = 1;
  task.kv_len = 3;
  task.q = DenseRows(static_cast<const void*>(data), DType::kFloat32, 1, 4);
  task.k = task.v = task.q;
  static float o[4];
  task.o = DenseRows(static_cast<void*>(o), DType::kFloat32, 1, 4);
  return task;
}

TEST(CpuBackendTest, InfoNamesTheProcessorAndItsInstructionSet) {
  const auto backend = Make(3);
  EXPECT_EQ(backend->info().name, "cpu");
  EXPECT_EQ(backend->info().num_threads, 3);
  EXPECT_FALSE(backend->info().device.empty());
  EXPECT_FALSE(backend->info().isa.empty());
}

TEST(CpuBackendTest, ZeroThreadsMeansOnePerCore) { EXPECT_GE(Make(0)->info().num_threads, 1); }

TEST(CpuBackendTest, ImpossibleOptionsAreRefused) {
  EXPECT_EQ(MakeCpuBackend({.num_threads = -1}).status().code(),
            absl::StatusCode::kInvalidArgument);
  // No processor has SVE and this build's kernels.
  EXPECT_EQ(
      MakeCpuBackend({.num_threads = 1, .highway_target = std::int64_t{1} << 27}).status().code(),
      absl::StatusCode::kUnimplemented);
}

TEST(CpuBackendTest, CpusAreThoseOfTheProcessAndGiveTheNumberOfThreads) {
  const std::vector<int> cpus = AvailableCpus();
  auto backend = MakeCpuBackend({.cpus = cpus});
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_EQ((*backend)->info().num_threads, static_cast<int>(cpus.size()));
  const std::vector<AttentionTask> tasks = {ValidTask()};
  EXPECT_TRUE((*backend)->Run(**(*backend)->Plan(tasks)).ok());

  const auto error = [](const CpuBackendOptions& options) {
    const absl::Status status = MakeCpuBackend(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(error({.cpus = {cpus[0], 8191}}),
            absl::StrCat("cpus[1] is 8191, expected one that the process may run on: ",
                         absl::StrJoin(cpus, ",")));
  EXPECT_EQ(error({.cpus = {cpus[0], cpus[0]}}),
            absl::StrCat("cpus[1] is ", cpus[0], ", expected another than cpus[0]"));
  EXPECT_EQ(error({.num_threads = 3, .cpus = {cpus[0]}}),
            "num_threads is 3, expected 0 or the number of cpus (1)");
}

TEST(CpuBackendTest, PlanNamesTheTaskAndTheField) {
  AttentionTask wrong = ValidTask();
  wrong.params.head_dim_v = 1000;
  const auto plan = Make()->Plan(std::vector<AttentionTask>{ValidTask(), wrong});
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(plan.status().message()), "task 1: head_dim_v is 1000, expected 1 to 512");
}

TEST(CpuBackendTest, SupportsSaysWhyNot) {
  AttentionParams params = ValidTask().params;
  const auto backend = Make();
  EXPECT_TRUE(backend->Supports(params, /*kv_len=*/1).ok());
  params.head_dim_qk = 577;
  const absl::Status status = backend->Supports(params, /*kv_len=*/1);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("head_dim_qk is 577, expected 1 to 576"));
}

TEST(CpuBackendTest, AnEmptyPlanRuns) {
  const auto backend = Make();
  auto plan = backend->Plan({});
  ASSERT_TRUE(plan.ok());
  EXPECT_TRUE(backend->Run(**plan).ok());
}

TEST(CpuBackendTest, APlanMayRunAgainAndBesideOthers) {
  const auto backend = Make();
  auto first = backend->Plan(std::vector<AttentionTask>{ValidTask()});
  auto second = backend->Plan(std::vector<AttentionTask>{ValidTask(), ValidTask()});
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_TRUE(backend->Run(**second).ok());
  EXPECT_TRUE(backend->Run(**first).ok());
  EXPECT_TRUE(backend->Run(**second).ok());
}

// Threads that lose the processor between looking at the count of units and claiming one once
// claimed units that there were not.
TEST(CpuBackendTest, MoreThreadsThanProcessorsClaimNoUnitTwiceNorOneTooMany) {
  constexpr std::int64_t kRows = 8192;
  const auto backend = Make(8);
  const std::vector<float> ones(kRows * 64, 1.0f);
  AttentionTask task;
  task.params = {1, 1, 64, 64};
  task.params.softmax_scale = 1;
  task.q_len = kRows;
  task.kv_len = 1;
  task.q = task.k = task.v =
      DenseRows(static_cast<const void*>(ones.data()), DType::kFloat32, 1, 64);
  for (int run = 0; run < 200; ++run) {
    std::vector<float> o(kRows * 64, -1.0f);
    task.o = DenseRows(static_cast<void*>(o.data()), DType::kFloat32, 1, 64);
    const auto plan = backend->Plan({&task, 1});
    ASSERT_TRUE(plan.ok());
    ASSERT_TRUE(backend->Run(**plan).ok());
    ASSERT_EQ(o, ones) << "run " << run;
  }
}

TEST(CpuBackendTest, KernelNameTellsTypeAndRows) {
  AttentionTask task = ValidTask();
  task.params.kv_dtype = DType::kBFloat16;
  EXPECT_THAT(Make()->KernelName(task), HasSubstr("bfloat16/rows1"));
  task.q_len = 100;
  EXPECT_THAT(Make()->KernelName(task), HasSubstr("bfloat16/rows12"));
}

TEST(CpuBackendTest, AppendsAreChecked) {
  const auto backend = Make();
  std::vector<char> page(4096);
  void* pages[1] = {page.data()};
  float rows[64] = {};
  KvAppendTask task{.geometry = {1, 4, 4, DType::kFloat32},
                    .destination = {pages, 1, 16},
                    .position = 10,
                    .num_tokens = 7,
                    .k = DenseRows(static_cast<const void*>(rows), DType::kFloat32, 1, 4),
                    .v = DenseRows(static_cast<const void*>(rows), DType::kFloat32, 1, 4)};
  absl::Status status = backend->AppendKv({&task, 1});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(std::string(status.message()),
            "task 0: tokens are [10, 10 + 7), expected a part of [0, 16)");
  task.num_tokens = 6;
  EXPECT_TRUE(backend->AppendKv({&task, 1}).ok());
  task.v.data = nullptr;
  EXPECT_THAT(std::string(backend->AppendKv({&task, 1}).message()), HasSubstr("v is missing"));
}

TEST(CpuBackendTest, CeilingsAreMeasuredOnce) {
  const auto backend = Make();
  const DeviceCeilings& first = backend->Ceilings();
  EXPECT_GT(first.flops_per_second, 1e8);
  EXPECT_GT(first.bytes_per_second, 1e8);
  EXPECT_EQ(&first, &backend->Ceilings());
}

TEST(HugePageMemoryTest, BlocksAreAlignedAndWritable) {
  HugePageAllocator allocator;
  for (std::size_t bytes : {std::size_t{0}, std::size_t{1}, std::size_t{100}, std::size_t{2} << 20,
                            (std::size_t{5} << 20) + 3}) {
    void* memory = allocator.Allocate(bytes);
    ASSERT_NE(memory, nullptr);
    const std::size_t align = bytes >= std::size_t{2} << 20 ? std::size_t{2} << 20 : 64;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % align, 0u);
    std::memset(memory, 1, bytes);
    allocator.Free(memory, bytes);
  }
}

TEST(HugePageMemoryTest, NoMemoryIsNull) {
  EXPECT_EQ(HugePageAllocator().Allocate(SIZE_MAX / 2 + 1), nullptr);
  EXPECT_EQ(HugePageAllocator().Allocate(std::size_t{1} << 50), nullptr);
  HugePageBuffer buffer;
  EXPECT_FALSE(buffer.Reserve(std::size_t{1} << 50));
  EXPECT_TRUE(buffer.Reserve(64));
}

}  // namespace
}  // namespace attention::cpu
