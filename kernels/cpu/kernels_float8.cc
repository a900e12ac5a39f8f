// The kernels over float8_e4m3 keys and values, compiled once per instruction set. One file per
// element type, so that they build in parallel.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/kernels_float8.cc"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "kernels/cpu/weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

AttentionKernels MakeFloat8Kernels() { return MakeKernels<Float8Kv>(); }

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attention::cpu {

HWY_EXPORT(MakeFloat8Kernels);

AttentionKernels ChooseFloat8Kernels() { return HWY_DYNAMIC_DISPATCH(MakeFloat8Kernels)(); }

}  // namespace attention::cpu
#endif
