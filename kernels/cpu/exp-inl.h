// exp for softmax: at most 2 ulp for results that are normal numbers, exactly 1 at 0, exactly 0
// below -87.33 (where results become subnormal) and at -inf, NaN for NaN. Arguments stay below 88.
//
// x = n ln2 + r with |r| <= ln2 / 2, n by rounding to nearest through the addition of 1.5 * 2^23;
// ln2 is split in two so that n * high is exact. exp(r) is 1 + r + r^2 q(r), q of degree 4 fitted
// to least maximal relative error (3.1e-9, a twentieth of an ulp; degree 3 would be off by up to
// 1.8 ulp before any rounding). About 14 operations a vector.
#if defined(ATTENTION_CPU_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_EXP_INL_H_
#undef ATTENTION_CPU_EXP_INL_H_
#else
#define ATTENTION_CPU_EXP_INL_H_
#endif

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

inline constexpr float kExpUnderflow = -87.33f;

HWY_INLINE Vec Exp(Vec x) {
  const F32 d;
  const Vec shifter = hn::Set(d, 12582912.0f);  // 1.5 * 2^23
  const Vec shifted = hn::MulAdd(x, hn::Set(d, 1.44269504f), shifter);
  const Vec n = hn::Sub(shifted, shifter);
  // 0x1.62e4p-1 has 15 significant bits and |n| <= 127, so the product is exact without FMA too.
  Vec r = hn::NegMulAdd(n, hn::Set(d, 0x1.62e4p-1f), x);
  r = hn::NegMulAdd(n, hn::Set(d, 0x1.7f7d1cp-20f), r);
  Vec y = hn::Set(d, 0x1.6a2350p-10f);
  y = hn::MulAdd(y, r, hn::Set(d, 0x1.123a6cp-7f));
  y = hn::MulAdd(y, r, hn::Set(d, 0x1.5558f4p-5f));
  y = hn::MulAdd(y, r, hn::Set(d, 0x1.555490p-3f));
  y = hn::MulAdd(y, r, hn::Set(d, 0x1.fffffcp-2f));
  y = hn::MulAdd(y, r, hn::Set(d, 1.0f));
  y = hn::MulAdd(y, r, hn::Set(d, 1.0f));
  const auto is_tiny = hn::Lt(x, hn::Set(d, kExpUnderflow));
#if HWY_TARGET == HWY_AVX3
  // Scaling and masking in one instruction instead of four.
  return Vec{_mm512_maskz_scalef_ps(hn::Not(is_tiny).raw, y.raw, n.raw)};
#else
  // The low bits of `shifted` are n; shifted up they are added to the exponent of 1.0. Multiplying,
  // rather than adding to y's own exponent, keeps NaN a NaN.
  const hn::RebindToSigned<F32> di;
  const auto one = hn::Set(di, 0x3f800000);
  const Vec power = hn::BitCast(d, hn::Add(hn::ShiftLeft<23>(hn::BitCast(di, shifted)), one));
  return hn::IfThenZeroElse(is_tiny, hn::Mul(y, power));
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
