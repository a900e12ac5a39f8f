// Memory that the warps of a block of AttendWgmma share, and how they wait for each other.
//
//             keys, values                    values without NaN           products, softmax
//   producer ---------------> key_full  ------------------------------->  consumers (2 x 4 warps)
//   (1 warp) ---------------> value_full ---> checkers ---> value_clean -->
//            <--------------- key_empty, value_empty <--------------------
//
// Tiles of keys and of values go through kStages stages each, in order. The producer fills them
// with bulk copies, one for each page's part of a tile. The checkers pass values on; of tiles in
// which some row does not see every key they first clear what must not be multiplied: rows of keys
// that nobody sees, and elements that are infinite or NaN. The producer also takes the block's
// items, and names them to all others.
#pragma once

#include <cstdint>

#include "kernels/cuda/contract/page_layout.h"
#include "kernels/cuda/kernels/common/packed_row.h"
#include "kernels/cuda/kernels/intrinsics/hopper.h"

namespace attention::cuda {

// Sizes for a head dim; README.md derives them.
template <int kHeadDimension>
struct WgmmaSizes {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kGroupRows = 64;
  static constexpr int kTileRows = kConsumers * kGroupRows;
  static constexpr int kTileKeys = kHeadDim <= 128 ? 128 : 64;
  static constexpr int kStages = kHeadDim == 64 ? 4 : 2;
  static constexpr int kGroupThreads = 128;
  static constexpr int kGroupWarps = 4;
  static constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
  static constexpr int kCheckers = kGroupWarps - 1;  // warps

  static constexpr int kRowBytes = 2 * kHeadDim;
  static constexpr int kGroupQueryBytes = kGroupRows * kRowBytes;
  static constexpr int kQueryBytes = kTileRows * kRowBytes;
  static constexpr int kTensorBytes = kTileKeys * kRowBytes;

  // Registers of a thread after warpgroups have traded them: together no more than the block has.
  static constexpr int kLoadRegisters = 40;
  static constexpr int kConsumerRegisters = 232;
  static_assert(kGroupThreads * (kLoadRegisters + kConsumers * kConsumerRegisters) <= 64 * 1024);
};

// A stage among kNumStages that are used in turn, and the parity of its phase.
template <int kNumStages>
struct Ring {
  int stage = 0;
  std::uint32_t parity = 0;

  ATTENTION_DEVICE void Advance() {
    if (++stage < kNumStages) return;
    stage = 0;
    parity ^= 1u;
  }
};

template <typename Sizes>
struct Pipeline {
  static constexpr int kStages = Sizes::kStages;
  static constexpr int kItemStages = 2;

  // The shared memory beside the tiles.
  struct Words {
    std::uint64_t key_full[kStages], key_empty[kStages];
    std::uint64_t value_full[kStages], value_clean[kStages], value_empty[kStages];
    std::uint64_t item_full[kItemStages], item_empty[kItemStages];
    int items[kItemStages];  // an index that is none ends the block
    std::uint32_t has_non_finite[kStages][Sizes::kCheckers];  // of a masked tile
  };
  static constexpr int kKeysAt = Sizes::kQueryBytes;
  static constexpr int kValuesAt = kKeysAt + kStages * Sizes::kTensorBytes;
  static constexpr int kWordsAt = kValuesAt + kStages * Sizes::kTensorBytes;
  static constexpr int kSharedBytes = kWordsAt + static_cast<int>(sizeof(Words));

  char* shared;

  ATTENTION_DEVICE Words& words() const { return *reinterpret_cast<Words*>(shared + kWordsAt); }
  ATTENTION_DEVICE char* queries(int group) const {
    return shared + group * Sizes::kGroupQueryBytes;
  }
  ATTENTION_DEVICE char* keys(int stage) const {
    return shared + kKeysAt + stage * Sizes::kTensorBytes;
  }
  ATTENTION_DEVICE char* values(int stage) const {
    return shared + kValuesAt + stage * Sizes::kTensorBytes;
  }

  // By one thread, before a barrier of the block.
  ATTENTION_DEVICE void Init() const {
    constexpr int kLanes = 32;
    constexpr int kConsumerWarps = Sizes::kConsumers * Sizes::kGroupWarps;
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(&words().key_full[i], kLanes);
      InitBarrier(&words().key_empty[i], kConsumerWarps);
      InitBarrier(&words().value_full[i], kLanes);
      InitBarrier(&words().value_clean[i], Sizes::kCheckers);
      InitBarrier(&words().value_empty[i], kConsumerWarps);
    }
    for (int i = 0; i < kItemStages; ++i) {
      InitBarrier(&words().item_full[i], 1);
      InitBarrier(&words().item_empty[i], kConsumerWarps + Sizes::kCheckers);
    }
    FenceBarrierInit();
  }

  // One arrival for the warp, after all its lanes are done.
  static ATTENTION_DEVICE void ArriveOncePerWarp(std::uint64_t* barrier) {
    SyncWarp();
    if (LaneIndex() == 0) ArriveAtBarrier(barrier);
  }

  // The next item of the block, for all warps but the producer.
  ATTENTION_DEVICE int ReadItem(Ring<kItemStages>& ring) const {
    WaitForBarrier(&words().item_full[ring.stage], ring.parity);
    const int index = Uniform(words().items[ring.stage]);
    ArriveOncePerWarp(&words().item_empty[ring.stage]);
    ring.Advance();
    return index;
  }
};

}  // namespace attention::cuda
