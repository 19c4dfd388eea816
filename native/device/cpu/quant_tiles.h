// y = x W^T for many rows, by tiles of AMX. Part of quant_kernels.cc.
//
// A tile of x is the high or the low bytes of up to 16 rows x 32 columns, one of weights the codes, less their zero, of
// 32 columns x 16 outputs. Sums are the same exact integers as elsewhere, and what follows them are the same operations
// in f32: so are the results, to the last bit.
#pragma once

namespace hogwild {
namespace {

// Fewer rows are multiplied before a panel's codes are ready for tiles. Of groups of 16 columns a tile would hold too
// few.
constexpr bool uses_tiles(int64_t rows, int64_t dot_columns) { return rows >= 48 && dot_columns == 32; }

// Of decoded panels, while all rows meet them: they stay in the second-level cache.
constexpr int64_t kDecodedBytes = 512 << 10;

// Rows in tiles, of which a group's sums are finished together: whole vectors of loads, zeros behind the last row.
constexpr int64_t padded_rows(int64_t rows) { return (rows + 3) / 4 * 4; }

// 32-bit words of packed x per row and 32 columns: bytes [rows][32] high, then low, scales [rows], scaled sums of codes
// [rows].
constexpr int64_t kTiledWords = 18;
static_assert(kTiledWords <= packed_words(32));

void pack_x_for_tiles(const float* x, int64_t rows, int64_t k, const int32_t* columns, int64_t begin, int64_t end,
                      void* packed) {
  for (int64_t row = begin; row < end; row++) {
    const int64_t first = row / kTileRows * kTileRows, r = row - first;
    const int64_t n = rows - first < kTileRows ? rows - first : kTileRows;
    const int64_t stride = padded_rows(n);
    uint32_t* words = (uint32_t*)packed + first * (k / 32) * kTiledWords;
    for (int64_t i = 0; i < k; i += 32, words += stride * kTiledWords) {
      int32_t codes[32];
      const float scale = round_group(x + row * k, columns, i, codes);
      uint8_t* bytes = (uint8_t*)words + 32 * r;
      for (int64_t half = 0; half < 2; half++) {
        const IntVec integers = load(codes + 16 * half);
        const IntVec high = (integers + 64) >> 7;
        _mm_storeu_si128((__m128i*)(bytes + 16 * half), _mm512_cvtepi32_epi8((__m512i)high));
        _mm_storeu_si128((__m128i*)(bytes + 32 * stride + 16 * half),
                         _mm512_cvtepi32_epi8((__m512i)(integers - (high << 7))));
      }
      float* scales = (float*)words + 16 * stride;
      scales[r] = scale;
      scales[stride + r] = scaled_sum(codes, 0, 32, scale);
      if (r < n - 1) continue;
      for (int64_t behind = n; behind < stride; behind++) {
        memset((uint8_t*)words + 32 * behind, 0, 32);
        memset((uint8_t*)words + 32 * (stride + behind), 0, 32);
        scales[behind] = scales[stride + behind] = 0;
      }
    }
  }
}

// ---- panels -----------------------------------------------------------------------------------------

// Of 32 columns: quads of signed codes, then d and m in f32.
constexpr int64_t kGroupBytes = 10 * kPanelLine;

int64_t decoded_panels(int64_t k) {
  const int64_t panels = kDecodedBytes / (k / 32 * kGroupBytes);
  return panels > 1 ? panels : 1;
}

int64_t scratch_bytes(int64_t rows, int64_t k) {
  return uses_tiles(rows, 32) ? decoded_panels(k) * (k / 32) * kGroupBytes : 0;
}

template <typename F, int J>
HOGWILD_INLINE void decode_quads(const typename F::Codes& codes, const uint8_t* table, uint8_t* to) {
  if constexpr (J < 8) {
    const __m512i quad = (__m512i)F::template quad<J>(codes, table);
    _mm512_store_si512(to + J * kPanelLine, _mm512_sub_epi8(quad, _mm512_set1_epi8((char)F::kZero)));
    decode_quads<F, J + 1>(codes, table, to);
  }
}

template <typename F>
void decode_panel(const uint8_t* panel, int64_t k, const uint8_t* table, uint8_t* to) {
  constexpr int64_t kStep = F::Scales::kSuperColumns > 0 ? F::Scales::kSuperColumns / 32 : 1;
  typename F::Codes codes;
  typename F::Scales scales;
  codes.from = panel + panel_codes_at(F::kInfo, k);
  scales.from = panel;
  scales.lane = 0;
  const int64_t ahead = panel_bytes(F::kInfo, k);
  for (int64_t i = 0; i < k / 32; i++, to += kGroupBytes) {
    if constexpr (F::Scales::kSuperColumns > 0) {
      if (i % kStep == 0) scales.begin_super(i);
    }
    for (int line = 0; line < F::Codes::kLines; line++) prefetch(codes.from + ahead + line * kPanelLine);
    decode_quads<F, 0>(codes, table, to);
    codes.from += F::Codes::kLines * kPanelLine;
    store((float*)(to + 8 * kPanelLine), scales.d(i));
    if constexpr (F::Scales::kHasMin) store((float*)(to + 9 * kPanelLine), scales.m(i));
  }
}

// ---- products ---------------------------------------------------------------------------------------

void shape_tiles(int64_t rows) {
  TileShapes shapes;
  memset(&shapes, 0, sizeof shapes);
  shapes.palette = 1;
  for (int half = 0; half < 2; half++) {
    shapes.rows[half] = shapes.rows[4 + half] = (uint8_t)rows;
    shapes.row_bytes[half] = kTileRowBytes;
    shapes.row_bytes[4 + half] = 32;
  }
  shapes.rows[6] = 8;
  shapes.row_bytes[6] = kPanelLine;
  shape_tiles(shapes);
}

// Sums of 32 columns' high and low bytes times their codes, [2][R][16].
template <int R>
HOGWILD_INLINE void multiply_group(const uint8_t* x, const uint8_t* codes, int32_t* dots) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_loadd(6, codes, kPanelLine);
  _tile_loadd(4, x, 32);
  _tile_dpbssd(0, 4, 6);
  _tile_loadd(5, x + 32 * R, 32);
  _tile_dpbssd(1, 5, 6);
  _tile_stored(0, dots, kTileRowBytes);
  _tile_stored(1, dots + R * kPanelOutputs, kTileRowBytes);
}

// R rows, `rows` of them there, of one panel; its first output is `first`.
template <int R, bool kHasMin>
void multiply_tiles(const QuantSlice& slice, int64_t row, int64_t rows, const uint8_t* panel, int64_t first) {
  const int64_t groups = slice.k / 32, x_bytes = R * kTiledWords * 4;
  const uint8_t* x = (const uint8_t*)slice.x + row * groups * kTiledWords * 4;
  // A group is multiplied by tiles while the sums of the one before are finished.
  alignas(64) int32_t dots[2][2 * R * kPanelOutputs];
  Vec sums[R] = {};
  multiply_group<R>(x, panel, dots[0]);
  for (int64_t i = 0; i < groups; i++, x += x_bytes, panel += kGroupBytes) {
    if (i + 1 < groups) multiply_group<R>(x + x_bytes, panel + kGroupBytes, dots[(i + 1) % 2]);
    const float* scales = (const float*)x + 16 * R;
    const Vec d = load((const float*)(panel + 8 * kPanelLine));
    const Vec m = kHasMin ? load((const float*)(panel + 9 * kPanelLine)) : Vec{};
    const int32_t* high = dots[i % 2];
    const int32_t* low = high + R * kPanelOutputs;
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const IntVec dot = (load(high + r * kPanelOutputs) << 7) + load(low + r * kPanelOutputs);
      sums[r] = fma(to_f32(dot) * scales[r], d, sums[r]);
      if constexpr (kHasMin) sums[r] = fma(m, broadcast(scales[R + r]), sums[r]);
    }
  }
  Vec all[R];  // (in memory; `sums` are in registers)
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) all[r] = sums[r];
  put_outputs(slice, first, row, rows, all);
}

template <bool kHasMin>
HOGWILD_INLINE void multiply_tiles(const QuantSlice& slice, int64_t row, int64_t rows, const uint8_t* panel,
                                   int64_t first) {
  switch (padded_rows(rows)) {
    case 4:
      return multiply_tiles<4, kHasMin>(slice, row, rows, panel, first);
    case 8:
      return multiply_tiles<8, kHasMin>(slice, row, rows, panel, first);
    case 12:
      return multiply_tiles<12, kHasMin>(slice, row, rows, panel, first);
    case 16:
      return multiply_tiles<16, kHasMin>(slice, row, rows, panel, first);
  }
}

template <typename F>
void quant_matmul_tiles(const QuantSlice& slice) {
  const int64_t panel_size = panel_bytes(F::kInfo, slice.k);
  const int64_t decoded_size = slice.k / 32 * kGroupBytes;
  const int64_t panels = panel_count(slice.end - slice.begin), step = decoded_panels(slice.k);
  uint8_t* decoded = (uint8_t*)slice.scratch;
  uint8_t table[16];
  F::make_table(table);
  int64_t shape = 0;
  for (int64_t begin = 0; begin < panels; begin += step) {
    const int64_t n = panels - begin < step ? panels - begin : step;
    for (int64_t i = 0; i < n; i++) {
      decode_panel<F>((const uint8_t*)slice.panels + (begin + i) * panel_size, slice.k, table,
                      decoded + i * decoded_size);
    }
    for (int64_t row = 0; row < slice.rows; row += kTileRows) {
      const int64_t rows = slice.rows - row < kTileRows ? slice.rows - row : kTileRows;
      if (shape != padded_rows(rows)) shape_tiles(padded_rows(rows));
      shape = padded_rows(rows);
      for (int64_t i = 0; i < n; i++) {
        multiply_tiles<F::Scales::kHasMin>(slice, row, rows, decoded + i * decoded_size,
                                           slice.begin + (begin + i) * kPanelOutputs);
      }
    }
  }
  _tile_release();
}

}  // namespace
}  // namespace hogwild
