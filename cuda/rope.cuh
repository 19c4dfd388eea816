// Rotary position embedding (Su et al. 2021, arXiv 2104.09864) of one head's row: elements (u, u + R/2),
// u < R/2, are turned by angle u of a row of the rope table, in f32; elements from R on stay as they are.
//
// A row is turned in units of two chunks of eight elements, one thread per unit. Where R/2 is a multiple of
// eight, a unit is the two chunks of eight whole pairs, and everything is loaded once, 16 bytes at a time.
// Else a unit is two neighbouring chunks, and each element fetches its partner by itself.
#pragma once

#include "device/ops.h"
#include "simt/simt.h"
#include "vector_load.cuh"

namespace hogwild::cuda {

inline constexpr int kUnitElements = 8;  // of a chunk here, whatever the row's type

// A row of q, k or v: D elements from `first` on.
struct ActivationRow {
  const void* data;
  Dtype dtype;
  std::size_t first;  // a multiple of 8

  SIMT_DEVICE Raw8 load(int chunk) const {
    return load_raw8(data, dtype, first + static_cast<std::size_t>(chunk) * kUnitElements);
  }
  SIMT_DEVICE void convert(const Raw8& raw, float (&x)[8]) const { convert8(raw, dtype, x); }
  SIMT_DEVICE float load_element(int d) const { return load1(data, dtype, first + d); }
};

struct RotatedUnit {
  int chunk[2];  // which chunks of the row
  float first[8], second[8];
};

// One chunk whose partners may lie anywhere. `half`: R/2.
template <typename Row>
SIMT_DEVICE void load_rotated_chunk(const Row& row, int head_dim, const float* cos, const float* sin, int half,
                                    int chunk, float (&x)[8]) {
  const int begin = chunk * kUnitElements;
  if (begin >= head_dim) {
#pragma unroll
    for (int i = 0; i < kUnitElements; ++i) x[i] = 0;
    return;
  }
  row.convert(row.load(chunk), x);
#pragma unroll
  for (int i = 0; i < kUnitElements; ++i) {
    const int d = begin + i;
    if (d >= 2 * half) break;
    const bool is_first = d < half;  // of its pair
    const int u = is_first ? d : d - half;
    const float partner = row.load_element(is_first ? d + half : u);
    const float s = simt::load_constant(sin + u);
    x[i] = x[i] * simt::load_constant(cos + u) + partner * (is_first ? -s : s);
  }
}

// Unit `unit` of a row, rotated by row `rope_row` of the table. Elements at or beyond head_dim are 0.
template <typename Row>
SIMT_DEVICE RotatedUnit load_rotated_unit(const Row& row, int head_dim, const RopeTable& rope, int rope_row, int unit) {
  const int half = static_cast<int>(rope.rotary_dim / 2);
  const float* cos = rope.cos + static_cast<std::size_t>(rope_row) * half;
  const float* sin = rope.sin + static_cast<std::size_t>(rope_row) * half;
  const int paired_units = half % kUnitElements == 0 ? half / kUnitElements : 0;
  RotatedUnit result;
  if (unit < paired_units) {
    result.chunk[0] = unit;
    result.chunk[1] = unit + paired_units;
    const auto raw_x = row.load(result.chunk[0]);
    const auto raw_y = row.load(result.chunk[1]);
    float x[8], y[8], c[8], s[8];
    load8(cos + unit * kUnitElements, c);
    load8(sin + unit * kUnitElements, s);
    row.convert(raw_x, x);
    row.convert(raw_y, y);
#pragma unroll
    for (int i = 0; i < kUnitElements; ++i) {
      result.first[i] = x[i] * c[i] - y[i] * s[i];
      result.second[i] = y[i] * c[i] + x[i] * s[i];
    }
  } else {
    result.chunk[0] = 2 * unit;
    result.chunk[1] = 2 * unit + 1;
    load_rotated_chunk(row, head_dim, cos, sin, half, result.chunk[0], result.first);
    load_rotated_chunk(row, head_dim, cos, sin, half, result.chunk[1], result.second);
  }
  return result;
}

}  // namespace hogwild::cuda
