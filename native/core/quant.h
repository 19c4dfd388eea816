// Quantised weights as integers. Every format that is not plain is, in groups of 16 to 128 columns,
//
//   w = d * (value(code) - zero) + m
//
// with small unsigned codes. decode_block gives the numbers of one block as the file has them; nothing is rounded.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/format.h"

namespace hogwild {

// How d and m of a group are stored.
enum class Scales : std::uint8_t {
  kF16,       // d
  kF16Min,    // d, m
  kE8M0,      // d = 2^(e - 128)
  kSuper,     // d * s, s a signed byte per group; d for 256 columns
  kSuperMin,  // d * s and -m * t, s and t unsigned bytes per group; d and m for 256 columns
  kF32Zero,   // d, and a zero, an unsigned byte
};

// What a code stands for.
enum class CodeValues : std::uint8_t { kItself, kIq4, kE2M1 };

struct CodeInfo {
  int bits;
  int group;  // columns that share a scale
  int zero;
  CodeValues values;
  Scales scales;
};

// Of a format that is not plain.
static constexpr CodeInfo code_info(Format format) {
  switch (format) {
    case Format::kQ8_0:
      return {8, 32, 128, CodeValues::kItself, Scales::kF16};
    case Format::kQ4_0:
      return {4, 32, 8, CodeValues::kItself, Scales::kF16};
    case Format::kQ4_1:
      return {4, 32, 0, CodeValues::kItself, Scales::kF16Min};
    case Format::kQ5_0:
      return {5, 32, 16, CodeValues::kItself, Scales::kF16};
    case Format::kQ5_1:
      return {5, 32, 0, CodeValues::kItself, Scales::kF16Min};
    case Format::kQ2_K:
      return {2, 16, 0, CodeValues::kItself, Scales::kSuperMin};
    case Format::kQ3_K:
      return {3, 16, 4, CodeValues::kItself, Scales::kSuper};
    case Format::kQ4_K:
      return {4, 32, 0, CodeValues::kItself, Scales::kSuperMin};
    case Format::kQ5_K:
      return {5, 32, 0, CodeValues::kItself, Scales::kSuperMin};
    case Format::kQ6_K:
      return {6, 16, 32, CodeValues::kItself, Scales::kSuper};
    case Format::kIQ4_NL:
      return {4, 32, 0, CodeValues::kIq4, Scales::kF16};
    case Format::kIQ4_XS:
      return {4, 32, 0, CodeValues::kIq4, Scales::kSuper};
    case Format::kMXFP4:
      return {4, 32, 0, CodeValues::kE2M1, Scales::kE8M0};
    case Format::kInt4G32:
      return {4, 32, 0, CodeValues::kItself, Scales::kF32Zero};
    case Format::kInt4G64:
      return {4, 64, 0, CodeValues::kItself, Scales::kF32Zero};
    case Format::kInt4G128:
      return {4, 128, 0, CodeValues::kItself, Scales::kF32Zero};
    case Format::kF32:
    case Format::kF16:
    case Format::kBF16:
      break;
  }
  return {};
}

// Columns whose products are added up as integers, before scales come in.
static constexpr int dot_columns(const CodeInfo& info) { return info.group < 32 ? info.group : 32; }

// Of 4-bit codes. E2M1 is doubled, so that it is whole.
inline constexpr std::int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr std::int8_t kE2M1Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// value(code) - zero
static inline int code_value(const CodeInfo& info, int code) {
  if (info.values == CodeValues::kIq4) return kIq4Values[code];
  if (info.values == CodeValues::kE2M1) return kE2M1Values[code];
  return code - info.zero;
}

// 2^(e - 128), e in 0..255
static inline float e8m0_to_f32(std::uint8_t e) {
  const std::uint32_t bits = e < 2 ? (e + 1u) << 21 : (e - 1u) << 23;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// One block of a file. Scales that the format does not have are 0.
struct QuantBlock {
  static constexpr int kMaxElements = 256;

  std::uint8_t codes[kMaxElements];
  std::uint16_t d = 0, m = 0;              // f16
  float f32_d = 0;                         // kF32Zero
  std::uint8_t s[kMaxElements / 16] = {};  // per group; kE8M0: the exponent in s[0]; kF32Zero: the zero
  std::uint8_t t[kMaxElements / 16] = {};
};

void decode_block(Format format, const std::byte* from, QuantBlock& block);

// In f32: d * (value - zero), which is exact for d of 16 bits, then m added and rounded once.
void dequantise_block(const CodeInfo& info, const QuantBlock& block, std::int64_t elements, float* out);

// A row of a file in f32. Any format; `from` need not be aligned.
void dequantise_row(Format format, const std::byte* from, std::int64_t cols, float* out);

}  // namespace hogwild
