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
#if defined(HOGWILD_MULTIPLIES_BYTES)
constexpr bool kMultipliesBytes = true;
#else
constexpr bool kMultipliesBytes = false;
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

// The two words of each of 8 quads, one behind the other: four high bytes, four low ones.
HOGWILD_INLINE void pack_quads(const int32_t* codes, uint32_t* words) {
#if defined(__AVX512VNNI__)
  for (int half = 0; half < 2; half++) {
    const IntVec integers = load(codes + 16 * half);
    const IntVec high = (integers + 64) >> 7;
    const __m128i high_bytes = _mm512_cvtepi32_epi8((__m512i)high);
    const __m128i low_bytes = _mm512_cvtepi32_epi8((__m512i)(integers - (high << 7)));
    _mm_storeu_si128((__m128i*)(words + 8 * half), _mm_unpacklo_epi32(high_bytes, low_bytes));
    _mm_storeu_si128((__m128i*)(words + 8 * half + 4), _mm_unpackhi_epi32(high_bytes, low_bytes));
  }
#else
  for (int j = 0; j < 8; j++) {
    uint32_t high = 0, low = 0;
    for (int i = 0; i < 4; i++) {
      const int32_t hi = (codes[4 * j + i] + 64) >> 7;
      high |= (uint32_t)(hi & 255) << 8 * i;
      low |= (uint32_t)((codes[4 * j + i] - hi * 128) & 255) << 8 * i;
    }
    words[2 * j] = high;
    words[2 * j + 1] = low;
  }
#endif
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

// The two words of each of 8 quads, one behind the other: columns 0 and 2, and 1 and 3, of 16 bits side by side. They
// meet the codes' even and odd bytes.
HOGWILD_INLINE void pack_quads(const int32_t* codes, uint32_t* words) {
#if defined(__AVX2__)
  for (int half = 0; half < 2; half++) {
    const __m256i* from = (const __m256i*)(codes + 16 * half);
    // Quads 0, 2, 1, 3.
    const __m256i quads = _mm256_packs_epi32(_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1));
    const __m256i pairs = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(quads, 0xd8), 0xd8);
    _mm256_storeu_si256((__m256i*)(words + 8 * half), _mm256_permute4x64_epi64(pairs, 0xd8));
  }
#else
  for (int j = 0; j < 8; j++, codes += 4) {
    words[2 * j] = ((uint32_t)codes[0] & 0xffff) | (uint32_t)codes[2] << 16;
    words[2 * j + 1] = ((uint32_t)codes[1] & 0xffff) | (uint32_t)codes[3] << 16;
  }
#endif
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
    return kWord == 0 ? quad & 0x00ff00ffu : (BitVec)((ShortBits)quad >> 8);
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
