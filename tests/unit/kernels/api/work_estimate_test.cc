#include "kernels/api/work_estimate.h"

#include <gmock/gmock.h>

#include <set>

namespace attention {
namespace {

AttentionTask MakeTask(std::int64_t q_len, std::int64_t kv_len) {
  AttentionTask task;
  task.params.num_q_heads = 4;
  task.params.num_kv_heads = 2;
  task.params.head_dim_qk = 8;
  task.params.head_dim_v = 4;
  task.q_len = q_len;
  task.kv_len = kv_len;
  task.first_query_position = kv_len - q_len;
  return task;
}

void ExpectAgreesWithCounting(const AttentionTask& task) {
  double pairs = 0;
  std::set<std::int64_t> keys;
  for (std::int64_t query = 0; query < task.q_len; ++query) {
    const VisibleKeys visible = VisibleKeysOf(task, task.position(query));
    for (std::int64_t key = 0; key < task.kv_len; ++key) {
      if ((visible.begin <= key && key < visible.end) ||
          (task.kv_begin <= key && key < visible.sink_end)) {
        pairs += 1;
        keys.insert(key);
      }
    }
  }
  const WorkEstimate work = EstimateWork(task);
  EXPECT_EQ(work.flops, 2.0 * (8 + 4) * pairs * 4)
      << "q_len " << task.q_len << " kv_len " << task.kv_len << " window "
      << task.params.window_left << "," << task.params.window_right << " sinks "
      << task.params.sink_tokens << " first " << task.first_query_position;
  EXPECT_EQ(work.kv_bytes, static_cast<double>(keys.size()) * 2 * (8 + 4) * 4)
      << "q_len " << task.q_len << " kv_len " << task.kv_len << " window "
      << task.params.window_left << "," << task.params.window_right << " sinks "
      << task.params.sink_tokens << " first " << task.first_query_position;
  EXPECT_EQ(work.io_bytes, static_cast<double>(task.q_len) * 4 * (8 + 4) * 4);
}

TEST(EstimateWorkTest, AgreesWithCountingEveryPair) {
  for (std::int64_t q_len : {0, 1, 2, 3, 17, 64, 130}) {
    for (std::int64_t kv_len : {0, 1, 17, 130, 200}) {
      for (bool is_causal : {false, true}) {
        for (std::int64_t left : {-1, 0, 10, 70}) {
          for (std::int64_t right : {-1, 0, 5}) {
            for (std::int64_t sinks : {0, 4}) {
              AttentionTask task = MakeTask(q_len, kv_len);
              task.params.is_causal = is_causal;
              task.params.window_left = left;
              task.params.window_right = right;
              task.params.sink_tokens = sinks;
              ExpectAgreesWithCounting(task);
              task.first_query_position = 20;
              ExpectAgreesWithCounting(task);
            }
          }
        }
      }
    }
  }
}

TEST(EstimateWorkTest, CountsFromTheFirstVisibleKey) {
  AttentionTask task = MakeTask(20, 100);
  task.kv_begin = 33;
  task.params.is_causal = true;
  ExpectAgreesWithCounting(task);
}

TEST(EstimateWorkTest, LongPromptsAreQuick) {
  AttentionTask task = MakeTask(1'000'000, 1'000'000);
  task.params.is_causal = true;
  EXPECT_EQ(EstimateWork(task).flops, 2.0 * 12 * 4 * (1e6 * (1e6 + 1) / 2));
}

TEST(RooflineTest, TheSlowerOfArithmeticAndMemoryCounts) {
  const DeviceCeilings ceilings{.flops_per_second = 100, .bytes_per_second = 10};
  EXPECT_EQ(RooflineSeconds({.flops = 1000, .kv_bytes = 10, .io_bytes = 10}, ceilings), 10);
  EXPECT_EQ(RooflineSeconds({.flops = 100, .kv_bytes = 30, .io_bytes = 10}, ceilings), 4);
  EXPECT_EQ(RooflineSeconds({.flops = 100}, {}), 0);
}

}  // namespace
}  // namespace attention
