// Quantised matrices as CUDA kernels read them: records of 16 outputs x 64 columns, those of 16 outputs one after the
// other along the columns. A record has its codes first, then its scales; what a lane of a warp needs lies together.
//
// Codes are those of four operands A of mma.m16n8k16 (simt/target_cuda.h), one for each 16 columns. Lane l of a warp
// holds, of register i, the outputs l / 4 + 8 (i % 2) and the columns 2 (l % 4) + 8 (i / 2), and the one behind it:
//   4 bits   16 bytes a lane, a word for each operand: of register i in bits 4 i the first column, 16 bits up the
//            second; formats of 2 and 3 bits take 4
//   8 bits   two times 16 bytes a lane, for two operands each: two words, of registers 0 and 1, 2 and 3; register i in
//            byte i % 2 the first column, two bytes up the second. What is stored is value(code) - zero, signed
//
// Scales come in pairs, of the outputs o and o + 8, o < 8, side by side. The pairs of one o lie together: of all o the
// numbers, then of all o the bytes. Per group, of 16 to 64 columns (one of 128 stands in two records):
//              numbers               bytes
//   kF16       d of each group
//   kF16Min    d of each, m of each
//   kE8M0      d of each, in bf16
//   kF32Zero   d of each, in f32     zero of each
//   kSuper     d                     s of each
//   kSuperMin  d, m                  s of each, t of each
//
// Outputs and columns that the matrix does not have are zeros, and so are their scales.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/format.h"
#include "core/panels.h"
#include "core/quant.h"

namespace hogwild {

inline constexpr std::int64_t kFragmentOutputs = 16;
inline constexpr std::int64_t kFragmentColumns = 64;

// Of codes on the card.
static constexpr int fragment_bits(const CodeInfo& info) { return info.bits > 4 ? 8 : 4; }
static constexpr int fragment_code_bytes(const CodeInfo& info) { return 128 * fragment_bits(info); }
static constexpr int fragment_groups(const CodeInfo& info) {
  return info.group >= kFragmentColumns ? 1 : static_cast<int>(kFragmentColumns) / info.group;
}

// How many numbers and bytes an output has in a record.
struct FragmentScales {
  int numbers, number_bytes, bytes;
};
static constexpr FragmentScales fragment_scales(Scales scales, int groups) {
  switch (scales) {
    case Scales::kF16:
      return {groups, 2, 0};
    case Scales::kF16Min:
      return {2 * groups, 2, 0};
    case Scales::kE8M0:
      return {groups, 2, 0};
    case Scales::kF32Zero:
      return {groups, 4, groups};
    case Scales::kSuper:
      return {1, 2, groups};
    case Scales::kSuperMin:
      return {2, 2, 2 * groups};
  }
  return {};
}

// Of a record.
static constexpr int fragment_bytes(const CodeInfo& info) {
  const FragmentScales scales = fragment_scales(info.scales, fragment_groups(info));
  return fragment_code_bytes(info) +
         static_cast<int>(kFragmentOutputs) * (scales.numbers * scales.number_bytes + scales.bytes);
}

// Records of 16 outputs.
static constexpr std::int64_t fragment_count(std::int64_t cols) {
  return (cols + kFragmentColumns - 1) / kFragmentColumns;
}

// What a product reads of a matrix.
static constexpr std::int64_t matrix_bytes(const Matrix& matrix) {
  if (matrix.order == Order::kRows) return matrix.rows * row_bytes(matrix.format, matrix.cols);
  const CodeInfo info = code_info(matrix.format);
  if (matrix.order == Order::kPanels) return panel_count(matrix.rows) * panel_bytes(info, matrix.cols);
  return (matrix.rows + kFragmentOutputs - 1) / kFragmentOutputs * fragment_count(matrix.cols) * fragment_bytes(info);
}

// Makes the records of rows [begin, end) of the engine's order; begin is a multiple of 16. All bytes of them are
// written.
void write_fragments(Format format, const FileRows& rows, std::int64_t begin, std::int64_t end, std::byte* records);

}  // namespace hogwild
