// Picks the kernels of one instruction set, and holds those that do not depend on the element type
// of keys and values. See kernels_float32.cc and its siblings for the others.
#include "kernels/cpu/attention_kernel.h"

#include <map>
#include <mutex>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_kernel.cc"
#include "hwy/foreach_target.h"
// Must come after foreach_target.h.
#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

void Exp2Array(const float* x, float* y, std::size_t count) {
  const F32 d;
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(Exp2(hn::LoadU(d, x + i)), d, y + i);
  for (; i < count; ++i) y[i] = hn::GetLane(Exp2(hn::Set(d, x[i])));
}

// Twelve chains hide a latency of four cycles at two or three multiply-adds a cycle and fit the 16
// registers of AVX2.
double MultiplyAddLoop(std::int64_t iterations, float* sink) {
  constexpr int kChains = 12;
  const F32 d;
  const Vec factor = hn::Set(d, 0.999f);
  const Vec term = hn::Set(d, 0.001f);
  Vec sum[kChains];
  HWY_UNROLL(16)
  for (int i = 0; i < kChains; ++i) sum[i] = hn::Set(d, static_cast<float>(i));
  for (std::int64_t n = 0; n < iterations; ++n) {
    HWY_UNROLL(16)
    for (int i = 0; i < kChains; ++i) sum[i] = hn::MulAdd(sum[i], factor, term);
  }
  Vec total = hn::Zero(d);
  HWY_UNROLL(16)
  for (int i = 0; i < kChains; ++i) total = hn::Add(total, sum[i]);
  *sink = hn::GetLane(hn::SumOfLanes(d, total));
  return 2.0 * kChains * kLanes * static_cast<double>(iterations);
}

float ReadLoop(const void* data, std::size_t bytes) {
  constexpr int kStreams = 8;
  const U32 d;
  const auto* p = static_cast<const std::uint32_t*>(data);
  hn::Vec<U32> sum[kStreams];
  HWY_UNROLL(16)
  for (int i = 0; i < kStreams; ++i) sum[i] = hn::Zero(d);
  for (std::size_t at = 0; at < bytes / sizeof(std::uint32_t); at += kStreams * kLanes) {
    HWY_UNROLL(16)
    for (int i = 0; i < kStreams; ++i) {
      sum[i] = hn::Xor(sum[i], hn::Load(d, p + at + i * kLanes));
    }
  }
  HWY_UNROLL(16)
  for (int i = 1; i < kStreams; ++i) sum[0] = hn::Xor(sum[0], sum[i]);
  return static_cast<float>(hn::GetLane(sum[0]));
}

KernelTable MakeKernelTable() {
  KernelTable table;
  table.isa = hwy::TargetName(HWY_TARGET);
  table.pack = Pack;
  table.exp2 = Exp2Array;
  table.multiply_add_loop = MultiplyAddLoop;
  table.read_loop = ReadLoop;
  return table;
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace attention::cpu {

AttentionKernels ChooseFloat32Kernels();
AttentionKernels ChooseFloat16Kernels();
AttentionKernels ChooseBFloat16Kernels();
AttentionKernels ChooseBFloat16DotKernels();
AttentionKernels ChooseInt8Kernels();
AttentionKernels ChooseFloat8Kernels();

HWY_EXPORT(MakeKernelTable);

namespace {

KernelTable MakeTableForChosenTarget() {
  KernelTable table = HWY_DYNAMIC_DISPATCH(MakeKernelTable)();
  table.attention[static_cast<int>(DType::kFloat32)] = ChooseFloat32Kernels();
  table.attention[static_cast<int>(DType::kFloat16)] = ChooseFloat16Kernels();
  table.attention[static_cast<int>(DType::kBFloat16)] = ChooseBFloat16Kernels();
  table.bfloat16_dot = ChooseBFloat16DotKernels();
  table.attention[static_cast<int>(DType::kInt8)] = ChooseInt8Kernels();
  table.attention[static_cast<int>(DType::kFloat8E4M3)] = ChooseFloat8Kernels();
  return table;
}

}  // namespace

const KernelTable* ChooseKernels(std::int64_t highway_target) {
  static std::mutex mutex;
  static auto* tables = new std::map<std::int64_t, KernelTable>;
  std::lock_guard<std::mutex> lock(mutex);
  const auto known = tables->find(highway_target);
  if (known != tables->end()) return &known->second;
  const std::int64_t available = hwy::SupportedTargets() & HWY_TARGETS;
  if (highway_target != 0 && (highway_target & available) == 0) return nullptr;
  // Highway's choice is global; it is narrowed for the look-up only.
  hwy::SetSupportedTargetsForTest(highway_target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  const KernelTable table = MakeTableForChosenTarget();
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return &tables->emplace(highway_target, table).first->second;
}

}  // namespace attention::cpu
#endif
