// How a plan is cut into parts that travel while others are computed.
#include <gmock/gmock.h>

#include <iterator>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "kernels/cuda/plan/plan.h"
#include "kernels/cuda/plan/run_memory.h"

namespace attention::cuda {
namespace {

char tensor[1];
void* pages[1 << 12];

AttentionTask MakeTask(std::int64_t q_len, std::int64_t kv_len, int q_heads = 8, int dim = 128) {
  AttentionTask task;
  task.params = {.num_q_heads = q_heads,
                 .num_kv_heads = 2,
                 .head_dim_qk = dim,
                 .head_dim_v = dim,
                 .dtype = DType::kBFloat16,
                 .kv_dtype = DType::kBFloat16,
                 .softmax_scale = 1};
  task.q_len = q_len;
  task.kv_len = kv_len;
  task.first_query_position = kv_len - q_len;
  const void* data = tensor;
  task.q = DenseRows(data, DType::kBFloat16, q_heads, dim);
  task.o = DenseRows(static_cast<void*>(tensor), DType::kBFloat16, q_heads, dim);
  task.kv_pages = {pages, std::size(pages), 256};
  return task;
}

std::unique_ptr<CudaPlan> PlanOf(const std::vector<AttentionTask>& tasks, std::size_t part_bytes) {
  auto plan = MakeCudaPlan(tasks, {.launch_flops = 1e18, .part_bytes = part_bytes});
  EXPECT_TRUE(plan.ok()) << plan.status();
  return std::move(*plan);
}

const std::vector<AttentionTask>& Mixed() {
  static const std::vector<AttentionTask> tasks = {MakeTask(1, 1000), MakeTask(700, 700),
                                                   MakeTask(0, 30), MakeTask(200, 900, 6),
                                                   MakeTask(2, 5000)};
  return tasks;
}

TEST(PlanPartsTest, ASmallPlanIsOnePart) {
  EXPECT_EQ(PlanOf({MakeTask(1, 1000), MakeTask(4, 50)}, 4 << 20)->num_parts(), 1u);
  EXPECT_EQ(PlanOf({}, 4 << 20)->num_parts(), 1u);
}

TEST(PlanPartsTest, PartsFollowEachOtherWithoutAGap) {
  const auto plan = PlanOf(Mixed(), 50'000);
  ASSERT_GT(plan->num_parts(), 5u);
  for (std::size_t i = 0; i < plan->num_parts(); ++i) {
    const PlanPart &part = plan->parts[i], &next = plan->parts[i + 1];
    EXPECT_LT(std::pair(part.task, part.query), std::pair(next.task, next.query));
    EXPECT_LT(part.slices, next.slices) << "each part has something to launch";
    EXPECT_LE(part.upload, next.upload);
    EXPECT_LE(part.results, next.results);
    if (i + 1 < plan->num_parts()) {
      EXPECT_GE(next.upload - part.upload + next.results - part.results, 50'000u);
    }
  }
  EXPECT_EQ(plan->parts[0].upload, 0u);
  EXPECT_EQ(plan->parts.back().upload, plan->tables);
  EXPECT_EQ(plan->parts.back().results, plan->result_bytes);
  EXPECT_EQ(plan->parts.back().slices, plan->slices.size());
  EXPECT_EQ(plan->parts.back().items, plan->items.size());
}

// The rows that a launch reads have arrived with its part or before it, and those that it writes go
// back with it or after it.
TEST(PlanPartsTest, AnItemsRowsArriveBeforeItAndGoBackAfterIt) {
  const auto plan = PlanOf(Mixed(), 50'000);
  for (std::size_t i = 0; i < plan->num_parts(); ++i) {
    const PlanPart &part = plan->parts[i], &next = plan->parts[i + 1];
    for (std::size_t at = part.items; at < next.items; ++at) {
      const WorkItem& item = plan->items[at];
      const PlannedTask& planned = plan->tasks[item.task];
      const int group = planned.task.params.group_size();
      const std::int64_t first = item.row_begin / group;
      const std::int64_t end = (item.row_begin + item.num_rows - 1) / group + 1;
      EXPECT_LE(planned.q + end * QueryRowBytes(planned.task), next.upload);
      EXPECT_GE(planned.o + first * OutputRowBytes(planned.task), part.results);
      EXPECT_LE(planned.pages, next.upload);
    }
  }
}

TEST(PlanPartsTest, TheCutChangesNoItem) {
  const auto whole = PlanOf(Mixed(), 1 << 30), cut = PlanOf(Mixed(), 1000);
  ASSERT_EQ(whole->num_parts(), 1u);
  const auto items = [](const CudaPlan& plan) {
    std::multiset<std::vector<std::int64_t>> items;
    for (const WorkItem& item : plan.items) {
      items.insert({item.task, item.kv_head, item.row_begin, item.num_rows, item.key_begin,
                    item.key_end, item.range, item.num_ranges});
    }
    return items;
  };
  EXPECT_EQ(items(*whole), items(*cut));
}

// A query's heads are rows of one tile, or the cut would go through the query.
TEST(PlanPartsTest, AQueryIsNeverCut) {
  const auto plan = PlanOf({MakeTask(500, 500, /*q_heads=*/6)}, 1);  // 64 rows are 21 1/3 queries
  ASSERT_GT(plan->num_parts(), 2u);
  for (std::size_t i = 1; i < plan->num_parts(); ++i) {
    EXPECT_EQ(plan->parts[i].query * 3 % 64, 0) << plan->parts[i].query;
  }
}

}  // namespace
}  // namespace attention::cuda
