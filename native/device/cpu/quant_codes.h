// What kernels load from panels: quads of codes, and the scales of groups. Part of quant_kernels.cc.
#pragma once

namespace hogwild {
namespace {

HOGWILD_INLINE BitVec load_line(const uint8_t* from) {
  BitVec v;
  memcpy(&v, from, sizeof v);
  return v;
}

HOGWILD_INLINE BitVec bytes_of(uint32_t byte) { return byte * 0x01010101u - BitVec{}; }

// The bytes of `v` that stand at its indices in a table of 16.
HOGWILD_INLINE BitVec look_up(const uint8_t* table, BitVec v) {
#if defined(__AVX512BW__)
  const __m512i values = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
  return (BitVec)_mm512_shuffle_epi8(values, (__m512i)v);
#elif defined(__AVX2__)
  const __m256i values = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
  return (BitVec)_mm256_shuffle_epi8(values, (__m256i)v);
#elif defined(__SSSE3__)
  return (BitVec)_mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)table), (__m128i)v);
#elif defined(__ARM_NEON)
  return (BitVec)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)v);
#else
  uint8_t bytes[sizeof v];
  memcpy(bytes, &v, sizeof v);
  for (uint64_t i = 0; i < sizeof v; i++) bytes[i] = table[bytes[i]];
  memcpy(&v, bytes, sizeof v);
  return v;
#endif
}

// Bits [kFrom, kFrom + kBits) of each byte, moved to kTo.
template <int kFrom, int kBits, int kTo>
HOGWILD_INLINE BitVec move_bits(BitVec v) {
  if constexpr (kFrom > kTo) v >>= kFrom - kTo;
  if constexpr (kFrom < kTo) v <<= kTo - kFrom;
  return v & bytes_of(((1u << kBits) - 1) << kTo);
}

// The lines of 32 columns of one vector of outputs.
template <int kBits>
struct Lines {
  static constexpr int kNibbles = kBits >= 4 && kBits < 8 ? 4 : 0;  // lines
  static constexpr int kTwoBits = kBits % 4 >= 2 ? 2 : 0;           // lines
  static constexpr int kTwoBitsAt = kNibbles > 0 ? 4 : 0;           // bit of the code
  static constexpr int kLastBitAt = kTwoBitsAt + kTwoBits;          // bit of the code
  static constexpr int kLines = kBits == 8 ? 8 : kNibbles + kTwoBits + kBits % 2;
  static_assert(kLines == code_lines(kBits));
  const uint8_t* from;

  template <int kLine>
  HOGWILD_INLINE BitVec line() const {
    return load_line(from + kLine * kPanelLine);
  }

  // Quad J of the 32 columns: four codes in the four bytes of each lane.
  template <int J>
  HOGWILD_INLINE BitVec quad() const {
    if constexpr (kBits == 8) return line<J>();
    BitVec codes = {};
    if constexpr (kNibbles > 0) codes = move_bits < J<4 ? 0 : 4, 4, 0>(line<J % 4>());
    if constexpr (kTwoBits > 0) codes |= move_bits<2 * (J % 4), 2, kTwoBitsAt>(line<kNibbles + J / 4>());
    if constexpr (kBits % 2 == 1) codes |= move_bits<J, 1, kLastBitAt>(line<kNibbles + kTwoBits>());
    return codes;
  }

  // Of 4 bits: the first and third codes of quad J, or the second and fourth, as words side by side.
  template <int J, int kWord>
  HOGWILD_INLINE BitVec words() const {
    static_assert(kBits == 4);
    constexpr int kFrom = (J < 4 ? 0 : 4) + 8 * kWord;
    const ShortBits words = (ShortBits)line<J % 4>() >> kFrom;
    return kFrom == 12 ? (BitVec)words : (BitVec)words & 0x000f000fu;
  }
};

// A vector of 8-bit integers or f16 numbers, one per output.
HOGWILD_INLINE Vec load_u8(const uint8_t* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  Bytes bytes;
  memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, Vec);
#endif
}

HOGWILD_INLINE Vec load_s8(const uint8_t* from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  Bytes bytes;
  memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, Vec);
#endif
}

// 2^(e - 128)
HOGWILD_INLINE Vec load_e8m0(const uint8_t* from) {
  const IntVec e = __builtin_convertvector(load_u8(from), IntVec);
  return (Vec)(e < 2 ? (e + 1) << 21 : (e - 1) << 23);
}

// The scales of one vector of outputs: `from` is the first byte of the panel's scales, `lane` the first output in
// the panel. `d` and `m` give those of group `group` of the matrix.
template <Scales kScales, int kGroup>
struct GroupScales;

template <int kGroup>
struct GroupScales<Scales::kF16, kGroup> {
  static constexpr bool kHasMin = false;
  static constexpr int kSuperColumns = 0;
  const uint8_t* from;
  int64_t lane;
  HOGWILD_INLINE Vec d(int64_t group) const { return load((const F16*)(from + 32 * group + 2 * lane)); }
};

template <int kGroup>
struct GroupScales<Scales::kF16Min, kGroup> {
  static constexpr bool kHasMin = true;
  static constexpr int kSuperColumns = 0;
  const uint8_t* from;
  int64_t lane;
  HOGWILD_INLINE Vec d(int64_t group) const { return load((const F16*)(from + 64 * group + 2 * lane)); }
  HOGWILD_INLINE Vec m(int64_t group) const { return load((const F16*)(from + 64 * group + 32 + 2 * lane)); }
};

template <int kGroup>
struct GroupScales<Scales::kE8M0, kGroup> {
  static constexpr bool kHasMin = false;
  static constexpr int kSuperColumns = 0;
  const uint8_t* from;
  int64_t lane;
  HOGWILD_INLINE Vec d(int64_t group) const { return load_e8m0(from + 16 * group + lane); }
};

// begin_super loads them at each group, which may be several times 32 columns. Zeros count as minima: -d * zero is
// exact for d of 16 bits.
template <int kGroup>
struct GroupScales<Scales::kF32Zero, kGroup> {
  static constexpr bool kHasMin = true;
  static constexpr int kSuperColumns = kGroup;
  const uint8_t* from;
  int64_t lane;
  Vec group_d, group_m;
  HOGWILD_INLINE void begin_super(int64_t i) {
    from += i == 0 ? 0 : 80;
    group_d = load((const float*)(from + 4 * lane));
    group_m = -(group_d * load_u8(from + 64 + lane));
  }
  HOGWILD_INLINE Vec d(int64_t) const { return group_d; }
  HOGWILD_INLINE Vec m(int64_t) const { return group_m; }
};

// Two levels: begin_super loads the first at each 256 columns.
template <int kGroup>
struct GroupScales<Scales::kSuper, kGroup> {
  static constexpr bool kHasMin = false;
  static constexpr int kSuperColumns = 256;
  static constexpr int kGroups = kSuperColumns / kGroup;
  const uint8_t* from;
  int64_t lane;
  Vec super_d;
  HOGWILD_INLINE void begin_super(int64_t i) {
    from += i == 0 ? 0 : 32 + 16 * kGroups;
    super_d = load((const F16*)(from + 2 * lane));
  }
  HOGWILD_INLINE Vec d(int64_t group) const { return super_d * load_s8(from + 32 + 16 * (group % kGroups) + lane); }
};

template <int kGroup>
struct GroupScales<Scales::kSuperMin, kGroup> {
  static constexpr bool kHasMin = true;
  static constexpr int kSuperColumns = 256;
  static constexpr int kGroups = kSuperColumns / kGroup;
  const uint8_t* from;
  int64_t lane;
  Vec super_d, super_m;
  HOGWILD_INLINE void begin_super(int64_t i) {
    from += i == 0 ? 0 : 64 + 32 * kGroups;
    super_d = load((const F16*)(from + 2 * lane));
    super_m = -load((const F16*)(from + 32 + 2 * lane));
  }
  HOGWILD_INLINE Vec d(int64_t group) const { return super_d * load_u8(from + 64 + 16 * (group % kGroups) + lane); }
  HOGWILD_INLINE Vec m(int64_t group) const {
    return super_m * load_u8(from + 64 + 16 * (kGroups + group % kGroups) + lane);
  }
};

}  // namespace
}  // namespace hogwild
