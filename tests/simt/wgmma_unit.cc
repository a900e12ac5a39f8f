#include "tests/simt/wgmma_unit.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "tests/simt/element_table.h"

namespace attention::simt {
namespace {

constexpr int kRows = 64;   // of A and D
constexpr int kSteps = 16;  // K

// A NaN that no computation gives.
constexpr std::uint32_t kPoison = 0x7fc0dead;

// PTX ISA, "Matrix Descriptor Format". Addresses and offsets are in units of 16 bytes.
struct Descriptor {
  std::uint32_t start, leading, stride;
  std::uint32_t base_offset, mode;
  bool has_stray_bits;

  explicit Descriptor(std::uint64_t bits)
      : start(static_cast<std::uint32_t>(bits & 0x3fff) * 16),
        leading(static_cast<std::uint32_t>(bits >> 16 & 0x3fff) * 16),
        stride(static_cast<std::uint32_t>(bits >> 32 & 0x3fff) * 16),
        base_offset(static_cast<std::uint32_t>(bits >> 49 & 7)),
        mode(static_cast<std::uint32_t>(bits >> 62)),
        has_stray_bits((bits & 0x3ff1'c000'c000'c000u) != 0) {}
};

constexpr std::uint32_t kSwizzle128 = 1;
constexpr std::uint32_t kPatternBytes = 1024;  // after which the swizzle repeats

Descriptor Decode(std::uint64_t bits, const FailFunction& fail) {
  const Descriptor descriptor(bits);
  if (descriptor.mode != kSwizzle128) fail("a matrix descriptor is not of 128-byte swizzle");
  if (descriptor.has_stray_bits) fail("a matrix descriptor has bits where it has no field");
  if (descriptor.base_offset != 0) fail("a matrix descriptor has a base offset");
  if (descriptor.stride % kPatternBytes != 0) {
    fail("a matrix descriptor's stride offset is not a multiple of the swizzle's 1024 bytes");
  }
  return descriptor;
}

// The swizzle permutes 16-byte pieces by bits of the address itself.
std::uint32_t Swizzled(std::uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

}  // namespace

// 8 elements at an address before the swizzle.
void WgmmaUnit::ReadPiece(std::uint32_t address, Operand* operand) const {
  const std::uint32_t place = Swizzled(address) - kSharedBase;
  const SharedMemory& shared = async_.shared();
  if (!shared.Contains(shared.data + place, 16)) async_.fail()("a matrix leaves shared memory");
  const char* row = async_.async_view() + place;
  operand->rows.push_back(row);
  operand->elements.resize(operand->elements.size() + 8);
  std::memcpy(operand->elements.data() + operand->elements.size() - 8, row, 16);
}

// PTX ISA, "Strides", K-major with 128-byte swizzle: 8 rows lie 128 bytes apart, the next 8 rows by
// the stride offset. A step of K within the 128 bytes is an offset of the start. The result is
// [rows][16].
WgmmaUnit::Operand WgmmaUnit::ReadKMajor(std::uint64_t bits, int rows) const {
  const Descriptor descriptor = Decode(bits, async_.fail());
  if (descriptor.start % kPatternBytes > 128 - 2 * kSteps) {
    async_.fail()("a K-major matrix does not start in the first row of a swizzle pattern");
  }
  Operand operand;
  for (int row = 0; row < rows; ++row) {
    for (int piece = 0; piece < 2; ++piece) {
      ReadPiece(descriptor.start + row / 8 * descriptor.stride + row % 8 * 128 + piece * 16,
                &operand);
    }
  }
  return operand;
}

// MN-major: 64 columns lie in 128 bytes, the next 64 by the leading offset; 8 rows of K lie 128
// bytes apart, the next 8 by the stride offset. The result is [16][columns].
WgmmaUnit::Operand WgmmaUnit::ReadMnMajor(std::uint64_t bits, int columns) const {
  const Descriptor descriptor = Decode(bits, async_.fail());
  if (descriptor.start % kPatternBytes != 0 || descriptor.leading % kPatternBytes != 0) {
    async_.fail()("an MN-major matrix does not lie on swizzle patterns");
  }
  Operand operand;
  for (int k = 0; k < kSteps; ++k) {
    for (int piece = 0; piece < columns / 8; ++piece) {
      ReadPiece(descriptor.start + piece / 8 * descriptor.leading + piece % 8 * 16 +
                    k / 8 * descriptor.stride + k % 8 * 128,
                &operand);
    }
  }
  return operand;
}

// PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16", A: as mma.m16n8k16 for 16 rows of
// each warp. The result is [64][16].
std::vector<float> WgmmaUnit::ReadRegisters(const WgmmaCall* const (&calls)[kWarpgroupThreads],
                                            Operation* operation) const {
  const float* floats = FloatsOf(calls[0]->dtype).data();
  std::vector<float> a(kRows * kSteps);
  for (int thread = 0; thread < kWarpgroupThreads; ++thread) {
    operation->a_registers[thread] = calls[thread]->a;
    std::copy_n(calls[thread]->a, 4, operation->a_values[thread]);
    const int lane = thread % 32;
    for (int i = 0; i < 4; ++i) {
      const int row = thread / 32 * 16 + lane / 4 + 8 * (i % 2);
      const int column = lane % 4 * 2 + 8 * (i / 2);
      a[row * kSteps + column] = floats[calls[thread]->a[i] & 0xffffu];
      a[row * kSteps + column + 1] = floats[calls[thread]->a[i] >> 16];
    }
  }
  return a;
}

void WgmmaUnit::CheckPoison(const Accumulator& accumulator, int thread) const {
  for (int i = 0; i < accumulator.num_blocks * 4; ++i) {
    if (std::bit_cast<std::uint32_t>(accumulator.arrays[thread][i]) != kPoison) {
      async_.fail()("accumulators were touched while a wgmma was under way");
    }
  }
}

// The accumulators in flight of these registers, or new ones that take their contents over. PTX
// ISA, "Register Fragments": D as mma.m16n8k16 for 16 rows of each warp and 8 columns of each
// block.
WgmmaUnit::Accumulator& WgmmaUnit::AccumulatorOf(
    const WgmmaCall* const (&calls)[kWarpgroupThreads]) {
  const int num_blocks = calls[0]->num_blocks;
  for (const auto& accumulator : accumulators_) {
    if (accumulator->arrays[0] != calls[0]->d) continue;
    if (accumulator->num_blocks != num_blocks || accumulator->num_delivered > 0) {
      async_.fail()("accumulators in flight are used in another shape");
    }
    for (int thread = 0; thread < kWarpgroupThreads; ++thread) CheckPoison(*accumulator, thread);
    return *accumulator;
  }
  accumulators_.push_back(std::make_unique<Accumulator>());
  Accumulator& accumulator = *accumulators_.back();
  accumulator.num_blocks = num_blocks;
  accumulator.values.resize(kRows * 8 * num_blocks);
  for (int thread = 0; thread < kWarpgroupThreads; ++thread) {
    float* d = accumulator.arrays[thread] = calls[thread]->d;
    for (int i = 0; i < num_blocks * 4; ++i) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i % 4 / 2);
      const int column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      accumulator.values[row * 8 * num_blocks + column] = d[i];
      d[i] = std::bit_cast<float>(kPoison);
    }
  }
  return accumulator;
}

void WgmmaUnit::Issue(const WgmmaCall* const (&calls)[kWarpgroupThreads]) {
  const WgmmaCall& first = *calls[0];
  for (const WgmmaCall* call : calls) {
    if (call->a_descriptor != first.a_descriptor || call->b_descriptor != first.b_descriptor ||
        call->num_blocks != first.num_blocks || call->accumulates != first.accumulates) {
      async_.fail()("threads of a warpgroup disagree about a wgmma");
    }
  }
  for (const WarpState& warp : warps_) {
    if (!warp.is_fenced) async_.fail()("a wgmma has no wgmma.fence after the last wait");
  }
  auto operation = std::make_unique<Operation>();
  const float* floats = FloatsOf(first.dtype).data();
  const int columns = 8 * first.num_blocks;
  std::vector<float> a;
  if (first.a != nullptr) {
    a = ReadRegisters(calls, operation.get());
  } else {
    operation->a = ReadKMajor(first.a_descriptor, kRows);
    for (std::uint16_t element : operation->a.elements) a.push_back(floats[element]);
  }
  operation->b = first.is_b_transposed ? ReadMnMajor(first.b_descriptor, columns)
                                       : ReadKMajor(first.b_descriptor, columns);
  std::vector<double> b(kSteps * columns);  // [16][columns]
  for (int k = 0; k < kSteps; ++k) {
    for (int n = 0; n < columns; ++n) {
      b[k * columns + n] =
          floats[operation->b.elements[first.is_b_transposed ? k * columns + n : n * kSteps + k]];
    }
  }
  Accumulator& d = AccumulatorOf(calls);
  std::vector<double> sums(columns);
  for (int row = 0; row < kRows; ++row) {
    float* out = d.values.data() + row * columns;
    for (int n = 0; n < columns; ++n) sums[n] = first.accumulates ? out[n] : 0.0;
    for (int k = 0; k < kSteps; ++k) {
      const double factor = a[row * kSteps + k];
      const double* b_row = b.data() + k * columns;
      for (int n = 0; n < columns; ++n) sums[n] += factor * b_row[n];
    }
    for (int n = 0; n < columns; ++n) out[n] = static_cast<float>(sums[n]);
  }
  operations_.push_back(std::move(operation));
  d.last_operation = static_cast<std::int64_t>(operations_.size());
}

void WgmmaUnit::Commit(int warp) {
  warps_[warp].group_ends.push_back(static_cast<std::int64_t>(operations_.size()));
}

void WgmmaUnit::CheckUnchanged(const Operation& operation, int warp) const {
  for (const Operand* operand : {&operation.a, &operation.b}) {
    for (std::size_t i = 0; i < operand->rows.size(); ++i) {
      const char* row = operand->rows[i];
      const char* written = async_.shared().data + (row - async_.async_view());
      if (std::memcmp(row, operand->elements.data() + i * 8, 16) != 0 ||
          std::memcmp(written, operand->elements.data() + i * 8, 16) != 0) {
        async_.fail()("shared memory changed while a wgmma read it, or is not fenced");
      }
    }
  }
  for (int thread = warp * 32; thread < warp * 32 + 32; ++thread) {
    const std::uint32_t* registers = operation.a_registers[thread];
    if (registers != nullptr && !std::equal(registers, registers + 4, operation.a_values[thread])) {
      async_.fail()("registers changed while a wgmma read them");
    }
  }
}

void WgmmaUnit::Deliver(Accumulator& accumulator, int warp) const {
  for (int thread = warp * 32; thread < warp * 32 + 32; ++thread) {
    CheckPoison(accumulator, thread);
    for (int i = 0; i < accumulator.num_blocks * 4; ++i) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i % 4 / 2);
      const int column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      accumulator.arrays[thread][i] = accumulator.values[row * 8 * accumulator.num_blocks + column];
    }
  }
  ++accumulator.num_delivered;
}

void WgmmaUnit::Wait(int warp, int num_newest) {
  WarpState& state = warps_[warp];
  state.is_fenced = false;
  const auto num_groups = static_cast<int>(state.group_ends.size());
  if (num_groups <= num_newest) return;
  const int num_over = num_groups - num_newest;
  const std::int64_t end = state.group_ends[num_over - 1];
  for (std::int64_t i = state.num_completed; i < end; ++i) {
    if (operations_[i] != nullptr) CheckUnchanged(*operations_[i], warp);
  }
  for (const auto& accumulator : accumulators_) {
    const std::int64_t last = accumulator->last_operation;
    if (last > state.num_completed && last <= end) Deliver(*accumulator, warp);
  }
  state.num_completed = end;
  state.group_ends.erase(state.group_ends.begin(), state.group_ends.begin() + num_over);
  std::erase_if(accumulators_, [](const auto& accumulator) {
    return accumulator->num_delivered == kWarpgroupWarps;
  });
  std::int64_t least = end;
  for (const WarpState& other : warps_) least = std::min(least, other.num_completed);
  for (std::int64_t i = least; i-- > 0 && operations_[i] != nullptr;) operations_[i] = nullptr;
}

void WgmmaUnit::Finish() const {
  for (const WarpState& warp : warps_) {
    if (warp.num_completed != static_cast<std::int64_t>(operations_.size())) {
      async_.fail()("the block ends with wgmmas under way");
    }
  }
}

}  // namespace attention::simt
