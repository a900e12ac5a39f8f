// The primitives of kernels/cuda/kernels/intrinsics/simt.h for code that block.h executes.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/api/dtype.h"
#include "tests/simt/block.h"

#define ATTENTION_DEVICE inline

namespace attention::cuda {

inline int ThreadIndex() { return simt::Current().index(); }
inline int BlockIndex() { return simt::Current().block_index(); }

inline int BlockCount() { return simt::Current().num_blocks(); }
inline int LaneIndex() { return simt::Current().index() % simt::kWarpThreads; }

inline void SyncThreads() { simt::Current().MeetBlock(false); }
inline void SyncWarp() {
  simt::Current().Meet({"syncwarp", nullptr}, [](void* const(&)[simt::kWarpThreads]) {});
}
inline int Uniform(int value) { return value; }
inline bool SyncThreadsOr(bool value) { return simt::Current().MeetBlock(value); }

inline bool AnyOfWarp(bool value) {
  simt::Current().Meet({"any", &value}, [](void* const(&all)[simt::kWarpThreads]) {
    bool any = false;
    for (void* one : all) any |= *static_cast<bool*>(one);
    for (void* one : all) *static_cast<bool*>(one) = any;
  });
  return value;
}

namespace simt_primitives {

// `from` is the lane whose value the calling one receives.
template <typename T>
T Shuffle(T value, int from) {
  struct Operands {
    T value;
    int from;
    T result;
  } mine{value, from, {}};
  simt::Current().Meet({"shuffle", &mine}, [](void* const(&all)[simt::kWarpThreads]) {
    for (int lane = 0; lane < simt::kWarpThreads; ++lane) {
      auto& to = *static_cast<Operands*>(all[lane]);
      to.result = static_cast<Operands*>(all[to.from])->value;
    }
  });
  return mine.result;
}

void LoadMatrix4(std::uint32_t (&out)[4], const void* shared, bool is_transposed);
void Mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
         DType dtype);

}  // namespace simt_primitives

template <typename T>
T ShuffleXor(T value, int mask) {
  return simt_primitives::Shuffle(value, LaneIndex() ^ mask);
}
template <typename T>
T ShuffleFrom(T value, int lane) {
  return simt_primitives::Shuffle(value, lane);
}

inline void CopyAsync16(void* shared, const void* global, bool is_wanted) {
  simt::Current().BeginCopy({shared, is_wanted ? global : nullptr});
}
inline void CommitCopies() { simt::Current().CommitCopies(); }
template <int kNewest>
void WaitCopies() {
  simt::Current().WaitCopies(kNewest);
}

inline void LoadMatrix4(std::uint32_t (&out)[4], const void* shared) {
  simt_primitives::LoadMatrix4(out, shared, /*is_transposed=*/false);
}
inline void LoadMatrix4Transposed(std::uint32_t (&out)[4], const void* shared) {
  simt_primitives::LoadMatrix4(out, shared, /*is_transposed=*/true);
}

template <DType kType>
void Mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  simt_primitives::Mma(c, a, b0, b1, kType);
}

template <DType kType>
std::uint32_t PackPair(float low, float high) {
  const auto bits = [](float value) -> std::uint32_t {
    return kType == DType::kBFloat16 ? FloatToBFloat16(value) : FloatToFloat16(value);
  };
  return bits(low) | bits(high) << 16;
}

inline std::uint32_t MultiplyBFloatPairs(std::uint32_t a, std::uint32_t b) {
  const auto product = [&](int shift) -> std::uint32_t {
    return FloatToBFloat16(BFloat16ToFloat(static_cast<std::uint16_t>(a >> shift)) *
                           BFloat16ToFloat(static_cast<std::uint16_t>(b >> shift)));
  };
  return product(0) | product(16) << 16;
}
inline std::uint32_t PermuteBytes(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
  const std::uint64_t bytes = low | static_cast<std::uint64_t>(high) << 32;
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<std::uint32_t>(bytes >> (8 * (selector >> 4 * i & 7)) & 0xff) << 8 * i;
  }
  return result;
}

inline std::uint32_t BitsOf(float value) { return std::bit_cast<std::uint32_t>(value); }
inline float FloatOf(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline float HalfToFloat(std::uint16_t bits) { return Float16ToFloat(bits); }
inline std::uint16_t FloatToHalf(float value) { return FloatToFloat16(value); }
inline int RoundToInt(float value) { return static_cast<int>(std::nearbyint(value)); }

inline float Exp2Fast(float x) { return std::exp2(x); }
inline float Exp2(float x) { return std::exp2(x); }
inline float Log(float x) { return std::log(x); }
inline float Tanh(float x) { return std::tanh(x); }
inline double Cos(double x) { return std::cos(x); }
inline double Sin(double x) { return std::sin(x); }
inline float GreaterOf(float a, float b) { return std::fmax(a, b); }
inline float Fma(float a, float b, float c) { return std::fma(a, b, c); }

inline std::uint32_t AtomicAdd(std::uint32_t* address, std::uint32_t value) {
  const std::uint32_t before = *address;
  *address += value;
  return before;
}
inline std::uint32_t AtomicAddInOrder(std::uint32_t* address, std::uint32_t value) {
  return AtomicAdd(address, value);
}
inline float LoadFromOtherBlock(const float* address) { return *address; }

}  // namespace attention::cuda
