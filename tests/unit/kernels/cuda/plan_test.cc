#include "kernels/cuda/plan/plan.h"

#include <gmock/gmock.h>

#include <functional>
#include <map>
#include <set>
#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/plan/run_memory.h"

namespace attention::cuda {
namespace {

using ::testing::HasSubstr;

char tensor[1];

struct TaskSpec {
  int q_heads = 8;
  int kv_heads = 2;
  int dim = 128;
  DType dtype = DType::kBFloat16;
  DType kv_dtype = DType::kBFloat16;
  std::int64_t q_len = 1;
  std::int64_t kv_len = 1000;
};

void* pages[1 << 12];

AttentionTask MakeTask(const TaskSpec& spec) {
  AttentionTask task;
  task.params = {.num_q_heads = spec.q_heads,
                 .num_kv_heads = spec.kv_heads,
                 .head_dim_qk = spec.dim,
                 .head_dim_v = spec.dim,
                 .dtype = spec.dtype,
                 .kv_dtype = spec.kv_dtype,
                 .softmax_scale = 1};
  task.q_len = spec.q_len;
  task.kv_len = spec.kv_len;
  task.first_query_position = spec.kv_len - spec.q_len;
  const void* data = tensor;
  task.q = DenseRows(data, spec.dtype, spec.q_heads, spec.dim);
  task.o = DenseRows(static_cast<void*>(tensor), spec.dtype, spec.q_heads, spec.dim);
  task.kv_pages = {pages, std::size(pages), 256};
  return task;
}

std::unique_ptr<CudaPlan> PlanOf(const std::vector<AttentionTask>& tasks,
                                 double launch_flops = 1e18) {
  auto plan = MakeCudaPlan(tasks, {.launch_flops = launch_flops});
  EXPECT_TRUE(plan.ok()) << plan.status();
  return std::move(*plan);
}

TEST(CudaPlanTest, TypesThatMatrixInstructionsWouldRoundTakeFloat32) {
  using enum DType;
  const std::tuple<DType, DType, bool> cases[] = {
      {kBFloat16, kBFloat16, true},   {kFloat16, kFloat16, true},    {kBFloat16, kInt8, true},
      {kFloat16, kInt8, false},       {kFloat32, kFloat32, false},   {kFloat32, kBFloat16, false},
      {kBFloat16, kFloat16, false},   {kFloat16, kBFloat16, false},  {kBFloat16, kFloat8E4M3, true},
      {kFloat16, kFloat8E4M3, false}, {kFloat32, kFloat8E4M3, false}};
  for (const auto& [dtype, kv_dtype, is_mma] : cases) {
    for (std::int64_t q_len : {1, 30}) {
      const TaskSpec spec{.dtype = dtype, .kv_dtype = kv_dtype, .q_len = q_len};
      EXPECT_EQ(ChooseKernel(MakeTask(spec), false).family != KernelFamily::kAttendFloat, is_mma)
          << DTypeName(dtype) << " over " << DTypeName(kv_dtype);
    }
  }
  AttentionTask mixed = MakeTask({});
  mixed.o.dtype = kFloat32;
  EXPECT_EQ(ChooseKernel(mixed, true).family, KernelFamily::kAttendFloat);
}

TEST(CudaPlanTest, HeadDimsAreRoundedUpToACompiledOne) {
  const std::pair<int, int> cases[] = {{1, 64}, {64, 64}, {65, 128}, {128, 128}, {129, 256}};
  for (const auto& [dim, compiled] : cases) {
    EXPECT_EQ(ChooseKernel(MakeTask({.dim = dim}), false).head_dim, compiled);
  }
}

TEST(CudaPlanTest, StepsOfFewRowsTakeAKernelOfTheirOwn) {
  using enum DType;
  const auto family = [](const TaskSpec& spec, bool has_wgmma = true) {
    return ChooseKernel(MakeTask(spec), has_wgmma).family;
  };
  for (DType kv_dtype : {kBFloat16, kInt8, kFloat8E4M3}) {
    const TaskSpec decode{.kv_dtype = kv_dtype, .q_len = 4};  // of a group of 4
    EXPECT_EQ(family(decode), KernelFamily::kAttendDecodeBulk);
    EXPECT_EQ(family(decode, /*has_wgmma=*/false), KernelFamily::kAttendDecode);
    EXPECT_EQ(family({.kv_dtype = kv_dtype, .q_len = 5}), KernelFamily::kAttendMma);
  }
  // Rows of pages are shorter than the kernel's.
  for (int dim : {40, 96, 192}) EXPECT_EQ(family({.dim = dim}), KernelFamily::kAttendDecode) << dim;
}

TEST(CudaPlanTest, PrefillOfOne16BitTypeTakeWarpgroupsWhereTheDeviceHasThem) {
  using enum DType;
  const auto family = [](const TaskSpec& spec, bool has_wgmma = true) {
    return ChooseKernel(MakeTask(spec), has_wgmma).family;
  };
  const TaskSpec prefill{.q_len = 33};  // of a group of 4
  EXPECT_EQ(family(prefill), KernelFamily::kAttendWgmma);
  EXPECT_EQ(family(prefill, /*has_wgmma=*/false), KernelFamily::kAttendMma);
  EXPECT_EQ(family({.q_len = 32}), KernelFamily::kAttendMma);
  for (int dim : {64, 128, 256}) {
    for (DType dtype : {kBFloat16, kFloat16}) {
      EXPECT_EQ(family({.dim = dim, .dtype = dtype, .kv_dtype = dtype, .q_len = 33}),
                KernelFamily::kAttendWgmma);
    }
  }
  for (int dim : {32, 63, 96, 192}) {
    EXPECT_EQ(family({.dim = dim, .q_len = 33}), KernelFamily::kAttendMma) << dim;
  }
  EXPECT_EQ(family({.kv_dtype = kInt8, .q_len = 33}), KernelFamily::kAttendMma);
  EXPECT_EQ(family({.kv_dtype = kFloat8E4M3, .q_len = 33}), KernelFamily::kAttendMma);
  EXPECT_EQ(family({.dtype = kFloat32, .kv_dtype = kFloat32, .q_len = 33}),
            KernelFamily::kAttendFloat);
  AttentionTask unlike = MakeTask(prefill);
  unlike.params.head_dim_v = 64;
  EXPECT_EQ(ChooseKernel(unlike, true).family, KernelFamily::kAttendMma);
}

// Its blocks count the items that they take.
TEST(CudaPlanTest, EachLaunchOfAPersistentKernelHasACounterOfItsOwn) {
  const std::vector<AttentionTask> tasks = {MakeTask({.q_len = 900, .kv_len = 900}),
                                            MakeTask({.q_len = 1, .kv_len = 9000})};
  const auto plan = MakeCudaPlan(tasks, {.launch_flops = 1e8, .has_wgmma = true});
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::set<std::int64_t> counters;
  for (const WorkItem& item : (*plan)->items) {
    if (item.num_ranges > 1) counters.insert(item.counter);
  }
  const std::size_t num_merges = counters.size();
  std::size_t num_launches = 0;
  for (const LaunchSlice& slice : (*plan)->slices) {
    if (!IsPersistent(slice.kernel)) {
      EXPECT_EQ(slice.num_taken, -1);
      continue;
    }
    ++num_launches;
    EXPECT_TRUE(counters.insert(slice.num_taken).second);
  }
  EXPECT_GT(num_launches, 2u);
  EXPECT_EQ(counters.size(), num_merges + num_launches);
  EXPECT_EQ(static_cast<std::int64_t>(counters.size()), (*plan)->num_counters);
}

TEST(CudaPlanTest, RangesGrowByPowersOfTwoWithTheKeysThatATaskSees) {
  const std::pair<std::int64_t, std::int64_t> cases[] = {
      {0, 128}, {1, 128}, {2048, 128}, {2049, 256}, {4096, 256}, {32768, 2048}, {32769, 4096}};
  for (const auto& [kv_len, range] : cases) {
    EXPECT_EQ(RangeKeysOf(MakeTask({.kv_len = kv_len})), range) << kv_len;
  }
  AttentionTask windowed = MakeTask({.kv_len = 32768});
  windowed.params.window_left = 1000;
  EXPECT_EQ(RangeKeysOf(windowed), 128);
}

// Each row of each head meets each key that it sees in exactly one item.
TEST(CudaPlanTest, ItemsCoverRowsAndRangesOnce) {
  const std::vector<AttentionTask> tasks = {
      MakeTask({.q_len = 1, .kv_len = 5000}), MakeTask({.q_len = 20, .kv_len = 700}),
      MakeTask({.dtype = DType::kFloat32, .kv_dtype = DType::kFloat32, .q_len = 90, .kv_len = 90}),
      MakeTask({.q_len = 300, .kv_len = 300})};
  const auto plan = PlanOf(tasks);
  std::map<std::tuple<int, int, std::int64_t>, std::int64_t> keys;
  std::map<int, std::set<int>> ranges;
  for (const WorkItem& item : plan->items) {
    for (std::int64_t row = item.row_begin; row < item.row_begin + item.num_rows; ++row) {
      keys[{item.task, item.kv_head, row}] += item.key_end - item.key_begin;
    }
    EXPECT_EQ(item.key_begin % kMinRangeKeys, 0);
    if (item.num_ranges > 1) {
      EXPECT_TRUE(ranges[item.counter].insert(item.range).second);
    }
  }
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    const std::int64_t rows = tasks[i].q_len * tasks[i].params.group_size();
    for (std::int64_t row = 0; row < rows; ++row) {
      for (int head = 0; head < 2; ++head) {
        EXPECT_EQ((keys[{static_cast<int>(i), head, row}]), tasks[i].kv_len);
      }
    }
  }
  EXPECT_EQ(static_cast<std::int64_t>(ranges.size()), plan->num_counters);
}

TEST(CudaPlanTest, RangesOutsideAWindowAreLeftOut) {
  AttentionTask task = MakeTask({.kv_len = 100000});
  task.params.is_causal = true;
  task.params.window_left = 500;
  task.params.sink_tokens = 4;
  const auto plan = PlanOf({task});
  std::set<int> begins;
  for (const WorkItem& item : plan->items) begins.insert(item.key_begin);
  // The sinks', and those of [99499, 100000).
  EXPECT_THAT(begins, ::testing::ElementsAre(0, 99456, 99584, 99712, 99840, 99968));
}

TEST(CudaPlanTest, PrefillIsNotSplit) {
  const auto plan = PlanOf({MakeTask({.q_len = 33, .kv_len = 5000})});
  for (const WorkItem& item : plan->items) EXPECT_EQ(item.num_ranges, 1);
  EXPECT_EQ(plan->items.size(), 2u * 3u);
}

TEST(CudaPlanTest, TheNeighboursOfATaskChangeNothingOfItsItems) {
  const AttentionTask task = MakeTask({.q_len = 2, .kv_len = 3000});
  const auto alone = PlanOf({task});
  const auto among = PlanOf({MakeTask({.q_len = 400, .kv_len = 4000}), task, MakeTask({})});
  std::set<std::tuple<int, std::int64_t, int, int, int, int>> expected, found;
  const auto of = [](const WorkItem& item) {
    return std::tuple(item.kv_head, item.row_begin, item.key_begin, item.key_end, item.range,
                      item.num_ranges);
  };
  for (const WorkItem& item : alone->items) expected.insert(of(item));
  for (const WorkItem& item : among->items) {
    if (item.task == 1) found.insert(of(item));
  }
  EXPECT_EQ(found, expected);
}

TEST(CudaPlanTest, StepsHoldTheWholePlanAndStayBelowTheirBound) {
  const std::vector<AttentionTask> tasks = {MakeTask({.q_len = 700, .kv_len = 700}),
                                            MakeTask({.q_len = 1, .kv_len = 9000})};
  const auto plan = PlanOf(tasks, 1e8);
  double flops = 0;
  std::int64_t items = 0;
  for (const LaunchSlice& slice : plan->slices) {
    EXPECT_TRUE(slice.flops <= 1e8 || slice.num_items == 1);
    EXPECT_EQ(slice.first_item, items);
    items += slice.num_items;
    flops += slice.flops;
  }
  EXPECT_EQ(items, static_cast<std::int64_t>(plan->items.size()));
  EXPECT_NEAR(flops, plan->flops, 1e-6 * plan->flops);
  EXPECT_GT(plan->slices.size(), 5u);
}

TEST(CudaPlanTest, ErrorsNameTheTaskAndTheField) {
  AttentionTask bad = MakeTask({});
  bad.params.head_dim_v = 513;
  const auto invalid = MakeCudaPlan(std::vector{MakeTask({}), bad}, {.launch_flops = 1e9});
  EXPECT_EQ(invalid.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(invalid.status().message()), HasSubstr("task 1: head_dim_v is 513"));

  AttentionTask long_task = MakeTask({});
  long_task.kv_len = kMaxKvLen + 1;
  long_task.kv_pages.num_pages = kMaxKvLen;
  const auto too_long = MakeCudaPlan(std::vector{long_task}, {.launch_flops = 1e9});
  EXPECT_EQ(too_long.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(too_long.status().message()), HasSubstr("task 0: kv_len is 1073741825"));
}

TEST(CudaPlanTest, ATreeOfDraftsIsRefusedByName) {
  AttentionTask task = MakeTask({});
  const std::vector<std::uint64_t> ancestors(task.q_len * (task.q_len / 64 + 1));
  const std::vector<std::int32_t> depths(task.q_len);
  task.params.is_tree = true;
  task.tree = {ancestors.data(), task.q_len / 64 + 1, depths.data()};
  task.first_query_position = task.kv_len - task.q_len;
  const auto refused = MakeCudaPlan(std::vector{task}, {.launch_flops = 1e9});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("task 0: tree is given"));
}

TEST(CudaPlanTest, WhatKernelsLackIsNamedByPlansWeightsAndAppends) {
  const auto expect = [](const std::function<void(AttentionParams&)>& change, const char* message) {
    AttentionTask task = MakeTask({});
    change(task.params);
    if (task.params.value_is_key_prefix) task.v = {};
    EXPECT_EQ(MakeCudaPlan(std::vector{task}, {.launch_flops = 1e9}).status(),
              absl::UnimplementedError(absl::StrCat("task 0: ", message)));
    EXPECT_EQ(MakeWeightsPlan({.attention = task}).status(), absl::UnimplementedError(message));
    EXPECT_EQ(CheckLimits(task.params, 1), absl::UnimplementedError(message));
    static void* pages[1] = {};
    KvAppendTask append;
    append.geometry = task.params.kv_geometry();
    append.destination = {pages, 1, 16};
    EXPECT_EQ(CheckAppends({&append, 1}),
              absl::UnimplementedError(absl::StrCat("task 0: ", message)));
  };
  expect([](auto& p) { p.head_dim_qk = 257; }, "head_dim_qk is 257, expected 1 to 256 on a GPU");
  expect([](auto& p) { p.head_dim_v = 512; }, "head_dim_v is 512, expected 1 to 256 on a GPU");
  expect([](auto& p) { p.value_is_key_prefix = true; },
         "value_is_key_prefix is true, expected false on a GPU");
}

TEST(CudaPlanTest, WeightsOfRowsOutsideTheTaskAreRefused) {
  WeightsTask task{.attention = MakeTask({.q_len = 4}), .q_begin = 2, .q_end = 5};
  float weights[1];
  task.weights = weights;
  EXPECT_THAT(std::string(MakeWeightsPlan(task).status().message()),
              HasSubstr("rows are [2, 5), expected a part of [0, 4)"));
}

}  // namespace
}  // namespace attention::cuda
