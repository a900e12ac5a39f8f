// Which keys a tile of rows visits: arithmetic that the planner and the kernels share.
#pragma once

#include <cstdint>

#include "kernels/cuda/contract/device_types.h"

namespace attention::cuda {

// As VisibleKeys of kernels/api: [begin, end) and the sinks [kv_begin, sink_end).
struct RowKeys {
  int begin = 0;
  int end = 0;
  int sink_end = 0;
};

ATTENTION_HOST_DEVICE RowKeys KeysAt(const DeviceTask& task, std::int64_t position) {
  std::int64_t begin = task.kv_begin, end = task.kv_len;
  if (task.is_causal) end = Min(end, position + 1);
  if (task.window_right >= 0) end = Min(end, position + task.window_right + 1);
  end = Max<std::int64_t>(end, task.kv_begin);
  if (task.window_left >= 0) begin = Max(begin, position - task.window_left);
  begin = Min(begin, end);
  const std::int64_t sink_end = Max<std::int64_t>(task.kv_begin, Min(task.sink_tokens, begin));
  return {static_cast<int>(begin), static_cast<int>(end), static_cast<int>(sink_end)};
}

ATTENTION_HOST_DEVICE bool Contains(const RowKeys& keys, int kv_begin, int key) {
  return (key >= keys.begin && key < keys.end) || (key >= kv_begin && key < keys.sink_end);
}

// The tiles of a span by their numbers: what sinks keep visible comes first, then the window.
template <int kTile>
struct TileSequence {
  int first = 0;
  int num_first = 0;
  int second = 0;
  int count = 0;

  ATTENTION_HOST_DEVICE int operator[](int index) const {
    return index < num_first ? first + index * kTile : second + (index - num_first) * kTile;
  }
};

// The keys of rows whose queries are [first_query, last_query], in tiles of kTile keys whose first
// ones are multiples of kTile. All bounds grow with the position, so the first query has the least
// and the last the greatest of each.
template <int kTile>
struct KeySpan {
  int kv_begin, sink_end;        // keys of some row: [kv_begin, sink_end)
  int window_begin, end;         // and [window_begin, end)
  int common_begin, common_end;  // every row sees [common_begin, common_end)
  int key_begin, key_end;        // of the item
  bool has_bias_or_mask;         // a mask or bias may hide any key

  // A tile at or past end_tile() is none.
  ATTENTION_HOST_DEVICE int first_tile() const {
    const int least = sink_end > kv_begin ? kv_begin : window_begin;
    return SkipGap(Max(key_begin, least / kTile * kTile));
  }
  ATTENTION_HOST_DEVICE int next_tile(int tile) const { return SkipGap(tile + kTile); }
  ATTENTION_HOST_DEVICE int end_tile() const { return Min(key_end, Max(end, sink_end)); }
  // As first_tile() and next_tile() up to end_tile() give them.
  ATTENTION_HOST_DEVICE TileSequence<kTile> tiles() const {
    const int last = end_tile(), window_tile = window_begin / kTile * kTile;
    TileSequence<kTile> tiles;
    tiles.first = first_tile();
    const int first_end = Min(last, Min(sink_end, window_tile));
    if (tiles.first < first_end) tiles.num_first = (first_end - tiles.first + kTile - 1) / kTile;
    tiles.second = tiles.first + tiles.num_first * kTile;
    if (tiles.num_first > 0) tiles.second = Max(tiles.second, window_tile);
    tiles.count = tiles.num_first;
    if (tiles.second < last) tiles.count += (last - tiles.second + kTile - 1) / kTile;
    return tiles;
  }

  // True if some row sees the key.
  ATTENTION_HOST_DEVICE bool Contains(int key) const {
    return (key >= window_begin && key < end) || (key >= kv_begin && key < sink_end);
  }
  // True if some row sees a key of [first, last).
  ATTENTION_HOST_DEVICE bool ContainsAny(int first, int last) const {
    return Max(first, window_begin) < Min(last, end) || Max(first, kv_begin) < Min(last, sink_end);
  }
  // True if a row may not see some key of the tile, or of [first, last).
  ATTENTION_HOST_DEVICE bool IsMasked(int tile) const { return IsMasked(tile, tile + kTile); }
  ATTENTION_HOST_DEVICE bool IsMasked(int first, int last) const {
    return has_bias_or_mask || first < common_begin || last > common_end;
  }

 private:
  ATTENTION_HOST_DEVICE int SkipGap(int tile) const {
    const int window_tile = window_begin / kTile * kTile;
    return tile >= sink_end && tile < window_tile ? window_tile : tile;
  }
};

template <int kTile>
ATTENTION_HOST_DEVICE KeySpan<kTile> SpanOf(const DeviceTask& task, std::int64_t first_query,
                                            std::int64_t last_query, int key_begin, int key_end) {
  const RowKeys first = KeysAt(task, task.first_query_position + first_query);
  const RowKeys last = KeysAt(task, task.first_query_position + last_query);
  KeySpan<kTile> span;
  span.kv_begin = task.kv_begin;
  span.sink_end = last.sink_end;
  span.window_begin = first.begin;
  span.end = last.end;
  span.common_begin = last.begin;
  span.common_end = first.end;
  span.key_begin = key_begin;
  span.key_end = key_end;
  span.has_bias_or_mask = task.mask != nullptr || task.bias != nullptr;
  return span;
}

}  // namespace attention::cuda
