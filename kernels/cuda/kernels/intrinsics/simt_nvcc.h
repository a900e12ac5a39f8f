// The primitives of simt.h as instructions of sm_80 and newer.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/api/dtype.h"

#define ATTENTION_DEVICE __device__ __forceinline__

namespace attention::cuda {

ATTENTION_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
ATTENTION_DEVICE int BlockIndex() { return static_cast<int>(blockIdx.x); }

ATTENTION_DEVICE int BlockCount() { return static_cast<int>(gridDim.x); }
ATTENTION_DEVICE int LaneIndex() { return static_cast<int>(threadIdx.x % 32); }

ATTENTION_DEVICE void SyncThreads() { __syncthreads(); }
ATTENTION_DEVICE void SyncWarp() { __syncwarp(); }
// Also a barrier. True if any thread of the block says so.
ATTENTION_DEVICE bool SyncThreadsOr(bool value) { return __syncthreads_or(value) != 0; }

ATTENTION_DEVICE float ShuffleXor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
ATTENTION_DEVICE std::uint32_t ShuffleXor(std::uint32_t value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// The value that lane `lane` has.
ATTENTION_DEVICE float ShuffleFrom(float value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
ATTENTION_DEVICE std::uint32_t ShuffleFrom(std::uint32_t value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
ATTENTION_DEVICE const char* ShuffleFrom(const char* value, int lane) {
  const auto bits = reinterpret_cast<unsigned long long>(value);
  return reinterpret_cast<const char*>(__shfl_sync(0xffffffffu, bits, lane));
}

// True if any lane of the warp says so.
ATTENTION_DEVICE bool AnyOfWarp(bool value) { return __any_sync(0xffffffffu, value) != 0; }

// A value that all lanes of the warp have alike, so that the compiler knows it.
ATTENTION_DEVICE int Uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// Copies 16 bytes from global to shared memory, or writes zeros and reads nothing. The bytes are
// there for the calling thread after WaitCopies, for others after a barrier beyond it.
ATTENTION_DEVICE void CopyAsync16(void* shared, const void* global, bool is_wanted) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = is_wanted ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(bytes)
               : "memory");
}
ATTENTION_DEVICE void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kNewest of the committed groups are under way.
template <int kNewest>
ATTENTION_DEVICE void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// Four 8 x 8 matrices of 16-bit elements; lane i names row i % 8 of matrix i / 8 (16-byte aligned).
ATTENTION_DEVICE void LoadMatrix4(std::uint32_t (&out)[4], const void* shared) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}
ATTENTION_DEVICE void LoadMatrix4Transposed(std::uint32_t (&out)[4], const void* shared) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

// c += a b, of the type kType, accumulated in float32.
template <DType kType>
ATTENTION_DEVICE void Mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                          std::uint32_t b1) {
  if constexpr (kType == DType::kBFloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Two floats, rounded to nearest even, as a pair; `low` at the lower address.
template <DType kType>
ATTENTION_DEVICE std::uint32_t PackPair(float low, float high) {
  std::uint32_t pair;
  if constexpr (kType == DType::kBFloat16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

// The products of two pairs of bfloat16, rounded to nearest even. Adding -0 changes nothing: before
// compute capability 9.0 there is no multiplication without an addition.
ATTENTION_DEVICE std::uint32_t MultiplyBFloatPairs(std::uint32_t a, std::uint32_t b) {
  std::uint32_t products;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(products) : "r"(a), "r"(b), "r"(0x80008000u));
  return products;
}
// Digit i of `selector`, from the lowest, is which byte of `low` (0 to 3) and `high` (4 to 7)
// becomes byte i.
ATTENTION_DEVICE std::uint32_t PermuteBytes(std::uint32_t low, std::uint32_t high,
                                            std::uint32_t selector) {
  return __byte_perm(low, high, selector);
}

ATTENTION_DEVICE std::uint32_t BitsOf(float value) { return __float_as_uint(value); }
ATTENTION_DEVICE float FloatOf(std::uint32_t bits) { return __uint_as_float(bits); }
ATTENTION_DEVICE float HalfToFloat(std::uint16_t bits) {
  return __half2float(__ushort_as_half(bits));
}
ATTENTION_DEVICE std::uint16_t FloatToHalf(float value) {
  return __half_as_ushort(__float2half_rn(value));
}
// To nearest, ties to even.
ATTENTION_DEVICE int RoundToInt(float value) { return __float2int_rn(value); }

// 2^x within 2 ulp (PTX: 2^-22.5 relative), exactly 1 at 0 and 0 at minus infinity.
ATTENTION_DEVICE float Exp2Fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
ATTENTION_DEVICE float Exp2(float x) { return exp2f(x); }
ATTENTION_DEVICE float Log(float x) { return logf(x); }
ATTENTION_DEVICE float Tanh(float x) { return tanhf(x); }
ATTENTION_DEVICE double Cos(double x) { return cos(x); }
ATTENTION_DEVICE double Sin(double x) { return sin(x); }
// The greater of two, or the one that is a number.
ATTENTION_DEVICE float GreaterOf(float a, float b) { return fmaxf(a, b); }
// One rounding, and none that the compiler adds elsewhere (-fmad=false).
ATTENTION_DEVICE float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }

ATTENTION_DEVICE std::uint32_t AtomicAdd(std::uint32_t* address, std::uint32_t value) {
  return atomicAdd(address, value);
}
// Releases what the calling thread wrote before, and what it had seen of others' writes, to whoever
// adds to the sum later, and acquires the same of whoever added earlier. Threads that meet the
// calling one at a barrier before and after are in the same order.
ATTENTION_DEVICE std::uint32_t AtomicAddInOrder(std::uint32_t* address, std::uint32_t value) {
  std::uint32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(address)), "r"(value)
               : "memory");
  return before;
}
// Reads what other blocks wrote, past the caches that blocks do not share.
ATTENTION_DEVICE float LoadFromOtherBlock(const float* address) { return __ldcg(address); }

}  // namespace attention::cuda
