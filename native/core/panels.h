// Quantised matrices as CPU kernels read them: panels of 16 outputs (rows of the matrix), one after the other. Each
// has its scales first, then its codes, both in the order in which a product along the columns needs them.
//
// Scales, padded to 64 bytes; groups of 16 to 128 columns (CodeInfo):
//   kF16       per group 16 x d
//   kF16Min    per group 16 x d, 16 x m
//   kE8M0      per group 16 x e
//   kSuper     per 256 columns 16 x d, then per group 16 x s
//   kSuperMin  per 256 columns 16 x d, 16 x m, then per group 16 x s, then per group 16 x t
//   kF32Zero   per group 16 x d, 16 x zero
//
// Codes, for each 32 columns. Quad j (0..7) is columns 4 j .. 4 j + 3 of all 16 outputs: 64 bytes [16][4]. Lines of
// 64 bytes, those that the bits of the format need:
//   8 bits           8 lines, the quads
//   bits 0-3         4 lines: quad j in the low nibbles of line j, quad j + 4 in the high ones
//   bits 4-5 or 0-1  2 lines: quad j in bits 2 (j % 4) of line j / 4
//   the last bit     1 line: quad j in bit j
//
// The last panel is filled up with zeros, and outputs that the matrix does not have are never written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/format.h"
#include "core/quant.h"

namespace hogwild {

inline constexpr std::int64_t kPanelOutputs = 16;
inline constexpr std::int64_t kPanelLine = 64;     // bytes of a quad
inline constexpr std::int64_t kPanelColumns = 32;  // whose codes lie together; `cols` is a multiple

static constexpr std::int64_t code_lines(int bits) {
  if (bits == 8) return 8;
  return (bits >= 4 ? 4 : 0) + (bits % 4 >= 2 ? 2 : 0) + bits % 2;
}

static constexpr bool has_super_scales(Scales scales) {
  return scales == Scales::kSuper || scales == Scales::kSuperMin;
}

// Bytes of scales per 256 columns where has_super_scales, else per group.
static constexpr std::int64_t scale_bytes(const CodeInfo& info) {
  switch (info.scales) {
    case Scales::kF16:
      return 32;
    case Scales::kF16Min:
      return 64;
    case Scales::kE8M0:
      return 16;
    case Scales::kSuper:
      return 32 + 16 * (256 / info.group);
    case Scales::kSuperMin:
      return 64 + 2 * 16 * (256 / info.group);
    case Scales::kF32Zero:
      return 80;
  }
  return 0;
}

// Where a panel's codes begin.
static constexpr std::int64_t panel_codes_at(const CodeInfo& info, std::int64_t cols) {
  const std::int64_t bytes = cols / (has_super_scales(info.scales) ? 256 : info.group) * scale_bytes(info);
  return (bytes + kPanelLine - 1) / kPanelLine * kPanelLine;
}

static constexpr std::int64_t panel_bytes(const CodeInfo& info, std::int64_t cols) {
  return panel_codes_at(info, cols) + cols / kPanelColumns * code_lines(info.bits) * kPanelLine;
}

// Lines of codes and scales of a panel per 32 columns, rounded up.
static constexpr std::int64_t lines_per_group(const CodeInfo& info) {
  const std::int64_t columns = has_super_scales(info.scales) ? 256 : info.group;
  return code_lines(info.bits) +
         (scale_bytes(info) * kPanelColumns + columns * kPanelLine - 1) / (columns * kPanelLine);
}

static constexpr std::int64_t panel_count(std::int64_t rows) { return (rows + kPanelOutputs - 1) / kPanelOutputs; }

// The rows of a matrix as its file has them.
struct FileRows {
  const std::byte* data = nullptr;
  std::int64_t cols = 0;
  InterleavedHeads interleaved = {};
};

// Makes the panels of rows [begin, end) of the engine's order; begin is a multiple of 16. All bytes of them are
// written.
void write_panels(Format format, const FileRows& rows, std::int64_t begin, std::int64_t end, std::byte* panels);

// A row of a quantised matrix in f32, columns as x has them. The order of rows changes nothing: dequantise_row gives
// the same of the file's row.
void dequantise_matrix_row(const Matrix& matrix, std::int64_t row, float* out);

}  // namespace hogwild
