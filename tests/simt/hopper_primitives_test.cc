// The words of compute capability 9.0 do on the host what the PTX manual says, and misuse of what
// it leaves undefined is caught.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "kernels/cuda/kernels/intrinsics/hopper.h"
#include "kernels/cuda/kernels/sm90/operand.h"

namespace attention::cuda {
namespace {

using simt::RunBlocks;

constexpr int kGroup = simt::kWarpgroupThreads;
constexpr int kDim = 128;
constexpr int kRowBytes = 2 * kDim;
constexpr int kTile = 64 * kRowBytes;  // 64 rows
using Operand = TileOperand<kRowBytes>;

// --- mbarriers, bulk copies, named barriers ---

TEST(HopperPrimitivesTest, ABarriersPhaseEndsWithItsLastArrivalAndByte) {
  alignas(16) static const float kOnes[8] = {1, 1, 1, 1, 1, 1, 1, 1};
  for (std::uint32_t seed = 0; seed < 10; ++seed) {
    RunBlocks(1, 64, 64, seed, [](char* shared) {
      auto* barrier = reinterpret_cast<std::uint64_t*>(shared + 32);
      auto* data = reinterpret_cast<float*>(shared);
      if (ThreadIndex() == 0) InitBarrier(barrier, 2);
      SyncThreads();
      WaitForBarrier(barrier, 1);  // a new one counts as past the other parity
      for (std::uint32_t phase = 0; phase < 3; ++phase) {
        if (ThreadIndex() == 0) {
          ArriveExpectingBytes(barrier, 32);
          CopyBulk(data, kOnes, 32, barrier);
          EXPECT_TRUE(std::isnan(data[0]));
        }
        if (ThreadIndex() == 40) ArriveAtBarrier(barrier);
        WaitForBarrier(barrier, phase % 2);
        EXPECT_EQ(data[ThreadIndex() % 8], 1.0f);
        SyncThreads();
      }
    });
  }
}

TEST(HopperPrimitivesTest, ANamedBarrierHoldsThoseWhoSyncUntilOthersArrived) {
  for (std::uint32_t seed = 0; seed < 10; ++seed) {
    RunBlocks(1, 96, 4, seed, [](char* shared) {
      auto* word = reinterpret_cast<std::uint32_t*>(shared);
      if (ThreadIndex() == 0) *word = 0;
      SyncThreads();
      for (std::uint32_t round = 1; round <= 3; ++round) {
        if (ThreadIndex() < 32) {
          if (ThreadIndex() == 0) *word = round;
          ArriveNamed(1, 64);
          SyncNamed(2, 64);
        } else if (ThreadIndex() < 64) {
          SyncNamed(1, 64);
          EXPECT_EQ(*word, round);
          ArriveNamed(2, 64);
        }
      }
    });
  }
}

void RunOneThread(const std::function<void(char* shared, std::uint64_t* barrier)>& body) {
  RunBlocks(1, 32, 256, 1, [&](char* shared) {
    if (ThreadIndex() == 0) body(shared, reinterpret_cast<std::uint64_t*>(shared + 128));
  });
}

TEST(HopperWordsDeathTest, MisuseOfBarriersAndCopiesIsCaught) {
  alignas(16) static const char kData[64] = {};
  EXPECT_DEATH(RunOneThread([](char*, auto* barrier) { ArriveAtBarrier(barrier); }),
               "not initialised");
  EXPECT_DEATH(RunOneThread([](char*, auto* barrier) {
                 InitBarrier(barrier, 1);
                 *barrier = 0;
                 ArriveAtBarrier(barrier);
               }),
               "overwritten");
  EXPECT_DEATH(RunOneThread([](char*, auto* barrier) {
                 InitBarrier(barrier, 1);
                 ArriveExpectingBytes(barrier, 16);
                 ArriveAtBarrier(barrier);
               }),
               "more threads arrive");
  EXPECT_DEATH(RunOneThread([](char* shared, auto* barrier) {
                 InitBarrier(barrier, 1);
                 CopyBulk(shared, kData + 8, 16, barrier);
               }),
               "aligned");
  EXPECT_DEATH(RunOneThread([](char* shared, auto* barrier) {
                 InitBarrier(barrier, 1);
                 CopyBulk(shared + 240, kData, 32, barrier);
               }),
               "leaves shared memory");
  EXPECT_DEATH(RunOneThread([](char*, auto* barrier) {
                 InitBarrier(barrier, 1);
                 ArriveExpectingBytes(barrier, 16);
                 WaitForBarrier(barrier, 0);
               }),
               "wait for each other for ever");
}

// --- Products of a warpgroup ---

template <DType kType>
struct Matrices {
  std::uint16_t a[64][kDim], b[64][kDim];

  Matrices() {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (auto* matrix : {&a, &b}) {
      for (auto& row : *matrix) {
        for (std::uint16_t& element : row) StoreElement(&element, kType, 0, normal(random));
      }
    }
  }
  static double Value(const std::uint16_t& bits) { return LoadElement(&bits, kType, 0); }

  // As pages and tiles hold them.
  static void Store(const std::uint16_t (&matrix)[64][kDim], char* tile) {
    for (int row = 0; row < 64; ++row) {
      for (int piece = 0; piece < kRowBytes / 16; ++piece) {
        std::memcpy(tile + SwizzledPieceOffset(kRowBytes, row, piece), &matrix[row][piece * 8], 16);
      }
    }
  }
};

int RowOf(int i) { return ThreadIndex() / 32 * 16 + LaneIndex() / 4 + 8 * (i / 2); }
int ColumnOf(int block, int i) { return block * 8 + LaneIndex() % 4 * 2 + i % 2; }

template <DType kType>
void ExpectScores() {
  static const Matrices<kType> matrices;
  RunBlocks(1, kGroup, 2 * kTile, 1, [](char* shared) {
    if (ThreadIndex() == 0) {
      matrices.Store(matrices.a, shared);
      matrices.Store(matrices.b, shared + kTile);
      FenceAsyncProxy();
    }
    SyncThreads();
    const std::uint64_t a = Operand::KMajor(SharedAddress(shared));
    const std::uint64_t b = Operand::KMajor(SharedAddress(shared + kTile));
    float d[8][4];
    FenceWgmma();
    for (int step = 0; step < kDim / 16; ++step) {
      const int offset = Operand::KMajorStep(step);
      MultiplyShared<kType>(d, Advanced(a, offset), Advanced(b, offset), step > 0);
    }
    CommitWgmma();
    EXPECT_TRUE(std::isnan(d[3][1]));
    WaitWgmma<0>();
    for (int block = 0; block < 8; ++block) {
      for (int i = 0; i < 4; ++i) {
        double sum = 0;
        for (int k = 0; k < kDim; ++k) {
          sum += matrices.Value(matrices.a[RowOf(i)][k]) *
                 matrices.Value(matrices.b[ColumnOf(block, i)][k]);
        }
        ASSERT_NEAR(d[block][i], sum, 1e-4) << RowOf(i) << " " << ColumnOf(block, i);
      }
    }
  });
}

TEST(HopperPrimitivesTest, ProductsOfKMajorTilesAreProductsOfMatrices) {
  ExpectScores<DType::kBFloat16>();
  ExpectScores<DType::kFloat16>();
}

// A of registers is the first 64 columns of `a`, B the 64 rows of `b`, from page order.
template <DType kType, int kFirst, int kCount>
void ExpectWeightedValues() {
  static const Matrices<kType> matrices;
  RunBlocks(1, kGroup, kTile, 1, [](char* shared) {
    if (ThreadIndex() == 0) {
      matrices.Store(matrices.b, shared);
      FenceAsyncProxy();
    }
    SyncThreads();
    const std::uint64_t b = Operand::MnMajor(SharedAddress(shared), 8 * kFirst);
    float d[16][4];
    for (auto& block : d) {
      for (float& element : block) element = 1;
    }
    std::uint32_t a[4][4];
    for (int step = 0; step < 4; ++step) {
      for (int j = 0; j < 4; ++j) {
        const int row = ThreadIndex() / 32 * 16 + LaneIndex() / 4 + 8 * (j % 2);
        std::memcpy(&a[step][j], &matrices.a[row][step * 16 + LaneIndex() % 4 * 2 + 8 * (j / 2)],
                    4);
      }
    }
    FenceWgmma();
    for (int step = 0; step < 4; ++step) {
      MultiplyRegisters<kType, kFirst, kCount>(d, a[step], Advanced(b, Operand::MnMajorStep(step)));
    }
    CommitWgmma();
    WaitWgmma<0>();
    for (int block = kFirst; block < kFirst + kCount; ++block) {
      for (int i = 0; i < 4; ++i) {
        double sum = 1;
        for (int k = 0; k < 64; ++k) {
          sum += matrices.Value(matrices.a[RowOf(i)][k]) *
                 matrices.Value(matrices.b[k][ColumnOf(block, i)]);
        }
        ASSERT_NEAR(d[block][i], sum, 1e-4) << RowOf(i) << " " << ColumnOf(block, i);
      }
    }
  });
}

TEST(HopperPrimitivesTest, ProductsWithMnMajorTilesAreProductsOfMatrices) {
  ExpectWeightedValues<DType::kBFloat16, 0, 16>();
  ExpectWeightedValues<DType::kFloat16, 0, 8>();
  ExpectWeightedValues<DType::kBFloat16, 8, 8>();
}

TEST(HopperPrimitivesTest, WaitingForOlderGroupsLeavesTheNewestUnderWay) {
  RunBlocks(1, kGroup, kTile, 1, [](char* shared) {
    if (ThreadIndex() == 0) {
      std::memset(shared, 0, kTile);
      FenceAsyncProxy();
    }
    SyncThreads();
    const std::uint64_t tile = Operand::KMajor(SharedAddress(shared));
    float first[8][4], second[8][4];
    FenceWgmma();
    MultiplyShared<DType::kFloat16>(first, tile, tile, false);
    CommitWgmma();
    MultiplyShared<DType::kFloat16>(second, tile, tile, false);
    CommitWgmma();
    WaitWgmma<1>();
    EXPECT_EQ(first[0][0], 0.0f);
    EXPECT_TRUE(std::isnan(second[0][0]));
    WaitWgmma<0>();
    EXPECT_EQ(second[7][3], 0.0f);
  });
}

// --- Misuse ---

struct Steps {
  char* shared;
  float d[8][4];
  std::uint64_t tile() const { return Operand::KMajor(SharedAddress(shared)); }
  void Multiply(std::uint64_t a) { MultiplyShared<DType::kFloat16>(d, a, tile(), false); }
};

void RunGroup(const std::function<void(Steps&)>& body) {
  RunBlocks(1, kGroup, kTile, 1, [&](char* shared) {
    if (ThreadIndex() == 0) {
      std::memset(shared, 0, kTile);
      FenceAsyncProxy();
    }
    SyncThreads();
    Steps steps{shared, {}};
    FenceWgmma();
    body(steps);
    CommitWgmma();
    WaitWgmma<0>();
  });
}

TEST(HopperWordsDeathTest, DescriptorsThatAreNotCanonicalAreCaught) {
  EXPECT_DEATH(RunGroup([](Steps& s) { s.Multiply(s.tile() + (128 >> 4)); }), "first row");
  EXPECT_DEATH(RunGroup([](Steps& s) { s.Multiply(s.tile() & ~kDescriptorSwizzle128); }),
               "swizzle");
  EXPECT_DEATH(RunGroup([](Steps& s) { s.Multiply(s.tile() + (std::uint64_t{32} >> 4 << 32)); }),
               "stride offset");
  EXPECT_DEATH(RunGroup([](Steps& s) { s.Multiply(s.tile() | std::uint64_t{1} << 49); }),
               "base offset");
  EXPECT_DEATH(RunGroup([](Steps& s) { s.Multiply(Advanced(s.tile(), kTile)); }),
               "leaves shared memory");
  EXPECT_DEATH(RunGroup([](Steps& s) {
                 s.Multiply(ThreadIndex() == 77 ? Advanced(s.tile(), 32) : s.tile());
               }),
               "disagree");
}

TEST(HopperWordsDeathTest, TouchingWhatAProductUsesIsCaught) {
  EXPECT_DEATH(RunGroup([](Steps& s) {
                 s.Multiply(s.tile());
                 s.d[1][1] = 0.0f;
               }),
               "accumulators were touched");
  EXPECT_DEATH(RunGroup([](Steps& s) {
                 s.Multiply(s.tile());
                 if (ThreadIndex() == 5) s.shared[0] = 1;
               }),
               "shared memory changed");
  EXPECT_DEATH(RunGroup([](Steps& s) {
                 std::uint32_t a[4] = {};
                 MultiplyRegisters<DType::kFloat16, 0, 8>(
                     s.d, a, Operand::MnMajor(SharedAddress(s.shared), 0));
                 a[2] = 1;
                 CommitWgmma();
                 WaitWgmma<0>();
               }),
               "registers changed");
}

TEST(HopperWordsDeathTest, MissingFencesAndWaitsAreCaught) {
  EXPECT_DEATH(RunGroup([](Steps& s) {
                 SyncThreads();
                 if (ThreadIndex() == 0) s.shared[0] = 1;  // and no fence of the proxies
                 SyncThreads();
                 s.Multiply(s.tile());
               }),
               "not fenced");
  EXPECT_DEATH(RunGroup([](Steps& s) {
                 WaitWgmma<0>();
                 s.Multiply(s.tile());
               }),
               "no wgmma.fence");
  EXPECT_DEATH(RunBlocks(1, kGroup, kTile, 1,
                         [](char* shared) {
                           SyncThreads();
                           FenceWgmma();
                           Steps steps{shared, {}};
                           std::memset(shared, 0xff, kTile);
                           steps.Multiply(steps.tile());
                           SyncThreads();
                         }),
               "under way");
}

}  // namespace
}  // namespace attention::cuda
