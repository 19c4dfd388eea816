// The online softmax of two rows of an m16n8k16 accumulator, as one thread holds it: with g = lane / 4
// and t = lane % 4, rows g and g + 8 of a warp's 16, columns 8 i + 2 t and the next (see mma_m16n8k16).
#pragma once

#include <cmath>

#include "simt/simt.h"

namespace hogwild::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

// Sum of e^(score) v over the keys seen so far, relative to their maximum: the weight of everything in
// the state is 2^max, with scores in units of log 2. Without keys: max = -inf, sum = 0, out = 0.
template <int kColumns>
struct SoftmaxState {
  static constexpr int kTiles = kColumns / 8;
  float max[2];          // of rows g and g + 8; the same in the four lanes of a row
  float sum[2];          // this lane's part: the row's sum is that over its four lanes
  float out[kTiles][4];  // rows g, g, g + 8, g + 8

  SIMT_DEVICE void clear() {
    max[0] = max[1] = -INFINITY;
    sum[0] = sum[1] = 0.f;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) out[i][0] = out[i][1] = out[i][2] = out[i][3] = 0.f;
  }

  // Multiplies one of the two rows by `factor`.
  SIMT_DEVICE void scale_row(int row, float factor) {
    sum[row] *= factor;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      out[i][2 * row] *= factor;
      out[i][2 * row + 1] *= factor;
    }
  }

  // Takes note of scores with maximum `new_max` (of the row, in all its lanes; -inf where there are
  // none): the state is rescaled, and the returned value is to be subtracted from the scores.
  SIMT_DEVICE float raise_max(int row, float new_max) {
    const float raised = fmaxf(max[row], new_max);
    const float reference = raised == -INFINITY ? 0.f : raised;  // -inf - -inf is NaN
    scale_row(row, simt::exp2_approx(max[row] - reference));
    max[row] = raised;
    return reference;
  }

  // Adds the keys of another state of the same rows, given piece by piece: first this, for each row ...
  SIMT_DEVICE float merge_row(int row, float other_max, float other_sum) {
    const float factor = simt::exp2_approx(other_max - raise_max(row, other_max));
    sum[row] += other_sum * factor;
    return factor;
  }
  // ... then, with the factors of both rows, each tile of `out`.
  SIMT_DEVICE void merge_tile(int tile, float4 other, float factor0, float factor1) {
    out[tile][0] += other.x * factor0;
    out[tile][1] += other.y * factor0;
    out[tile][2] += other.z * factor1;
    out[tile][3] += other.w * factor1;
  }
};

// Maximum and sum over the four lanes that hold a row.
SIMT_DEVICE float row_max(float value) {
  value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, 1));
  return fmaxf(value, __shfl_xor_sync(kAllLanes, value, 2));
}
SIMT_DEVICE float row_sum(float value) {
  value += __shfl_xor_sync(kAllLanes, value, 1);
  return value + __shfl_xor_sync(kAllLanes, value, 2);
}

}  // namespace hogwild::cuda
