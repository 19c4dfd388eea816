// What kernels read of quantised matrices (core/fragments.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "core/float16.h"
#include "core/fragments.h"
#include "simt/simt.h"

namespace hogwild::cuda {

// A format, the same for all matrices of a launch.
struct CodeArguments {
  int record_bytes = 0;
  Scales scales = Scales::kF16;
  int group = 0;                // columns that share a scale
  int zero = 0;                 // of 4 bits without a table
  std::uint32_t zero_pair = 0;  // twice -(128 + zero) in bf16
  std::uint32_t table[4] = {};  // of 4 bits: what 16 codes stand for, signed bytes

  SIMT_HOST_DEVICE int groups() const { return group >= 64 ? 1 : 64 / group; }  // of a record
  SIMT_HOST_DEVICE bool has_min() const {
    return scales == Scales::kF16Min || scales == Scales::kSuperMin || scales == Scales::kF32Zero;
  }
};

// How codes become numbers.
struct Affine4 {};  // 4 bits: code - zero
struct Table4 {};   // 4 bits: by a table
struct Signed8 {};  // 8 bits: as they are

template <typename Codes>
inline constexpr int kCodeBytes = 512;  // of a record
template <>
inline constexpr int kCodeBytes<Signed8> = 1024;

inline CodeArguments code_arguments(Format format) {
  const CodeInfo info = code_info(format);
  CodeArguments result{.record_bytes = fragment_bytes(info), .scales = info.scales, .group = info.group};
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

// Calls `body.template operator()<Codes>()` with those of a format that is not plain.
template <typename Body>
auto dispatch_codes(Format format, Body&& body) {
  const CodeInfo info = code_info(format);
  if (fragment_bits(info) == 8) return body.template operator()<Signed8>();
  if (info.values != CodeValues::kItself) return body.template operator()<Table4>();
  return body.template operator()<Affine4>();
}

// w = d * number + m, of two outputs: o and o + 8.
struct ScalePair {
  float d[2], m[2];
};

template <typename T>
SIMT_DEVICE T load_as(const unsigned char* from) {
  return *reinterpret_cast<const T*>(from);
}

// 2^(e - 128)
SIMT_DEVICE float power_of_two(std::uint32_t e) {
  const std::uint32_t bits = e < 2 ? (e + 1) << 21 : (e - 1) << 23;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

SIMT_DEVICE float low_signed(std::uint32_t pair) { return static_cast<float>(static_cast<std::int8_t>(pair & 0xff)); }
SIMT_DEVICE float low_unsigned(std::uint32_t pair) { return static_cast<float>(pair & 0xff); }

// Of the outputs o and o + 8 in group `group` of a record, whose scales begin at `from`.
SIMT_DEVICE ScalePair load_scales(const CodeArguments& p, const unsigned char* from, int group, int o) {
  ScalePair result = {};
  const auto halves = [o](const unsigned char* pairs) {
    return simt::unpack2<simt::f16>(load_as<std::uint32_t>(pairs + 4 * o));
  };
  const auto bytes = [o](const unsigned char* pairs) -> std::uint32_t { return load_as<std::uint16_t>(pairs + 2 * o); };
  switch (p.scales) {
    case Scales::kF16: {
      const float2 d = halves(from + 32 * group);
      return {{d.x, d.y}, {0, 0}};
    }
    case Scales::kF16Min: {
      const float2 d = halves(from + 64 * group), m = halves(from + 64 * group + 32);
      return {{d.x, d.y}, {m.x, m.y}};
    }
    case Scales::kE8M0: {
      const std::uint32_t e = bytes(from + 16 * group);
      return {{power_of_two(e & 0xff), power_of_two(e >> 8)}, {0, 0}};
    }
    case Scales::kF32Zero: {
      const float2 d = load_as<float2>(from + 80 * group + 8 * o);
      const std::uint32_t zeros = bytes(from + 80 * group + 64);
      return {{d.x, d.y}, {-(d.x * low_unsigned(zeros)), -(d.y * low_unsigned(zeros >> 8))}};
    }
    case Scales::kSuper: {
      const float2 d = halves(from);
      const std::uint32_t s = bytes(from + 32 + 16 * group);
      return {{d.x * low_signed(s), d.y * low_signed(s >> 8)}, {0, 0}};
    }
    case Scales::kSuperMin: {
      const float2 d = halves(from), m = halves(from + 32);
      const std::uint32_t s = bytes(from + 64 + 16 * group), t = bytes(from + 64 + 16 * (p.groups() + group));
      return {{d.x * low_unsigned(s), d.y * low_unsigned(s >> 8)},
              {-(m.x * low_unsigned(t)), -(m.y * low_unsigned(t >> 8))}};
    }
  }
  return result;
}

}  // namespace hogwild::cuda
