// How tasks are cut: every row of every head is computed once, and packed before it is read.
#include "kernels/cpu/plan.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

namespace attention::cpu {
namespace {

struct Shape {
  int batch = 1;
  int num_q_heads = 8;
  int num_kv_heads = 8;
  std::int64_t q_len = 64;
  std::int64_t kv_len = 64;
  int head_dim = 64;
  bool has_column_sums = false;
};

// Tasks whose pointers are never followed by the planner.
std::vector<AttentionTask> TasksOf(const Shape& shape) {
  static float somewhere[1];
  AttentionTask task;
  AttentionParams& params = task.params;
  params.num_q_heads = shape.num_q_heads;
  params.num_kv_heads = shape.num_kv_heads;
  params.head_dim_qk = params.head_dim_v = shape.head_dim;
  params.softmax_scale = DefaultSoftmaxScale(shape.head_dim);
  task.q_len = shape.q_len;
  task.kv_len = shape.kv_len;
  task.q = DenseRows(static_cast<const void*>(somewhere), DType::kFloat32, shape.num_q_heads,
                     shape.head_dim);
  task.k = task.v = DenseRows(static_cast<const void*>(somewhere), DType::kFloat32,
                              shape.num_kv_heads, shape.head_dim);
  task.o =
      DenseRows(static_cast<void*>(somewhere), DType::kFloat32, shape.num_q_heads, shape.head_dim);
  if (shape.has_column_sums) task.column_sums = somewhere;
  return std::vector<AttentionTask>(shape.batch, task);
}

std::unique_ptr<CpuPlan> PlanOf(const Shape& shape, int num_threads) {
  const std::vector<AttentionTask> tasks = TasksOf(shape);
  auto plan = MakeCpuPlan(tasks, num_threads);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return std::move(*plan);
}

int CountWholeTasks(const CpuPlan& plan) {
  return static_cast<int>(std::count_if(plan.units.begin(), plan.units.end(),
                                        [](const WorkUnit& unit) { return unit.is_whole_task; }));
}

int CountPackedHeads(const CpuPlan& plan) {
  return static_cast<int>(
      std::count_if(plan.units.begin(), plan.units.end(),
                    [](const WorkUnit& unit) { return unit.append >= 0 && !unit.is_whole_task; }));
}

// Tokens packed for each task and head, in units and before them.
std::map<std::pair<int, int>, std::int64_t> PackedTokens(const CpuPlan& plan) {
  std::map<std::pair<int, int>, std::int64_t> tokens;
  for (const PackItem& pack : plan.packs) {
    tokens[{plan.append_tasks[pack.append], pack.kv_head}] += pack.token_end - pack.token_begin;
  }
  for (const WorkUnit& unit : plan.units) {
    if (unit.append < 0) continue;
    std::set<std::pair<int, int>> heads;
    const int task = plan.items[unit.item_begin].task;
    if (unit.is_whole_task) {
      for (int head = 0; head < plan.tasks[task].task.params.num_kv_heads; ++head) {
        heads.emplace(task, head);
      }
    } else {
      heads.emplace(task, plan.items[unit.item_begin].kv_head);
    }
    for (const auto& head : heads) tokens[head] += plan.appends[unit.append].num_tokens;
  }
  return tokens;
}

const Shape kShapes[] = {
    {},             // one small task
    {.batch = 20},  // many
    {.batch = 3, .num_q_heads = 32, .q_len = 512, .kv_len = 512, .head_dim = 128},
    {.num_q_heads = 32, .q_len = 100, .kv_len = 3000, .head_dim = 128},  // long
    {.num_q_heads = 32, .num_kv_heads = 1, .q_len = 1, .kv_len = 9000},  // split
    {.batch = 5, .q_len = 7, .has_column_sums = true},
};

TEST(PlanTest, EveryItemIsInOneUnit) {
  for (const Shape& shape : kShapes) {
    for (int threads : {1, 2, 7}) {
      const auto plan = PlanOf(shape, threads);
      std::int64_t next = 0;
      for (const WorkUnit& unit : plan->units) {
        EXPECT_EQ(unit.item_begin, next);
        EXPECT_LT(unit.item_begin, unit.item_end);
        next = unit.item_end;
      }
      EXPECT_EQ(next, static_cast<std::int64_t>(plan->items.size()));
    }
  }
}

TEST(PlanTest, EveryHeadIsPackedOnce) {
  for (const Shape& shape : kShapes) {
    for (int threads : {1, 2, 7}) {
      const auto tokens = PackedTokens(*PlanOf(shape, threads));
      EXPECT_EQ(tokens.size(), static_cast<std::size_t>(shape.batch * shape.num_kv_heads));
      for (const auto& [head, count] : tokens) EXPECT_EQ(count, shape.kv_len);
    }
  }
}

TEST(PlanTest, ItemsCoverEveryRowOnceOrSplitItsRanges) {
  for (const Shape& shape : kShapes) {
    for (int threads : {1, 2, 7}) {
      const auto plan = PlanOf(shape, threads);
      double pairs = 0;
      for (const WorkItem& item : plan->items) {
        pairs += static_cast<double>((item.row_end - item.row_begin) *
                                     (item.range_end - item.range_begin));
      }
      const std::int64_t ranges = CeilDiv<std::int64_t>(shape.kv_len, kRangeTokens);
      EXPECT_EQ(pairs, static_cast<double>(shape.batch * shape.num_q_heads * shape.q_len * ranges));
    }
  }
}

TEST(PlanTest, ASmallTaskIsOneUnit) {
  EXPECT_EQ(CountWholeTasks(*PlanOf({.batch = 20}, 1)), 20);
  // The last tasks are left to level the threads out.
  EXPECT_EQ(CountWholeTasks(*PlanOf({.batch = 20}, 2)), 18);
}

TEST(PlanTest, AHeadOfALargerTaskIsOneUnit) {
  const Shape shape{.num_q_heads = 32, .q_len = 512, .kv_len = 512, .head_dim = 128};
  const auto plan = PlanOf(shape, 2);
  EXPECT_EQ(CountWholeTasks(*plan), 0);
  EXPECT_EQ(CountPackedHeads(*plan), 6);
}

TEST(PlanTest, WhatIsReadAgainIsNotPackedInUnits) {
  const auto plan = PlanOf({.batch = 20, .has_column_sums = true}, 1);
  EXPECT_FALSE(plan->has_packing_units);
}

TEST(PlanTest, LongHeadsArePackedByAllThreads) {
  EXPECT_FALSE(PlanOf({.q_len = 4096, .kv_len = 4096, .head_dim = 128}, 1)->has_packing_units);
}

TEST(PlanTest, WithoutKeysRowsAreComputedInFullTilesAndNothingIsMerged) {
  const auto plan = PlanOf({.q_len = 640, .kv_len = 0}, 8);
  EXPECT_TRUE(plan->merges.empty());
  EXPECT_TRUE(plan->packs.empty());
  EXPECT_EQ(plan->items.size(), 8u * ((640 + kTileRows - 1) / kTileRows));
  for (const WorkItem& item : plan->items) {
    EXPECT_EQ(item.range_begin, item.range_end);
    EXPECT_LT(item.partial_offset, 0);
  }
}

}  // namespace
}  // namespace attention::cpu
