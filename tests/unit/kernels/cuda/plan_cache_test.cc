#include "kernels/cuda/plan/plan_cache.h"

#include <gmock/gmock.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/plan/run_memory.h"

namespace attention::cuda {
namespace {

using ::testing::HasSubstr;

char tensor[2][1];
float floats[2][1];
void* pages[2][64];

// A step of a session in a layer, of which tensors and pages lie elsewhere than those of the other.
AttentionTask MakeTask(int layer, std::int64_t kv_len = 1000) {
  AttentionTask task;
  task.params = {.num_q_heads = 8,
                 .num_kv_heads = 2,
                 .head_dim_qk = 128,
                 .head_dim_v = 128,
                 .dtype = DType::kBFloat16,
                 .kv_dtype = DType::kBFloat16,
                 .softmax_scale = 1,
                 .is_causal = true};
  task.q_len = 2;
  task.kv_len = kv_len;
  task.first_query_position = kv_len - 2;
  task.q = DenseRows(static_cast<const void*>(tensor[layer]), DType::kBFloat16, 8, 128);
  task.o = DenseRows(static_cast<void*>(tensor[layer]), DType::kBFloat16, 8, 128);
  task.lse = floats[layer];
  task.kv_pages = {pages[layer], 64, 64};
  return task;
}

std::unique_ptr<CudaPlan> PlanOf(PlanCache& cache, const std::vector<AttentionTask>& tasks) {
  auto plan = cache.Plan(tasks, {.launch_flops = 1e18});
  EXPECT_TRUE(plan.ok()) << plan.status();
  return std::move(*plan);
}

TEST(PlanCacheTest, TheLayersOfAStepArePlannedOnce) {
  PlanCache cache;
  const auto first = PlanOf(cache, {MakeTask(0, 1000), MakeTask(0, 77)});
  const auto second = PlanOf(cache, {MakeTask(1, 1000), MakeTask(1, 77)});
  EXPECT_EQ(cache.num_hits(), 1);
  EXPECT_EQ(second->tasks[1].task.q.data, tensor[1]);
  EXPECT_EQ(second->tasks[1].task.kv_pages.pages, pages[1]);
  EXPECT_EQ(second->items.size(), first->items.size());
  EXPECT_EQ(second->upload_bytes, first->upload_bytes);
  EXPECT_EQ(second->flops, first->flops);
  EXPECT_EQ(second->flops_done, 0);
  // The next token.
  PlanOf(cache, {MakeTask(0, 1001), MakeTask(0, 78)});
  EXPECT_EQ(cache.num_hits(), 1);
  PlanOf(cache, {MakeTask(1, 1001), MakeTask(1, 78)});
  EXPECT_EQ(cache.num_hits(), 2);
}

TEST(PlanCacheTest, MoreOrFewerOrOthersInOrderAreNotTheSame) {
  PlanCache cache;
  PlanOf(cache, {MakeTask(0, 1000), MakeTask(0, 77)});
  PlanOf(cache, {MakeTask(0, 1000)});
  PlanOf(cache, {MakeTask(0, 1000), MakeTask(0, 77)});
  PlanOf(cache, {MakeTask(0, 77), MakeTask(0, 1000)});
  PlanOf(cache, {});
  EXPECT_EQ(cache.num_hits(), 0);
}

TEST(PlanCacheTest, WhateverAPlanDependsOnTellsTasksApart) {
  const std::pair<std::string, std::function<void(AttentionTask&)>> changes[] = {
      {"q heads", [](AttentionTask& task) { task.params.num_q_heads = 4; }},
      {"kv heads", [](AttentionTask& task) { task.params.num_kv_heads = 4; }},
      {"key dim", [](AttentionTask& task) { task.params.head_dim_qk = 64; }},
      {"value dim", [](AttentionTask& task) { task.params.head_dim_v = 64; }},
      {"dtype", [](AttentionTask& task) { task.params.dtype = DType::kFloat16; }},
      {"kv dtype", [](AttentionTask& task) { task.params.kv_dtype = DType::kInt8; }},
      {"scale", [](AttentionTask& task) { task.params.softmax_scale = 0.5f; }},
      {"cap", [](AttentionTask& task) { task.params.soft_cap = 1; }},
      {"causal", [](AttentionTask& task) { task.params.is_causal = false; }},
      {"left", [](AttentionTask& task) { task.params.window_left = 9; }},
      {"right", [](AttentionTask& task) { task.params.window_right = 9; }},
      {"sinks", [](AttentionTask& task) { task.params.sink_tokens = 1; }},
      {"q_len", [](AttentionTask& task) { task.q_len = 1; }},
      {"kv_len", [](AttentionTask& task) { task.kv_len = 999; }},
      {"kv_begin", [](AttentionTask& task) { task.kv_begin = 1; }},
      {"position", [](AttentionTask& task) { task.first_query_position = 0; }},
      {"q type", [](AttentionTask& task) { task.q.dtype = DType::kFloat16; }},
      {"o type", [](AttentionTask& task) { task.o.dtype = DType::kFloat32; }},
      {"lse", [](AttentionTask& task) { task.lse = nullptr; }},
      {"sums", [](AttentionTask& task) { task.column_sums = floats[0]; }},
      {"alibi", [](AttentionTask& task) { task.alibi_slopes = floats[0]; }},
      {"sink logits", [](AttentionTask& task) { task.sink_logits = floats[0]; }},
      {"bias", [](AttentionTask& task) { task.bias.data = floats[0]; }},
      {"heads of a bias", [](AttentionTask& task) { task.bias.head_stride = 1; }},
      {"bias rows", [](AttentionTask& task) { task.bias.row_stride = 1; }},
      {"bias keys", [](AttentionTask& task) { task.bias.key_stride = 0; }},
      {"bias type", [](AttentionTask& task) { task.bias.dtype = DType::kFloat16; }},
      {"mask",
       [](AttentionTask& task) {
         task.mask.data = reinterpret_cast<const std::uint8_t*>(tensor[0]);
       }},
      {"heads of a mask", [](AttentionTask& task) { task.mask.head_stride = 1; }},
      {"mask rows", [](AttentionTask& task) { task.mask.row_stride = 1; }},
      {"mask keys", [](AttentionTask& task) { task.mask.key_stride = 0; }},
      {"page size", [](AttentionTask& task) { task.kv_pages.page_size = 32; }},
      {"contiguous", [](AttentionTask& task) { task.kv_pages = {}; }},
      {"k type", [](AttentionTask& task) { task.k.dtype = DType::kFloat16; }},
      {"v type", [](AttentionTask& task) { task.v.dtype = DType::kFloat16; }},
  };
  EXPECT_TRUE(IsAlike(MakeTask(0), MakeTask(1)));
  for (const auto& [name, change] : changes) {
    AttentionTask changed = MakeTask(1);
    change(changed);
    EXPECT_FALSE(IsAlike(MakeTask(0), changed)) << name;
    EXPECT_FALSE(IsAlike(changed, MakeTask(0))) << name;
  }
}

TEST(PlanCacheTest, ATaskIsCheckedWhateverItIsLike) {
  PlanCache cache;
  PlanOf(cache, {MakeTask(0)});
  AttentionTask bad = MakeTask(1);
  bad.kv_pages.num_pages = 1;  // too few for its tokens
  const auto refused = cache.Plan({&bad, 1}, {.launch_flops = 1e18});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("task 0: "));
}

}  // namespace
}  // namespace attention::cuda
