// Functions that host and device share.
#pragma once

#if defined(__CUDACC__)
#define ATTENTION_HOST_DEVICE __host__ __device__ inline
#else
#define ATTENTION_HOST_DEVICE inline
#endif

namespace attention::cuda {

template <typename T>
ATTENTION_HOST_DEVICE constexpr T Min(T a, T b) {
  return b < a ? b : a;
}

template <typename T>
ATTENTION_HOST_DEVICE constexpr T Max(T a, T b) {
  return a < b ? b : a;
}

}  // namespace attention::cuda
