// Tiles of AMX: eight registers of up to 16 rows of 64 bytes. Part of kernels.cc and quant_kernels.cc where the level
// has them; the process must have asked the system for their use (simd_dispatch.cc).
//
// Tiles 0 to 3 hold sums, 4 and 5 the first factors, 6 and 7 the second ones. The compiler knows neither what a tile's
// load reads nor what LDTILECFG does: compiler_barrier() stands between them and what was written before.
#pragma once

namespace hogwild {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileRowBytes = 64;

HOGWILD_INLINE void compiler_barrier() { asm volatile("" ::: "memory"); }

// What LDTILECFG reads.
struct TileShapes {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(TileShapes) == 64);

// Gives the tiles their shapes, and zeros.
HOGWILD_INLINE void shape_tiles(const TileShapes& shapes) {
  compiler_barrier();
  _tile_loadconfig(&shapes);
}

// Rows of 16 elements of 32 bits become columns.
HOGWILD_INLINE void transpose(__m512i (&rows)[16]) {
  __m512i other[16];
  for (int i = 0; i < 16; i += 2) {
    other[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    other[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // rows i .. i + 3: each quarter has a column's four elements
    rows[i] = _mm512_unpacklo_epi64(other[i], other[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(other[i], other[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(other[i + 1], other[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(other[i + 1], other[i + 3]);
  }
  for (int i = 0; i < 16; i += 8) {
    for (int j = i; j < i + 4; j++) {
      other[j] = _mm512_shuffle_i32x4(rows[j], rows[j + 4], 0x88);      // quarters 0 and 2 of both
      other[j + 4] = _mm512_shuffle_i32x4(rows[j], rows[j + 4], 0xdd);  // 1 and 3
    }
  }
  for (int j = 0; j < 8; j++) {
    rows[j] = _mm512_shuffle_i32x4(other[j], other[j + 8], 0x88);
    rows[j + 8] = _mm512_shuffle_i32x4(other[j], other[j + 8], 0xdd);
  }
}

}  // namespace
}  // namespace hogwild
