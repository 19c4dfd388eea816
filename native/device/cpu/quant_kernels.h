// Kernels for quantised weights in panels (core/panels.h): one table per SIMD level, like kernels.h, and by the same
// rules.
//
// x is rounded, per row and 32 columns, to integers of 15 bits with an f32 scale. Products of 32 (or 16) columns are
// then exact in int32, and each (row, output) is one chain of f32 operations over the groups, in their order:
//   sum = fma(float(dot) * x_scale, d, sum), and with minima sum = fma(m, x_sum, sum).
// So neither blocking nor the instructions that multiply can show in a result: all levels with fma give the same bits.
#pragma once

#include <stdint.h>

#include "core/panels.h"
#include "device/ops.h"

namespace hogwild {

// Rows of x that a kernel works on at once. `rows` are cut into as few blocks as possible, the larger ones first.
constexpr int64_t kQuantRows = 4;
static constexpr int64_t quant_row_blocks(int64_t rows) { return (rows + kQuantRows - 1) / kQuantRows; }

// Packed x. For each block of R rows and each 32 columns: the codes [8 quads][2][R] (32-bit words; a quad is four
// columns, and how its codes lie in the two words is the level's own business), the scales [R], the sums of codes
// [32 / group][R], int32, and the same times the scale [32 / group][R], f32.
static constexpr int64_t packed_words(int64_t group) { return 16 + 1 + 2 * (32 / group); }  // of a row
// Levels with tiles have an arrangement of their own for many rows; it takes no more, of rows by fours.
static constexpr int64_t packed_x_bytes(int64_t rows, int64_t k, int64_t group) {
  return (rows + 3) / 4 * 4 * (k / 32) * packed_words(group) * 4;
}

// Outputs [begin, end) of one matrix, for all rows; begin is a multiple of kPanelOutputs.
struct QuantSlice {
  const void* x;  // what pack_x has made of it for the format's group
  int64_t rows;
  int64_t k;
  const MatmulParams::Output* output;
  const void* panels;  // of output `begin` and those behind it
  int64_t begin;
  int64_t end;
  void* scratch;  // [QuantKernels::scratch_bytes(rows, k)], aligned to 64 bytes
};

struct QuantKernels {
  // Packed x has the rows in so many blocks, one behind the other.
  int64_t (*row_blocks)(int64_t rows);
  // [begin, end) of the (block, 32 columns), in this order, of x [rows, k], into `packed`, its columns in the order of
  // Matrix::columns; `group`: 16 or 32. A row that holds NaN or infinity gives NaN; groups of 32 columns whose
  // magnitude is below 2^-100 count as zeros.
  void (*pack_x)(const float* x, int64_t rows, int64_t k, const int32_t* columns, int64_t group, int64_t begin,
                 int64_t end, void* packed);
  int64_t (*scratch_bytes)(int64_t rows, int64_t k);  // what matmul needs
  void (*matmul)(const QuantSlice& slice);
};

}  // namespace hogwild
