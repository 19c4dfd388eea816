// Conversions between f32 and the two 16-bit formats, as bits: bf16 (f32's upper half) and f16 (IEEE
// binary16). To 16 bits: rounded to nearest, ties to even, subnormals included; overflow gives
// infinity; NaN stays NaN (made quiet, payload cut). To f32: exact.
//
// The functions are `static`: this header is also included by files that are compiled once per
// instruction set, where a shared inline function would be whichever copy the linker keeps.
#pragma once

#include <cstdint>
#include <cstring>

namespace hogwild {

static inline std::uint32_t f32_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float f32_from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline float bf16_to_f32(std::uint16_t value) { return f32_from_bits(static_cast<std::uint32_t>(value) << 16); }

static inline std::uint16_t f32_to_bf16(float value) {
  const std::uint32_t bits = f32_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x0040u);
  // Half of the last kept place, less one where that place is even: a tie then rounds to even.
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float f16_to_f32(std::uint16_t value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value & 0x8000u) << 16;
  const std::uint32_t magnitude = value & 0x7fffu;
  if (magnitude >= 0x7c00u) return f32_from_bits(sign | 0x7f800000u | (magnitude & 0x03ffu) << 13);
  if (magnitude < 0x0400u) {  // subnormal: a multiple of 2^-24
    return f32_from_bits(sign | f32_bits(static_cast<float>(magnitude) * 0x1p-24f));
  }
  return f32_from_bits(sign | ((magnitude << 13) + (112u << 23)));  // exponent bias 15 -> 127
}

static inline std::uint16_t f32_to_f16(float value) {
  const std::uint32_t bits = f32_bits(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t rounded;
  if (magnitude > 0x7f800000u) {
    rounded = 0x7e00u | ((magnitude >> 13) & 0x03ffu);
  } else if (magnitude >= 0x47800000u) {  // 65536 and above
    rounded = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: subnormal
    // One unit in the last place of 0.5 is 2^-24, the unit of subnormals: the addition rounds.
    rounded = f32_bits(f32_from_bits(magnitude) + 0.5f) - f32_bits(0.5f);
  } else {
    rounded = (magnitude + 0x0fffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  }
  return static_cast<std::uint16_t>(sign | rounded);
}

}  // namespace hogwild
