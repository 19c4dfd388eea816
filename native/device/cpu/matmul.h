// y = x W^T: x [rows, k] f32, W [n, k] in its own dtype, read row by row where it lies.
//
// Each (row, output) is one dot product with one vector accumulator over k, whatever block of rows
// and outputs it is computed in: so neither its company nor the blocking changes a bit of it.
// Part of kernels.cc.
#pragma once

namespace hogwild {
namespace {

// A block of R rows x N outputs has R * N accumulators, enough to hide the latency of fma; with the
// operands they fit the 16 registers of AVX2.
constexpr int kAccumulators = 12;
constexpr int kRowBlock = 4;
static_assert(kMatmulOutputBlock == kAccumulators);

// sums[r * N + n] = <x[r], w[n]>
template <int R, int N, typename W>
HOGWILD_INLINE void dot_block(const float* x, const W* w, int64_t k, float* sums) {
  // A step covers whole cache lines of the weights and asks for those of the next block of outputs,
  // which follow in memory.
  constexpr int64_t kStep = 64 / sizeof(W) > kLanes ? 64 / sizeof(W) : kLanes;
  Vec acc[R * N] = {};
  const auto step = [&](int64_t i) __attribute__((always_inline)) {
    Vec xs[R];
    for (int r = 0; r < R; r++) xs[r] = load(x + r * k + i);
    for (int n = 0; n < N; n++) {
      const Vec wn = load(w + n * k + i);
      for (int r = 0; r < R; r++) acc[r * N + n] = fma(xs[r], wn, acc[r * N + n]);
    }
  };
  int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
    for (int n = 0; n < N; n++) prefetch(w + (n + N) * k + i);
    for (int64_t j = 0; j < kStep; j += kLanes) step(i + j);
  }
  for (; i + kLanes <= k; i += kLanes) step(i);
  if (i < k) {
    for (int n = 0; n < N; n++) {
      const Vec wn = load_partial(w + n * k + i, k - i);
      for (int r = 0; r < R; r++) acc[r * N + n] = fma(load_partial(x + r * k + i, k - i), wn, acc[r * N + n]);
    }
  }
  for (int i = 0; i < R * N; i += 4) {
    float four[4];
    sum_each(acc[i], i + 1 < R * N ? acc[i + 1] : Vec{}, i + 2 < R * N ? acc[i + 2] : Vec{},
             i + 3 < R * N ? acc[i + 3] : Vec{}, four);
    for (int j = 0; j < 4 && i + j < R * N; j++) sums[i + j] = four[j];
  }
}

template <int R, int N, typename W>
HOGWILD_INLINE void matmul_block(const MatmulSlice& slice, int64_t row, int64_t first) {
  const MatmulParams::Output& output = *slice.output;
  float sums[R * N];
  dot_block<R, N>(slice.x + row * slice.k, (const W*)output.weight.data + first * slice.k, slice.k, sums);
  for (int r = 0; r < R; r++) {
    float* y = output.y + (row + r) * output.weight.rows + first;
    for (int n = 0; n < N; n++) {
      float value = sums[r * N + n];
      if (output.bias) value += output.bias[first + n];
      y[n] = output.accumulate ? y[n] + value : value;
    }
  }
}

template <int R, typename W>
void matmul_rows(const MatmulSlice& slice, int64_t row, int64_t begin, int64_t end) {
  constexpr int N = kAccumulators / R;
  int64_t n = begin;
  for (; n + N <= end; n += N) matmul_block<R, N, W>(slice, row, n);
  for (; n < end; n++) matmul_block<R, 1, W>(slice, row, n);
}

template <typename W>
void matmul_typed(const MatmulSlice& slice) {
  // A few outputs at a time for all rows: the first rows bring the weights from memory, the others
  // find them in the cache.
  for (int64_t begin = slice.begin; begin < slice.end; begin += kMatmulOutputBlock) {
    const int64_t end = begin + kMatmulOutputBlock < slice.end ? begin + kMatmulOutputBlock : slice.end;
    int64_t row = 0;
    for (; row + kRowBlock <= slice.rows; row += kRowBlock) matmul_rows<kRowBlock, W>(slice, row, begin, end);
    switch (slice.rows - row) {
      case 1:
        matmul_rows<1, W>(slice, row, begin, end);
        break;
      case 2:
        matmul_rows<2, W>(slice, row, begin, end);
        break;
      case 3:
        matmul_rows<3, W>(slice, row, begin, end);
        break;
    }
  }
}

void matmul(const MatmulSlice& slice) {
  switch (slice.output->weight.dtype) {
    case Dtype::kF32:
      return matmul_typed<float>(slice);
    case Dtype::kF16:
      return matmul_typed<F16>(slice);
    case Dtype::kBF16:
      return matmul_typed<Bf16>(slice);
  }
}

}  // namespace
}  // namespace hogwild
