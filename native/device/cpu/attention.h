// Concurrent attention over one span of a segment (see AttentionSpan in kernels.h): the flash-decoding
// form (Dao et al. 2023) of online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867), with every
// page of keys and values read once for all rows and each row's query rotated to meet the segment.
// Part of kernels.cc.
#pragma once

#include <stddef.h>

namespace hogwild {
namespace {

// Rows in a block of the products: with four vectors of columns they fill the registers, 32 of AVX-512, else 16.
constexpr int64_t kSpanRowBlock = kLanes == 16 ? 6 : 3;

// Memory that will be read soon, asked for evenly while products keep the core busy: with two lines in
// each iteration of an inner loop, one in each half, so that the core never waits for a free miss buffer.
struct Prefetch {
  const char* first;
  const char* second;
  int64_t step;  // bytes per iteration
};

// c[r][j] = (kAccumulate ? c[r][j] : 0) + sum_i a[r][i] * b[i][j] for j < cols, i ascending. Every
// element is one chain of fma's, so the shape of the block does not show in the result. Operand: float, or pairs
// of bf16, of which each stands for two of the terms.
template <int R, int J, bool kAccumulate, typename Operand>
HOGWILD_INLINE void product_block(const Operand* const* a, const Operand* b, int64_t b_stride, float* const* c,
                                  int64_t n, int64_t col, Prefetch& soon) {
  Vec acc[R][J];
  for (int r = 0; r < R; r++) {
    for (int j = 0; j < J; j++) acc[r][j] = kAccumulate ? load(c[r] + col + j * kLanes) : Vec{};
  }
  const char* first = soon.first;
  const char* second = soon.second;
  for (int64_t i = 0; i < n; i++) {
    prefetch(first);
    prefetch(second);
    first += soon.step;
    second += soon.step;
    decltype(broadcast(a[0][0])) as[R];
    for (int r = 0; r < R; r++) as[r] = broadcast(a[r][i]);
    for (int j = 0; j < J; j++) {
      const auto bs = load(b + i * b_stride + col + j * kLanes);
      for (int r = 0; r < R; r++) acc[r][j] = fma(as[r], bs, acc[r][j]);
    }
  }
  soon.first = first;
  soon.second = second;
  for (int r = 0; r < R; r++) {
    for (int j = 0; j < J; j++) store(c[r] + col + j * kLanes, acc[r][j]);
  }
}

template <int R, bool kAccumulate, typename Operand>
void product_rows(const Operand* const* a, const Operand* b, int64_t b_stride, float* const* c, int64_t n, int64_t cols,
                  Prefetch& soon) {
  constexpr int J = R == 1 ? 8 : 4;  // enough independent fma's to hide their latency
  int64_t col = 0;
  for (; col + J * kLanes <= cols; col += J * kLanes) product_block<R, J, kAccumulate>(a, b, b_stride, c, n, col, soon);
  for (; col < cols; col += kLanes) product_block<R, 1, kAccumulate>(a, b, b_stride, c, n, col, soon);
}

// `rows` <= kSpanRowBlock
template <bool kAccumulate, typename Operand>
HOGWILD_INLINE void product(int64_t rows, const Operand* const* a, const Operand* b, int64_t b_stride, float* const* c,
                            int64_t n, int64_t cols, Prefetch& soon) {
  if constexpr (kSpanRowBlock == 6) {
    if (rows == 6) return product_rows<6, kAccumulate>(a, b, b_stride, c, n, cols, soon);
    if (rows == 4) return product_rows<4, kAccumulate>(a, b, b_stride, c, n, cols, soon);
  }
  static_assert(kSpanRowBlock == 3 || kSpanRowBlock == 6);
  for (; rows >= 3; rows -= 3, a += 3, c += 3) product_rows<3, kAccumulate>(a, b, b_stride, c, n, cols, soon);
  if (rows == 2) product_rows<2, kAccumulate>(a, b, b_stride, c, n, cols, soon);
  if (rows == 1) product_rows<1, kAccumulate>(a, b, b_stride, c, n, cols, soon);
}

// Converts columns [0, cols) of `rows` rows to f32, filled up with zeros to whole vectors.
template <typename T>
HOGWILD_INLINE void stage(const T* from, int64_t rows, int64_t cols, int64_t stride, float* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; r++, from += stride, to += to_stride) {
    int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) store(to + c, load(from + c));
    if (c < cols) store(to + c, load_partial(from + c, cols - c));
  }
}

// One row of a block, on one page: it sees the keys [begin, end).
struct BlockRow {
  float* scores;  // [P], whole vectors of them valid
  float* state;
  int64_t end;
  float bias;
};

// Turns the scores of a block of rows into weights exp(score + bias - maximum) and brings the rows' states
// to the new maximum. The other lanes up to whole vectors become exact zeros: keys that a row must not
// see. The rows go through each pass together, so that the latency of one hides behind the others.
HOGWILD_INLINE void softmax_update(const BlockRow* rows, int64_t n, int64_t begin, int64_t value_cols) {
  const int64_t first = begin / kLanes * kLanes;
  float base[kSpanRowBlock];
  for (int64_t r = 0; r < n; r++) {
    const BlockRow& row = rows[r];
    const int64_t last = (row.end + kLanes - 1) / kLanes * kLanes;
    for (int64_t i = first; i < begin; i++) row.scores[i] = -INFINITY;
    for (int64_t i = row.end; i < last; i++) row.scores[i] = -INFINITY;
    Vec best = broadcast(-INFINITY);
    for (int64_t i = first; i < last; i += kLanes) best = max(load(row.scores + i), best);
    const float page_max = max_lane(best) + row.bias;
    base[r] = page_max > row.state[kStateMax] ? page_max : row.state[kStateMax];
  }
  Vec totals[(kSpanRowBlock + 3) / 4 * 4] = {};
  for (int64_t r = 0; r < n; r++) {
    const BlockRow& row = rows[r];
    const float old_max = row.state[kStateMax], new_max = base[r];
    if (new_max == -INFINITY) base[r] = 0;  // nothing seen yet: exp(-inf - 0) = 0
    if (new_max != old_max) {
      const float factor = exp_not_positive(broadcast(old_max - base[r]))[0];
      row.state[kStateMax] = new_max;
      row.state[kStateSum] *= factor;
      float* values = row.state + kStateValues;
      for (int64_t d = 0; d < value_cols; d += kLanes) store(values + d, load(values + d) * factor);
    }
    for (int64_t i = first; i < row.end; i += kLanes) {
      const Vec weight = exp_not_positive((load(row.scores + i) + row.bias) - base[r]);
      store(row.scores + i, weight);
      totals[r] += weight;
    }
  }
  for (int64_t r = 0; r < n; r += 4) {
    float sums[4];
    sum_each(totals[r], totals[r + 1], totals[r + 2], totals[r + 3], sums);
    for (int64_t i = r; i < n && i < r + 4; i++) rows[i].state[kStateSum] += sums[i - r];
  }
}

// How the products get at a page: its elements are converted to f32 in a tile of scratch memory ...
template <typename Element, bool kInPairs>
struct Operands {
  using Operand = float;
  static constexpr int64_t kDepth = 1;  // elements of a row that an operand holds

  static HOGWILD_INLINE void pack_row(float*, int64_t, int64_t) {}

  static HOGWILD_INLINE const float* keys(const Element* page, int64_t head_dim, int64_t key_cols,
                                          float* tile) {
    stage(page, head_dim, key_cols, kPageSize, tile, kPageSize);
    return tile;
  }

  // out[r] += sum of weights[r][i] * value i over the keys [begin, rows[r].end). What only some rows see is left
  // to each alone: a value that a row must not see does not touch it, not even as 0 * NaN.
  static HOGWILD_INLINE void add_values(const BlockRow* rows, int64_t n, const Element* page,
                                        int64_t begin, int64_t end, int64_t head_dim, int64_t value_cols, float* tile,
                                        bool is_staged, Prefetch& soon) {
    const int64_t stride = padded_head_dim(head_dim);
    if (!is_staged) stage(page, end, head_dim, head_dim, tile, stride);
    const float* weights[kSpanRowBlock];
    float* out[kSpanRowBlock];
    int64_t common = kPageSize;
    for (int64_t r = 0; r < n; r++) {
      weights[r] = rows[r].scores + begin;
      out[r] = rows[r].state + kStateValues;
      common = rows[r].end < common ? rows[r].end : common;
    }
    product<true>(n, weights, tile + begin * stride, stride, out, common - begin, value_cols, soon);
    for (int64_t r = 0; r < n; r++) {
      if (rows[r].end == common) continue;
      weights[r] = rows[r].scores + common;
      product<true>(1, weights + r, tile + common * stride, stride, out + r, rows[r].end - common, value_cols, soon);
    }
  }
};

#if defined(HOGWILD_HAS_PAIRS)
// ... or multiplied as they lie, in pairs; then the rows' queries and weights are rounded to bf16 too.
template <>
struct Operands<Bf16, true> {
  using Operand = Bf16Pair;
  static constexpr int64_t kDepth = 2;

  // [begin, end) of a row of f32, whole vectors, to bf16 in place: element i becomes half i of the memory.
  static HOGWILD_INLINE void pack_row(float* row, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kLanes) store((Bf16*)row + i, load(row + i));
  }

  static HOGWILD_INLINE const Bf16Pair* keys(const Bf16* page, int64_t, int64_t, float*) {
    return (const Bf16Pair*)page;
  }

  // A row's pairs are the same and come in the same order whoever else is in the block. Of a pair that it sees half
  // of, the other half counts as 0.
  static HOGWILD_INLINE void add_values(const BlockRow* rows, int64_t n, const Bf16* page, int64_t begin, int64_t,
                                        int64_t head_dim, int64_t value_cols, float* tile, bool, Prefetch& soon) {
    const Bf16Pair* values = (const Bf16Pair*)page;
    const Bf16Pair* weights[kSpanRowBlock];
    float* out[kSpanRowBlock];
    int64_t common = kPageSize;
    for (int64_t r = 0; r < n; r++) {
      out[r] = rows[r].state + kStateValues;
      common = rows[r].end < common ? rows[r].end : common;
    }
    const auto add = [&](int64_t first_row, int64_t n_rows, const Bf16Pair* from, int64_t pair,
                         int64_t pairs) __attribute__((always_inline)) {
      for (int64_t r = first_row; r < first_row + n_rows; r++) weights[r] = (const Bf16Pair*)rows[r].scores + pair;
      product<true>(n_rows, weights + first_row, from, head_dim, out + first_row, pairs, value_cols, soon);
    };
    const auto half_of = [&](int64_t pair, uint32_t mask) __attribute__((always_inline)) {
      Bf16Pair* half = (Bf16Pair*)tile;
      for (int64_t d = 0; d < head_dim; d += kLanes) store(half + d, load(values + pair * head_dim + d) & mask);
      return half;
    };
    const int64_t first_pair = (begin + 1) / 2, common_pair = common / 2;
    if (begin % 2 == 1) add(0, n, half_of(begin / 2, 0xffff0000u), begin / 2, 1);
    add(0, n, values + first_pair * head_dim, first_pair, common_pair - first_pair);
    for (int64_t r = 0; r < n; r++) {
      const int64_t end_pair = rows[r].end / 2;
      if (end_pair > common_pair) add(r, 1, values + common_pair * head_dim, common_pair, end_pair - common_pair);
      if (rows[r].end % 2 == 1) add(r, 1, half_of(end_pair, 0x0000ffffu), end_pair, 1);
    }
  }
};
#endif

template <typename T, bool kInPairs>
void attend_span(const AttentionSpan& span) {
  using Page = Operands<T, kInPairs>;
  using Operand = typename Page::Operand;
  const KvShape& shape = *span.shape;
  const int64_t head_dim = shape.head_dim;
  const int64_t row_stride = padded_head_dim(head_dim);
  const int64_t value_cols = (head_dim + kLanes - 1) / kLanes * kLanes;
  const int64_t tile_bytes = kPageSize * head_dim * (int64_t)sizeof(T);
  float* queries = span.scratch;                     // [n_rows, row_stride]
  float* tile = queries + span.n_rows * row_stride;  // keys [D, P], then values [P, row_stride]
  float* scores = tile + kPageSize * row_stride;     // [n_rows, P], then weights

  int64_t last_slot = 0;  // slots of the segment that some row sees, counted from its first page
  for (int64_t r = 0; r < span.n_rows; r++) {
    const AttentionRow& row = span.rows[r];
    rotate(*span.rope, row.range->rope_row, row.q, head_dim, span.scale, queries + r * row_stride);
    Page::pack_row(queries + r * row_stride, 0, head_dim);
    row.state[kStateMax] = -INFINITY;
    row.state[kStateSum] = 0;
    memset(row.state + kStateValues, 0, row_stride * sizeof(float));
    const int64_t limit = span.first_slot + row.range->limit;
    last_slot = limit > last_slot ? limit : last_slot;
  }

  const int64_t seen_pages = (last_slot + kPageSize - 1) / kPageSize;
  const int64_t end_page = span.first_page + kSpanPages < seen_pages ? span.first_page + kSpanPages : seen_pages;
  for (int64_t page = span.first_page; page < end_page; page++) {
    const int64_t begin = page == 0 ? span.first_slot : 0;
    const int64_t left = last_slot - page * kPageSize;
    const int64_t end = left < kPageSize ? left : kPageSize;
    const int64_t key_cols = (end + kLanes - 1) / kLanes * kLanes;
    const T* page_keys =
        (const T*)page_head(span.layer->keys, shape, shape.key_format, span.pages[page], span.kv_head);
    const T* page_values =
        (const T*)page_head(span.layer->values, shape, shape.value_format, span.pages[page], span.kv_head);

    // The rows that see something of this page.
    const Operand* q[kMaxSpanRows];
    float* s[kMaxSpanRows];
    BlockRow seeing[kMaxSpanRows];
    int64_t rows = 0;
    for (int64_t r = 0; r < span.n_rows; r++) {
      const AttentionRow& row = span.rows[r];
      const int64_t visible = span.first_slot + row.range->limit - page * kPageSize;
      if (visible <= begin) continue;
      q[rows] = (const Operand*)(queries + r * row_stride);
      s[rows] = scores + r * kPageSize;
      seeing[rows] = {s[rows], row.state, visible < kPageSize ? visible : kPageSize, row.range->bias};
      rows++;
    }

    // Spread over the products of all rows, each of `n` iterations for every 4 vectors of `cols`.
    const auto prefetch_tile = [&](const T* from, int64_t n, int64_t cols) __attribute__((always_inline)) {
      const int64_t blocks = (rows + kSpanRowBlock - 1) / kSpanRowBlock;
      const int64_t iterations = blocks * n * ((cols + 4 * kLanes - 1) / (4 * kLanes));
      const char* first = (const char*)from;
      return Prefetch{first, first + tile_bytes / 2, tile_bytes / 2 / (iterations > 0 ? iterations : 1)};
    };

    const Operand* keys = Page::keys(page_keys, head_dim, key_cols, tile);
    Prefetch soon = prefetch_tile(page_values, head_dim / Page::kDepth, key_cols);
    for (int64_t r = 0; r < rows; r += kSpanRowBlock) {
      const int64_t n = rows - r < kSpanRowBlock ? rows - r : kSpanRowBlock;
      product<false>(n, q + r, keys, kPageSize, s + r, head_dim / Page::kDepth, key_cols, soon);
    }

    const int64_t next = span.pages[page + 1 < seen_pages ? page + 1 : page];
    soon = prefetch_tile((const T*)page_head(span.layer->keys, shape, shape.key_format, next, span.kv_head),
                         (end - begin) / Page::kDepth, value_cols);
    for (int64_t r = 0; r < rows; r += kSpanRowBlock) {
      const int64_t n = rows - r < kSpanRowBlock ? rows - r : kSpanRowBlock;
      const BlockRow* block = seeing + r;
      softmax_update(block, n, begin, value_cols);
      for (int64_t i = 0; i < n; i++) {
        Page::pack_row(block[i].scores, begin / kLanes * kLanes, (block[i].end + kLanes - 1) / kLanes * kLanes);
      }
      Page::add_values(block, n, page_values, begin, end, head_dim, value_cols, tile, r > 0, soon);
    }
  }
}

void attention_span(const AttentionSpan& span) {
  with_rows<KeyRows>(span.shape->key_format, span.shape->head_dim, [&](auto rows) {
    using Rows = decltype(rows);
    if constexpr (!kIsInt8<typename Rows::Element>) attend_span<typename Rows::Element, Rows::kPaired>(span);
  });
}

void merge_state(float* into, const float* state, int64_t head_dim) {
  const float a = into[kStateMax], b = state[kStateMax];
  const float new_max = a > b ? a : b;
  const float base = new_max == -INFINITY ? 0 : new_max;
  const float a_factor = exp(broadcast(a - base))[0], b_factor = exp(broadcast(b - base))[0];
  into[kStateMax] = new_max;
  into[kStateSum] = into[kStateSum] * a_factor + state[kStateSum] * b_factor;
  for (int64_t d = kStateValues; d < kStateValues + padded_head_dim(head_dim); d += kLanes) {
    store(into + d, load(into + d) * a_factor + load(state + d) * b_factor);
  }
}

float finish_state(const float* state, int64_t head_dim, float* out) {
  const float total = state[kStateSum];
  const float scale = total == 0 ? 0 : 1 / total;
  for (int64_t d = 0; d < head_dim; d++) out[d] = state[kStateValues + d] * scale;
  return total == 0 ? -INFINITY : state[kStateMax] + logf(total);
}

}  // namespace
}  // namespace hogwild
