// y = x W^T for several rows, by tiles of AMX. Part of quant_kernels.cc.
//
// A tile of weights is the codes, less their zero, of a part, a group of 32 or 16 columns, x 16 outputs; one of x the
// bytes of the rows there: the high ones and, behind them, the low ones, which are a tile of their own where rows are
// more than 8. Sums are the same exact integers as elsewhere, and what follows them are the same operations in f32: so
// are the results, to the last bit.
//
// While tiles are multiplied, products and conversions of 512 bits have one port instead of two (as measured), the one
// that shifts and affine transforms always have. What can be done by shuffles, additions and logic is therefore done by
// them.
#pragma once

namespace hogwild {
namespace {

constexpr int64_t kLeastTileRows = 6;  // fewer are done sooner by vectors
constexpr bool uses_tiles(int64_t rows) { return rows >= kLeastTileRows; }

// Rows in tiles: whole vectors of loads, zeros behind the last row.
constexpr int64_t padded_rows(int64_t rows) { return (rows + 3) / 4 * 4; }

// 32-bit words of packed x per row and 32 columns: bytes [rows][32] high, then low, scales [rows], scaled sums of codes
// [32 / group][rows].
constexpr int64_t tiled_words(int64_t group) { return 17 + 32 / group; }
static_assert(tiled_words(32) <= packed_words(32) && tiled_words(16) <= packed_words(16));

void pack_x_for_tiles(const float* x, int64_t rows, int64_t k, const int32_t* columns, int64_t group, int64_t begin,
                      int64_t end, void* packed) {
  const int64_t groups = k / 32;
  for (int64_t i = begin; i < end; i++) {
    const int64_t first = i / groups * kTileRows, column = i % groups * 32;
    const int64_t n = rows - first < kTileRows ? rows - first : kTileRows;
    const int64_t stride = padded_rows(n);
    uint32_t* words = (uint32_t*)packed + (first * groups + i % groups * stride) * tiled_words(group);
    float* scales = (float*)words + 16 * stride;
    float* sums = scales + stride;
    for (int64_t r = 0; r < n; r++) {
      int32_t codes[32];
      scales[r] = round_group(x + (first + r) * k, columns, column, codes);
      uint8_t* bytes = (uint8_t*)words + 32 * r;
      for (int64_t half = 0; half < 2; half++) {
        const IntVec integers = load(codes + 16 * half);
        // 256 high + low, both in signed bytes.
        _mm_storeu_si128((__m128i*)(bytes + 16 * half), _mm512_cvtepi32_epi8((__m512i)((integers + 128) >> 8)));
        _mm_storeu_si128((__m128i*)(bytes + 32 * stride + 16 * half), _mm512_cvtepi32_epi8((__m512i)integers));
      }
      for (int64_t s = 0; s < 32 / group; s++) sums[s * stride + r] = (float)sum_of_codes(codes, s, group) * scales[r];
    }
    for (int64_t behind = n; behind < stride; behind++) {
      memset((uint8_t*)words + 32 * behind, 0, 32);
      memset((uint8_t*)words + 32 * (stride + behind), 0, 32);
      scales[behind] = 0;
      for (int64_t s = 0; s < 32 / group; s++) sums[s * stride + behind] = 0;
    }
  }
}

// ---- weights ----------------------------------------------------------------------------------------

// The codes of 32 columns of a panel, one signed byte each.
constexpr int64_t kTileGroupBytes = 8 * kPanelLine;

// Codes are made ready this many groups before they are multiplied: a tile cannot be loaded from stores under way.
constexpr int64_t kGroupsAhead = 2;
constexpr int64_t kReadyGroups = 4;  // that are kept, where they are needed once

constexpr int64_t kXGroupsAhead = 4;  // that x is prefetched

// Of a few panels, while all rows meet them: they stay in the second-level cache.
constexpr int64_t kReadyBytes = 512 << 10;

// Panels that a block of rows works on at once.
constexpr int panels_per_block(int64_t rows) { return rows <= 8 ? 2 : 1; }

// How many panels are kept ready, and how many groups of each.
struct Ready {
  int64_t panels, groups;
};

constexpr Ready ready_for(int64_t rows, int64_t k) {
  if (rows <= kTileRows) return {2, kReadyGroups};
  const int64_t groups = k / 32, pairs = kReadyBytes / (2 * groups * kTileGroupBytes);
  return {pairs > 1 ? 2 * pairs : 2, groups};
}

int64_t scratch_bytes(int64_t rows, int64_t k) {
  if (!uses_tiles(rows)) return 0;
  const Ready ready = ready_for(rows, k);
  return ready.panels * ready.groups * kTileGroupBytes;
}

// The matrix that moves bits [from, from + bits) of a byte to `to`; with the sign, the top one goes to all bits above
// it too.
constexpr uint64_t bit_matrix(int from, int bits, int to, bool has_sign) {
  uint64_t matrix = 0;
  for (int i = to; i < (has_sign ? 8 : to + bits); i++) {
    const int source = i < to + bits ? from + i - to : from + bits - 1;
    matrix |= (uint64_t)1 << (8 * (7 - i) + source);
  }
  return matrix;
}

// Bits [kFrom, kFrom + kBits) of each byte, moved to kTo; with the sign, less what the top one is worth: an integer
// around 0.
template <int kFrom, int kBits, int kTo, bool kHasSign>
HOGWILD_INLINE __m512i take_bits(BitVec v) {
  constexpr int kTop = 1 << (kTo + kBits - 1);
  if constexpr (kFrom == kTo) {
    const __m512i bits = (__m512i)move_bits<kFrom, kBits, kTo>(v);
    return kHasSign ? _mm512_sub_epi8(bits, _mm512_set1_epi8((char)kTop)) : bits;
  }
  // The top bit and its copies are flipped.
  constexpr int kFlipped = kHasSign ? 0x100 - kTop : 0;
  return _mm512_gf2p8affine_epi64_epi8((__m512i)v, _mm512_set1_epi64((int64_t)bit_matrix(kFrom, kBits, kTo, kHasSign)),
                                       kFlipped);
}

// Quad J of the codes, less their zero.
template <typename F, int J>
HOGWILD_INLINE __m512i signed_quad(const typename F::Codes& codes, const uint8_t* table) {
  using Codes = typename F::Codes;
  constexpr CodeInfo kInfo = F::kInfo;
  if constexpr (kInfo.bits == 8) return (__m512i)(codes.template line<J>() ^ bytes_of(0x80));
  constexpr bool kHasSign = kInfo.values == CodeValues::kItself && kInfo.zero != 0;
  static_assert(!kHasSign || kInfo.zero == 1 << (kInfo.bits - 1));
  __m512i quad = _mm512_setzero_si512();
  if constexpr (Codes::kNibbles > 0) {
    constexpr int kFrom = J < 4 ? 0 : 4;
    constexpr bool kIsTop = kHasSign && kInfo.bits == 4;
    quad = take_bits<kFrom, 4, 0, kIsTop>(codes.template line<J % 4>());
  }
  if constexpr (Codes::kTwoBits > 0) {
    constexpr bool kIsTop = kHasSign && kInfo.bits % 2 == 0;
    quad |= take_bits<2 * (J % 4), 2, Codes::kTwoBitsAt, kIsTop>(codes.template line<Codes::kNibbles + J / 4>());
  }
  if constexpr (kInfo.bits % 2 == 1) {
    quad |= take_bits<J, 1, Codes::kLastBitAt, kHasSign>(codes.template line<Codes::kNibbles + Codes::kTwoBits>());
  }
  return kInfo.values == CodeValues::kItself ? quad : (__m512i)look_up(table, (BitVec)quad);
}

template <typename F, int J>
HOGWILD_INLINE void ready_quads(const typename F::Codes& codes, const uint8_t* table, uint8_t* to) {
  if constexpr (J < 8) {
    _mm512_store_si512(to + J * kPanelLine, signed_quad<F, J>(codes, table));
    ready_quads<F, J + 1>(codes, table, to);
  }
}

// N panels, read from the first group to the last.
template <typename F, int N>
struct TilePanels {
  const uint8_t* table;
  typename F::Codes codes[N];
  typename F::Scales scales[N];
  uint8_t* ready;  // [N][ready_groups][kTileGroupBytes]
  int64_t ready_groups;
  int64_t ready_at = 0;
  const uint8_t* far;  // prefetched next

  // `first` and those behind it of a slice of `panels`; those behind its end are its last one.
  HOGWILD_INLINE TilePanels(const QuantSlice& slice, const uint8_t* table, int64_t first, int64_t panels,
                            uint8_t* ready, int64_t ready_groups)
      : table(table), ready(ready), ready_groups(ready_groups) {
    const int64_t size = panel_bytes(F::kInfo, slice.k);
    for (int n = 0; n < N; n++) {
      const int64_t panel = first + n < panels ? first + n : panels - 1;
      scales[n].from = (const uint8_t*)slice.panels + panel * size;
      scales[n].lane = 0;
      codes[n].from = scales[n].from + panel_codes_at(F::kInfo, slice.k);
    }
    far = scales[0].from + N * size;
  }

  HOGWILD_INLINE void make_ready() {
    for (int n = 0; n < N; n++) {
      ready_quads<F, 0>(codes[n], table, ready + (n * ready_groups + ready_at) * kTileGroupBytes);
      codes[n].from += F::Codes::kLines * kPanelLine;
    }
    if (++ready_at == ready_groups) ready_at = 0;
  }
};

// ---- products ---------------------------------------------------------------------------------------

// Parts take turns: tiles 0 and 1 hold the sums of one turn, 2 and 3 those of the other, of a panel each or of high and
// low bytes; 4 and 5 are of x, 6 and 7 of panels.
void shape_tiles(int64_t rows, int64_t group) {
  TileShapes shapes;
  memset(&shapes, 0, sizeof shapes);
  shapes.palette = 1;
  for (int i = 0; i < 2; i++) {
    shapes.rows[i] = shapes.rows[2 + i] = shapes.rows[4 + i] = (uint8_t)(rows <= 8 ? 2 * rows : rows);
    shapes.row_bytes[i] = shapes.row_bytes[2 + i] = kTileRowBytes;
    shapes.row_bytes[4 + i] = (uint8_t)group;
    shapes.rows[6 + i] = (uint8_t)(group / 4);
    shapes.row_bytes[6 + i] = kPanelLine;
  }
  shape_tiles(shapes);
}

// Products of a part's high and low bytes with its codes, into the tiles of a turn. (Each tile is written out: its
// number must be a literal.)
template <int kTurn, int R, int N>
HOGWILD_INLINE void multiply_part(const uint8_t* x, const uint8_t* codes, int64_t panel_stride) {
  static_assert(N == panels_per_block(R));
  if constexpr (kTurn == 0) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (N == 2) {
      _tile_loadd(4, x, 32);
      _tile_loadd(6, codes, kPanelLine);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(7, codes + panel_stride, kPanelLine);
      _tile_dpbssd(1, 4, 7);
    } else {
      _tile_loadd(6, codes, kPanelLine);
      _tile_loadd(4, x, 32);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(5, x + 32 * R, 32);
      _tile_dpbssd(1, 5, 6);
    }
  } else {
    _tile_zero(2);
    _tile_zero(3);
    if constexpr (N == 2) {
      _tile_loadd(5, x, 32);
      _tile_loadd(6, codes, kPanelLine);
      _tile_dpbssd(2, 5, 6);
      _tile_loadd(7, codes + panel_stride, kPanelLine);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_loadd(7, codes, kPanelLine);
      _tile_loadd(4, x, 32);
      _tile_dpbssd(2, 4, 7);
      _tile_loadd(5, x + 32 * R, 32);
      _tile_dpbssd(3, 5, 7);
    }
  }
}

// The sums in the tiles of a turn, [N][2][R][16].
template <int kTurn, int R, int N>
HOGWILD_INLINE void store_part(int32_t* dots) {
  constexpr int64_t kSecond = N * R * kPanelOutputs;
  if constexpr (kTurn == 0) {
    _tile_stored(0, dots, kTileRowBytes);
    _tile_stored(1, dots + kSecond, kTileRowBytes);
  } else {
    _tile_stored(2, dots, kTileRowBytes);
    _tile_stored(3, dots + kSecond, kTileRowBytes);
  }
}

// Each byte goes to the next higher one.
HOGWILD_INLINE IntVec times_256(IntVec v) {
  const __m512i bytes = _mm512_set4_epi32(0x0e0d0c80, 0x0a090880, 0x06050480, 0x02010080);
  return (IntVec)_mm512_shuffle_epi8((__m512i)v, bytes);
}

// One of the two turns, as a type.
template <int kIndex>
struct Turn {
  static constexpr int kValue = kIndex;
};

// R rows, `rows` of them there, of N panels, the first of which has output `first`. Codes are made ready where they are
// new.
template <typename F, int R, int N>
void multiply_tiles(const QuantSlice& slice, int64_t row, int64_t rows, TilePanels<F, N> panels, int64_t first,
                    bool is_new) {
  constexpr int kParts = 32 / F::kDot;  // of a group of 32 columns
  constexpr int64_t kStep = F::Scales::kSuperColumns > 0 ? F::Scales::kSuperColumns / 32 : 1;
  constexpr int64_t kXBytes = R * tiled_words(F::kDot) * 4;
  const int64_t groups = slice.k / 32, parts = groups * kParts;
  const int64_t panel_stride = panels.ready_groups * kTileGroupBytes;
  const uint8_t* x = (const uint8_t*)slice.x + row * groups * tiled_words(F::kDot) * 4;  // of the group finished next
  const uint8_t* next_x = x;                                                             // of the part multiplied next
  const uint8_t* next_codes = panels.ready;
  const uint8_t* const end_of_codes = panels.ready + panel_stride;
  alignas(64) int32_t dots[2][N * 2 * R * kPanelOutputs];
  Vec sums[R][N] = {};

  const auto multiply = [&](auto turn) __attribute__((always_inline)) {
    constexpr int kTurn = decltype(turn)::kValue;
    multiply_part<kTurn, R, N>(next_x, next_codes, panel_stride);
    next_x += kParts == 1 ? kXBytes : kTurn == 0 ? F::kDot : kXBytes - F::kDot;
    next_codes += kTileGroupBytes / kParts;
    if (next_codes == end_of_codes) next_codes = panels.ready;
  };
  // While the tiles of one part are multiplied, those of the part before are stored, and the sums of the one before
  // that are finished: nothing waits for what has just begun.
  const auto step = [&](int64_t part, auto turn) __attribute__((always_inline)) {
    constexpr int kTurn = decltype(turn)::kValue, kOther = 1 - kTurn;
    if (is_new && part % kParts == 0 && part / kParts + kGroupsAhead < groups) panels.make_ready();
    if (part + 1 < parts) multiply(Turn<kOther>());
    if (part < parts) store_part<kTurn, R, N>(dots[kTurn]);
    if (part == 0) return;
    const int64_t before = part - 1;
    constexpr int64_t s = kParts == 1 ? 0 : kOther;  // of the part before, in its group
    if constexpr (F::Scales::kSuperColumns > 0) {
      if (before % (kStep * kParts) == 0) {
        for (int n = 0; n < N; n++) panels.scales[n].begin_super(before / kParts);
      }
    }
    // x of few rows stays in the nearest cache, but for what weights took the place of.
    if (R <= 8 && s == 0) {
      for (int64_t at = 0; at < kXBytes; at += kPanelLine) prefetch(x + kXGroupsAhead * kXBytes + at);
    }
    const float* scales = (const float*)x + 16 * R;
#pragma GCC unroll 2
    for (int n = 0; n < N; n++) {
      const int32_t* high = dots[kOther] + n * 2 * R * kPanelOutputs;
      const int32_t* low = high + R * kPanelOutputs;
      const Vec d = panels.scales[n].d(before);
      Vec m = {};
      if constexpr (F::Scales::kHasMin) m = panels.scales[n].m(before);
      // Few at a time: more would wait for each other, and everything for them.
      constexpr int64_t kLines = lines_per_group(F::kInfo);
      for (int64_t line = kLines * s / kParts; line < kLines * (s + 1) / kParts; line++) {
        prefetch_far(panels.far);
        panels.far += is_new ? kPanelLine : 0;
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const IntVec dot = times_256(load(high + r * kPanelOutputs)) + load(low + r * kPanelOutputs);
        sums[r][n] = fma(to_f32(dot) * scales[r], d, sums[r][n]);
        if constexpr (F::Scales::kHasMin) sums[r][n] = fma(m, broadcast(scales[(1 + s) * R + r]), sums[r][n]);
      }
    }
    if (s + 1 == kParts) x += kXBytes;
  };

  if (is_new) {
    for (int64_t i = 0; i < kGroupsAhead && i < groups; i++) panels.make_ready();
  }
  compiler_barrier();
  multiply(Turn<0>());
  int64_t part = 0;
  for (; part < parts; part += 2) {
    step(part, Turn<0>());
    step(part + 1, Turn<1>());
  }
  if (part == parts) step(part, Turn<0>());
#pragma GCC unroll 2
  for (int n = 0; n < N; n++) {
    Vec all[R];  // (in memory; `sums` are in registers)
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) all[r] = sums[r][n];
    put_outputs(slice, first + n * kPanelOutputs, row, rows, all);
  }
}

// Panels [first, last) of the slice, with `padded` rows.
template <typename F, int R>
void multiply_panels(const QuantSlice& slice, int64_t row, int64_t rows, int64_t first, int64_t last,
                     const uint8_t* table, Ready ready, bool is_new) {
  constexpr int N = panels_per_block(R);
  const int64_t panels = panel_count(slice.end - slice.begin);
  uint8_t* to = (uint8_t*)slice.scratch;
  for (int64_t panel = first; panel < last; panel += N, to += N * ready.groups * kTileGroupBytes) {
    multiply_tiles<F, R, N>(slice, row, rows, TilePanels<F, N>(slice, table, panel, panels, to, ready.groups),
                            slice.begin + panel * kPanelOutputs, is_new);
  }
}

template <typename F>
void quant_matmul_tiles(const QuantSlice& slice) {
  const int64_t panels = panel_count(slice.end - slice.begin);
  const Ready ready = ready_for(slice.rows, slice.k);
  uint8_t table[16];
  F::make_table(table, 0);
  int64_t shape = 0;
  for (int64_t first = 0; first < panels; first += ready.panels) {
    const int64_t last = first + ready.panels < panels ? first + ready.panels : panels;
    for (int64_t row = 0; row < slice.rows; row += kTileRows) {
      const int64_t rows = slice.rows - row < kTileRows ? slice.rows - row : kTileRows;
      const int64_t padded = padded_rows(rows);
      if (shape != padded) shape_tiles(padded, F::kDot);
      shape = padded;
      const bool is_new = row == 0;
      switch (padded) {
        case 4:
          multiply_panels<F, 4>(slice, row, rows, first, last, table, ready, is_new);
          break;
        case 8:
          multiply_panels<F, 8>(slice, row, rows, first, last, table, ready, is_new);
          break;
        case 12:
          multiply_panels<F, 12>(slice, row, rows, first, last, table, ready, is_new);
          break;
        case 16:
          multiply_panels<F, 16>(slice, row, rows, first, last, table, ready, is_new);
          break;
      }
    }
  }
  _tile_release();
}

}  // namespace
}  // namespace hogwild
