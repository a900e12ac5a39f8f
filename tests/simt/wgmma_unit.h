// wgmma.mma_async of m64nNk16 for 16-bit types, executed from what hardware gets: 64-bit matrix
// descriptors, and registers (PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate
// Instructions").
//
// Stricter than hardware where hardware leaves things undefined, each with an abort that says what:
// accumulators hold a poison from the issue until the warp has waited, and must not have been
// touched; shared memory and registers that are multiplied must not change before that either;
// registers need a wgmma.fence after each wait; descriptors must be canonical; and a warp must not
// end with anything under way.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/api/dtype.h"
#include "tests/simt/async_unit.h"

namespace attention::simt {

inline constexpr int kWarpgroupThreads = 128;
inline constexpr int kWarpgroupWarps = 4;

// The part of one thread of a warpgroup in an instruction.
struct WgmmaCall {
  DType dtype = DType::kBFloat16;
  int num_blocks = 0;                // of 8 columns: N / 8
  float* d = nullptr;                // [num_blocks][4]
  bool accumulates = false;          // else d counts as zeros
  const std::uint32_t* a = nullptr;  // four registers; null: a_descriptor, K-major
  std::uint64_t a_descriptor = 0;
  std::uint64_t b_descriptor = 0;
  bool is_b_transposed = false;  // MN-major
};

// The unit of one warpgroup.
class WgmmaUnit {
 public:
  explicit WgmmaUnit(AsyncUnit& async) : async_(async) {}

  // All threads of the warpgroup have come to the instruction.
  void Issue(const WgmmaCall* const (&calls)[kWarpgroupThreads]);
  // For one warp: wgmma.fence, commit_group, and wait_group until `num_newest` are under way.
  void Fence(int warp) { warps_[warp].is_fenced = true; }
  void Commit(int warp);
  void Wait(int warp, int num_newest);
  void Finish() const;

 private:
  // Bytes of an operand in the order in which they are read, and where from.
  struct Operand {
    std::vector<const char*> rows;  // in the asynchronous view; 16 bytes each
    std::vector<std::uint16_t> elements;
  };
  struct Operation {
    Operand a, b;
    const std::uint32_t* a_registers[kWarpgroupThreads] = {};
    std::uint32_t a_values[kWarpgroupThreads][4] = {};
  };
  struct Accumulator {
    int num_blocks = 0;
    float* arrays[kWarpgroupThreads] = {};
    std::vector<float> values;  // [64][8 num_blocks]
    std::int64_t last_operation = 0;
    int num_delivered = 0;  // warps
  };
  struct WarpState {
    bool is_fenced = false;
    std::int64_t num_completed = 0;        // operations
    std::vector<std::int64_t> group_ends;  // operations up to each group under way
  };

  Operand ReadKMajor(std::uint64_t descriptor, int rows) const;
  Operand ReadMnMajor(std::uint64_t descriptor, int columns) const;
  void ReadPiece(std::uint32_t address, Operand* operand) const;
  std::vector<float> ReadRegisters(const WgmmaCall* const (&calls)[kWarpgroupThreads],
                                   Operation* operation) const;
  Accumulator& AccumulatorOf(const WgmmaCall* const (&calls)[kWarpgroupThreads]);
  void CheckUnchanged(const Operation& operation, int warp) const;
  void CheckPoison(const Accumulator& accumulator, int thread) const;
  void Deliver(Accumulator& accumulator, int warp) const;

  AsyncUnit& async_;
  WarpState warps_[kWarpgroupWarps];
  std::vector<std::unique_ptr<Operation>> operations_;  // all of the block so far; null: over
  std::vector<std::unique_ptr<Accumulator>> accumulators_;
};

}  // namespace attention::simt
