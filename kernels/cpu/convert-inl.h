// Rows of elements to float and back, with the bits of LoadElement and StoreElement.
#if defined(ATTENTION_CPU_CONVERT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_CONVERT_INL_H_
#undef ATTENTION_CPU_CONVERT_INL_H_
#else
#define ATTENTION_CPU_CONVERT_INL_H_
#endif

#include <cstring>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

// Without F16C Highway's conversion to float16 does not round to nearest.
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
inline constexpr bool kNarrowsFloat16 = true;
#else
inline constexpr bool kNarrowsFloat16 = false;
#endif

HWY_INLINE void WidenRow(const void* HWY_RESTRICT from, DType dtype, int count,
                         float* HWY_RESTRICT out) {
  if (dtype == DType::kFloat32) {
    std::memcpy(out, from, count * sizeof(float));
    return;
  }
  const F32 d;
  const auto* bits = static_cast<const std::uint16_t*>(from);
  int i = 0;
  if (kLanes == 1) {
    // Highway's scalar loads and stores want alignment.
  } else if (dtype == DType::kFloat16) {
    for (; i + kLanes <= count; i += kLanes) {
      Vec wide;
      Float16Kv::Load(bits + i, &wide);
      hn::StoreU(wide, d, out + i);
    }
  } else {
    const U32 u;
    for (; i + kLanes <= count; i += kLanes) {
      const auto narrow = hn::LoadU(hn::Rebind<std::uint16_t, F32>(), bits + i);
      hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(u, narrow))), d, out + i);
    }
  }
  for (; i < count; ++i) out[i] = LoadElement(from, dtype, i);
}

// Rounds to nearest, ties to even; a NaN stays one.
HWY_INLINE hn::Vec<hn::RebindToSigned<F32>> BFloat16Bits(Vec x) {
  const U32 u;
  const auto bits = hn::BitCast(u, x);
  const auto high = hn::ShiftRight<16>(bits);
  const auto tie = hn::Add(hn::And(high, hn::Set(u, 1u)), hn::Set(u, 0x7fffu));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, tie));
  const auto quiet = hn::Or(high, hn::Set(u, 0x40u));
  const auto is_nan = hn::RebindMask(u, hn::IsNaN(x));
  return hn::BitCast(hn::RebindToSigned<F32>(), hn::IfThenElse(is_nan, quiet, rounded));
}

HWY_INLINE void NarrowRow(const float* HWY_RESTRICT from, int count, DType dtype,
                          void* HWY_RESTRICT out) {
  if (dtype == DType::kFloat32) {
    std::memcpy(out, from, count * sizeof(float));
    return;
  }
  const F32 d;
  auto* bits = static_cast<std::uint16_t*>(out);
  int i = 0;
  if (kLanes == 1) {
    // As above.
  } else if (dtype == DType::kBFloat16) {
    const hn::Rebind<std::uint16_t, F32> half;
    for (; i + kLanes <= count; i += kLanes) {
      hn::StoreU(hn::DemoteTo(half, BFloat16Bits(hn::LoadU(d, from + i))), half, bits + i);
    }
  } else if constexpr (kNarrowsFloat16) {
    const hn::Rebind<hwy::float16_t, F32> half;
    for (; i + kLanes <= count; i += kLanes) {
      hn::StoreU(hn::DemoteTo(half, hn::LoadU(d, from + i)), half,
                 reinterpret_cast<hwy::float16_t*>(bits + i));
    }
  }
  for (; i < count; ++i) StoreElement(out, dtype, i, from[i]);
}

// Numbers to 448 as bytes of float8_e4m3.
HWY_INLINE hn::Vec<hn::RebindToSigned<F32>> Float8Bits(Vec x) {
  const F32 d;
  const U32 u;
  const Vec magnitude = hn::Abs(x);
  const auto sign = hn::And(hn::ShiftRight<24>(hn::BitCast(u, x)), hn::Set(u, 0x80u));
  const auto rebased = hn::Sub(hn::BitCast(u, magnitude), hn::Set(u, (127u - 7u) << 23));
  const auto tie =
      hn::Add(hn::And(hn::ShiftRight<20>(rebased), hn::Set(u, 1u)), hn::Set(u, 0x7ffffu));
  const auto normal = hn::ShiftRight<20>(hn::Add(rebased, tie));
  // Below the smallest normal number multiples of 2^-9, as FloatToFloat8E4M3 rounds them.
  const Vec base = hn::Set(d, 0x1p14f);
  const auto small = hn::Sub(hn::BitCast(u, hn::Add(magnitude, base)), hn::BitCast(u, base));
  const auto is_small = hn::RebindMask(u, hn::Lt(magnitude, hn::Set(d, 0x1p-6f)));
  return hn::BitCast(hn::RebindToSigned<F32>(),
                     hn::Or(hn::IfThenElse(is_small, small, normal), sign));
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
