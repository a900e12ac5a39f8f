// The primitives of device code that compute capability 9.0 has beside those of simt.h: mbarriers,
// bulk copies, matrix instructions of a warpgroup, named barriers, registers that warpgroups hand
// to each other. Section names are the PTX ISA's.
//
// An mbarrier counts arrivals and bytes in phases, which alternate between parity 0 and 1; a new
// one is in phase 0. WaitForBarrier(barrier, p) returns once the phase of parity p is over, so on a
// new barrier WaitForBarrier(barrier, 1) returns at once.
//
// A warpgroup is four warps, 128 threads. Its products D (+)= A B, of 64 rows, 8 kBlocks columns
// and 16 steps, are asynchronous: between MultiplyShared or MultiplyRegisters and a WaitWgmma that
// covers their group, D, A and B must not be touched. FenceWgmma goes before the first of them
// after registers were written. Warp w has rows [16 w, 16 w + 16) of A and D in the fragments of
// mma.m16n8k16 (simt.h): d[b] is block b of 8 columns. Operands in shared memory are named by
// descriptors (sm90/operand.h).
//
// Bulk copies and matrix instructions access shared memory through the asynchronous proxy:
// after threads have written what a matrix instruction will read, each needs FenceAsyncProxy before
// the barrier that lets it begin.
#pragma once

#if defined(__CUDACC__)
#include "kernels/cuda/kernels/intrinsics/hopper_nvcc.h"
#elif defined(ATTENTION_SIMT_HOPPER_HEADER)
#include ATTENTION_SIMT_HOPPER_HEADER
#else
#error "device code needs nvcc or ATTENTION_SIMT_HOPPER_HEADER"
#endif
