// 4-bit integers as Hugging Face folders have them: a matrix W of N outputs and K columns in several tensors, in groups
// of G columns that share a scale and a zero,
//
//   W[n][k] = scale[n][g] * (code[n][k] - zero[n][g]),  g the group of column k.
//
// Codes and zeros stand in words of 32 bits, eight neighbours in each, the first in the lowest bits but for AWQ:
//
//                        codes                         zeros                         scales
//   kAwq                 [K, N / 8] of outputs         [K / G, N / 8] of outputs     [K / G, N]
//   kGptq                [K / 8, N] of columns         [K / G, N / 8] of outputs     [K / G, N]
//   kCompressedTensors   [N, K / 8] of columns         [N / 8, K / G] of outputs     [N, K / G]
//
// In the words of AWQ, from the lowest bits on, are outputs 0, 2, 4, 6, 1, 3, 5 and 7 of the eight.
//
// g is k / G, or what a further tensor [K] says ("g_idx"): columns were then sorted before they were cut into groups.
// The engine sorts them again, and x with them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/tensor.h"

namespace hogwild {

enum class Int4Layout : std::uint8_t { kAwq, kGptq, kCompressedTensors };

// What a stored zero means.
enum class Int4Zeros : std::uint8_t {
  kStored,
  kLessOne,  // the zero less 1, modulo 16
  // As these, but where all of a matrix are 7, or all are 8, they mean 8: files of symmetric integers call themselves
  // kLessOne and are not, and the other way round.
  kStoredOr8,
  kLessOneOr8,
};

struct Int4Tensors {
  Int4Layout layout = Int4Layout::kAwq;
  std::int64_t outputs = 0;  // N, a multiple of 8
  std::int64_t cols = 0;     // K, a multiple of G
  std::int64_t group = 0;    // G: 32, 64, 128
  const std::byte* codes = nullptr;
  const std::byte* scales = nullptr;
  Dtype scale_dtype = Dtype::kF16;
  const std::byte* zeros = nullptr;  // null: each is 8
  Int4Zeros zero_rule = Int4Zeros::kStored;
};

// The columns in the order of their groups, those of a group in their own; empty: they are so already. Nothing where
// what `groups` [K] says is not K / G groups of G columns each. A tensor of -1 alone says nothing: columns are in
// order.
std::optional<std::vector<std::int32_t>> sort_columns(const std::byte* groups, std::int64_t cols, std::int64_t group);

// Outputs [first, first + rows) in blocks of int4_gG; both are multiples of 8. `columns`: what sort_columns gives.
void write_int4_rows(const Int4Tensors& tensors, std::int64_t first, std::int64_t rows,
                     std::span<const std::int32_t> columns, std::byte* out);

}  // namespace hogwild
