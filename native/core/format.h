// Formats in which files store weights: one table, which lib/formats.ts repeats for JavaScript. Activations and
// caches of 16 and 32 bits have a Dtype (tensor.h); every Dtype is a format too.
//
// Plain formats store each element by itself. The others store blocks of consecutive columns of a row: scales first
// or last, small integers ("codes") for the elements. Names are those of GGUF in lower case, but for int4_gN: 4-bit
// integers in groups of N columns, which AWQ, GPTQ and compressed-tensors keep in several tensors (int4.h). Their
// blocks, a scale in f32, a zero of 8 bits and the codes of each 32 columns as those of Q4_0, are in no file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/tensor.h"

namespace hogwild {

struct FormatInfo {
  Format format;
  const char* name;
  std::int64_t block_elements;  // a row is a whole number of blocks
  std::int64_t block_bytes;
};

inline constexpr FormatInfo kFormats[] = {
    {Format::kF32, "f32", 1, 4},
    {Format::kF16, "f16", 1, 2},
    {Format::kBF16, "bf16", 1, 2},
    {Format::kQ8_0, "q8_0", 32, 34},
    {Format::kQ4_0, "q4_0", 32, 18},
    {Format::kQ4_1, "q4_1", 32, 20},
    {Format::kQ5_0, "q5_0", 32, 22},
    {Format::kQ5_1, "q5_1", 32, 24},
    {Format::kQ2_K, "q2_k", 256, 84},
    {Format::kQ3_K, "q3_k", 256, 110},
    {Format::kQ4_K, "q4_k", 256, 144},
    {Format::kQ5_K, "q5_k", 256, 176},
    {Format::kQ6_K, "q6_k", 256, 210},
    {Format::kIQ4_NL, "iq4_nl", 32, 18},
    {Format::kIQ4_XS, "iq4_xs", 256, 136},
    {Format::kMXFP4, "mxfp4", 32, 17},
    {Format::kInt4G32, "int4_g32", 32, 21},
    {Format::kInt4G64, "int4_g64", 64, 37},
    {Format::kInt4G128, "int4_g128", 128, 69},
};

constexpr const FormatInfo& format_info(Format format) { return kFormats[static_cast<std::size_t>(format)]; }
constexpr const char* format_name(Format format) { return format_info(format).name; }
constexpr bool is_plain(Format format) { return format_info(format).block_elements == 1; }

// Null where no format is called so.
constexpr const FormatInfo* find_format(std::string_view name) {
  for (const FormatInfo& info : kFormats) {
    if (name == info.name) return &info;
  }
  return nullptr;
}

constexpr Format format_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF16:
      return Format::kF16;
    case Dtype::kBF16:
      return Format::kBF16;
    case Dtype::kF32:
      break;
  }
  return Format::kF32;
}

// Of a plain format.
constexpr Dtype dtype_of(Format format) {
  return format == Format::kF16 ? Dtype::kF16 : format == Format::kBF16 ? Dtype::kBF16 : Dtype::kF32;
}

// Bytes of a row in a file; `cols` is a multiple of the block.
constexpr std::int64_t row_bytes(Format format, std::int64_t cols) {
  return cols / format_info(format).block_elements * format_info(format).block_bytes;
}

namespace detail {
constexpr bool is_indexed_by_format() {
  std::size_t i = 0;
  for (const FormatInfo& info : kFormats) {
    if (static_cast<std::size_t>(info.format) != i++) return false;
  }
  return true;
}
static_assert(is_indexed_by_format());
}  // namespace detail

}  // namespace hogwild
