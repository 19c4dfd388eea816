// y = x W^T for W in panels of any quantised format. Part of quant_kernels.cc.
#pragma once

namespace hogwild {
namespace {

constexpr int kPanelVectors = kPanelOutputs / kLanes;

// ---- packing x --------------------------------------------------------------------------------------

// Columns [first, first + 32) of a row, in the order of `columns`, as integers; returns their scale.
HOGWILD_INLINE float round_group(const float* x, const int32_t* columns, int64_t first, int32_t* codes) {
  float ordered[32];
  if (columns) {
    for (int j = 0; j < 32; j++) ordered[j] = x[columns[first + j]];
  }
  const float* from = columns ? ordered : x + first;
  constexpr int kVectors = 32 / kLanes;
  Vec values[kVectors];
  IntVec magnitudes = {};  // of f32, which order as integers do, infinity and NaN last
  for (int i = 0; i < kVectors; i++) {
    values[i] = load(from + i * kLanes);
    const IntVec bits = (IntVec)values[i] & 0x7fffffff;
    magnitudes = bits > magnitudes ? bits : magnitudes;
  }
  const uint32_t largest = max_lane((BitVec)magnitudes);
  const float magnitude = magnitude_of(largest);

  const bool is_finite = largest < 0x7f800000;
  const bool is_zero = !is_finite || magnitude < 0x1p-100f;
  const float to_codes = is_zero ? 0 : (float)kMaxXCode / magnitude;
  for (int i = 0; i < kVectors; i++) {
    const Vec round = broadcast(0x1.8p23f);  // adding it leaves the nearest integer, ties to even, in the last bits
    const Vec rounded = is_zero ? round : values[i] * to_codes + round;
    store(codes + i * kLanes, (IntVec)rounded - (IntVec)round);
  }
  return !is_finite ? NAN : is_zero ? 0 : magnitude / (float)kMaxXCode;
}

// Of the s-th group.
HOGWILD_INLINE int32_t sum_of_codes(const int32_t* codes, int64_t s, int64_t group) {
  constexpr int kVectors = 16 / kLanes;
  IntVec sums = {};
  for (int64_t i = s * group; i < (s + 1) * group; i += 16) {
    for (int v = 0; v < kVectors; v++) sums += load(codes + i + v * kLanes);
  }
  return sum(sums);
}

// 32 columns of one row; `words` is this row's first word among those of a block of `stride` rows.
HOGWILD_INLINE void pack_group(const int32_t* codes, float scale, int64_t group, int64_t stride, uint32_t* words) {
  uint32_t quads[16];
  pack_quads(codes, quads);
  for (int j = 0; j < 16; j++) words[j * stride] = quads[j];
  words += 16 * stride;
  memcpy(words, &scale, sizeof scale);
  words += stride;
  const int64_t sums = 32 / group;
  for (int64_t s = 0; s < sums; s++) {
    const int32_t sum = sum_of_codes(codes, s, group);
    const float scaled = (float)sum * scale;
    memcpy(words + s * stride, &sum, sizeof sum);
    memcpy(words + (sums + s) * stride, &scaled, sizeof scaled);
  }
}

void pack_x_for_vectors(const float* x, int64_t rows, int64_t k, const int32_t* columns, int64_t group, int64_t begin,
                        int64_t end, void* packed) {
  const int64_t blocks = quant_row_blocks(rows), groups = k / 32;
  const int64_t small = rows / blocks, larger = rows % blocks;  // that many blocks have a row more
  for (int64_t i = begin; i < end; i++) {
    const int64_t block = i / groups, column = i % groups * 32;
    const int64_t stride = small + (block < larger ? 1 : 0);
    const int64_t first = block * small + (block < larger ? block : larger);
    uint32_t* words = (uint32_t*)packed + (first * groups + i % groups * stride) * packed_words(group);
    // One after the other, so that the latencies of all rows hide behind each other.
    int32_t codes[kQuantRows][32];
    float scales[kQuantRows];
    for (int64_t r = 0; r < stride; r++) scales[r] = round_group(x + (first + r) * k, columns, column, codes[r]);
    for (int64_t r = 0; r < stride; r++) pack_group(codes[r], scales[r], group, stride, words + r);
  }
}

// ---- products ---------------------------------------------------------------------------------------

// A format as kernels see it.
template <Format kFormat>
struct Quantised {
  static constexpr CodeInfo kInfo = code_info(kFormat);
  static constexpr int kDot = dot_columns(kInfo);
  using Codes = Lines<kInfo.bits>;
  using Scales = GroupScales<kInfo.scales, kInfo.group>;
  // Tables hold what they are of plus 128, where codes are unsigned.
  static constexpr int kZero = kInfo.values == CodeValues::kItself ? (kSignedCodes && kInfo.bits == 8 ? 0 : kInfo.zero)
                               : kSignedCodes                      ? 0
                                                                   : 128;

  template <int J>
  static HOGWILD_INLINE BitVec quad(const Codes& codes, const uint8_t* table) {
    const BitVec quad = codes.template quad<J>();
    if constexpr (kInfo.values != CodeValues::kItself) return look_up(table, quad);
    if constexpr (kSignedCodes && kInfo.bits == 8) return quad ^ bytes_of(0x80);
    return quad;
  }

  // What of quad J meets the first (0) or second (1) word of x.
  template <int J, int kWord>
  static HOGWILD_INLINE BitVec factor(const Codes& codes, const uint8_t* table) {
    if constexpr (!kMultipliesBytes && kInfo.bits == 4 && kInfo.values == CodeValues::kItself) {
      return codes.template words<J, kWord>();
    } else {
      return DotSum::factor<kWord>(quad<J>(codes, table));
    }
  }

  // Values plus `zero`.
  static HOGWILD_INLINE void make_table(uint8_t* table, int zero) {
    if constexpr (kInfo.values != CodeValues::kItself) {
      const int8_t* values = kInfo.values == CodeValues::kIq4 ? kIq4Values : kE2M1Values;
      for (int i = 0; i < 16; i++) table[i] = (uint8_t)(values[i] + zero);
    }
  }
};

// Products of quad J with the first (0) or second (1) word of each row's x.
template <typename F, int J, int kWord, int R, int N>
HOGWILD_INLINE void add_word(const typename F::Codes (&codes)[N], const uint8_t* table, const uint32_t* x,
                             DotSum (&dots)[R][N]) {
  BitVec factors[N];
  for (int n = 0; n < N; n++) factors[n] = F::template factor<J, kWord>(codes[n], table);
  for (int r = 0; r < R; r++) {
    const BitVec word = broadcast_word(x + (2 * J + kWord) * R + r);
    for (int n = 0; n < N; n++) dots[r][n].template add<kWord>(factors[n], word);
  }
}

// Sums of products of group S's quads, from the I-th on.
template <typename F, int S, int I, int R, int N>
HOGWILD_INLINE void add_quads(const typename F::Codes (&codes)[N], const uint8_t* table, const uint32_t* x,
                              DotSum (&dots)[R][N]) {
  constexpr int kQuads = F::kDot / 4;
  if constexpr (I < kQuads) {
    // Quads j and j + 4, which often lie in one line, one after the other: few lines are in registers then.
    constexpr int J = kQuads == 8 ? I % 2 * 4 + I / 2 : S * kQuads + I;
    add_word<F, J, 0>(codes, table, x, dots);
    add_word<F, J, 1>(codes, table, x, dots);
    add_quads<F, S, I + 1>(codes, table, x, dots);
  }
}

// Part S of 32 columns: all of them, or one of their two groups.
template <typename F, int S, int R, int N>
HOGWILD_INLINE void add_group(int64_t columns32, const typename F::Codes (&codes)[N],
                              const typename F::Scales (&scales)[N], const uint8_t* table, const uint32_t* x,
                              Vec (&sums)[R][N]) {
  constexpr int kGroups = 32 / F::kDot;
  const float* x_scale = (const float*)(x + 16 * R);
  const int32_t* x_codes = (const int32_t*)(x + (17 + S) * R);
  const float* x_sum = (const float*)(x + (17 + kGroups + S) * R);
  DotSum dots[R][N];
  for (int r = 0; r < R; r++) {
    const IntVec start = (IntVec)broadcast_word((const uint32_t*)x_codes + r) * -F::kZero;
    for (int n = 0; n < N; n++) dots[r][n].start(start);
  }
  add_quads<F, S, 0>(codes, table, x, dots);
  const int64_t group = columns32 * kGroups + S;
  for (int n = 0; n < N; n++) {
    const Vec d = scales[n].d(group);
    for (int r = 0; r < R; r++) {
      const Vec dot = __builtin_convertvector(dots[r][n].value(), Vec);
      sums[r][n] = fma(dot * x_scale[r], d, sums[r][n]);
    }
    if constexpr (F::Scales::kHasMin) {
      const Vec m = scales[n].m(group);
      for (int r = 0; r < R; r++) sums[r][n] = fma(m, broadcast(x_sum[r]), sums[r][n]);
    }
  }
}

// Writes `rows` sums of a vector of outputs from `first` on.
template <int R>
HOGWILD_INLINE void put_outputs(const QuantSlice& slice, int64_t first, int64_t row, int64_t rows,
                                const Vec (&sums)[R]) {
  const MatmulParams::Output& output = *slice.output;
  const int64_t count = slice.end - first;
  if (count <= 0) return;
  Vec bias = {};
  if (output.bias) bias = count >= kLanes ? load(output.bias + first) : load_partial(output.bias + first, count);
  for (int r = 0; r < R; r++) {
    if (r == rows) break;
    float* y = output.y + (row + r) * output.weight.rows + first;
    const Vec value = output.bias ? sums[r] + bias : sums[r];
    if (count >= kLanes) {
      store(y, output.accumulate ? load(y) + value : value);
    } else {
      store_partial(y, output.accumulate ? load_partial(y, count) + value : value, count);
    }
  }
}

// R rows x N vectors of outputs, beginning with vector `vector` of the slice.
template <typename F, int R, int N>
void quant_block(const QuantSlice& slice, int64_t row, int64_t vector) {
  const int64_t panel_size = panel_bytes(F::kInfo, slice.k), codes_at = panel_codes_at(F::kInfo, slice.k);
  const int64_t last_panel = panel_count(slice.end - slice.begin) - 1;
  const uint32_t* x = (const uint32_t*)slice.x + row * (slice.k / 32) * packed_words(F::kDot);
  uint8_t table[16];
  F::make_table(table, F::kZero);

  // A panel is prefetched from its first line on, scales and codes, while the one before it is worked on.
  constexpr int64_t kLines = lines_per_group(F::kInfo);
  constexpr int64_t kPanels = N < kPanelVectors ? 1 : N / kPanelVectors;
  typename F::Codes codes[N];
  typename F::Scales scales[N];
  const uint8_t* soon[N];
  for (int n = 0; n < N; n++) {
    // Vectors behind the slice read the last panel; nobody writes what they make of it.
    const int64_t wanted = (vector + n) / kPanelVectors, part = (vector + n) % kPanelVectors;
    const uint8_t* panel = (const uint8_t*)slice.panels + (wanted < last_panel ? wanted : last_panel) * panel_size;
    codes[n].from = panel + codes_at + part * (int64_t)sizeof(Vec);
    scales[n].from = panel;
    scales[n].lane = part * kLanes;
    soon[n] = panel + kPanels * panel_size;
  }
  constexpr int64_t kStep = F::Scales::kSuperColumns > 0 ? F::Scales::kSuperColumns / 32 : 1;

  Vec sums[R][N] = {};
  for (int64_t i = 0; i < slice.k / 32; i += kStep) {
    if constexpr (F::Scales::kSuperColumns > 0) {
      for (int n = 0; n < N; n++) scales[n].begin_super(i);
    }
    for (int64_t j = i; j < i + kStep; j++) {
      for (int n = 0; n < N; n++) {
        if ((N >= kPanelVectors ? n : (int)(vector + n)) % kPanelVectors != 0) continue;
        for (int line = 0; line < kLines; line++, soon[n] += kPanelLine) {
          R == 1 ? prefetch(soon[n]) : prefetch_far(soon[n]);
        }
      }
      add_group<F, 0, R, N>(j, codes, scales, table, x, sums);
      if constexpr (F::kDot == 16) add_group<F, 1, R, N>(j, codes, scales, table, x, sums);
      for (int n = 0; n < N; n++) codes[n].from += F::Codes::kLines * kPanelLine;
      x += R * packed_words(F::kDot);
    }
  }

  for (int n = 0; n < N; n++) {
    Vec column[R];
    for (int r = 0; r < R; r++) column[r] = sums[r][n];
    put_outputs(slice, slice.begin + (vector + n) * kLanes, row, R, column);
  }
}

// Vectors of outputs in a block: enough products under way, few enough accumulators for the registers.
constexpr int vectors_per_block(int rows) {
  if (kLanes == 16) return rows == 1 ? 4 : 2;
  if (kLanes == 8) return 2;
  return rows == 1 ? 4 : 2;
}

template <typename F>
void quant_rows(const QuantSlice& slice, int64_t row, int64_t rows, int64_t vector) {
  switch (rows) {
    case 1:
      return quant_block<F, 1, vectors_per_block(1)>(slice, row, vector);
    case 2:
      return quant_block<F, 2, vectors_per_block(2)>(slice, row, vector);
    case 3:
      return quant_block<F, 3, vectors_per_block(3)>(slice, row, vector);
    case 4:
      return quant_block<F, 4, vectors_per_block(4)>(slice, row, vector);
  }
}

template <typename F>
void quant_matmul_vectors(const QuantSlice& slice) {
  const int64_t vectors = (slice.end - slice.begin + kLanes - 1) / kLanes;
  const int64_t blocks = quant_row_blocks(slice.rows);
  const int64_t small = slice.rows / blocks, larger = slice.rows % blocks;
  // The first rows bring a block of weights from memory, the others find it in the cache.
  const int64_t step = vectors_per_block((int)(small + (larger > 0 ? 1 : 0)));
  for (int64_t vector = 0; vector < vectors; vector += step) {
    for (int64_t block = 0, row = 0; block < blocks; block++) {
      const int64_t n = small + (block < larger ? 1 : 0);
      quant_rows<F>(slice, row, n, vector);
      row += n;
    }
  }
}

}  // namespace
}  // namespace hogwild
