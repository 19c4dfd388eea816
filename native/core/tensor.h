// Element types and the plain views that parameters are made of.
//
// Shape letters used in comments throughout: W workers, T new tokens of all workers in a step,
// Hq query heads, Hkv key/value heads, D head_dim, R rotary_dim (<= D), P page_size (tokens),
// V vocabulary, N pages of the pool.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hogwild {

enum class Dtype : std::uint8_t { kF32, kF16, kBF16 };

constexpr std::size_t dtype_size(Dtype dtype) { return dtype == Dtype::kF32 ? 4 : 2; }

constexpr const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32:
      return "f32";
    case Dtype::kF16:
      return "f16";
    case Dtype::kBF16:
      return "bf16";
  }
  return "?";
}

// Formats of weights; format.h has their table.
enum class Format : std::uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_NL,
  kIQ4_XS,
  kMXFP4,
  kInt4G32,
  kInt4G64,
  kInt4G128,
};

// How a matrix lies: as in a file, row after row, or, of quantised formats, in panels of 16 rows (panels.h) or in
// operands of a card's products (fragments.h).
enum class Order : std::uint8_t { kRows, kPanels, kFragments };

// A weight matrix [rows, cols] where it lies; `data` of plain formats is aligned to their elements.
struct Matrix {
  const void* data = nullptr;
  Format format = Format::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  Order order = Order::kRows;
  // Of quantised formats, [cols]: column i is that of x with this index. Null: they are in order.
  const std::int32_t* columns = nullptr;
};

// Heads whose RoPE pairs are neighbours in a file, rows (2u, 2u + 1), where the engine has (u, u + rotary_dim / 2). The
// rows of a matrix, or the elements of a vector, are head after head; the first rotary_dim of each are put in order.
struct InterleavedHeads {
  std::int64_t head_dim = 0;  // 0: they are in order
  std::int64_t rotary_dim = 0;

  // Where row i of the engine lies in the file.
  std::int64_t file_row(std::int64_t i) const {
    if (head_dim == 0 || i % head_dim >= rotary_dim) return i;
    const std::int64_t in_head = i % head_dim, pair = in_head % (rotary_dim / 2);
    return i - in_head + 2 * pair + (in_head >= rotary_dim / 2 ? 1 : 0);
  }
};

}  // namespace hogwild
