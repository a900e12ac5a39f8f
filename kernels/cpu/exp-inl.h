// 2^x for softmax: at most 1.5 ulp for results that are normal numbers, exactly 1 at 0, exactly 0
// below -126 (where results become subnormal) and at -inf, NaN for NaN. Arguments stay below 127.
//
// The base is 2 and not e because scores are multiplied by softmax_scale anyway, which takes
// log2(e) along: what is left is x = n + r and 2^r as 1 + r q(r), q of degree 5 fitted to least
// maximal relative error (2.0e-9, a thirtieth of an ulp; degree 4 would add 1.4 ulp). AVX-512 has
// one instruction for r = x - floor(x) and one for y 2^floor(x), so r is in [0, 1) there; elsewhere
// n is the nearest integer, found by adding 1.5 * 2^23, and r in [-1/2, 1/2]. 11 or 14 operations a
// vector.
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

inline constexpr float kExp2Underflow = -126.0f;

// 1 + r (c1 + c2 r + ... + c6 r^5).
HWY_INLINE Vec Exp2Polynomial(Vec r, float c1, float c2, float c3, float c4, float c5, float c6) {
  const F32 d;
  Vec y = hn::MulAdd(r, hn::Set(d, c6), hn::Set(d, c5));
  y = hn::MulAdd(y, r, hn::Set(d, c4));
  y = hn::MulAdd(y, r, hn::Set(d, c3));
  y = hn::MulAdd(y, r, hn::Set(d, c2));
  y = hn::MulAdd(y, r, hn::Set(d, c1));
  return hn::MulAdd(y, r, hn::Set(d, 1.0f));
}

HWY_INLINE Vec Exp2(Vec x) {
  const F32 d;
#if HWY_TARGET == HWY_AVX3
  constexpr int kMinusFloor = 0x09;  // and no exception
  const Vec r{_mm512_reduce_ps(x.raw, kMinusFloor)};
  const Vec y = Exp2Polynomial(r, 0x1.62e42cp-1f, 0x1.ebfd58p-3f, 0x1.c68912p-5f, 0x1.3d0b92p-7f,
                               0x1.46d64cp-10f, 0x1.c54174p-13f);
  // "Not less", so that NaN stays. Without the mask subnormal results would cost microcode.
  const __mmask16 is_normal =
      _mm512_cmp_ps_mask(x.raw, hn::Set(d, kExp2Underflow).raw, _CMP_NLT_UQ);
  return Vec{_mm512_maskz_scalef_ps(is_normal, y.raw, x.raw)};
#else
  const Vec shifter = hn::Set(d, 12582912.0f);  // 1.5 * 2^23
  const Vec shifted = hn::Add(x, shifter);
  const Vec r = hn::Sub(x, hn::Sub(shifted, shifter));
  const Vec y = Exp2Polynomial(r, 0x1.62e430p-1f, 0x1.ebfbdcp-3f, 0x1.c6aee8p-5f, 0x1.3b2d4cp-7f,
                               0x1.5f3e54p-10f, 0x1.41fbbcp-13f);
  // The low bits of `shifted` are n; shifted up they are added to the exponent of 1.0. Multiplying,
  // rather than adding to y's own exponent, keeps NaN a NaN.
  const hn::RebindToSigned<F32> di;
  const auto one = hn::Set(di, 0x3f800000);
  const Vec power = hn::BitCast(d, hn::Add(hn::ShiftLeft<23>(hn::BitCast(di, shifted)), one));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, kExp2Underflow)), hn::Mul(y, power));
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
