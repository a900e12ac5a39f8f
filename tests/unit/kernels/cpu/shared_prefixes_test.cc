// Which tasks are computed together, and how: every row of every task meets each of its ranges
// once, in ascending order, in pages that are its own.
#include "kernels/cpu/shared_prefixes.h"

#include <gmock/gmock.h>

#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "kernels/cpu/plan.h"

namespace attention::cpu {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr std::int64_t kTokensOfPage = 256;

struct TaskHeads {
  int num_q_heads = 8;
  int num_kv_heads = 2;
  std::int64_t q_len = 1;
};

// PagedTasks over page tables whose pages are never read.
class PagedTasks {
 public:
  // A table of numbered pages.
  AttentionTask& Add(const std::vector<int>& pages, const TaskHeads& shape = {}) {
    static char memory[1 << 16];
    std::vector<void*>& table = tables_.emplace_back();
    for (int page : pages) table.push_back(page < 0 ? nullptr : memory + page);
    AttentionTask& task = tasks_.emplace_back();
    task.params.num_q_heads = shape.num_q_heads;
    task.params.num_kv_heads = shape.num_kv_heads;
    task.params.head_dim_qk = task.params.head_dim_v = 64;
    task.params.softmax_scale = 0.125f;
    task.params.is_causal = true;
    task.q_len = shape.q_len;
    task.kv_len = static_cast<std::int64_t>(pages.size()) * kTokensOfPage;
    task.first_query_position = task.kv_len - task.q_len;
    task.q = DenseRows(static_cast<const void*>(memory), DType::kFloat32, shape.num_q_heads, 64);
    task.o = DenseRows(static_cast<void*>(memory), DType::kFloat32, shape.num_q_heads, 64);
    task.kv_pages = {table.data(), static_cast<std::int64_t>(pages.size()), kTokensOfPage};
    return task;
  }

  std::unique_ptr<CpuPlan> Plan(int num_threads = 1) const {
    auto plan = MakeCpuPlan(tasks_, num_threads);
    EXPECT_TRUE(plan.ok()) << plan.status();
    return std::move(*plan);
  }

  std::vector<SharedPrefix> Find() const { return FindSharedPrefixes(Plan()->tasks); }

 private:
  std::deque<std::vector<void*>> tables_;
  std::vector<AttentionTask> tasks_;
};

// `shared` pages that all such tables begin with, and others that only this one has.
std::vector<int> PageNumbers(int shared, int own, int first_own) {
  std::vector<int> pages;
  for (int i = 0; i < shared; ++i) pages.push_back(i);
  for (int i = 0; i < own; ++i) pages.push_back(first_own + i);
  return pages;
}

TEST(SharedPrefixesTest, TasksWithTheSameFirstPagesAreFoundAmongOthers) {
  PagedTasks tasks;
  tasks.Add(PageNumbers(0, 8, 1000));
  tasks.Add(PageNumbers(6, 2, 2000));
  tasks.Add(PageNumbers(0, 8, 3000));
  tasks.Add(PageNumbers(7, 1, 4000));
  const std::vector<SharedPrefix> found = tasks.Find();
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_THAT(found[0].tasks, ::testing::UnorderedElementsAre(1, 3));
  EXPECT_THAT(found[0].shared_ranges, ElementsAre(0, 3));  // six pages are three ranges
}

TEST(SharedPrefixesTest, ForksOfForksStandBesideTheirNearest) {
  PagedTasks tasks;
  const std::vector<int> root = PageNumbers(4, 0, 0);
  for (int leaf : {0, 1, 2, 3}) {
    std::vector<int> pages = root;
    for (int i = 0; i < 4; ++i) pages.push_back(100 * (leaf % 2 + 1) + i);
    for (int i = 0; i < 2; ++i) pages.push_back(1000 * (leaf + 1) + i);
    tasks.Add(pages);
  }
  const std::vector<SharedPrefix> found = tasks.Find();
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_THAT(found[0].shared_ranges, ElementsAre(0, 4, 2, 4));
  EXPECT_EQ(found[0].tasks[0] % 2, found[0].tasks[1] % 2);
  EXPECT_EQ(found[0].tasks[2] % 2, found[0].tasks[3] % 2);
}

TEST(SharedPrefixesTest, TasksOfOtherKernelsStayAlone) {
  const std::vector<void (*)(AttentionTask * task)> changes = {
      [](AttentionTask* task) { task->params.softmax_scale = 1; },
      [](AttentionTask* task) { task->params.window_left = 5000; },
      [](AttentionTask* task) { task->q.dtype = DType::kBFloat16; },
      [](AttentionTask* task) { task->bias.data = task->q.data; },
      [](AttentionTask* task) { task->q_len = 24; },    // rows for a tile of its own
      [](AttentionTask* task) { task->kv_len = 500; },  // less than a range
      [](AttentionTask* task) { task->params.value_is_key_prefix = true; },
  };
  for (std::size_t i = 0; i < changes.size(); ++i) {
    PagedTasks tasks;
    tasks.Add(PageNumbers(6, 2, 1000));
    changes[i](&tasks.Add(PageNumbers(6, 2, 2000)));
    EXPECT_THAT(tasks.Find(), IsEmpty()) << i;
    tasks.Add(PageNumbers(6, 2, 3000));
    EXPECT_THAT(tasks.Find(), SizeIs(1)) << i;
  }
}

TEST(SharedPrefixesTest, LittleInCommonIsNotWorthATileInCommon) {
  PagedTasks tasks;
  tasks.Add(PageNumbers(2, 40, 1000));
  tasks.Add(PageNumbers(2, 40, 2000));
  tasks.Add(PageNumbers(1, 1, 3000));  // not a whole range
  EXPECT_THAT(tasks.Find(), IsEmpty());
}

TEST(SharedPrefixesTest, PagesThatAWindowHidesAreNotInCommon) {
  PagedTasks tasks;
  for (int i : {1, 2, 3}) tasks.Add(PageNumbers(20, 4, 1000 * i)).params.window_left = 600;
  EXPECT_THAT(tasks.Find(), IsEmpty());
}

// Windows let go of pages that nobody sees any more.
TEST(SharedPrefixesTest, TasksAreComparedFromTheFirstPageThatTheySee) {
  PagedTasks before;
  before.Add({-1, 2, 3, 4, 5, 6, 7, 8, 9}).kv_begin = kTokensOfPage;
  before.Add({1, 2, 3, 4, 5, 6, 7, 8, 19}).kv_begin = kTokensOfPage + 9;
  ASSERT_THAT(before.Find(), SizeIs(1));
  EXPECT_THAT(before.Find()[0].shared_ranges, ElementsAre(0, 4));
  PagedTasks window;
  for (int last : {9, 19}) {
    AttentionTask& task = window.Add({1, -1, -1, -1, 5, 6, 7, 8, last});
    task.params.window_left = 4 * kTokensOfPage;
    task.params.sink_tokens = 5;
  }
  ASSERT_THAT(window.Find(), SizeIs(1));
  EXPECT_THAT(window.Find()[0].shared_ranges, ElementsAre(0, 4));
}

TEST(SharedPrefixesTest, APageThatIsGoneInOneTableEndsWhatIsShared) {
  PagedTasks tasks;
  for (int second : {2, -1}) {
    AttentionTask& task = tasks.Add({1, second, 3, 4, 5, 6, 7, 8, 9});
    task.params.window_left = 4 * kTokensOfPage;
    task.params.sink_tokens = 5;
  }
  EXPECT_THAT(tasks.Find(), IsEmpty());
}

TEST(SharedPrefixesTest, AFewRowsOnManyThreadsTakeSmallerTiles) {
  PagedTasks tasks;
  for (int i = 0; i < 48; ++i) tasks.Add(PageNumbers(64, 1, 1000 * i % 60000));
  EXPECT_EQ(tasks.Plan(1)->joined.size(), 2u);  // 96 rows
  EXPECT_EQ(tasks.Plan(8)->joined.size(), 4u);  // 48 rows
  EXPECT_TRUE(tasks.Plan(1)->merges.empty());
  EXPECT_FALSE(tasks.Plan(64)->merges.empty());
}

// (task, KV head, row) to the ranges that items compute for it.
using RangesOfRows =
    std::map<std::tuple<const PlannedTask*, int, std::int64_t>, std::vector<std::int64_t>>;

void AddRangesOf(const CpuPlan& plan, const WorkItem& item, RangesOfRows* ranges) {
  const PlannedTask& planned = plan.tasks[item.task];
  const std::int64_t tokens = planned.range_tokens;
  if (item.joined == nullptr) {
    for (std::int64_t row = item.row_begin; row < item.row_end; ++row) {
      for (std::int64_t range = item.range_begin; range < item.range_end; ++range) {
        (*ranges)[{&planned, item.kv_head, row}].push_back(range);
      }
    }
    return;
  }
  std::vector<std::pair<const PlannedTask*, std::int64_t>> rows;
  for (const JoinedRows& part : item.joined->rows) {
    for (std::int64_t row = part.row_begin; row < part.row_end; ++row) {
      rows.emplace_back(part.planned, row);
    }
  }
  EXPECT_EQ(static_cast<std::int64_t>(rows.size()), item.row_end);
  EXPECT_LE(item.row_end, kTileRows);
  for (const Stretch& stretch : item.joined->stretches) {
    const std::int64_t begin = std::max(stretch.range_begin, item.range_begin);
    const std::int64_t end = std::min(stretch.range_end, item.range_end);
    for (std::int64_t range = begin; range < end; ++range) {
      for (int i = stretch.row_begin; i < stretch.row_end; ++i) {
        const auto& [task, row] = rows[i];
        if (range * tokens >= task->task.kv_len) continue;
        (*ranges)[{task, item.kv_head, row}].push_back(range);
        for (std::int64_t token = range * tokens; token < (range + 1) * tokens;
             token += kTokensOfPage) {
          if (token >= task->task.kv_len) break;
          EXPECT_EQ(stretch.planned->pages[token / kTokensOfPage],
                    task->pages[token / kTokensOfPage]);
        }
      }
    }
  }
}

void ExpectEachRangeOnce(const CpuPlan& plan) {
  RangesOfRows ranges;
  for (const WorkItem& item : plan.items) AddRangesOf(plan, item, &ranges);
  for (const PlannedTask& planned : plan.tasks) {
    const auto rows = planned.task.q_len * planned.task.params.group_size();
    for (int head = 0; head < 2; ++head) {
      for (std::int64_t row = 0; row < rows; ++row) {
        auto met = ranges[{&planned, head, row}];
        if (plan.merges.empty()) {
          EXPECT_TRUE(std::is_sorted(met.begin(), met.end()));
        }
        std::sort(met.begin(), met.end());
        for (std::size_t i = 0; i < met.size(); ++i) {
          ASSERT_EQ(met[i], static_cast<std::int64_t>(i));
        }
        // The newest key is in the last range.
        ASSERT_EQ(static_cast<std::int64_t>(met.size()),
                  (planned.task.kv_len + planned.range_tokens - 1) / planned.range_tokens);
      }
    }
  }
}

TEST(SharedPrefixesTest, EveryRowMeetsEachOfItsRangesOnceInItsOwnPages) {
  std::mt19937 random(1);
  for (int round = 0; round < 60; ++round) {
    PagedTasks tasks;
    std::vector<std::vector<int>> tables = {PageNumbers(20, 0, 0)};
    int next_page = 100;
    const TaskHeads shape{.num_q_heads = 2 * (1 + static_cast<int>(random() % 9)),
                          .q_len = 1 + static_cast<std::int64_t>(random() % 3)};
    const int count = 2 + static_cast<int>(random() % 40);
    for (int i = 0; i < count; ++i) {
      std::vector<int> pages = tables[random() % tables.size()];
      pages.resize(pages.size() - random() % std::min<std::size_t>(pages.size(), 6));
      for (unsigned own = random() % 7; own > 0 || pages.empty(); own -= own > 0) {
        pages.push_back(next_page++);
      }
      tables.push_back(pages);
      tasks.Add(pages, shape).kv_len -= random() % kTokensOfPage;
    }
    for (int threads : {1, 2, 40}) ExpectEachRangeOnce(*tasks.Plan(threads));
  }
}

// Deeper than what is followed.
TEST(SharedPrefixesTest, ForksAtEachPageOfALongPromptMeetTheirRangesOnce) {
  PagedTasks tasks;
  for (int i = 0; i < 400; ++i) tasks.Add(PageNumbers(i + 4, 1, 1000 + i));
  const std::vector<SharedPrefix> found = tasks.Find();
  ASSERT_THAT(found, SizeIs(1));
  EXPECT_THAT(found[0].tasks, SizeIs(400));
  ExpectEachRangeOnce(*tasks.Plan());
}

}  // namespace
}  // namespace attention::cpu
