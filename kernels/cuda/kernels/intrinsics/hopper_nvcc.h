// The primitives of hopper.h as instructions of sm_90a.
#pragma once

#include "kernels/cuda/kernels/intrinsics/simt_nvcc.h"

namespace attention::cuda {

ATTENTION_DEVICE std::uint32_t SharedAddress(const void* shared) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
}

// "setmaxnreg": by all warps of a warpgroup. A raise waits until others have lowered theirs.
template <int kRegisters>
ATTENTION_DEVICE void RaiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
ATTENTION_DEVICE void LowerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// --- mbarriers and bulk copies ---

ATTENTION_DEVICE void InitBarrier(std::uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
// By the thread that initialised them, before the barrier of the block that lets others use them.
ATTENTION_DEVICE void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
ATTENTION_DEVICE void ArriveAtBarrier(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
// An arrival, after which the phase waits for so many more bytes of bulk copies.
ATTENTION_DEVICE void ArriveExpectingBytes(std::uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}
ATTENTION_DEVICE void WaitForBarrier(std::uint64_t* barrier, std::uint32_t parity) {
  const std::uint32_t address = SharedAddress(barrier);
  std::uint32_t is_over = 0;
  while (is_over == 0) {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(is_over)
        : "r"(address), "r"(parity)
        : "memory");
  }
}

// `bytes` and both addresses are multiples of 16; the barrier is told when the bytes have come.
ATTENTION_DEVICE void CopyBulk(void* shared, const void* global, int bytes,
                               std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(SharedAddress(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}

ATTENTION_DEVICE void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- Named barriers: ids 1 to 15, whole warps ---

ATTENTION_DEVICE void ArriveNamed(int id, int num_threads) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}
ATTENTION_DEVICE void SyncNamed(int id, int num_threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

// --- Products of a warpgroup ---

ATTENTION_DEVICE void FenceWgmma() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
ATTENTION_DEVICE void CommitWgmma() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most kNewest of the committed groups are under way.
template <int kNewest>
ATTENTION_DEVICE void WaitWgmma() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNewest) : "memory");
}

// Goes between a wait and the use of registers that it waited for, and between the last write of
// registers and the fence before a product: the compiler does not know that these statements depend
// on each other, and would move arithmetic across.
template <int kBlocks>
ATTENTION_DEVICE void PinRegisters(float (&registers)[kBlocks][4]) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(registers[block][i])::"memory");
  }
}
template <int kBlocks>
ATTENTION_DEVICE void PinRegisters(std::uint32_t (&registers)[kBlocks][4]) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(registers[block][i])::"memory");
  }
}

// The same value, which the compiler takes for a new one: what follows from it is computed where it
// is used, and not kept in registers across loops.
ATTENTION_DEVICE std::uint32_t Computed(std::uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// "wgmma.mma_async": D, A, B, whether D is added to, the signs of A and B, and for each operand in
// shared memory whether it is MN-major. The lists name the registers of 8 and of 16 blocks.
#define ATTENTION_BLOCK(d, b) "+f"((d)[b][0]), "+f"((d)[b][1]), "+f"((d)[b][2]), "+f"((d)[b][3])
#define ATTENTION_BLOCKS_8(d, b)                                                             \
  ATTENTION_BLOCK(d, (b) + 0), ATTENTION_BLOCK(d, (b) + 1), ATTENTION_BLOCK(d, (b) + 2),     \
      ATTENTION_BLOCK(d, (b) + 3), ATTENTION_BLOCK(d, (b) + 4), ATTENTION_BLOCK(d, (b) + 5), \
      ATTENTION_BLOCK(d, (b) + 6), ATTENTION_BLOCK(d, (b) + 7)
#define ATTENTION_NAMES_8                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define ATTENTION_NAMES_16                                                           \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

#define ATTENTION_SHARED(n, type, d, a, b, is_added)                                       \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " is_added ", 0;\nwgmma.mma_async.sync.aligned.m64n" n \
  "k16.f32." type "." type " {" d "}, " a ", " b ", p, 1, 1, 0, 0;\n}\n"

#define ATTENTION_REGISTERS(n, type, d, a, b, is_added)                                    \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " is_added ", 0;\nwgmma.mma_async.sync.aligned.m64n" n \
  "k16.f32." type "." type " {" d "}, {" a "}, " b ", p, 1, 1, 1;\n}\n"

// D (+)= A B^T: descriptors of K-major matrices. D counts as zero unless it accumulates.
template <DType kType, int kBlocks>
ATTENTION_DEVICE void MultiplyShared(float (&d)[kBlocks][4], std::uint64_t a, std::uint64_t b,
                                     bool accumulates) {
  static_assert(kBlocks == 8 || kBlocks == 16);
  const int is_added = accumulates ? 1 : 0;
  if constexpr (kBlocks == 8) {
    if constexpr (kType == DType::kBFloat16) {
      asm volatile(ATTENTION_SHARED("64", "bf16", ATTENTION_NAMES_8, "%32", "%33", "%34")
                   : ATTENTION_BLOCKS_8(d, 0)
                   : "l"(a), "l"(b), "r"(is_added));
    } else {
      asm volatile(ATTENTION_SHARED("64", "f16", ATTENTION_NAMES_8, "%32", "%33", "%34")
                   : ATTENTION_BLOCKS_8(d, 0)
                   : "l"(a), "l"(b), "r"(is_added));
    }
  } else {
    if constexpr (kType == DType::kBFloat16) {
      asm volatile(ATTENTION_SHARED("128", "bf16", ATTENTION_NAMES_16, "%64", "%65", "%66")
                   : ATTENTION_BLOCKS_8(d, 0), ATTENTION_BLOCKS_8(d, 8)
                   : "l"(a), "l"(b), "r"(is_added));
    } else {
      asm volatile(ATTENTION_SHARED("128", "f16", ATTENTION_NAMES_16, "%64", "%65", "%66")
                   : ATTENTION_BLOCKS_8(d, 0), ATTENTION_BLOCKS_8(d, 8)
                   : "l"(a), "l"(b), "r"(is_added));
    }
  }
}

// Blocks [kFirst, kFirst + kCount) of D += A B: A from registers, the descriptor of an MN-major B.
template <DType kType, int kFirst, int kCount, int kBlocks>
ATTENTION_DEVICE void MultiplyRegisters(float (&d)[kBlocks][4], const std::uint32_t (&a)[4],
                                        std::uint64_t b) {
  static_assert((kCount == 8 || kCount == 16) && kFirst + kCount <= kBlocks);
  if constexpr (kCount == 8) {
    if constexpr (kType == DType::kBFloat16) {
      asm volatile(
          ATTENTION_REGISTERS("64", "bf16", ATTENTION_NAMES_8, "%32, %33, %34, %35", "%36", "%37")
          : ATTENTION_BLOCKS_8(d, kFirst)
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
    } else {
      asm volatile(
          ATTENTION_REGISTERS("64", "f16", ATTENTION_NAMES_8, "%32, %33, %34, %35", "%36", "%37")
          : ATTENTION_BLOCKS_8(d, kFirst)
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
    }
  } else {
    if constexpr (kType == DType::kBFloat16) {
      asm volatile(
          ATTENTION_REGISTERS("128", "bf16", ATTENTION_NAMES_16, "%64, %65, %66, %67", "%68", "%69")
          : ATTENTION_BLOCKS_8(d, kFirst), ATTENTION_BLOCKS_8(d, kFirst + 8)
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
    } else {
      asm volatile(
          ATTENTION_REGISTERS("128", "f16", ATTENTION_NAMES_16, "%64, %65, %66, %67", "%68", "%69")
          : ATTENTION_BLOCKS_8(d, kFirst), ATTENTION_BLOCKS_8(d, kFirst + 8)
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
    }
  }
}

#undef ATTENTION_SHARED
#undef ATTENTION_REGISTERS
#undef ATTENTION_NAMES_8
#undef ATTENTION_NAMES_16
#undef ATTENTION_BLOCKS_8
#undef ATTENTION_BLOCK

}  // namespace attention::cuda
