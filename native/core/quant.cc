#include "core/quant.h"

#include <algorithm>
#include <cstring>

#include "core/float16.h"

namespace hogwild {
namespace {

using Byte = const std::uint8_t*;

float load_f32(Byte from) {
  float value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

std::uint16_t load_u16(Byte from) {
  std::uint16_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// 16 bytes: low nibbles are codes 0 to 15, high nibbles 16 to 31.
void decode_halves(Byte from, std::uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = from[i] & 15;
    codes[16 + i] = from[i] >> 4;
  }
}

// Bit i of the word is bit 4 of code i.
void add_fifth_bits(Byte word, std::uint8_t* codes) {
  for (int i = 0; i < 32; ++i) codes[i] |= static_cast<std::uint8_t>((word[i / 8] >> i % 8 & 1) << 4);
}

// Pairs of groups of 32: 32 bytes, low nibbles the first, high nibbles the second.
void decode_group_pairs(Byte from, std::uint8_t* codes) {
  for (int pair = 0; pair < 4; ++pair, from += 32, codes += 64) {
    for (int i = 0; i < 32; ++i) {
      codes[i] = from[i] & 15;
      codes[32 + i] = from[i] >> 4;
    }
  }
}

// Bits 2 * part, 2 * part + 1 of 32 bytes are the elements of part `part` of each half.
void decode_two_bits(Byte from, std::uint8_t* codes) {
  for (int half = 0; half < 2; ++half, from += 32) {
    for (int part = 0; part < 4; ++part, codes += 32) {
      for (int i = 0; i < 32; ++i) codes[i] = from[i] >> 2 * part & 3;
    }
  }
}

// Eight 6-bit scales and eight 6-bit minima in 12 bytes.
void decode_6_bit_pairs(Byte from, std::uint8_t* s, std::uint8_t* t) {
  for (int g = 0; g < 4; ++g) {
    const std::uint8_t a = from[g], b = from[4 + g], c = from[8 + g];
    s[g] = a & 63;
    t[g] = b & 63;
    s[4 + g] = static_cast<std::uint8_t>((c & 15) | (a >> 6) << 4);
    t[4 + g] = static_cast<std::uint8_t>((c >> 4) | (b >> 6) << 4);
  }
}

void decode_q2_k(Byte from, QuantBlock& block) {
  for (int g = 0; g < 16; ++g) {
    block.s[g] = from[g] & 15;
    block.t[g] = from[g] >> 4;
  }
  decode_two_bits(from + 16, block.codes);
  block.d = load_u16(from + 80);
  block.m = load_u16(from + 82);
}

void decode_q3_k(Byte from, QuantBlock& block) {
  decode_two_bits(from + 32, block.codes);
  for (int i = 0; i < 256; ++i) block.codes[i] |= static_cast<std::uint8_t>((from[i % 32] >> i / 32 & 1) << 2);
  // 16 scales of 6 bits: low nibbles in 8 bytes, the upper 2 bits in the 4 behind them.
  const Byte low = from + 96, high = low + 8;
  for (int g = 0; g < 16; ++g) {
    const int nibble = g < 8 ? low[g] & 15 : low[g - 8] >> 4;
    block.s[g] = static_cast<std::uint8_t>((nibble | (high[g % 4] >> 2 * (g / 4) & 3) << 4) - 32);
  }
  block.d = load_u16(from + 108);
}

void decode_q6_k(Byte from, QuantBlock& block) {
  const Byte low = from, high = from + 128;
  for (int half = 0; half < 2; ++half) {
    for (int part = 0; part < 4; ++part) {
      std::uint8_t* codes = block.codes + 128 * half + 32 * part;
      const Byte nibbles = low + 64 * half + 32 * (part % 2);
      for (int i = 0; i < 32; ++i) {
        const int nibble = part < 2 ? nibbles[i] & 15 : nibbles[i] >> 4;
        codes[i] = static_cast<std::uint8_t>(nibble | (high[32 * half + i] >> 2 * part & 3) << 4);
      }
    }
  }
  std::copy_n(from + 192, 16, block.s);
  block.d = load_u16(from + 208);
}

void decode_iq4_xs(Byte from, QuantBlock& block) {
  block.d = load_u16(from);
  const unsigned high = load_u16(from + 2);
  for (int g = 0; g < 8; ++g) {
    const int nibble = g % 2 == 0 ? from[4 + g / 2] & 15 : from[4 + g / 2] >> 4;
    block.s[g] = static_cast<std::uint8_t>((nibble | (high >> 2 * g & 3) << 4) - 32);
    decode_halves(from + 8 + 16 * g, block.codes + 32 * g);
  }
}

}  // namespace

void decode_block(Format format, const std::byte* data, QuantBlock& block) {
  const Byte from = reinterpret_cast<Byte>(data);
  switch (format) {
    case Format::kQ8_0:
      block.d = load_u16(from);
      for (int i = 0; i < 32; ++i) block.codes[i] = from[2 + i] ^ 0x80;
      return;
    case Format::kQ4_0:
    case Format::kIQ4_NL:
      block.d = load_u16(from);
      return decode_halves(from + 2, block.codes);
    case Format::kQ4_1:
      block.d = load_u16(from);
      block.m = load_u16(from + 2);
      return decode_halves(from + 4, block.codes);
    case Format::kQ5_0:
      block.d = load_u16(from);
      decode_halves(from + 6, block.codes);
      return add_fifth_bits(from + 2, block.codes);
    case Format::kQ5_1:
      block.d = load_u16(from);
      block.m = load_u16(from + 2);
      decode_halves(from + 8, block.codes);
      return add_fifth_bits(from + 4, block.codes);
    case Format::kQ2_K:
      return decode_q2_k(from, block);
    case Format::kQ3_K:
      return decode_q3_k(from, block);
    case Format::kQ4_K:
    case Format::kQ5_K:
      block.d = load_u16(from);
      block.m = load_u16(from + 2);
      decode_6_bit_pairs(from + 4, block.s, block.t);
      decode_group_pairs(from + (format == Format::kQ4_K ? 16 : 48), block.codes);
      if (format == Format::kQ5_K) {
        for (int g = 0; g < 8; ++g) {
          for (int i = 0; i < 32; ++i) {
            block.codes[32 * g + i] |= static_cast<std::uint8_t>((from[16 + i] >> g & 1) << 4);
          }
        }
      }
      return;
    case Format::kQ6_K:
      return decode_q6_k(from, block);
    case Format::kIQ4_XS:
      return decode_iq4_xs(from, block);
    case Format::kMXFP4:
      block.s[0] = from[0];
      return decode_halves(from + 1, block.codes);
    case Format::kInt4G32:
    case Format::kInt4G64:
    case Format::kInt4G128:
      block.f32_d = load_f32(from);
      block.s[0] = from[4];
      for (int i = 0; i < format_info(format).block_elements; i += 32) decode_halves(from + 5 + i / 2, block.codes + i);
      return;
    case Format::kF32:
    case Format::kF16:
    case Format::kBF16:
      return;
  }
}

namespace {

struct GroupScale {
  float d, m;
  int zero = 0;  // besides that of the format
};

GroupScale group_scale(const CodeInfo& info, const QuantBlock& block, std::int64_t group) {
  const float d = f16_to_f32(block.d);
  switch (info.scales) {
    case Scales::kF16:
      break;
    case Scales::kF16Min:
      return {d, f16_to_f32(block.m)};
    case Scales::kE8M0:
      return {e8m0_to_f32(block.s[0]), 0};
    case Scales::kSuper:
      return {d * static_cast<float>(static_cast<std::int8_t>(block.s[group])), 0};
    case Scales::kSuperMin:
      return {d * static_cast<float>(block.s[group]), -(f16_to_f32(block.m) * static_cast<float>(block.t[group]))};
    case Scales::kF32Zero:
      return {block.f32_d, 0, block.s[0]};
  }
  return {d, 0};
}

}  // namespace

void dequantise_block(const CodeInfo& info, const QuantBlock& block, std::int64_t elements, float* out) {
  const bool has_min = info.scales == Scales::kF16Min || info.scales == Scales::kSuperMin;
  for (std::int64_t first = 0; first < elements; first += info.group) {
    const GroupScale scale = group_scale(info, block, first / info.group);
    for (std::int64_t i = first; i < first + info.group; ++i) {
      const float product = scale.d * static_cast<float>(code_value(info, block.codes[i]) - scale.zero);
      out[i] = has_min ? product + scale.m : product;
    }
  }
}

void dequantise_row(Format format, const std::byte* from, std::int64_t cols, float* out) {
  switch (format) {
    case Format::kF32:
      std::memcpy(out, from, static_cast<std::size_t>(cols) * sizeof(float));
      return;
    case Format::kF16:
      for (std::int64_t i = 0; i < cols; ++i) out[i] = f16_to_f32(load_u16(reinterpret_cast<Byte>(from) + 2 * i));
      return;
    case Format::kBF16:
      for (std::int64_t i = 0; i < cols; ++i) out[i] = bf16_to_f32(load_u16(reinterpret_cast<Byte>(from) + 2 * i));
      return;
    default:
      break;
  }
  const FormatInfo& file = format_info(format);
  const CodeInfo info = code_info(format);
  QuantBlock block;
  for (std::int64_t i = 0; i < cols; i += file.block_elements, from += file.block_bytes) {
    decode_block(format, from, block);
    dequantise_block(info, block, file.block_elements, out + i);
  }
}

}  // namespace hogwild
