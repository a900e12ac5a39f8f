// The primitives of device code: threads, barriers, shuffles, asynchronous copies and
// matrix fragments. Under nvcc they are the instructions. Elsewhere ATTENTION_SIMT_HEADER names a
// header that defines the same ones, so that a machine without a GPU executes the same code.
//
// Fragments are those of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16 with
// floating point type"). With g = lane / 4 and t = lane % 4 a lane holds, each 32-bit word a pair
// of neighbouring 16-bit elements:
//
//   a[0..3]: rows g, g + 8, g, g + 8 of A at columns 2t, 2t, 2t + 8, 2t + 8
//   b[0..1]: column g of B at rows 2t, 2t + 8
//   c[0..3]: rows g, g, g + 8, g + 8 of C at columns 2t, 2t + 1, 2t, 2t + 1
#pragma once

#if defined(__CUDACC__)
#include "kernels/cuda/kernels/intrinsics/simt_nvcc.h"
#elif defined(ATTENTION_SIMT_HEADER)
#include ATTENTION_SIMT_HEADER
#else
#error "device code needs nvcc or ATTENTION_SIMT_HEADER"
#endif
