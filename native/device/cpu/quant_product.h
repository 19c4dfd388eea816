// Exact sums of products of codes with rounded x, by the best instructions of the level. Part of quant_kernels.cc.
//
// An integer of x, in [-16319, 16319], is 128 hi + lo with both in signed bytes. Levels that multiply bytes by fours
// (VNNI with 512 bits, NEON with dot products) take hi and lo, others 16-bit words by twos.
#pragma once

namespace hogwild {
namespace {

constexpr int32_t kMaxXCode = 16319;

#if defined(__AVX512VNNI__) || (defined(__ARM_NEON) && defined(__ARM_FEATURE_DOTPROD))
#define HOGWILD_MULTIPLIES_BYTES 1
#endif
#if defined(HOGWILD_MULTIPLIES_BYTES) && defined(__ARM_NEON)
constexpr bool kSignedCodes = true;  // both factors are: 8-bit codes stand for themselves less 128
#else
constexpr bool kSignedCodes = false;
#endif

HOGWILD_INLINE BitVec broadcast_word(const uint32_t* from) {
#if defined(__AVX512F__)
  return (BitVec)_mm512_set1_epi32((int)*from);
#elif defined(__AVX2__)
  return (BitVec)_mm256_set1_epi32((int)*from);
#else
  return *from - BitVec{};
#endif
}

#if defined(HOGWILD_MULTIPLIES_BYTES)

// Where the four codes of a quad go in its two words.
HOGWILD_INLINE void pack_quad(const int32_t* codes, uint32_t* first, uint32_t* second) {
  uint32_t high = 0, low = 0;
  for (int i = 0; i < 4; i++) {
    const int32_t hi = (codes[i] + 64) >> 7;
    high |= (uint32_t)(hi & 255) << 8 * i;
    low |= (uint32_t)((codes[i] - hi * 128) & 255) << 8 * i;
  }
  *first = high;
  *second = low;
}

// Adds the four products of bytes to each lane.
HOGWILD_INLINE IntVec dot4(IntVec sum, BitVec codes, BitVec x) {
#if defined(__AVX512VNNI__)
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)x);
#else
  return (IntVec)vdotq_s32((int32x4_t)sum, (int8x16_t)codes, (int8x16_t)x);
#endif
}

struct DotSum {
  IntVec high, low;
  HOGWILD_INLINE void start(IntVec value) {
    high = IntVec{};
    low = value;
  }
  // What of a quad meets its first or second word of x.
  template <int kWord>
  static HOGWILD_INLINE BitVec factor(BitVec quad) {
    return quad;
  }
  template <int kWord>
  HOGWILD_INLINE void add(BitVec codes, BitVec x) {
    (kWord == 0 ? high : low) = dot4(kWord == 0 ? high : low, codes, x);
  }
  HOGWILD_INLINE IntVec value() const { return (high << 7) + low; }
};

#else

// Columns 0 and 2, and 1 and 3, as words side by side: the codes' even and odd bytes.
HOGWILD_INLINE void pack_quad(const int32_t* codes, uint32_t* first, uint32_t* second) {
  *first = ((uint32_t)codes[0] & 0xffff) | (uint32_t)codes[2] << 16;
  *second = ((uint32_t)codes[1] & 0xffff) | (uint32_t)codes[3] << 16;
}

// Adds the two products of words to each lane.
HOGWILD_INLINE IntVec dot2(IntVec sum, BitVec codes, BitVec x) {
#if defined(__AVXVNNI__)
  return (IntVec)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)x);
#elif defined(__AVX512BW__)
  return sum + (IntVec)_mm512_madd_epi16((__m512i)codes, (__m512i)x);
#elif defined(__AVX2__)
  return sum + (IntVec)_mm256_madd_epi16((__m256i)codes, (__m256i)x);
#elif defined(__SSE2__)
  return sum + (IntVec)_mm_madd_epi16((__m128i)codes, (__m128i)x);
#elif defined(__ARM_NEON)
  const int16x8_t a = (int16x8_t)codes, b = (int16x8_t)x;
  const int32x4_t low = vmull_s16(vget_low_s16(a), vget_low_s16(b));
  return sum + (IntVec)vpaddq_s32(low, vmull_high_s16(a, b));
#else
  return sum + (IntVec)(codes & 0xffff) * ((IntVec)(x << 16) >> 16) + (IntVec)(codes >> 16) * ((IntVec)x >> 16);
#endif
}

struct DotSum {
  IntVec sum;
  HOGWILD_INLINE void start(IntVec value) { sum = value; }
  template <int kWord>
  static HOGWILD_INLINE BitVec factor(BitVec quad) {
    return (kWord == 0 ? quad : quad >> 8) & 0x00ff00ffu;
  }
  template <int kWord>
  HOGWILD_INLINE void add(BitVec codes, BitVec x) {
    sum = dot2(sum, codes, x);
  }
  HOGWILD_INLINE IntVec value() const { return sum; }
};

#endif

}  // namespace
}  // namespace hogwild
