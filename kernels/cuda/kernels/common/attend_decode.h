// Attention of at most 16 rows of a KV head, which is what a step of decoding is (decode_warp.h has
// types and arithmetic).
//
// A block computes the rows over the keys of one item. A warp takes of each tile of keys a slice of
// 16, has it brought into shared memory of its own (`CopiesOf`), one slice ahead, and keeps a
// softmax of its own: warps meet after the last tile, to be merged (finish_tile.h). Then the same
// memory takes the parts of the result.
#pragma once

#include <cstdint>

#include "kernels/cuda/kernels/common/decode_warp.h"
#include "kernels/cuda/kernels/common/finish_tile.h"

namespace attention::cuda {

template <typename DecodeSizesOfKernel, template <typename> class CopiesOf>
struct AttendDecode {
  using Sizes = DecodeSizesOfKernel;
  using Copies = CopiesOf<Sizes>;
  using Buffer = StageBuffer<Sizes>;
  using Parts = TileParts<Sizes::kWarps, Sizes::kTileRows, Sizes::kHeadDim>;
  using Arguments = AttendArguments;
  static constexpr int kThreads = Sizes::kThreads;
  static constexpr int kMinBlocks = Sizes::kHeadDim == 64 ? 4 : 3;  // by registers
  static constexpr int kSharedBytes = Max(Sizes::kWordsAt + Copies::kWordBytes, Parts::kBytes);

  const DeviceTask& task;
  const WorkItem& item;
  char* shared;
  int warp, lane;
  DecodeWarp<Sizes, Copies> rows;
  TileSequence<Sizes::kTileKeys> tiles;
  Copies copies;
  DecodeSource source;  // lane i: of tile i of the 32 that are sent next

  ATTENTION_DEVICE AttendDecode(const DeviceTask& block_task, const WorkItem& block_item,
                                char* block_shared)
      : task(block_task),
        item(block_item),
        shared(block_shared),
        warp(ThreadIndex() / 32),
        lane(LaneIndex()),
        rows(block_task, block_item, block_shared),
        tiles(rows.span.tiles()),
        copies(block_shared + Sizes::kWordsAt, ThreadIndex() / 32) {}

  ATTENTION_DEVICE Buffer BufferOf(int stage) const {
    return {shared + Sizes::kQueryBytes + (warp * Sizes::kStages + stage) * Sizes::kBufferBytes};
  }
  // The first key of the warp's slice of a tile.
  ATTENTION_DEVICE int KeyOf(int index) const { return tiles[index] + warp * Sizes::kSliceKeys; }

  ATTENTION_DEVICE void SendQueries() const {
    constexpr int kPieces = Sizes::kRowBytes / kPieceBytes;
    const int row_bytes = PadDim(task.head_dim_qk) * 2;
    for (int i = ThreadIndex(); i < Sizes::kTileRows * kPieces; i += kThreads) {
      const int row = i / kPieces, piece = i % kPieces;
      const bool is_wanted = row < item.num_rows && piece * kPieceBytes < row_bytes;
      const std::int64_t index = PackedRow(task, item, row).IndexIn(task, item);
      CopyAsync16(shared + row * Sizes::kQueryStride + piece * kPieceBytes,
                  is_wanted ? task.q + index * row_bytes + piece * kPieceBytes : task.q, is_wanted);
    }
    CommitCopies();
  }

  // The lanes look up 32 tiles at once, long before the first of them is wanted.
  ATTENTION_DEVICE void FindSources(int first) {
    source = {};
    const int index = first + lane;
    if (index >= tiles.count || !rows.IsSeen(KeyOf(index))) return;
    source.head = PageOf(task, item.kv_head, KeyOf(index), &source.token);
  }

  ATTENTION_DEVICE void Send(int index) {
    if (index % 32 == 0) FindSources(index);
    const bool is_wanted = index < tiles.count && rows.IsSeen(KeyOf(index));
    const int stage = index % Sizes::kStages;
    copies.Send(task, source, index % 32, is_wanted, BufferOf(stage), stage);
  }

  ATTENTION_DEVICE void ComputeSlices() {
    SendQueries();
    for (int index = 0; index < Sizes::kStages - 1; ++index) Send(index);
    WaitCopies<0>();
    SyncThreads();
#pragma unroll 1
    for (int index = 0; index < tiles.count; ++index) {
      Send(index + Sizes::kStages - 1);
      const int key = KeyOf(index), stage = index % Sizes::kStages;
      if (!rows.IsSeen(key)) continue;
      copies.Wait(stage);
      float s[2][4];
      rows.ScoreSlice(key, BufferOf(stage), s);
      rows.WeighSlice(key, BufferOf(stage), s);
      SyncWarp();  // before the buffer is filled again
    }
    WaitCopies<0>();
    SyncThreads();
  }

  static ATTENTION_DEVICE void Run(const AttendArguments& arguments, char* shared) {
    const WorkItem& item = arguments.items[BlockIndex()];
    const DeviceTask& task = arguments.tasks[item.task];
    AttendDecode block(task, item, shared);
    block.ComputeSlices();
    const Parts parts{reinterpret_cast<float*>(shared)};
    block.rows.StoreParts(parts, block.warp);
    SyncThreads();
    FinishTile<kThreads>(arguments, task, item, parts, ThreadIndex(), SyncThreads);
  }
};

}  // namespace attention::cuda
