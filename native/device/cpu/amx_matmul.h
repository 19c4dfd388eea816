// y = x W^T for weights in bf16, by tiles of AMX: x is rounded to bf16 too. Part of kernels.cc.
//
// A tile of weights is 16 outputs x 32 columns as they lie in memory, a tile of x 32 columns of up to 16 rows with
// pairs of columns side by side (pack_x). Their product is added to [16 outputs][rows]: each (row, output) is one chain
// of additions over the columns in steps of 32, whatever stands in the tiles beside it. So neither its company nor the
// blocking changes a bit of it.
#pragma once

namespace hogwild {
namespace {

constexpr int64_t kTileColumns = 32;  // of bf16
constexpr int64_t kPairBytes = 2 * sizeof(Bf16);

constexpr int64_t tiled_columns(int64_t k) { return (k + kTileColumns - 1) / kTileColumns * kTileColumns; }

// Packed weights of outputs and packed rows of x up to this size stay in the second-level cache.
constexpr int64_t kCachedBytes = 640 << 10;

// ---- packing x --------------------------------------------------------------------------------------

// 32 columns of a row, `n` of them there, as pairs of bf16.
HOGWILD_INLINE __m512i pairs_of(const float* x, int64_t n) {
  const Vec first = n >= kLanes ? load(x) : load_partial(x, n);
  const Vec second = n >= 2 * kLanes ? load(x + kLanes) : n > kLanes ? load_partial(x + kLanes, n - kLanes) : Vec{};
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

// For each 16 rows, of which the last may be fewer, tiles [columns / 32][16 pairs][rows][2]; zeros behind column k.
void pack_x(const float* x, int64_t rows, int64_t k, int64_t begin, int64_t end, void* packed) {
  for (int64_t row = begin; row < end; row += kTileRows) {
    const int64_t n = rows - row < kTileRows ? rows - row : kTileRows;
    const __mmask16 there = (__mmask16)((1u << n) - 1);
    Bf16* to = (Bf16*)packed + row * tiled_columns(k);
    for (int64_t i = 0; i < k; i += kTileColumns, to += n * kTileColumns) {
      __m512i pairs[kTileRows];
      if (n == 1) {
        _mm512_storeu_si512(to, pairs_of(x + row * k + i, k - i));
        continue;
      }
      for (int64_t r = 0; r < kTileRows; r++) {
        pairs[r] = r < n ? pairs_of(x + (row + r) * k + i, k - i) : _mm512_setzero_si512();
      }
      transpose(pairs);
      for (int64_t pair = 0; pair < kTileRows; pair++) _mm512_mask_storeu_epi32(to + 2 * pair * n, there, pairs[pair]);
    }
  }
}

// ---- products ---------------------------------------------------------------------------------------

// Two tiles of outputs and two of rows; those that are not there have 0.
struct TileBlock {
  int64_t output, row;  // the first
  int64_t outputs[2], rows[2];

  HOGWILD_INLINE bool has_shape_of(const TileBlock& other) const {
    return outputs[0] == other.outputs[0] && outputs[1] == other.outputs[1] && rows[0] == other.rows[0] &&
           rows[1] == other.rows[1];
  }
};

HOGWILD_INLINE void shape_tiles(const TileBlock& block) {
  TileShapes shapes;
  memset(&shapes, 0, sizeof shapes);
  shapes.palette = 1;
  for (int a = 0; a < 2; a++) {
    for (int b = 0; b < 2; b++) {
      if (block.outputs[a] == 0 || block.rows[b] == 0) continue;
      shapes.rows[2 * a + b] = shapes.rows[4 + a] = (uint8_t)block.outputs[a];
      shapes.row_bytes[2 * a + b] = shapes.row_bytes[6 + b] = (uint16_t)(4 * block.rows[b]);
      shapes.row_bytes[4 + a] = kTileRowBytes;
      shapes.rows[6 + b] = kTileRows;
    }
  }
  shape_tiles(shapes);
}

// Adds the products of one step of 32 columns: `w` [outputs, stride bytes], `x` tiles of both blocks of rows.
template <int A, int B>
HOGWILD_INLINE void add_tiles(const void* w0, const void* w1, int64_t w_stride, const void* x0, int64_t x0_stride,
                              const void* x1, int64_t x1_stride) {
  _tile_loadd(6, x0, x0_stride);
  _tile_loadd(4, w0, w_stride);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (B == 2) {
    _tile_loadd(7, x1, x1_stride);
    _tile_dpbf16ps(1, 4, 7);
  }
  if constexpr (A == 2) {
    _tile_loadd(5, w1, w_stride);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (B == 2) _tile_dpbf16ps(3, 5, 7);
  }
}

// Sums [16 outputs][16 rows] of one tile to y.
HOGWILD_INLINE void put_sums(const MatmulParams::Output& output, const float* sums, int64_t first, int64_t n,
                             int64_t row, int64_t rows) {
  __m512i columns[kTileRows];
  for (int64_t i = 0; i < kTileRows; i++) columns[i] = _mm512_load_si512(sums + i * kTileRows);
  transpose(columns);
  const __mmask16 there = (__mmask16)((1u << n) - 1);
  const __m512 bias = output.bias ? _mm512_maskz_loadu_ps(there, output.bias + first) : _mm512_setzero_ps();
  float* y = output.y + row * output.weight.rows + first;
  for (int64_t r = 0; r < kTileRows; r++, y += output.weight.rows) {
    if (r == rows) break;
    __m512 value = (__m512)columns[r];
    if (output.bias) value = _mm512_add_ps(value, bias);
    if (output.accumulate) value = _mm512_add_ps(_mm512_maskz_loadu_ps(there, y), value);
    _mm512_mask_storeu_ps(y, there, value);
  }
}

// Weights are brought into the second-level cache in the order in which they are used, this far ahead: some KB, so that
// even of a single block most are on their way before they are needed. Nothing behind the slice is: at the end of a
// matrix slices are a block each, and what is behind goes to another core.
constexpr int64_t kColumnsAhead = 4 * kTileColumns;

// A x B tiles. `prefetched`: up to which column weights are brought into the cache; 0: none, k: these, 2 * k: the tiles
// behind these too.
template <int A, int B>
void multiply_tiles(const MatmulSlice& slice, const TileBlock& block, int64_t prefetched) {
  const int64_t k = slice.k, w_stride = k * (int64_t)sizeof(Bf16);
  const Bf16* w0 = (const Bf16*)slice.output->weight.data + block.output * k;
  const Bf16* w1 = w0 + kTileRows * k;
  const Bf16* x0 = (const Bf16*)slice.x + block.row * tiled_columns(k);
  const Bf16* x1 = x0 + kTileRows * tiled_columns(k);
  const int64_t x0_stride = block.rows[0] * kPairBytes, x1_stride = block.rows[1] * kPairBytes;

  _tile_zero(0);
  if constexpr (B == 2) _tile_zero(1);
  if constexpr (A == 2) _tile_zero(2);
  if constexpr (A == 2 && B == 2) _tile_zero(3);
  int64_t i = 0;
  for (; i + kTileColumns <= k; i += kTileColumns) {
    const int64_t j = i + kColumnsAhead;
    if (j < prefetched) {
      const Bf16* ahead = w0 + j + (j < k ? 0 : (A * kTileRows - 1) * k);
      for (int r = 0; r < A * kTileRows; r++) __builtin_prefetch(ahead + r * k, 0, 2);
    }
    add_tiles<A, B>(w0 + i, w1 + i, w_stride, x0 + i * block.rows[0], x0_stride, x1 + i * block.rows[1], x1_stride);
  }
  if (i < k) {
    Bf16 last[A][kTileRows][kTileColumns];
    memset(last, 0, sizeof last);
    for (int a = 0; a < A; a++) {
      for (int64_t r = 0; r < block.outputs[a]; r++) {
        memcpy(last[a][r], (a == 0 ? w0 : w1) + r * k + i, (k - i) * sizeof(Bf16));
      }
    }
    compiler_barrier();
    add_tiles<A, B>(last[0], last[A - 1], kTileRowBytes, x0 + i * block.rows[0], x0_stride, x1 + i * block.rows[1],
                    x1_stride);
  }

  alignas(64) float sums[4][kTileRows * kTileRows];
  _tile_stored(0, sums[0], kTileRowBytes);
  if constexpr (B == 2) _tile_stored(1, sums[1], kTileRowBytes);
  if constexpr (A == 2) _tile_stored(2, sums[2], kTileRowBytes);
  if constexpr (A == 2 && B == 2) _tile_stored(3, sums[3], kTileRowBytes);
  for (int a = 0; a < A; a++) {
    for (int b = 0; b < B; b++) {
      put_sums(*slice.output, sums[2 * a + b], block.output + a * kTileRows, block.outputs[a],
               block.row + b * kTileRows, block.rows[b]);
    }
  }
}

void matmul_tiles(const MatmulSlice& slice) {
  const auto part = [](int64_t n, int64_t i) {  // tile i of two
    const int64_t left = n - i * kTileRows;
    return left < 0 ? 0 : left < kTileRows ? left : kTileRows;
  };
  // All rows meet two tiles of outputs where the rows stay in the cache, else as many outputs as do.
  const int64_t row_bytes = tiled_columns(slice.k) * (int64_t)sizeof(Bf16);
  int64_t outputs = 2 * kTileRows;
  if (slice.rows * row_bytes > kCachedBytes && kCachedBytes / row_bytes > outputs) {
    outputs = kCachedBytes / row_bytes / (2 * kTileRows) * (2 * kTileRows);
  }
  TileBlock shape = {};
  for (int64_t begin = slice.begin; begin < slice.end; begin += outputs) {
    const int64_t end = begin + outputs < slice.end ? begin + outputs : slice.end;
    for (int64_t row = 0; row < slice.rows; row += 2 * kTileRows) {
      for (int64_t output = begin; output < end; output += 2 * kTileRows) {
        const TileBlock block = {.output = output,
                                 .row = row,
                                 .outputs = {part(end - output, 0), part(end - output, 1)},
                                 .rows = {part(slice.rows - row, 0), part(slice.rows - row, 1)}};
        const int64_t ahead = row > 0 ? 0 : output + 2 * kTileRows < slice.end ? 2 * slice.k : slice.k;
        if (!block.has_shape_of(shape)) shape_tiles(block);
        shape = block;
        if (block.outputs[1] == 0) {
          block.rows[1] == 0 ? multiply_tiles<1, 1>(slice, block, ahead) : multiply_tiles<1, 2>(slice, block, ahead);
        } else {
          block.rows[1] == 0 ? multiply_tiles<2, 1>(slice, block, ahead) : multiply_tiles<2, 2>(slice, block, ahead);
        }
      }
    }
  }
  _tile_release();
}

}  // namespace
}  // namespace hogwild
