// Steps of forked sequences in one batch: reading the pages that they share once leaves no trace in
// the bits of any of them.
#include <gmock/gmock.h>

#include <atomic>
#include <deque>
#include <functional>
#include <random>
#include <vector>

#include "tests/parity/tested_backend.h"
#include "tests/support/attention_problem.h"
#include "tests/support/cpu_targets.h"
#include "tests/support/forked_sequences.h"

namespace attention::testing {
namespace {

// The heads, dims and type of a tree of forks, and of the steps over it.
struct ForkedShape {
  int num_q_heads = 4;
  int num_kv_heads = 2;
  int head_dim_qk = 32;
  int head_dim_v = 32;
  DType kv_dtype = DType::kFloat32;
  bool is_latent = false;
  std::int64_t page_size = 64;
  std::int64_t prefix = 1300;
  int num_forks = 10;

  AttentionParams params() const {
    AttentionParams params;
    params.num_q_heads = num_q_heads;
    params.num_kv_heads = num_kv_heads;
    params.head_dim_qk = head_dim_qk;
    params.head_dim_v = head_dim_v;
    params.dtype = HasRowScales(kv_dtype) ? DType::kBFloat16 : kv_dtype;
    params.kv_dtype = kv_dtype;
    params.softmax_scale = DefaultSoftmaxScale(head_dim_qk);
    params.is_causal = true;
    params.value_is_key_prefix = is_latent;
    return params;
  }
};

using ChangeStep = std::function<void(std::mt19937& random, AttentionTask* task)>;

// A tree of forks in a backend's memory, and one step of each of its sequences.
class ForkedSteps {
 public:
  ForkedSteps(AttentionBackend& backend, const ForkedShape& shape, std::uint32_t seed = 1,
              const ChangeStep& change = {})
      : backend_(backend),
        sequences_(
            backend,
            {.geometry = shape.params().kv_geometry(), .page_size = shape.page_size, .seed = seed}),
        random_(seed) {
    sequences_.Fork(-1, 0, shape.prefix);
    sequences_.ForkAtRandom(shape.num_forks, /*max_added=*/150);
    for (int i = 0; i < sequences_.size(); ++i) AddStep(shape, i, change);
  }

  const std::vector<AttentionTask>& tasks() const { return tasks_; }

  std::deque<TaskOutput> RunAlone() {
    std::deque<TaskOutput> outputs;
    for (AttentionTask& task : Bound(&outputs)) RunTasks(backend_, {task});
    return outputs;
  }

  // Tasks with outputs of their own.
  std::vector<AttentionTask> Bound(std::deque<TaskOutput>* outputs) const {
    std::vector<AttentionTask> bound = tasks_;
    for (AttentionTask& task : bound) {
      outputs->emplace_back(task.params, task.q_len, task.kv_len).BindTo(&task);
    }
    return bound;
  }

  void ExpectSameTogether(AttentionBackend& backend) {
    const std::deque<TaskOutput> alone = RunAlone();
    std::deque<TaskOutput> together;
    RunTasks(backend, Bound(&together));
    ExpectSame(alone, together);
  }

  static void ExpectSame(const std::deque<TaskOutput>& a, const std::deque<TaskOutput>& b) {
    for (std::size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(SameBits(a[i], b[i])) << "step " << i;
  }

 private:
  void AddStep(const ForkedShape& shape, int sequence, const ChangeStep& change) {
    AttentionTask task;
    task.params = shape.params();
    task.kv_len = sequences_.length(sequence);
    task.q_len = std::min<std::int64_t>(task.kv_len, random_() % 4 == 0 ? 3 : 1);
    task.first_query_position = task.kv_len - task.q_len;
    task.kv_pages = sequences_.pages(sequence);
    if (change) change(random_, &task);
    LetUnseenPagesGo(&task);
    std::vector<char>& q = rows_.emplace_back(task.q_len * shape.num_q_heads * shape.head_dim_qk *
                                              DTypeBytes(task.params.dtype));
    std::normal_distribution<float> normal;
    const std::int64_t count = task.q_len * shape.num_q_heads * shape.head_dim_qk;
    for (std::int64_t i = 0; i < count; ++i) {
      StoreElement(q.data(), task.params.dtype, i, normal(random_));
    }
    task.q = DenseRows(static_cast<const void*>(q.data()), task.params.dtype, shape.num_q_heads,
                       shape.head_dim_qk);
    tasks_.push_back(task);
  }

  // As windows do.
  void LetUnseenPagesGo(AttentionTask* task) {
    PagedKvView& pages = task->kv_pages;
    std::vector<void*>& table = tables_.emplace_back(pages.pages, pages.pages + pages.num_pages);
    const VisibleKeys keys = VisibleKeysOf(*task, task->position(0));
    for (std::int64_t page = 0; page < pages.num_pages; ++page) {
      const std::int64_t begin = page * pages.page_size, end = begin + pages.page_size;
      const bool is_sink = keys.sink_end > task->kv_begin && begin < keys.sink_end;
      if (end <= keys.begin && !is_sink) table[page] = nullptr;
    }
    pages.pages = table.data();
  }

  AttentionBackend& backend_;
  ForkedSequences sequences_;
  std::mt19937 random_;
  std::deque<std::vector<char>> rows_;
  std::deque<std::vector<void*>> tables_;
  std::vector<AttentionTask> tasks_;
};

TEST(SharedPrefixTest, StepsOfForksGiveTheBitsThatTheyGiveAlone) {
  std::uint32_t seed = 0;
  for (const TargetBackend& target : CpuTargets()) {
    SCOPED_TRACE(target.name);
    for (DType dtype : kKvDTypes) {
      for (int group : {1, 3, 4, 8}) {
        SCOPED_TRACE(group);
        ForkedSteps steps(*target.backend,
                          {.num_q_heads = 2 * group, .kv_dtype = dtype, .num_forks = 8}, ++seed);
        steps.ExpectSameTogether(*target.backend);
      }
    }
  }
}

TEST(SharedPrefixTest, HeadDimsAndPagesOfAnySizeGiveTheSameBits) {
  const std::vector<ForkedShape> shapes = {
      {.head_dim_qk = 1, .head_dim_v = 1, .page_size = 16},
      {.head_dim_qk = 17, .head_dim_v = 48, .page_size = 48, .num_forks = 20},
      {.num_q_heads = 1, .num_kv_heads = 1, .head_dim_qk = 128, .head_dim_v = 64, .num_forks = 60},
      {.num_q_heads = 32, .num_kv_heads = 2, .page_size = 512},
      {.num_q_heads = 10, .num_kv_heads = 2, .page_size = 1024, .prefix = 2100},
      {.num_q_heads = 95, .num_kv_heads = 1, .num_forks = 3},
      {.head_dim_qk = 320, .head_dim_v = 320, .page_size = 256},
      {.num_q_heads = 16,
       .num_kv_heads = 1,
       .head_dim_qk = 576,
       .head_dim_v = 512,
       .kv_dtype = DType::kBFloat16,
       .is_latent = true},
      {.num_q_heads = 6,
       .num_kv_heads = 1,
       .head_dim_qk = 80,
       .head_dim_v = 64,
       .kv_dtype = DType::kInt8,
       .is_latent = true},
  };
  for (const TargetBackend& target : CpuTargets()) {
    if (target.name == "SCALAR") continue;  // seconds for each; the test above has it
    SCOPED_TRACE(target.name);
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      SCOPED_TRACE(i);
      ForkedSteps steps(*target.backend, shapes[i]);
      steps.ExpectSameTogether(*target.backend);
    }
  }
}

// Everything that may differ between steps that share pages, a step's own params included.
TEST(SharedPrefixTest, StepsThatSeeOtherKeysGiveTheirOwnBits) {
  std::vector<float> slopes(8), logits(8), bias(8 * 3 * 4000);
  std::vector<std::uint8_t> mask(bias.size());
  const std::vector<std::uint64_t> ancestors = {1, 3, 5};  // two rows that follow the first
  const std::vector<std::int32_t> depths = {0, 1, 1};
  std::mt19937 random(3);
  for (float& x : bias) x = static_cast<float>(random() % 100) / 50;
  for (std::uint8_t& x : mask) x = random() % 3 != 0;
  for (int i = 0; i < 8; ++i) slopes[i] = logits[i] = 1.0f / static_cast<float>(i + 1);
  const auto change_params = [](int kind, AttentionTask* task) {
    if (kind == 1) task->params.window_left = 700;
    if (kind == 2) task->params.softmax_scale = -0.1f;
    if (kind == 3) task->params.soft_cap = 5;
    if (kind == 4) task->params.is_causal = false;
  };
  const auto change_data = [&](int kind, AttentionTask* task) {
    if (kind == 1) task->kv_begin = std::min<std::int64_t>(task->kv_len, 600);
    if (kind == 2) task->mask = {mask.data(), 4000, 0, 1};
    if (kind == 3) task->bias = {bias.data(), DType::kFloat32, 4000, 0, 1};
    if (kind == 4) task->alibi_slopes = slopes.data();
    if (kind == 5) task->sink_logits = logits.data();
  };
  const std::vector<ChangeStep> changes = {
      [&](std::mt19937& drawn, AttentionTask* task) {
        change_params(static_cast<int>(drawn() % 5), task);
        change_data(static_cast<int>(drawn() % 6), task);
      },
      [&](std::mt19937& drawn, AttentionTask* task) {
        change_data(static_cast<int>(drawn() % 6), task);
      },
      [&](std::mt19937&, AttentionTask* task) {
        task->params.is_tree = true;
        task->tree = {ancestors.data(), 1, depths.data()};
      },
      [&](std::mt19937&, AttentionTask* task) { task->params.window_left = 1100; },
      [&](std::mt19937&, AttentionTask* task) {
        task->params.window_left = 600;
        task->params.sink_tokens = 20;
        task->alibi_slopes = slopes.data();
      },
      [&](std::mt19937&, AttentionTask* task) {
        task->mask = {mask.data(), 4000, 0, 1};
      },
  };
  const ForkedShape shape{.num_q_heads = 8, .prefix = 1700, .num_forks = 30};
  for (const TargetBackend& target : CpuTargets()) {
    if (target.name == "SCALAR") continue;  // the test above has it
    SCOPED_TRACE(target.name);
    for (std::size_t i = 0; i < changes.size(); ++i) {
      SCOPED_TRACE(i);
      ForkedSteps steps(*target.backend, shape, /*seed=*/7, changes[i]);
      steps.ExpectSameTogether(*target.backend);
    }
  }
}

// Few rows over many keys are split over ranges, and merged.
TEST(SharedPrefixTest, AnyNumberOfThreadsGivesTheSameBits) {
  const auto backend = MakeCpu(1);
  for (const ForkedShape& shape :
       {ForkedShape{.prefix = 6000, .num_forks = 3},
        ForkedShape{.num_q_heads = 4, .num_kv_heads = 1, .num_forks = 70},
        ForkedShape{.num_q_heads = 32, .num_kv_heads = 8, .num_forks = 20}}) {
    ForkedSteps steps(*backend, shape);
    for (int threads : {1, 2, 3, 8, 17}) {
      SCOPED_TRACE(threads);
      steps.ExpectSameTogether(*MakeCpu(threads));
    }
  }
}

TEST(SharedPrefixTest, ColumnSumsAreThoseOfTheStepAlone) {
  const auto backend = MakeCpu(2);
  ForkedSteps steps(*backend, {.num_forks = 6});
  std::deque<TaskOutput> alone, together;
  const auto bind = [&](std::deque<TaskOutput>* outputs) {
    std::vector<AttentionTask> tasks = steps.tasks();
    for (AttentionTask& task : tasks) {
      TaskOutput& output = outputs->emplace_back(task.params, task.q_len, task.kv_len);
      output.wants_column_sums = true;
      output.BindTo(&task);
    }
    return tasks;
  };
  for (const AttentionTask& task : bind(&alone)) RunTasks(*backend, {task});
  RunTasks(*backend, bind(&together));
  ForkedSteps::ExpectSame(alone, together);
  for (std::size_t i = 0; i < alone.size(); ++i) {
    EXPECT_EQ(alone[i].column_sums, together[i].column_sums);
  }
}

TEST(SharedPrefixTest, RunsThatYieldGiveTheSameBits) {
  for (int threads : {1, 3}) {
    for (const ForkedShape& shape :
         {ForkedShape{.kv_dtype = DType::kBFloat16, .num_forks = 30},
          ForkedShape{.prefix = 6000, .num_forks = 3},
          ForkedShape{.num_kv_heads = 1, .head_dim_qk = 80, .head_dim_v = 64, .is_latent = true}}) {
      const auto backend = MakeCpu(threads);
      ForkedSteps steps(*backend, shape);
      const std::deque<TaskOutput> alone = steps.RunAlone();
      std::deque<TaskOutput> together;
      const std::vector<AttentionTask> tasks = steps.Bound(&together);
      auto plan = backend->Plan(tasks);
      ASSERT_TRUE(plan.ok());
      const std::atomic<bool> should_yield{true};
      int runs = 1;
      for (; *backend->Run(**plan, &should_yield) == RunState::kYielded; ++runs) {
        ASSERT_LT(runs, 100000);
      }
      EXPECT_GT(runs, 5);
      ForkedSteps::ExpectSame(alone, together);
    }
  }
}

// Two trees and steps that share nothing, in one batch.
TEST(SharedPrefixTest, SeveralPrefixesOfABatchAreKeptApart) {
  const auto backend = MakeCpu(2);
  const AttentionProblem other({.q_len = 20, .kv_len = 900});
  ForkedSteps first(*backend, {.num_forks = 12}), second(*backend, {.num_q_heads = 2}, 5);
  const std::deque<TaskOutput> first_alone = first.RunAlone(), second_alone = second.RunAlone();
  const TaskOutput other_alone = RunTask(*backend, other.task());
  std::deque<TaskOutput> first_together, second_together;
  TaskOutput other_together(other.task().params, 20, 900);
  std::vector<AttentionTask> tasks = first.Bound(&first_together);
  for (const AttentionTask& task : second.Bound(&second_together)) tasks.push_back(task);
  other_together.BindTo(&tasks.emplace_back(other.task()));
  std::shuffle(tasks.begin(), tasks.end(), std::mt19937(1));
  RunTasks(*backend, tasks);
  ForkedSteps::ExpectSame(first_alone, first_together);
  ForkedSteps::ExpectSame(second_alone, second_together);
  EXPECT_TRUE(SameBits(other_alone, other_together));
}

}  // namespace
}  // namespace attention::testing
