// y = x W^T: x [rows, k] f32, W [n, k] in its own dtype, read row by row where it lies.
//
// Each (row, output) is one dot product with one vector accumulator over k, whatever block of rows
// and outputs it is computed in: so neither its company nor the blocking changes a bit of it.
// Part of kernels.cc.
#pragma once

namespace hogwild {
namespace {

// A block of R rows x N outputs has R * N accumulators: enough to hide the latency of fma, few enough to
// fit the 16 registers of AVX2 with the operands. One row waits for memory anyway and is better served by
// a small block, whose successor is prefetched into a first-level cache that still holds both.
constexpr int kRowBlock = 4;
constexpr int outputs_per_block(int rows) { return rows == 1 ? 4 : 12 / rows; }
static_assert(kMatmulOutputBlock % outputs_per_block(1) == 0 && kMatmulOutputBlock % outputs_per_block(2) == 0 &&
              kMatmulOutputBlock % outputs_per_block(3) == 0 && kMatmulOutputBlock % outputs_per_block(4) == 0);

// Blocks of weights up to this size are prefetched whole while the one before is worked on: short rows of
// weights end before the hardware has learnt to follow them. Longer ones it does follow, given a start.
constexpr int64_t kWholeBlockBytes = 12800;
constexpr int64_t kAheadBytes = 512;

// Weights that stay in the second-level cache while all rows meet them.
constexpr int64_t kTileBytes = 128 << 10;

// sums[r * N + n] = <x[r], w[n]>
template <int R, int N, typename W>
HOGWILD_INLINE void dot_block(const float* x, const W* w, int64_t k, float* sums) {
  // A step covers one cache line of each of the N weights, and prefetches as many.
  constexpr int64_t kStep = 64 / sizeof(W) > kLanes ? 64 / sizeof(W) : kLanes;
  Vec acc[R * N];
  for (int i = 0; i < R * N; i++) acc[i] = Vec{};
  const auto step = [&](int64_t i) __attribute__((always_inline)) {
    Vec xs[R];
    for (int r = 0; r < R; r++) xs[r] = load(x + r * k + i);
    for (int n = 0; n < N; n++) {
      const Vec wn = load(w + n * k + i);
      for (int r = 0; r < R; r++) acc[r * N + n] = fma(xs[r], wn, acc[r * N + n]);
    }
  };
  const int64_t row_bytes = k * (int64_t)sizeof(W);
  const bool whole = N * row_bytes <= kWholeBlockBytes;
  const char* next = (const char*)w + (whole ? N * row_bytes : kAheadBytes);
  const int64_t next_stride = whole ? 64 : row_bytes;
  const int64_t next_step = whole ? 64 * N : 64;
  int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
    const char* ahead = next;
    for (int n = 0; n < N; n++, ahead += next_stride) prefetch(ahead);
    next += next_step;
    for (int64_t j = 0; j < kStep; j += kLanes) step(i + j);
  }
  for (; i + kLanes <= k; i += kLanes) step(i);
  if (i < k) {
    for (int n = 0; n < N; n++) {
      const Vec wn = load_partial(w + n * k + i, k - i);
      for (int r = 0; r < R; r++) acc[r * N + n] = fma(load_partial(x + r * k + i, k - i), wn, acc[r * N + n]);
    }
  }
  constexpr int kWhole = R * N / 4 * 4;
  for (int j = 0; j < kWhole; j += 4) sum_each(acc[j], acc[j + 1], acc[j + 2], acc[j + 3], sums + j);
  for (int j = kWhole; j < R * N; j++) sums[j] = sum(acc[j]);
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
  constexpr int N = outputs_per_block(R);
  int64_t n = begin;
  for (; n + N <= end; n += N) matmul_block<R, N, W>(slice, row, n);
  for (; n < end; n++) matmul_block<R, 1, W>(slice, row, n);
}

template <typename W>
void matmul_typed(const MatmulSlice& slice) {
  // A tile of outputs at a time for all rows: the first rows bring its weights from memory, the others
  // find them in the cache.
  const int64_t blocks = kTileBytes / (kMatmulOutputBlock * slice.k * (int64_t)sizeof(W));
  const int64_t tile = (blocks > 1 ? blocks : 1) * kMatmulOutputBlock;
  for (int64_t begin = slice.begin; begin < slice.end; begin += tile) {
    const int64_t end = begin + tile < slice.end ? begin + tile : slice.end;
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
