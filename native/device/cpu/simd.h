// Vectors of f32 as wide as the instruction set that this file is compiled for, so that each kernel is
// written once. GCC's and Clang's vector extensions give the arithmetic; intrinsics only what they lack.
//
// For kernels.cc alone: everything is internal to the translation unit (see the rule there).
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace hogwild {
namespace {

#define HOGWILD_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kMaxLanes = 16;  // of any level: what buffers are padded to

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t BitVec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes)));
typedef int16_t ShortVec __attribute__((vector_size(4 * kLanes)));  // pairs
typedef uint16_t ShortBits __attribute__((vector_size(4 * kLanes)));

// Elements of weights and of the KV cache.
struct F16 {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};
// Of the cache alone: a multiple of its row's scale.
struct Int8 {
  int8_t code;
};

template <typename T>
constexpr bool kIsInt8 = false;
template <>
constexpr bool kIsInt8<Int8> = true;

// ---- load and store ---------------------------------------------------------------------------------

HOGWILD_INLINE Vec broadcast(float value) { return value - Vec{}; }

HOGWILD_INLINE Vec load(const float* from) {
  Vec v;
  memcpy(&v, from, sizeof v);
  return v;
}

HOGWILD_INLINE void store(float* to, Vec v) { memcpy(to, &v, sizeof v); }

HOGWILD_INLINE IntVec load(const int32_t* from) {
  IntVec v;
  memcpy(&v, from, sizeof v);
  return v;
}

HOGWILD_INLINE void store(int32_t* to, IntVec v) { memcpy(to, &v, sizeof v); }

HOGWILD_INLINE HalfVec load_bits(const void* from) {
  HalfVec v;
  memcpy(&v, from, sizeof v);
  return v;
}

HOGWILD_INLINE Vec load(const Bf16* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)load_bits(from)), 16);
#elif defined(__AVX2__)
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)load_bits(from)), 16);
#else
  return (Vec)(__builtin_convertvector(load_bits(from), BitVec) << 16);
#endif
}

HOGWILD_INLINE Vec load(const F16* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps((__m256i)load_bits(from));
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps((__m128i)load_bits(from));
#elif defined(__ARM_NEON)
  return (Vec)vcvt_f32_f16((float16x4_t)load_bits(from));
#else
  // Exponent and mantissa moved into place and re-biased by a product: exact, subnormals included.
  const BitVec h = __builtin_convertvector(load_bits(from), BitVec);
  const Vec magnitude = (Vec)((h & 0x7fff) << 13) * 0x1p112f;
  const BitVec special = (BitVec)((h & 0x7c00) == 0x7c00) & 0x7f800000;  // infinity or NaN
  return (Vec)((BitVec)magnitude | special | ((h & 0x8000) << 16));
#endif
}

// Whether a vector is converted to f32 by an instruction or two.
template <typename T>
constexpr bool kConvertsFast = true;
#if !defined(__AVX512F__) && !defined(__F16C__) && !defined(__ARM_NEON)
template <>
constexpr bool kConvertsFast<F16> = false;
#endif

// The first `n` < kLanes elements; zeros behind them.
template <typename T>
HOGWILD_INLINE Vec load_partial(const T* from, int64_t n) {
  T padded[kLanes];
  memset(padded, 0, sizeof padded);
  memcpy(padded, from, n * sizeof(T));
  return load(padded);
}

HOGWILD_INLINE void store_partial(float* to, Vec v, int64_t n) { memcpy(to, &v, n * sizeof(float)); }

// One element at a time, rounded to nearest even.
HOGWILD_INLINE float to_f32(float v) { return v; }

HOGWILD_INLINE float to_f32(Bf16 v) {
  const uint32_t bits = (uint32_t)v.bits << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

HOGWILD_INLINE float to_f32(F16 v) { return load_partial(&v, 1)[0]; }

HOGWILD_INLINE float to_f32(Int8 v) { return v.code; }

HOGWILD_INLINE void put(float* to, float v) { *to = v; }

HOGWILD_INLINE void put(Bf16* to, float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  to->bits = (uint16_t)(is_nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

HOGWILD_INLINE void put(F16* to, float v) {
#if defined(__F16C__)
  to->bits = (uint16_t)_cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
#else
  uint32_t bits;
  memcpy(&bits, &v, 4);
  const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits >= 0x47800000) {  // 2^16 and more
    to->bits = sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00);
  } else if (bits < 0x38800000) {  // subnormal: adding 1/2 rounds at its last bit
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, 4);
    to->bits = (uint16_t)(sign | (bits - 0x3f000000));
  } else {
    to->bits = (uint16_t)(sign | (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13);
  }
#endif
}

// Adding it, |x| < 2^22, leaves x in the last bits, rounded to an integer, ties to even.
constexpr float kRound = 0x1.8p23f;

HOGWILD_INLINE float round_even(float x) { return (x + kRound) - kRound; }

// Numbers that are rounded to multiples of one scale are taken for zeros where all are smaller than this: the scale
// would lose precision.
constexpr float kLeastMagnitude = 0x1p-100f;

// The f32 with these bits, the sign's cleared.
HOGWILD_INLINE float magnitude_of(uint32_t bits) {
  float magnitude;
  memcpy(&magnitude, &bits, 4);
  return magnitude;
}

HOGWILD_INLINE void prefetch(const void* address) { __builtin_prefetch(address); }
// What is read so much later that the nearest cache would have lost it.
HOGWILD_INLINE void prefetch_far(const void* address) { __builtin_prefetch(address, 0, 2); }

// ---- arithmetic -------------------------------------------------------------------------------------

// a * b + c: rounded once where the level has fused multiply-add, twice in the baseline.
HOGWILD_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

#if defined(__AMX_BF16__)
// Matrices of bf16 are multiplied by tiles. (Processors that have them take longer for the instruction below than for
// products of f32, so attention does without.)
#define HOGWILD_HAS_TILES 1
#elif defined(__AVX512BF16__)
// Two bf16 values, the first in the lower half: what AVX512_BF16 multiplies and adds up in one instruction.
#define HOGWILD_HAS_PAIRS 1
struct Bf16Pair {
  uint32_t bits;
};

HOGWILD_INLINE BitVec load(const Bf16Pair* from) {
  BitVec v;
  memcpy(&v, from, sizeof v);
  return v;
}

HOGWILD_INLINE void store(Bf16Pair* to, BitVec v) { memcpy(to, &v, sizeof v); }

HOGWILD_INLINE BitVec broadcast(Bf16Pair pair) { return pair.bits - BitVec{}; }

// a.first * b.first + a.second * b.second + c, lane by lane.
HOGWILD_INLINE Vec fma(BitVec a, BitVec b, Vec c) { return (Vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b); }

// Rounds a vector to bf16, two lanes to a pair.
HOGWILD_INLINE void store(Bf16* to, Vec v) {
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)v);
  memcpy(to, &rounded, sizeof rounded);
}
#endif

// Two 16-bit integers, the first in the lower half: what every level multiplies and adds up in few instructions.
struct Int16Pair {
  int32_t bits;
};

HOGWILD_INLINE ShortVec load(const Int16Pair* from) {
  ShortVec v;
  memcpy(&v, from, sizeof v);
  return v;
}

HOGWILD_INLINE void store(Int16Pair* to, ShortVec v) { memcpy(to, &v, sizeof v); }

HOGWILD_INLINE ShortVec broadcast(Int16Pair pair) { return (ShortVec)(pair.bits - IntVec{}); }

// Two codes, which become a pair of 16-bit integers when they are loaded.
struct Int8Pair {
  Int8 codes[2];
};

HOGWILD_INLINE ShortVec load(const Int8Pair* from) {
#if defined(__AVX512BW__)
  return (ShortVec)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (ShortVec)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)from));
#elif defined(__SSE4_1__)
  return (ShortVec)_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)from));
#elif defined(__ARM_NEON)
  return (ShortVec)vmovl_s8(vld1_s8(&from->codes[0].code));
#else
  ShortVec v;
  for (int i = 0; i < 2 * kLanes; i++) v[i] = from[i / 2].codes[i % 2].code;
  return v;
#endif
}

// Rounds a vector to integers, |x| <= 32767, two lanes to a pair.
HOGWILD_INLINE void store_integers(Int16Pair* to, Vec v) {
  const HalfVec rounded = __builtin_convertvector((BitVec)(v + kRound), HalfVec);
  memcpy(to, &rounded, sizeof rounded);
}

// Sums of products of pairs, one for each lane.
#if defined(__ARM_NEON)
struct PairSums {
  int32x4_t low, high;  // the products of lanes 0, 1 and of 2, 3: added up at the end
};

HOGWILD_INLINE PairSums fma(ShortVec a, ShortVec b, PairSums c) {
  return {vmlal_s16(c.low, vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b)),
          vmlal_high_s16(c.high, (int16x8_t)a, (int16x8_t)b)};
}

HOGWILD_INLINE IntVec total(PairSums sums) { return (IntVec)vpaddq_s32(sums.low, sums.high); }
#else
typedef IntVec PairSums;

HOGWILD_INLINE PairSums fma(ShortVec a, ShortVec b, PairSums c) {
#if defined(__AVX512VNNI__)
  return (IntVec)_mm512_dpwssd_epi32((__m512i)c, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  return c + (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return c + (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return c + (IntVec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const IntVec x = (IntVec)a, y = (IntVec)b;
  return c + ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
#endif
}

HOGWILD_INLINE IntVec total(PairSums sums) { return sums; }
#endif

HOGWILD_INLINE Vec to_f32(IntVec v) { return __builtin_convertvector(v, Vec); }

// a > b ? a : b, lane by lane.
HOGWILD_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// {sum of a, sum of b, sum of c, sum of d}, the lanes of each added in one fixed order.
HOGWILD_INLINE void sum_each(Vec a, Vec b, Vec c, Vec d, float* to) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const auto half = [](Vec v) __attribute__((always_inline)) {
    return _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
  };
#else
  const auto half = [](Vec v) __attribute__((always_inline)) { return (__m256)v; };
#endif
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(half(a), half(b)), _mm256_hadd_ps(half(c), half(d)));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
#elif defined(__SSSE3__)
  _mm_storeu_ps(to, _mm_hadd_ps(_mm_hadd_ps((__m128)a, (__m128)b), _mm_hadd_ps((__m128)c, (__m128)d)));
#else
  const Vec rows[4] = {a, b, c, d};
  for (int i = 0; i < 4; i++) to[i] = (rows[i][0] + rows[i][1]) + (rows[i][2] + rows[i][3]);
#endif
}

HOGWILD_INLINE float sum(Vec v) {
  float sums[4];
  sum_each(v, Vec{}, Vec{}, Vec{}, sums);
  return sums[0];
}

// sums[i] = the sum of v[i]: the same bits as by sum_each. Eight at once take half of the instructions of twice four.
template <int N>
HOGWILD_INLINE void sum_all(const Vec* v, float* sums) {
  int i = 0;
#if defined(__AVX512F__)
#pragma GCC unroll 4
  for (; i + 8 <= N; i += 8) {
    __m512 halves[4], pairs[2];
    for (int j = 0; j < 4; j++) {
      const __m512 a = (__m512)v[i + j], b = (__m512)v[i + j + 4];
      // {a low + a high, b high + b low}
      halves[j] = _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b), _mm512_shuffle_f32x4(a, b, 0x4e));
    }
    const auto add_pairs = [](__m512 a, __m512 b) __attribute__((always_inline)) {
      return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
    };
    for (int j = 0; j < 2; j++) pairs[j] = add_pairs(halves[2 * j], halves[2 * j + 1]);
    const __m512 quads = add_pairs(pairs[0], pairs[1]);
    const __m512 both = _mm512_add_ps(quads, _mm512_shuffle_f32x4(quads, quads, 0xb1));
    _mm256_storeu_ps(sums + i, _mm512_castps512_ps256(_mm512_shuffle_f32x4(both, both, 0x08)));
  }
#endif
#pragma GCC unroll 4
  for (; i + 4 <= N; i += 4) sum_each(v[i], v[i + 1], v[i + 2], v[i + 3], sums + i);
  for (; i < N; i++) sums[i] = sum(v[i]);
}

HOGWILD_INLINE int32_t sum(IntVec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t total = 0;
  for (int i = 0; i < kLanes; i++) total += v[i];
  return total;
#endif
}

HOGWILD_INLINE float max_lane(Vec v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#else
  const __m256 half = (__m256)v;
#endif
  __m128 best = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  best = _mm_max_ps(best, _mm_movehl_ps(best, best));
  return _mm_cvtss_f32(_mm_max_ss(best, _mm_movehdup_ps(best)));
#else
  float best = v[0];
  for (int i = 1; i < kLanes; i++) best = v[i] > best ? v[i] : best;
  return best;
#endif
}

HOGWILD_INLINE uint32_t max_lane(BitVec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epu32((__m512i)v);
#else
  uint32_t best = v[0];
  for (int i = 1; i < kLanes; i++) best = v[i] > best ? v[i] : best;
  return best;
#endif
}

// Cephes' expf: x = n ln 2 + r, |r| <= ln(2) / 2; e^r by a polynomial, 2^n through the exponent.
struct ExpParts {
  Vec power;        // e^r
  IntVec exponent;  // n
};

HOGWILD_INLINE ExpParts exp_parts(Vec x) {
  const Vec round = broadcast(0x1.8p23f);  // adding it leaves an integer in the last bits
  const Vec n = fma(x, broadcast(1.44269504088896341f), round) - round;
  Vec r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  return {fma(p * r, r, r) + 1.0f, __builtin_convertvector(n, IntVec)};
}

// e^x within 2 ulp, also where it is subnormal. exp(0) = 1, exp(-inf) = 0, exp(+inf) = +inf, exp(NaN) = NaN.
HOGWILD_INLINE Vec exp(Vec x) {
  x = x < -104.0f ? broadcast(-104.0f) : x;  // rounds to 0
  x = x > 89.0f ? broadcast(89.0f) : x;      // overflows to +inf
  const ExpParts parts = exp_parts(x);
  const IntVec first = parts.exponent >> 1;  // 2^n alone may be out of range
  return parts.power * (Vec)((first + 127) << 23) * (Vec)((parts.exponent - first + 127) << 23);
}

// The same for x <= 0, in fewer instructions: 0 where e^x would be below 2^-126.
HOGWILD_INLINE Vec exp_not_positive(Vec x) {
  constexpr float kLeast = -87.33654f;
  const ExpParts parts = exp_parts(max(broadcast(kLeast), x));
  const Vec e = parts.power * (Vec)((parts.exponent + 127) << 23);
  return (Vec)((IntVec)e & ~(x < kLeast));
}

// Cephes' tanhf: a polynomial around 0, where the quotient would lose digits. tanh(+-inf) = +-1, tanh(NaN) = NaN.
HOGWILD_INLINE Vec tanh(Vec x) {
  const Vec magnitude = (Vec)((BitVec)x & 0x7fffffff);
  const Vec e = exp_not_positive(magnitude * -2.0f);
  const Vec quotient = (1.0f - e) / (1.0f + e);
  const Vec far = (Vec)((BitVec)quotient | ((BitVec)x & 0x80000000u));
  const Vec square = x * x;
  Vec p = broadcast(-5.70498872745e-3f);
  p = fma(p, square, broadcast(2.06390887954e-2f));
  p = fma(p, square, broadcast(-5.37397155531e-2f));
  p = fma(p, square, broadcast(1.33314422036e-1f));
  p = fma(p, square, broadcast(-3.33332819422e-1f));
  const Vec near = fma(p * square, x, x);
  return magnitude < 0.625f ? near : far;
}

}  // namespace
}  // namespace hogwild
