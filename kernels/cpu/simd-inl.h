// Vector types of the target that is being compiled, and loads of the packed element types.
#if defined(ATTENTION_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATTENTION_CPU_SIMD_INL_H_
#undef ATTENTION_CPU_SIMD_INL_H_
#else
#define ATTENTION_CPU_SIMD_INL_H_
#endif

#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/attention_kernel.h"

HWY_BEFORE_NAMESPACE();
namespace attention::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::RebindToUnsigned<F32>;
using Vec = hn::Vec<F32>;

// Highway cannot promise a constant lane count for scalable vectors; x86 and NEON have one.
inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(F32()));
static_assert(kBlockTokens % kLanes == 0, "vectors longer than a block are not supported");
inline constexpr int kBlockVecs = kBlockTokens / kLanes;
inline constexpr bool kIsWide = kLanes == 16;

inline constexpr float kNegInf = -std::numeric_limits<float>::infinity();

// The larger of the two, `b` where `a` is NaN. `b` must not be NaN.
HWY_INLINE Vec MaxIgnoringNaN(Vec a, Vec b) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128
  return hn::Max(a, b);  // maxps returns its second operand if either is NaN
#else
  return hn::IfThenElse(hn::Gt(a, b), a, b);
#endif
}

// Callers' rows need not be aligned to their elements.
template <typename T>
HWY_INLINE T LoadUnaligned(const T* p) {
  T value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

// out[i * out_stride + j] = in_j[i] for 4 x 4 elements of 32 bits. `in` need not be aligned.
HWY_INLINE void Transpose4x4(const std::uint32_t* in0, const std::uint32_t* in1,
                             const std::uint32_t* in2, const std::uint32_t* in3,
                             std::uint32_t* HWY_RESTRICT out, std::size_t out_stride) {
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < 4; ++i) {
    out[i * out_stride] = LoadUnaligned(in0 + i);
    out[i * out_stride + 1] = LoadUnaligned(in1 + i);
    out[i * out_stride + 2] = LoadUnaligned(in2 + i);
    out[i * out_stride + 3] = LoadUnaligned(in3 + i);
  }
#else
  const hn::FixedTag<std::uint32_t, 4> d;
  const hn::FixedTag<std::uint64_t, 2> d64;
  const auto a = hn::LoadU(d, in0), b = hn::LoadU(d, in1);
  const auto c = hn::LoadU(d, in2), e = hn::LoadU(d, in3);
  const auto ab_low = hn::BitCast(d64, hn::InterleaveLower(d, a, b));
  const auto ab_high = hn::BitCast(d64, hn::InterleaveUpper(d, a, b));
  const auto ce_low = hn::BitCast(d64, hn::InterleaveLower(d, c, e));
  const auto ce_high = hn::BitCast(d64, hn::InterleaveUpper(d, c, e));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, ab_low, ce_low)), d, out);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, ab_low, ce_low)), d, out + out_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, ab_high, ce_high)), d, out + 2 * out_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, ab_high, ce_high)), d, out + 3 * out_stride);
#endif
}

// How packed elements are read. kPack elements that are multiplied one after the other lie side by
// side (dims of a key, tokens of a value); Load reads kLanes groups of kPack as floats. The
// elements of a block come after kHeader bytes: the scales of its tokens, if it has them, which
// take along the factor kUnit that Load leaves out. kIsDot: the micro-kernels of dot-inl.h multiply
// pairs as they are.
struct Float32Kv {
  using Element = float;
  static constexpr int kPack = 1;
  static constexpr std::size_t kHeader = 0;
  static constexpr bool kIsDot = false;
  static HWY_INLINE void Load(const Element* HWY_RESTRICT p, Vec* HWY_RESTRICT out) {
    out[0] = hn::LoadU(F32(), p);
  }
};

struct Float16Kv {
  using Element = std::uint16_t;
  static constexpr int kPack = 1;
  static constexpr std::size_t kHeader = 0;
  static constexpr bool kIsDot = false;
  static HWY_INLINE void Load(const Element* HWY_RESTRICT p, Vec* HWY_RESTRICT out) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SSE4
    // Highway 1.0.3 widens without F16C as if infinities and NaN were numbers. Here: put exponent
    // and mantissa in place, rebias by a multiplication (exact, also for subnormals), then restore
    // the exponent of what is not finite.
    const U32 u;
    const F32 d;
    const auto bits = hn::PromoteTo(u, hn::LoadU(hn::Rebind<std::uint16_t, F32>(), p));
    const auto sign = hn::ShiftLeft<16>(hn::And(bits, hn::Set(u, 0x8000u)));
    const Vec magnitude = hn::BitCast(d, hn::ShiftLeft<13>(hn::And(bits, hn::Set(u, 0x7fffu))));
    const Vec rebiased = hn::Mul(magnitude, hn::Set(d, 0x1p112f));
    const Vec infinity = hn::Set(d, std::numeric_limits<float>::infinity());
    const Vec wide = hn::IfThenElse(hn::Ge(rebiased, hn::Set(d, 65536.0f)),
                                    hn::Or(magnitude, infinity), rebiased);
    out[0] = hn::Or(wide, hn::BitCast(d, sign));
#else
    const hn::Rebind<hwy::float16_t, F32> half;
    out[0] = hn::PromoteTo(F32(), hn::LoadU(half, reinterpret_cast<const hwy::float16_t*>(p)));
#endif
  }
};

struct BFloat16Kv {
  using Element = std::uint16_t;
  static constexpr int kPack = 2;
  static constexpr std::size_t kHeader = 0;
  static constexpr bool kIsDot = false;
  static HWY_INLINE void Load(const Element* HWY_RESTRICT p, Vec* HWY_RESTRICT out) {
    const U32 u;
    const auto pair = hn::LoadU(u, reinterpret_cast<const std::uint32_t*>(p));
    out[0] = hn::BitCast(F32(), hn::ShiftLeft<16>(pair));
    out[1] = hn::BitCast(F32(), hn::And(pair, hn::Set(u, 0xffff0000u)));
  }
};

struct Int8Kv {
  using Element = std::int8_t;
  static constexpr int kPack = 1;
  static constexpr std::size_t kHeader = kScaleBytes;
  static constexpr float kUnit = 1.0f;
  static constexpr bool kIsDot = false;
  static HWY_INLINE void Load(const Element* HWY_RESTRICT p, Vec* HWY_RESTRICT out) {
    const hn::RebindToSigned<F32> wide;
    out[0] =
        hn::ConvertTo(F32(), hn::PromoteTo(wide, hn::LoadU(hn::Rebind<std::int8_t, F32>(), p)));
  }
};

// Exponent and mantissa of an element, put where float16 has them, are 2^-8 of its value; also
// those of subnormals, at no extra cost: the instructions for float16 take no detour for them, as
// multiplications of float32 may. No row holds the bytes of NaN, which become finite numbers here,
// so that bytes that were never written do no harm.
struct Float8Kv {
  using Element = std::uint8_t;
  static constexpr int kPack = 1;
  static constexpr std::size_t kHeader = kScaleBytes;
  static constexpr float kUnit = 0x1p8f;
  static constexpr bool kIsDot = false;
  static HWY_INLINE void Load(const Element* HWY_RESTRICT p, Vec* HWY_RESTRICT out) {
    const hn::Rebind<std::int8_t, F32> narrow;
    const auto bits = hn::LoadU(narrow, reinterpret_cast<const std::int8_t*>(p));
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128 || HWY_TARGET == HWY_SSE4
    // Without instructions for float16 the same in float32, where the exponent wants 2^112 more.
    const hn::RebindToSigned<F32> wide;
    const auto placed = hn::And(hn::ShiftLeft<20>(hn::PromoteTo(wide, bits)),
                                hn::Set(wide, static_cast<std::int32_t>(0x87f00000u)));
    out[0] = hn::Mul(hn::BitCast(F32(), placed), hn::Set(F32(), 0x1p112f));
#else
    const hn::Rebind<std::int16_t, F32> wide;
    const hn::Rebind<hwy::float16_t, F32> half;
    const auto placed = hn::And(hn::ShiftLeft<7>(hn::PromoteTo(wide, bits)),
                                hn::Set(wide, static_cast<std::int16_t>(0xbf80u)));
    out[0] = hn::PromoteTo(F32(), hn::BitCast(half, placed));
#endif
  }
};

template <class Kv>
HWY_INLINE const typename Kv::Element* ElementsOf(const void* block) {
  return reinterpret_cast<const typename Kv::Element*>(static_cast<const char*>(block) +
                                                       Kv::kHeader);
}

// A sum over elements of Kv, times their scale and the factor that goes with it; one
// after the other, as their product may be more than float32 holds.
template <class Kv>
HWY_INLINE Vec Scaled(Vec x, Vec scale) {
  if constexpr (Kv::kUnit != 1.0f) x = hn::Mul(x, hn::Set(F32(), Kv::kUnit));
  return hn::Mul(x, scale);
}

inline const float* ScalesOf(const void* block) { return static_cast<const float*>(block); }

}  // namespace HWY_NAMESPACE
}  // namespace attention::cpu
HWY_AFTER_NAMESPACE();

#endif
