// The kernels over float16 keys and values, compiled once per instruction set. One file per element
// type, so that they build in parallel.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/kernels_float16.cc"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "kernels/cpu/weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

AttentionKernels MakeFloat16Kernels() { return MakeKernels<Float16Kv>(); }

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attention::cpu {

HWY_EXPORT(MakeFloat16Kernels);

AttentionKernels ChooseFloat16Kernels() { return HWY_DYNAMIC_DISPATCH(MakeFloat16Kernels)(); }

}  // namespace attention::cpu
#endif
