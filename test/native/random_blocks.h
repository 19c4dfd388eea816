// Random matrices in quantised formats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/float16.h"
#include "core/format.h"
#include "core/quant.h"

namespace hogwild {

// Where a block has its numbers in f16. MXFP4 has none: its first byte is an exponent; nor has int4, which begins with
// a scale in f32 and a zero.
inline std::vector<std::int64_t> halves_of(Format format) {
  switch (format) {
    case Format::kQ4_1:
    case Format::kQ5_1:
    case Format::kQ4_K:
    case Format::kQ5_K:
      return {0, 2};
    case Format::kQ2_K:
      return {80, 82};
    case Format::kQ3_K:
      return {108};
    case Format::kQ6_K:
      return {208};
    case Format::kMXFP4:
    case Format::kInt4G32:
    case Format::kInt4G64:
    case Format::kInt4G128:
      return {};
    default:
      return {0};
  }
}

// [rows, cols] in random blocks, as a file has them, whose weights are of size 1 or so.
template <typename Rng>
std::vector<std::byte> random_blocks(Rng& rng, Format format, std::int64_t rows, std::int64_t cols) {
  const FormatInfo& info = format_info(format);
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows * row_bytes(format, cols)));
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng());
  const auto uniform = [&] { return static_cast<float>(rng() % 1024) / 1024; };
  const auto scale = [&] {
    // Codes with two levels of scales reach to a thousand and more.
    const float size = info.block_elements == 256 ? 0.001f : 0.02f;
    return size * (0.5f + uniform()) * (rng() % 2 ? 1.f : -1.f);
  };
  for (std::size_t at = 0; at < bytes.size(); at += static_cast<std::size_t>(info.block_bytes)) {
    for (const std::int64_t half : halves_of(format)) {
      const std::uint16_t bits = f32_to_f16(scale());
      std::memcpy(&bytes[at + static_cast<std::size_t>(half)], &bits, sizeof bits);
    }
    if (format == Format::kMXFP4) bytes[at] = static_cast<std::byte>(rng() % 16 == 0 ? rng() % 3 : 120 + rng() % 8);
    if (code_info(format).scales == Scales::kF32Zero) {
      const float d = scale() + 1e-6f * uniform();  // not a number of 16 bits
      std::memcpy(&bytes[at], &d, sizeof d);
      if (rng() % 4 != 0) bytes[at + 4] &= std::byte{15};
    }
  }
  return bytes;
}

}  // namespace hogwild
