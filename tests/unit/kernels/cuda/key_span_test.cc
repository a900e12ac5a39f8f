#include "kernels/cuda/contract/key_span.h"

#include <gmock/gmock.h>

#include <random>
#include <vector>

#include "kernels/cuda/plan/plan.h"

namespace attention::cuda {
namespace {

AttentionTask RandomTask(std::mt19937& random) {
  const auto below = [&random](int bound) { return static_cast<std::int64_t>(random() % bound); };
  AttentionTask task;
  task.params = {.num_q_heads = 1, .num_kv_heads = 1, .head_dim_qk = 8, .head_dim_v = 8};
  task.params.is_causal = below(2) == 0;
  task.params.window_left = below(2) == 0 ? below(200) : -1;
  task.params.window_right = below(3) == 0 ? below(100) : -1;
  task.params.sink_tokens = below(2) == 0 ? below(150) : 0;
  task.q_len = 1 + below(100);
  task.kv_len = below(700);
  task.kv_begin = below(3) == 0 ? below(static_cast<int>(task.kv_len) + 1) : 0;
  task.first_query_position = below(2) == 0 ? task.kv_len - task.q_len : below(900) - 100;
  return task;
}

TEST(KeySpanTest, RowsSeeWhatTheContractSays) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    const AttentionTask task = RandomTask(random);
    const DeviceTask device = DescribeTask(task);
    for (std::int64_t query = 0; query < task.q_len; query += 7) {
      const VisibleKeys expected = VisibleKeysOf(task, task.position(query));
      const RowKeys keys = KeysAt(device, task.position(query));
      ASSERT_EQ(keys.begin, expected.begin);
      ASSERT_EQ(keys.end, expected.end);
      ASSERT_EQ(keys.sink_end, expected.sink_end);
    }
  }
}

// Every key that a row sees lies in a tile that is visited, once; tiles that are not masked are
// seen whole by every row; keys that no row sees are not wanted.
TEST(KeySpanTest, TilesCoverWhatTheRowsSee) {
  constexpr int kTile = 32;
  std::mt19937 random(2);
  for (int round = 0; round < 2000; ++round) {
    const AttentionTask task = RandomTask(random);
    const DeviceTask device = DescribeTask(task);
    const std::int64_t first = static_cast<std::int64_t>(random()) % task.q_len;
    const std::int64_t last = std::min<std::int64_t>(task.q_len - 1, first + random() % 40);
    const int begin = static_cast<int>(random() % 5) * 128;
    const int end = std::max(begin, std::min<int>(static_cast<int>(task.kv_len), begin + 256));
    const auto span = SpanOf<kTile>(device, first, last, begin, end);
    std::vector<int> visits(1200, 0);
    const TileSequence<kTile> tiles = span.tiles();
    int number = 0;
    for (int tile = span.first_tile(); tile < span.end_tile(); tile = span.next_tile(tile)) {
      ASSERT_EQ(tile % kTile, 0);
      ASSERT_LT(number, tiles.count);
      ASSERT_EQ(tiles[number++], tile);
      for (int key = tile; key < tile + kTile; ++key) ++visits[key];
      for (std::int64_t query = first; query <= last; ++query) {
        const RowKeys keys = KeysAt(device, task.position(query));
        for (int key = tile; key < tile + kTile; ++key) {
          const bool is_seen = Contains(keys, device.kv_begin, key);
          if (is_seen) {
            ASSERT_TRUE(span.Contains(key));
          }
          if (!span.IsMasked(tile)) {
            ASSERT_TRUE(is_seen);
          }
        }
      }
    }
    ASSERT_EQ(number, tiles.count);
    for (int slice = begin; slice < end; slice += 16) {
      bool is_any_seen = false;
      for (int key = slice; key < slice + 16; ++key) is_any_seen |= span.Contains(key);
      ASSERT_EQ(span.ContainsAny(slice, slice + 16), is_any_seen);
    }
    for (std::int64_t query = first; query <= last; ++query) {
      const RowKeys keys = KeysAt(device, task.position(query));
      for (int key = begin; key < end; ++key) {
        if (Contains(keys, device.kv_begin, key)) {
          ASSERT_EQ(visits[key], 1) << key;
        }
      }
    }
  }
}

}  // namespace
}  // namespace attention::cuda
