// The kernels over bfloat16 keys and values, compiled once per instruction set. One file per
// element type, so that they build in parallel.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/kernels_bfloat16.cc"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "kernels/cpu/weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

AttentionKernels MakeBFloat16Kernels() { return MakeKernels<BFloat16Kv>(); }

#if HWY_TARGET == HWY_AVX3
AttentionKernels MakeBFloat16DotKernels() {
  return __builtin_cpu_supports("avx512bf16") ? MakeKernels<BFloat16DotKv>() : AttentionKernels();
}
#else
AttentionKernels MakeBFloat16DotKernels() { return {}; }
#endif

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attention::cpu {

HWY_EXPORT(MakeBFloat16Kernels);

HWY_EXPORT(MakeBFloat16DotKernels);

AttentionKernels ChooseBFloat16DotKernels() {
  return HWY_DYNAMIC_DISPATCH(MakeBFloat16DotKernels)();
}

AttentionKernels ChooseBFloat16Kernels() { return HWY_DYNAMIC_DISPATCH(MakeBFloat16Kernels)(); }

}  // namespace attention::cpu
#endif
