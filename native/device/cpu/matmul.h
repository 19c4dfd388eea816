// y = x W^T: x [rows, k] f32, W [n, k] in its own dtype, read row by row where it lies. Where pairs of bf16 can be
// multiplied at once, x is rounded to bf16 first for weights in bf16 (pack_x); tiles of them are in amx_matmul.h.
//
// Each (row, output) is one dot product with one vector accumulator over k, whatever block of rows
// and outputs it is computed in: so neither its company nor the blocking changes a bit of it.
// Part of kernels.cc.
#pragma once

namespace hogwild {
namespace {

// A block of R rows x N outputs has R * N accumulators: enough to hide the latency of fma, few enough to fit the
// registers with the operands: 32 of AVX-512, else 16. One row waits for memory anyway and is better served by a small
// block.
constexpr int outputs_per_block(int rows) {
  if (rows == 1) return 4;
  if (kLanes < 16) return 12 / rows;
  return rows <= 6 ? 4 : 3;
}

// The block's rows of x must stay in the first-level cache, which holds twice as many of bf16. The last rows make one
// block as long as that is possible: of few rows the products wait for the weights, which all should meet at once.
template <typename X>
constexpr int kRowBlock = sizeof(X) == sizeof(Bf16) ? 6 : 4;
template <typename X>
constexpr int kLastRows = sizeof(X) == sizeof(Bf16) ? 8 : 4;

#if defined(HOGWILD_HAS_TILES)
constexpr int64_t kOutputBlock = 2 * kTileRows;
#else
constexpr int64_t kOutputBlock = 12;
#endif
static_assert(kOutputBlock % outputs_per_block(1) == 0 && kOutputBlock % outputs_per_block(4) == 0);

// Blocks of weights up to this size are prefetched whole while one before is worked on: short rows of
// weights end before the hardware has learnt to follow them. Longer ones it does follow, given a start.
constexpr int64_t kWholeBlockBytes = 12800;
// How far ahead: what a core works through, at least, while memory answers.
constexpr int64_t kWholeBlocksAheadBytes = 10 << 10;
constexpr int64_t kLongRowsAheadBytes = 512;

// Weights that stay in the second-level cache while all rows meet them.
constexpr int64_t kTileBytes = 128 << 10;

// What a product takes of a row of x or of a weight at once: a vector of f32 ...
template <typename X, typename W>
struct Factors {
  static constexpr int64_t kElements = kLanes;
  static HOGWILD_INLINE Vec x(const X* from) { return load(from); }
  static HOGWILD_INLINE Vec w(const W* from) { return load(from); }
  static HOGWILD_INLINE Vec x_partial(const X* from, int64_t n) { return load_partial(from, n); }
  static HOGWILD_INLINE Vec w_partial(const W* from, int64_t n) { return load_partial(from, n); }
};

#if defined(HOGWILD_HAS_PAIRS)
// ... or of pairs of bf16.
template <>
struct Factors<Bf16, Bf16> {
  static constexpr int64_t kElements = 2 * kLanes;
  static HOGWILD_INLINE BitVec x(const Bf16* from) { return load((const Bf16Pair*)from); }
  static HOGWILD_INLINE BitVec w(const Bf16* from) { return load((const Bf16Pair*)from); }
  static HOGWILD_INLINE BitVec x_partial(const Bf16* from, int64_t n) {
    Bf16Pair padded[kLanes];
    memset(padded, 0, sizeof padded);
    memcpy(padded, from, n * sizeof(Bf16));
    return load(padded);
  }
  static HOGWILD_INLINE BitVec w_partial(const Bf16* from, int64_t n) { return x_partial(from, n); }
};
#endif

// sums[r * N + n] = <x[r], w[n]>
template <int R, int N, typename X, typename W>
HOGWILD_INLINE void dot_block(const X* x, const W* w, int64_t k, float* sums) {
  using F = Factors<X, W>;
  // A step covers one cache line of each of the N weights, and prefetches as many.
  constexpr int64_t kStep = 64 / sizeof(W) > F::kElements ? 64 / sizeof(W) : F::kElements;
  Vec acc[R * N];
#pragma GCC unroll 32
  for (int i = 0; i < R * N; i++) acc[i] = Vec{};
  // Unrolled, or the accumulators would lie in memory.
  const auto add = [&](auto&& x_at, auto&& w_at) __attribute__((always_inline)) {
    decltype(F::w(w)) ws[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) ws[n] = w_at(w + n * k);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const auto xr = x_at(x + r * k);
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) acc[r * N + n] = fma(xr, ws[n], acc[r * N + n]);
    }
  };
  const auto step = [&](int64_t i) __attribute__((always_inline)) {
    add([i](const X* from) __attribute__((always_inline)) { return F::x(from + i); },
        [i](const W* from) __attribute__((always_inline)) { return F::w(from + i); });
  };
  const int64_t row_bytes = k * (int64_t)sizeof(W);
  const bool whole = N * row_bytes <= kWholeBlockBytes;
  const int64_t blocks_ahead = N * row_bytes > kWholeBlocksAheadBytes ? N * row_bytes : kWholeBlocksAheadBytes;
  const char* next = (const char*)w + (whole ? blocks_ahead : kLongRowsAheadBytes);
  const int64_t next_stride = whole ? 64 : row_bytes;
  const int64_t next_step = whole ? 64 * N : 64;
  int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
    const char* ahead = next;
    for (int n = 0; n < N; n++, ahead += next_stride) prefetch(ahead);
    next += next_step;
    for (int64_t j = 0; j < kStep; j += F::kElements) step(i + j);
  }
  for (; i + F::kElements <= k; i += F::kElements) step(i);
  if (i < k) {
    add([i, k](const X* from) __attribute__((always_inline)) { return F::x_partial(from + i, k - i); },
        [i, k](const W* from) __attribute__((always_inline)) { return F::w_partial(from + i, k - i); });
  }
  sum_all<R * N>(acc, sums);
}

template <int R, int N, typename X, typename W>
HOGWILD_INLINE void matmul_block(const MatmulSlice& slice, int64_t row, int64_t first) {
  const MatmulParams::Output& output = *slice.output;
  float sums[R * N];
  dot_block<R, N>((const X*)slice.x + row * slice.k, (const W*)output.weight.data + first * slice.k, slice.k, sums);
  for (int r = 0; r < R; r++) {
    float* y = output.y + (row + r) * output.weight.rows + first;
    float values[N];
    for (int n = 0; n < N; n++) values[n] = sums[r * N + n];
    if (output.bias) {
      for (int n = 0; n < N; n++) values[n] += output.bias[first + n];
    }
    if (output.accumulate) {
      for (int n = 0; n < N; n++) values[n] += y[n];
    }
    memcpy(y, values, sizeof values);
  }
}

template <int R, typename X, typename W>
void matmul_rows(const MatmulSlice& slice, int64_t row, int64_t begin, int64_t end) {
  constexpr int N = outputs_per_block(R);
  int64_t n = begin;
  for (; n + N <= end; n += N) matmul_block<R, N, X, W>(slice, row, n);
  for (; n < end; n++) matmul_block<R, 1, X, W>(slice, row, n);
}

// The last rows: 1 <= `rows` <= R.
template <int R, typename X, typename W>
HOGWILD_INLINE void matmul_last_rows(const MatmulSlice& slice, int64_t rows, int64_t row, int64_t begin, int64_t end) {
  if constexpr (R > 0) {
    if (rows == R) return matmul_rows<R, X, W>(slice, row, begin, end);
    matmul_last_rows<R - 1, X, W>(slice, rows, row, begin, end);
  }
}

template <typename X, typename W>
void matmul_typed(const MatmulSlice& slice) {
  // A tile of outputs at a time for all rows: the first rows bring its weights from memory, the others
  // find them in the cache.
  const int64_t blocks = kTileBytes / (kOutputBlock * slice.k * (int64_t)sizeof(W));
  const int64_t tile = (blocks > 1 ? blocks : 1) * kOutputBlock;
  for (int64_t begin = slice.begin; begin < slice.end; begin += tile) {
    const int64_t end = begin + tile < slice.end ? begin + tile : slice.end;
    int64_t row = 0;
    for (; slice.rows - row > kLastRows<X>; row += kRowBlock<X>)
      matmul_rows<kRowBlock<X>, X, W>(slice, row, begin, end);
    matmul_last_rows<kLastRows<X>, X, W>(slice, slice.rows - row, row, begin, end);
  }
}

bool packs_x(Format weight) {
#if defined(HOGWILD_HAS_TILES) || defined(HOGWILD_HAS_PAIRS)
  return weight == Format::kBF16;
#else
  (void)weight;
  return false;
#endif
}

#if !defined(HOGWILD_HAS_TILES)
void pack_x(const float* x, int64_t, int64_t k, int64_t begin, int64_t end, void* packed) {
#if defined(HOGWILD_HAS_PAIRS)
  Bf16* to = (Bf16*)packed;
  int64_t i = begin * k;
  for (; i + kLanes <= end * k; i += kLanes) store(to + i, load(x + i));
  for (; i < end * k; i++) put(to + i, x[i]);
#else
  (void)x, (void)k, (void)begin, (void)end, (void)packed;
#endif
}
#endif

void matmul(const MatmulSlice& slice) {
  switch (slice.output->weight.format) {
    case Format::kF32:
      return matmul_typed<float, float>(slice);
    case Format::kF16:
      return matmul_typed<float, F16>(slice);
    case Format::kBF16:
#if defined(HOGWILD_HAS_TILES)
      return matmul_tiles(slice);
#elif defined(HOGWILD_HAS_PAIRS)
      return matmul_typed<Bf16, Bf16>(slice);
#else
      return matmul_typed<float, Bf16>(slice);
#endif
    default:
      return;  // the device has refused it
  }
}

}  // namespace
}  // namespace hogwild
