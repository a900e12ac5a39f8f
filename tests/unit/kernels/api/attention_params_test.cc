#include "kernels/api/attention_params.h"

#include <gmock/gmock.h>

namespace attention {
namespace {

// The definition in attention_params.h, word by word.
bool IsVisible(const AttentionTask& task, std::int64_t position, std::int64_t key) {
  const AttentionParams& p = task.params;
  return key >= task.kv_begin && key < task.kv_len && (!p.is_causal || key <= position) &&
         (p.window_left < 0 || key >= position - p.window_left || key < p.sink_tokens) &&
         (p.window_right < 0 || key <= position + p.window_right);
}

TEST(VisibleKeysTest, AgreesWithTheDefinitionEverywhere) {
  for (std::int64_t kv_len : {0, 1, 9}) {
    for (std::int64_t kv_begin : {0, 3}) {
      if (kv_begin > kv_len) continue;
      for (bool is_causal : {false, true}) {
        for (std::int64_t left : {-1, 0, 2, 20}) {
          for (std::int64_t right : {-1, 0, 2, 20}) {
            for (std::int64_t sinks : {0, 1, 5, 50}) {
              AttentionTask task;
              task.kv_len = kv_len;
              task.kv_begin = kv_begin;
              task.params.is_causal = is_causal;
              task.params.window_left = left;
              task.params.window_right = right;
              task.params.sink_tokens = sinks;
              for (std::int64_t position = -5; position < 40; ++position) {
                const VisibleKeys keys = VisibleKeysOf(task, position);
                EXPECT_LE(keys.sink_end, std::max(keys.begin, kv_begin));
                for (std::int64_t key = -2; key < kv_len + 3; ++key) {
                  const bool is_visible = (keys.begin <= key && key < keys.end) ||
                                          (kv_begin <= key && key < keys.sink_end);
                  ASSERT_EQ(is_visible, IsVisible(task, position, key))
                      << "position " << position << " key " << key << " kv_len " << kv_len
                      << " kv_begin " << kv_begin << " causal " << is_causal << " window " << left
                      << "," << right << " sinks " << sinks;
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST(VisibleKeysTest, ExtremePositionsDoNotOverflow) {
  AttentionTask task;
  task.kv_len = 10;
  task.params.window_left = kMaxPosition;
  task.params.window_right = kMaxPosition;
  const VisibleKeys keys = VisibleKeysOf(task, 2 * kMaxPosition);
  EXPECT_EQ(keys.begin, keys.end);
}

TEST(DefaultSoftmaxScaleTest, IsTheReciprocalOfTheRoot) {
  EXPECT_EQ(DefaultSoftmaxScale(64), 0.125f);
  EXPECT_EQ(DefaultSoftmaxScale(1), 1.0f);
}

}  // namespace
}  // namespace attention
