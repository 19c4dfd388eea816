// What kernels read of quantised matrices (core/fragments.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/float16.h"
#include "core/fragments.h"
#include "simt/simt.h"

namespace hogwild::cuda {

// How codes become numbers.
struct Affine4 {};  // 4 bits: code - zero
struct Table4 {};   // 4 bits: by a table
struct E2M1 {};  // 4 bits: a sign, two of an exponent, one of a mantissa (OCP Microscaling Formats 1.0, 2023), doubled
struct Signed8 {};  // 8 bits: as they are

template <typename Codes>
inline constexpr int kCodeBytes = 512;  // of a record
template <>
inline constexpr int kCodeBytes<Signed8> = 1024;

// What kernels are compiled for: several formats may lie alike.
template <typename OfCodes, Scales kOfScales, int kOfGroups>
struct Record {
  using Codes = OfCodes;
  static constexpr Scales kScales = kOfScales;
  static constexpr int kGroups = kOfGroups;  // with scales of their own
  static constexpr FragmentScales kCounts = fragment_scales(kScales, kGroups);
  static constexpr int kNumberBytes = 2 * kCounts.numbers * kCounts.number_bytes;  // of outputs o and o + 8
  static constexpr int kByteBytes = 2 * kCounts.bytes;
  static constexpr int kBytes = kCodeBytes<Codes> + 8 * (kNumberBytes + kByteBytes);
  static constexpr bool kHasMin =
      kScales == Scales::kF16Min || kScales == Scales::kSuperMin || kScales == Scales::kF32Zero;
};

// What is left to know of a format when a kernel runs.
struct CodeArguments {
  int zero = 0;                 // of 4 bits without a table
  std::uint32_t zero_pair = 0;  // twice -(128 + zero) in bf16
  std::uint32_t table[4] = {};  // of 4 bits: what 16 codes stand for, signed bytes
};

inline CodeArguments code_arguments(Format format) {
  const CodeInfo info = code_info(format);
  CodeArguments result;
  if (fragment_bits(info) == 8) return result;
  result.zero = info.zero;
  const std::uint32_t zero = f32_to_bf16(-static_cast<float>(128 + info.zero));
  result.zero_pair = zero | zero << 16;
  if (info.values != CodeValues::kItself) {
    const std::int8_t* values = info.values == CodeValues::kIq4 ? kIq4Values : kE2M1Values;
    std::memcpy(result.table, values, sizeof result.table);
  }
  return result;
}

// Calls `body.template operator()<Record>()` with that of a format that is not plain.
template <typename Body>
auto dispatch_record(Format format, Body&& body) {
  switch (format) {
    case Format::kQ4_0:
      return body.template operator()<Record<Affine4, Scales::kF16, 2>>();
    case Format::kQ4_1:
      return body.template operator()<Record<Affine4, Scales::kF16Min, 2>>();
    case Format::kQ5_1:
      return body.template operator()<Record<Signed8, Scales::kF16Min, 2>>();
    case Format::kQ2_K:
      return body.template operator()<Record<Affine4, Scales::kSuperMin, 4>>();
    case Format::kQ3_K:
      return body.template operator()<Record<Affine4, Scales::kSuper, 4>>();
    case Format::kQ4_K:
      return body.template operator()<Record<Affine4, Scales::kSuperMin, 2>>();
    case Format::kQ5_K:
      return body.template operator()<Record<Signed8, Scales::kSuperMin, 2>>();
    case Format::kQ6_K:
      return body.template operator()<Record<Signed8, Scales::kSuper, 4>>();
    case Format::kIQ4_NL:
      return body.template operator()<Record<Table4, Scales::kF16, 2>>();
    case Format::kIQ4_XS:
      return body.template operator()<Record<Table4, Scales::kSuper, 2>>();
    case Format::kMXFP4:
      return body.template operator()<Record<E2M1, Scales::kE8M0, 2>>();
    case Format::kInt4G32:
      return body.template operator()<Record<Affine4, Scales::kF32Zero, 2>>();
    case Format::kInt4G64:
    case Format::kInt4G128:
      return body.template operator()<Record<Affine4, Scales::kF32Zero, 1>>();
    default:  // kQ8_0, kQ5_0
      return body.template operator()<Record<Signed8, Scales::kF16, 2>>();
  }
}

template <typename T>
SIMT_DEVICE T load_as(const unsigned char* from) {
  return *reinterpret_cast<const T*>(from);
}

// 2 to 16 bytes, a power of two to which `from` is aligned.
template <int kBytes>
SIMT_DEVICE void load_words(const unsigned char* from, std::uint32_t (&words)[(kBytes + 3) / 4]) {
  if constexpr (kBytes == 16) {
    const uint4 loaded = load_as<uint4>(from);
    words[0] = loaded.x, words[1] = loaded.y, words[2] = loaded.z, words[3] = loaded.w;
  } else if constexpr (kBytes == 8) {
    const uint2 loaded = load_as<uint2>(from);
    words[0] = loaded.x, words[1] = loaded.y;
  } else if constexpr (kBytes == 4) {
    words[0] = load_as<std::uint32_t>(from);
  } else {
    static_assert(kBytes == 2);
    words[0] = load_as<std::uint16_t>(from);
  }
}

SIMT_DEVICE float bits_to_float(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// 2^23 + byte i of a word: the float with the bits 0x4b000000 | byte.
SIMT_DEVICE float shifted_byte(std::uint32_t word, int i) {
  return bits_to_float(simt::select_bytes(word, 0x4b000000u, 0x7440u + static_cast<std::uint32_t>(i)));
}

// scale * byte i of a word, exact for a scale of 16 bits.
SIMT_DEVICE float scaled_unsigned(float scale, std::uint32_t word, int i) {
  return fmaf(scale, shifted_byte(word, i), -scale * 0x1p23f);
}
SIMT_DEVICE float scaled_signed(float scale, std::uint32_t word, int i) {
  return scale * (shifted_byte(word ^ 0x80808080u, i) - (0x1p23f + 128));
}

// The scales of outputs o and o + 8 of a record: w = d * number + m.
template <typename Record>
struct RecordScales {
  static constexpr int kGroups = Record::kGroups;

  std::uint32_t numbers[std::max((Record::kNumberBytes + 3) / 4, 1)];
  std::uint32_t bytes[std::max((Record::kByteBytes + 3) / 4, 1)];

  // `from`: behind the codes.
  SIMT_DEVICE RecordScales(const unsigned char* from, int o) {
    if constexpr (Record::kNumberBytes > 0) load_words<Record::kNumberBytes>(from + Record::kNumberBytes * o, numbers);
    if constexpr (Record::kByteBytes > 0) {
      load_words<Record::kByteBytes>(from + 8 * Record::kNumberBytes + Record::kByteBytes * o, bytes);
    }
  }

  // Of output o, or of o + 8 where `upper` is 1.
  SIMT_DEVICE float d(int group, int upper) const {
    if constexpr (Record::kScales == Scales::kF32Zero) {
      return bits_to_float(select(numbers, 2 * group + upper));
    } else if constexpr (Record::kScales == Scales::kE8M0) {
      const float2 pair = simt::unpack2<simt::bf16>(select(numbers, group));
      return upper == 0 ? pair.x : pair.y;
    } else if constexpr (Record::kScales == Scales::kSuper) {
      return scaled_signed(number(0, upper), select(bytes, group / 2), place_of(group, upper));
    } else if constexpr (Record::kScales == Scales::kSuperMin) {
      return scaled_unsigned(number(0, upper), select(bytes, group / 2), place_of(group, upper));
    } else {
      return number(group, upper);
    }
  }
  SIMT_DEVICE float m(int group, int upper) const {
    if constexpr (Record::kScales == Scales::kF32Zero) {
      return scaled_unsigned(-d(group, upper), select(bytes, group / 2), place_of(group, upper));
    } else if constexpr (Record::kScales == Scales::kSuperMin) {
      return scaled_unsigned(-number(1, upper), select(bytes, (kGroups + group) / 2), place_of(group, upper));
    } else {
      static_assert(Record::kScales == Scales::kF16Min);
      return number(kGroups + group, upper);
    }
  }

 private:
  // Of an array that lies in registers.
  template <int kWords>
  SIMT_DEVICE static std::uint32_t select(const std::uint32_t (&words)[kWords], int index) {
    std::uint32_t word = words[0];
#pragma unroll
    for (int i = 1; i < kWords; ++i) word = index == i ? words[i] : word;
    return word;
  }
  // Of a group's byte in its word.
  SIMT_DEVICE static int place_of(int group, int upper) { return 2 * (group % 2) + upper; }
  SIMT_DEVICE float number(int index, int upper) const {
    const float2 pair = simt::unpack2<simt::f16>(select(numbers, index));
    return upper == 0 ? pair.x : pair.y;
  }
};

}  // namespace hogwild::cuda
