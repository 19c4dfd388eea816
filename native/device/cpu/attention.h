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

// What becomes of a product's sums, row r and a vector of columns from `col` on. c = sum ...
struct SetSums {
  float* const* c;

  static HOGWILD_INLINE Vec first(int64_t, int64_t) { return Vec{}; }
  HOGWILD_INLINE void put(int64_t r, int64_t col, Vec sum) const { store(c[r] + col, sum); }
  HOGWILD_INLINE SetSums from_row(int64_t r) const { return {c + r}; }
};

// ... c += sum, as one more link of each sum's chain ...
struct AddSums {
  float* const* c;

  HOGWILD_INLINE Vec first(int64_t r, int64_t col) const { return load(c[r] + col); }
  HOGWILD_INLINE void put(int64_t r, int64_t col, Vec sum) const { store(c[r] + col, sum); }
  HOGWILD_INLINE AddSums from_row(int64_t r) const { return {c + r}; }
};

// ... and of sums of integers, which are exact: c = sum * factors[r] * scales[col] ...
struct SetScaledSums {
  float* const* c;
  const float* factors;
  const float* scales;

  static HOGWILD_INLINE PairSums first(int64_t, int64_t) { return PairSums{}; }
  HOGWILD_INLINE void put(int64_t r, int64_t col, PairSums sum) const {
    store(c[r] + col, to_f32(total(sum)) * (load(scales + col) * factors[r]));
  }
  HOGWILD_INLINE SetScaledSums from_row(int64_t r) const { return {c + r, factors + r, scales}; }
};

// ... or c += sum * factors[r].
struct AddScaledSums {
  float* const* c;
  const float* factors;

  static HOGWILD_INLINE PairSums first(int64_t, int64_t) { return PairSums{}; }
  HOGWILD_INLINE void put(int64_t r, int64_t col, PairSums sum) const {
    store(c[r] + col, fma(to_f32(total(sum)), broadcast(factors[r]), load(c[r] + col)));
  }
  HOGWILD_INLINE AddScaledSums from_row(int64_t r) const { return {c + r, factors + r}; }
};

// The second factor of a product, element (i, col): row after row ...
template <typename Element>
struct InRows {
  const Element* elements;
  int64_t step;  // from one i to the next

  HOGWILD_INLINE const Element* column(int64_t col) const { return elements + col; }
};

// ... or as a page's keys lie, [P / 16, depth, 16], from slot `begin` on.
template <typename Element>
struct InKeyGroups {
  static constexpr int64_t step = kKeyGroup;
  const Element* elements;
  int64_t depth, begin;

  HOGWILD_INLINE const Element* column(int64_t col) const {
    const int64_t slot = begin + col;
    return elements + slot / kKeyGroup * depth * kKeyGroup + slot % kKeyGroup;
  }
};

// Sums of a[r][i] * b[i][j] over i, ascending, for j < cols. Every element is one chain of fma's, so the shape of the
// block does not show in the result. a and b: floats, where b may be of another plain type, or pairs of bf16 or of
// integers, of which each stands for two of the terms.
template <int R, int J, typename A, typename B, typename Sums>
HOGWILD_INLINE void product_block(const A* const* a, const B& b, const Sums& sums, int64_t n, int64_t col,
                                  Prefetch& soon) {
  decltype(b.column(0)) columns[J];
  for (int j = 0; j < J; j++) columns[j] = b.column(col + j * kLanes);
  decltype(sums.first(0, 0)) acc[R][J];
  for (int r = 0; r < R; r++) {
    for (int j = 0; j < J; j++) acc[r][j] = sums.first(r, col + j * kLanes);
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
      const auto bs = load(columns[j] + i * b.step);
      for (int r = 0; r < R; r++) acc[r][j] = fma(as[r], bs, acc[r][j]);
    }
  }
  soon.first = first;
  soon.second = second;
  for (int r = 0; r < R; r++) {
    for (int j = 0; j < J; j++) sums.put(r, col + j * kLanes, acc[r][j]);
  }
}

template <int R, typename A, typename B, typename Sums>
void product_rows(const A* const* a, const B& b, const Sums& sums, int64_t n, int64_t cols, Prefetch& soon) {
  constexpr int J = R == 1 ? 8 : 4;  // enough independent fma's to hide their latency
  int64_t col = 0;
  for (; col + J * kLanes <= cols; col += J * kLanes) product_block<R, J>(a, b, sums, n, col, soon);
  if constexpr (J == 8) {
    for (; col + 4 * kLanes <= cols; col += 4 * kLanes) product_block<R, 4>(a, b, sums, n, col, soon);
  }
  for (; col + 2 * kLanes <= cols; col += 2 * kLanes) product_block<R, 2>(a, b, sums, n, col, soon);
  for (; col < cols; col += kLanes) product_block<R, 1>(a, b, sums, n, col, soon);
}

// `rows` <= kSpanRowBlock
template <typename A, typename B, typename Sums>
HOGWILD_INLINE void product(int64_t rows, const A* const* a, const B& b, Sums sums, int64_t n, int64_t cols,
                            Prefetch& soon) {
  if constexpr (kSpanRowBlock == 6) {
    if (rows == 6) return product_rows<6>(a, b, sums, n, cols, soon);
    if (rows == 4) return product_rows<4>(a, b, sums, n, cols, soon);
  }
  static_assert(kSpanRowBlock == 3 || kSpanRowBlock == 6);
  for (; rows >= 3; rows -= 3, a += 3, sums = sums.from_row(3)) {
    product_rows<3>(a, b, sums, n, cols, soon);
  }
  if (rows == 2) product_rows<2>(a, b, sums, n, cols, soon);
  if (rows == 1) product_rows<1>(a, b, sums, n, cols, soon);
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

// The same of pairs of codes to pairs of 16-bit integers; cols and strides are in pairs.
HOGWILD_INLINE void stage(const Int8Pair* from, int64_t rows, int64_t cols, int64_t stride, Int16Pair* to,
                          int64_t to_stride) {
  for (int64_t r = 0; r < rows; r++, from += stride, to += to_stride) {
    int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) store(to + c, load(from + c));
    if (c < cols) {
      Int8Pair padded[kLanes] = {};
      memcpy(padded, from + c, (cols - c) * sizeof(Int8Pair));
      store(to + c, load(padded));
    }
  }
}

// Rounds [begin, end) of a row, whole vectors, to 16-bit integers in place: element i becomes half i of the memory, and
// is an integer, at most `greatest`, times the factor that is returned. Where one element is not finite the factor is
// NaN, where all are next to nothing it is 0.
HOGWILD_INLINE float pack_integers(float* row, int64_t begin, int64_t end, float greatest) {
  BitVec largest = {};  // of |x|, as bits: they ascend with magnitude, and NaN's are the greatest
  for (int64_t i = begin; i < end; i += kLanes) {
    const BitVec bits = (BitVec)load(row + i) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  const float magnitude = magnitude_of(max_lane(largest));
  const bool is_finite = magnitude < INFINITY;
  if (!is_finite || magnitude < kLeastMagnitude) {
    memset((Int16Pair*)row + begin / 2, 0, (end - begin) / 2 * sizeof(Int16Pair));
    return is_finite ? 0 : NAN;
  }
  const float inverse = greatest / magnitude;
  for (int64_t i = begin; i < end; i += kLanes) {
    store_integers((Int16Pair*)row + i / 2, load(row + i) * inverse);
  }
  return magnitude / greatest;
}

// One row of a block, on one page: it sees the keys [begin, end).
struct BlockRow {
  float* scores;  // [P], whole vectors of them valid
  float* state;
  int64_t begin;
  int64_t end;
  float temperature;
  float bias;

  // Whole vectors around what it sees.
  int64_t first_lane() const { return begin / kLanes * kLanes; }
  int64_t end_lane() const { return (end + kLanes - 1) / kLanes * kLanes; }
};

// Turns the scores of a block of rows into weights exp(cap(score) / temperature + bias - maximum) and brings the rows'
// states to the new maximum. The other lanes up to whole vectors become exact zeros: keys that a row must not
// see. The rows go through each pass together, so that the latency of one hides behind the others.
HOGWILD_INLINE void softmax_update(const BlockRow* rows, int64_t n, float softcap, int64_t value_cols) {
  float base[kSpanRowBlock];
  for (int64_t r = 0; r < n; r++) {
    const BlockRow& row = rows[r];
    const int64_t first = row.first_lane(), last = row.end_lane();
    if (softcap != 0) {
      const float inverse = 1 / softcap;
      for (int64_t i = first; i < last; i += kLanes) {
        store(row.scores + i, tanh(load(row.scores + i) * inverse) * softcap);
      }
    }
    if (row.temperature != 1) {
      for (int64_t i = first; i < last; i += kLanes) store(row.scores + i, load(row.scores + i) / row.temperature);
    }
    for (int64_t i = first; i < row.begin; i++) row.scores[i] = -INFINITY;
    for (int64_t i = row.end; i < last; i++) row.scores[i] = -INFINITY;
    Vec best = broadcast(-INFINITY);
    for (int64_t i = first; i < last; i += kLanes) best = max(load(row.scores + i), best);
    const float page_max = max_lane(best) + row.bias;
    base[r] = page_max > row.state[kStateMax] ? page_max : row.state[kStateMax];
  }
  Vec totals[(kSpanRowBlock + 3) / 4 * 4];
  for (int64_t r = 0; r < n; r++) {
    const BlockRow& row = rows[r];
    const float old_max = row.state[kStateMax], new_max = base[r];
    if (new_max == -INFINITY) base[r] = 0;  // nothing seen yet: exp(-inf - 0) = 0
    if (new_max != old_max) {
      row.state[kStateMax] = new_max;
      if (old_max != -INFINITY) {  // else all is 0
        const float factor = exp_not_positive(broadcast(old_max - base[r]))[0];
        row.state[kStateSum] *= factor;
        float* values = row.state + kStateValues;
        for (int64_t d = 0; d < value_cols; d += kLanes) store(values + d, load(values + d) * factor);
      }
    }
    Vec total = {};
    for (int64_t i = row.first_lane(); i < row.end; i += kLanes) {
      const Vec weight = exp_not_positive((load(row.scores + i) + row.bias) - base[r]);
      store(row.scores + i, weight);
      total += weight;
    }
    totals[r] = total;
  }
  for (int64_t r = 0; r < n; r += 4) {
    for (int64_t behind = n; behind < r + 4; behind++) totals[behind] = Vec{};
    float sums[4];
    sum_each(totals[r], totals[r + 1], totals[r + 2], totals[r + 3], sums);
    for (int64_t i = r; i < n && i < r + 4; i++) rows[i].state[kStateSum] += sums[i - r];
  }
}

// Operands [begin, end) of a page's values that a row sees.
struct Run {
  int64_t begin;
  int64_t end;
};

// Calls add(first_row, n_rows, run) so that each row of a block meets its own run in ascending order: what all see at
// once, the rest one by one.
template <typename Add>
HOGWILD_INLINE void for_each_run(const Run* runs, int64_t n, Add&& add) {
  Run common = runs[0];
  for (int64_t r = 1; r < n; r++) {
    common.begin = runs[r].begin > common.begin ? runs[r].begin : common.begin;
    common.end = runs[r].end < common.end ? runs[r].end : common.end;
  }
  if (common.begin >= common.end) common = {kPageSize, kPageSize};
  for (int64_t r = 0; r < n; r++) {
    const Run before = {runs[r].begin, runs[r].end < common.begin ? runs[r].end : common.begin};
    if (before.begin < before.end) add(r, 1, before);
  }
  if (common.begin < common.end) add(0, n, common);
  for (int64_t r = 0; r < n; r++) {
    if (runs[r].end > common.end) add(r, 1, Run{common.end, runs[r].end});
  }
}

// For up to so many rows elements are converted as a product meets them, in each block of rows again: cheaper than to
// store them and read them back.
template <typename T>
constexpr int64_t kDirectRows = kConvertsFast<T> ? 3 * kSpanRowBlock : 0;
template <>
constexpr int64_t kDirectRows<float> = INT64_MAX;

// How the products get at a page's keys: as they lie, or converted to f32 in a tile of scratch memory ...
template <typename Rows>
struct Keys {
  using Element = typename Rows::Element;
  static constexpr int64_t kDepth = 1;  // elements of a row that an operand of the product holds

  const Element* direct;  // [P / 16, D, 16], or null
  const float* staged;    // [P / 16, D, 16]

  // For `rows` rows, of the slots [begin, end), whole vectors.
  HOGWILD_INLINE Keys(const char* head, int64_t head_dim, int64_t rows, int64_t begin, int64_t end, float* tile)
      : direct(rows <= kDirectRows<Element> ? (const Element*)head : nullptr), staged(tile) {
    if (direct) return;
    const int64_t first = begin / kKeyGroup * kKeyGroup, last = (end + kKeyGroup - 1) / kKeyGroup * kKeyGroup;
    stage((const Element*)head + first * head_dim, 1, (last - first) * head_dim, 0, tile + first * head_dim, 0);
  }

  // To what the product takes, in place.
  static HOGWILD_INLINE void pack_query(float*, int64_t) {}

  // scores[r] = <queries[r], key> of `cols` slots from `begin` on.
  HOGWILD_INLINE void score(int64_t n, const float* const* queries, int64_t head_dim, int64_t begin, int64_t cols,
                            float* const* scores, Prefetch& soon) const {
    if (direct) {
      product(n, queries, InKeyGroups<Element>{direct, head_dim, begin}, SetSums{scores}, head_dim, cols, soon);
    } else {
      product(n, queries, InKeyGroups<float>{staged, head_dim, begin}, SetSums{scores}, head_dim, cols, soon);
    }
  }
};

// ... and its values.
template <typename Rows>
struct Values {
  using Element = typename Rows::Element;
  static constexpr int64_t kDepth = 1;

  const Element* direct;  // [P, D], or null
  const float* staged;    // [P, stride]
  int64_t head_dim, cols, stride;

  // For `rows` rows, of the slots [begin, end); `cols`: D in whole vectors.
  HOGWILD_INLINE Values(const char* head, int64_t head_dim, int64_t rows, int64_t begin, int64_t end, int64_t cols,
                        float* tile)
      : direct(rows <= kDirectRows<Element> && cols == head_dim ? (const Element*)head : nullptr),
        staged(tile),
        head_dim(head_dim),
        cols(cols),
        stride(padded_head_dim(head_dim)) {
    if (direct) return;
    stage((const Element*)head + begin * head_dim, end - begin, head_dim, head_dim, tile + begin * stride, stride);
  }

  // out[r] += sum of weights[r][i] * value i over the keys [rows[r].begin, rows[r].end), all within [begin, end). What
  // only some rows see is left to each alone: a value that a row must not see does not touch it, not even as 0 * NaN.
  HOGWILD_INLINE void add(const BlockRow* rows, int64_t n, Prefetch& soon) const {
    Run runs[kSpanRowBlock];
    for (int64_t r = 0; r < n; r++) runs[r] = {rows[r].begin, rows[r].end};
    for_each_run(runs, n, [&](int64_t first_row, int64_t n_rows, Run run) __attribute__((always_inline)) {
      const float* weights[kSpanRowBlock];
      float* out[kSpanRowBlock];
      for (int64_t r = 0; r < n_rows; r++) {
        weights[r] = rows[first_row + r].scores + run.begin;
        out[r] = rows[first_row + r].state + kStateValues;
      }
      const int64_t length = run.end - run.begin;
      if (direct) {
        const InRows<Element> values{direct + run.begin * head_dim, head_dim};
        product(n_rows, weights, values, AddSums{out}, length, cols, soon);
      } else {
        const InRows<float> values{staged + run.begin * stride, stride};
        product(n_rows, weights, values, AddSums{out}, length, cols, soon);
      }
    });
  }
};

#if defined(HOGWILD_HAS_PAIRS)
// Or pairs of bf16 are multiplied as they lie; then the rows' queries and weights are rounded to bf16 too.

// [begin, end) of a row of f32, whole vectors, to bf16 in place: element i becomes half i of the memory.
HOGWILD_INLINE void pack_bf16(float* row, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += kLanes) store((Bf16*)row + i, load(row + i));
}

template <>
struct Keys<KeyRows<Bf16, true>> {
  static constexpr int64_t kDepth = 2;

  const Bf16Pair* operands;  // [P / 16, D / 2, 16]

  HOGWILD_INLINE Keys(const char* head, int64_t, int64_t, int64_t, int64_t, float*) : operands((const Bf16Pair*)head) {}

  static HOGWILD_INLINE void pack_query(float* query, int64_t head_dim) { pack_bf16(query, 0, head_dim); }

  HOGWILD_INLINE void score(int64_t n, const float* const* queries, int64_t head_dim, int64_t begin, int64_t cols,
                            float* const* scores, Prefetch& soon) const {
    const Bf16Pair* packed[kSpanRowBlock];
    for (int64_t r = 0; r < n; r++) packed[r] = (const Bf16Pair*)queries[r];
    const InKeyGroups<Bf16Pair> keys{operands, head_dim / 2, begin};
    product(n, packed, keys, SetSums{scores}, head_dim / 2, cols, soon);
  }
};

template <>
struct Values<ValueRows<Bf16, true>> {
  static constexpr int64_t kDepth = 2;

  const Bf16Pair* values;  // [P / 2, D]
  int64_t head_dim;
  float* tile;

  HOGWILD_INLINE Values(const char* head, int64_t head_dim, int64_t, int64_t, int64_t, int64_t, float* tile)
      : values((const Bf16Pair*)head), head_dim(head_dim), tile(tile) {}

  // A row's pairs are the same and come in the same order whoever else is in the block. Of a pair that it sees half
  // of, the other half counts as 0.
  HOGWILD_INLINE void add(const BlockRow* rows, int64_t n, Prefetch& soon) const {
    for (int64_t r = 0; r < n; r++) pack_bf16(rows[r].scores, rows[r].first_lane(), rows[r].end_lane());
    const auto add_run = [&](int64_t first_row, int64_t n_rows, const Bf16Pair* from,
                             Run run) __attribute__((always_inline)) {
      const Bf16Pair* weights[kSpanRowBlock];
      float* out[kSpanRowBlock];
      for (int64_t r = 0; r < n_rows; r++) {
        weights[r] = (const Bf16Pair*)rows[first_row + r].scores + run.begin;
        out[r] = rows[first_row + r].state + kStateValues;
      }
      product(n_rows, weights, InRows<Bf16Pair>{from, head_dim}, AddSums{out}, run.end - run.begin, head_dim, soon);
    };
    const auto add_half = [&](int64_t row, int64_t pair, uint32_t mask) __attribute__((always_inline)) {
      Bf16Pair* half = (Bf16Pair*)tile;
      for (int64_t d = 0; d < head_dim; d += kLanes) store(half + d, load(values + pair * head_dim + d) & mask);
      add_run(row, 1, half, {pair, pair + 1});
    };
    Run runs[kSpanRowBlock];
    for (int64_t r = 0; r < n; r++) {
      runs[r] = {(rows[r].begin + 1) / 2, rows[r].end / 2};
      if (rows[r].begin % 2 == 1) add_half(r, rows[r].begin / 2, 0xffff0000u);
    }
    for_each_run(runs, n, [&](int64_t first_row, int64_t n_rows, Run run) __attribute__((always_inline)) {
      add_run(first_row, n_rows, values + run.begin * head_dim, run);
    });
    for (int64_t r = 0; r < n; r++) {
      if (rows[r].end % 2 == 1) add_half(r, rows[r].end / 2, 0x0000ffffu);
    }
  }
};
#endif

// Or codes of int8, widened to 16 bits, meet queries and weights that are 16-bit integers times a factor of the row.
// Sums are integers: exact, so that neither their order nor a zero shows in them. A scale multiplies a score, or a
// weight before it is rounded.

template <>
struct Keys<KeyRows<Int8, true>> {
  static constexpr int64_t kDepth = 2;
  static constexpr float kGreatest = 32767;
  static_assert(kMaxHeadDim * 128 * (int64_t)kGreatest < INT32_MAX);

  const Int8Pair* operands;  // [P / 16, D / 2, 16]
  const float* scales;       // [P]

  HOGWILD_INLINE Keys(const char* head, int64_t head_dim, int64_t, int64_t, int64_t, float*)
      : operands((const Int8Pair*)head), scales(scales_of(head, head_dim)) {}

  // The factor comes behind the integers.
  static HOGWILD_INLINE void pack_query(float* query, int64_t head_dim) {
    const int64_t padded = padded_head_dim(head_dim);
    for (int64_t d = head_dim; d < padded; d++) query[d] = 0;
    query[padded / 2] = pack_integers(query, 0, padded, kGreatest);
  }

  HOGWILD_INLINE void score(int64_t n, const float* const* queries, int64_t head_dim, int64_t begin, int64_t cols,
                            float* const* scores, Prefetch& soon) const {
    const Int16Pair* packed[kSpanRowBlock];
    float factors[kSpanRowBlock];
    for (int64_t r = 0; r < n; r++) {
      packed[r] = (const Int16Pair*)queries[r];
      factors[r] = queries[r][padded_head_dim(head_dim) / 2];
    }
    const InKeyGroups<Int8Pair> keys{operands, head_dim / 2, begin};
    product(n, packed, keys, SetScaledSums{scores, factors, scales + begin}, head_dim / 2, cols, soon);
  }
};

// What a row must not see has the weight 0.
template <>
struct Values<ValueRows<Int8, true>> {
  static constexpr int64_t kDepth = 2;
  static constexpr float kGreatest = 32767;
  static_assert(kPageSize * 128 * (int64_t)kGreatest < INT32_MAX);

  const Int8Pair* direct;   // [pairs from the first one, D], or null
  const Int16Pair* staged;  // [pairs from the first one, stride]: rows that are not whole vectors
  const float* scales;      // [P]
  int64_t first_pair, end_pair, head_dim, cols, stride;

  HOGWILD_INLINE Values(const char* head, int64_t head_dim, int64_t, int64_t begin, int64_t end, int64_t cols,
                        float* tile)
      : direct(cols == head_dim ? (const Int8Pair*)head + begin / 2 * head_dim : nullptr),
        staged((const Int16Pair*)tile),
        scales(scales_of(head, head_dim)),
        first_pair(begin / 2),
        end_pair((end + 1) / 2),
        head_dim(head_dim),
        cols(cols),
        stride(padded_head_dim(head_dim)) {
    if (direct) return;
    stage((const Int8Pair*)head + first_pair * head_dim, end_pair - first_pair, head_dim, head_dim, (Int16Pair*)tile,
          stride);
  }

  HOGWILD_INLINE void add(const BlockRow* rows, int64_t n, Prefetch& soon) const {
    const Int16Pair* weights[kSpanRowBlock];
    float* out[kSpanRowBlock];
    float factors[kSpanRowBlock];
    for (int64_t r = 0; r < n; r++) {
      const BlockRow& row = rows[r];
      const int64_t first = row.first_lane(), last = row.end_lane();
      for (int64_t i = first; i < last; i += kLanes) store(row.scores + i, load(row.scores + i) * load(scales + i));
      for (int64_t i = first; i < row.begin; i++) row.scores[i] = 0;  // whatever the scales there are
      for (int64_t i = row.end; i < last; i++) row.scores[i] = 0;
      factors[r] = pack_integers(row.scores, first, last, kGreatest);
      Int16Pair* packed = (Int16Pair*)row.scores;
      for (int64_t pair = first_pair; pair < first / 2; pair++) packed[pair] = {0};
      for (int64_t pair = last / 2; pair < end_pair; pair++) packed[pair] = {0};
      weights[r] = packed + first_pair;
      out[r] = row.state + kStateValues;
    }
    const AddScaledSums sums{out, factors};
    if (direct) {
      product(n, weights, InRows<Int8Pair>{direct, head_dim}, sums, end_pair - first_pair, cols, soon);
    } else {
      product(n, weights, InRows<Int16Pair>{staged, stride}, sums, end_pair - first_pair, cols, soon);
    }
  }
};

// What holds the keys of a head's first `slots`.
HOGWILD_INLINE int64_t key_bytes(const KvShape& shape, int64_t slots) {
  if (slots >= kPageSize) return head_bytes(shape, shape.key_format);
  return (slots + kKeyGroup - 1) / kKeyGroup * kKeyGroup * shape.head_dim * kv_element_bytes(shape.key_format);
}

void attention_span(const AttentionSpan& span) {
  const KvShape& shape = *span.shape;
  const int64_t head_dim = shape.head_dim;
  const int64_t row_stride = padded_head_dim(head_dim);
  const int64_t value_cols = (head_dim + kLanes - 1) / kLanes * kLanes;
  float* queries = span.scratch;                     // [n_rows, row_stride]
  float* tile = queries + span.n_rows * row_stride;  // keys [P / 16, D, 16], then values [P, row_stride]
  float* scores = tile + kPageSize * row_stride;     // [n_rows, P], then weights

  // Slots of the segment that some row sees, counted from its first page.
  int64_t first_slot = INT64_MAX, end_slot = 0;
  with_rows<KeyRows>(shape.key_format, head_dim, [&](auto layout) {
    for (int64_t r = 0; r < span.n_rows; r++) {
      const AttentionRow& row = span.rows[r];
      rotate(span.rope, row.range->rope_row, row.q, head_dim, span.scale, queries + r * row_stride);
      Keys<decltype(layout)>::pack_query(queries + r * row_stride, head_dim);
    }
  });
  for (int64_t r = 0; r < span.n_rows; r++) {
    const AttentionRow& row = span.rows[r];
    row.state[kStateMax] = -INFINITY;
    row.state[kStateSum] = 0;
    memset(row.state + kStateValues, 0, row_stride * sizeof(float));
    const int64_t first = span.first_slot + row.range->first_seen(span.window);
    const int64_t limit = span.first_slot + row.range->limit;
    first_slot = first < first_slot ? first : first_slot;
    end_slot = limit > end_slot ? limit : end_slot;
  }

  const int64_t seen_pages = (end_slot + kPageSize - 1) / kPageSize;
  const int64_t end_page = span.first_page + kSpanPages < seen_pages ? span.first_page + kSpanPages : seen_pages;
  const int64_t first_page = first_slot / kPageSize > span.first_page ? first_slot / kPageSize : span.first_page;
  for (int64_t page = first_page; page < end_page; page++) {
    // The rows that see something of this page, and what they see together.
    const float* q[kMaxSpanRows];
    float* s[kMaxSpanRows];
    BlockRow seeing[kMaxSpanRows];
    int64_t rows = 0, begin = kPageSize, end = 0;
    for (int64_t r = 0; r < span.n_rows; r++) {
      const AttentionRow& row = span.rows[r];
      const int64_t page_slot = page * kPageSize - span.first_slot;  // of slot 0, in tokens of the segment
      const int64_t from = row.range->first_seen(span.window) - page_slot, to = row.range->limit - page_slot;
      if (from >= kPageSize || to <= 0) continue;
      const int64_t row_begin = from > 0 ? from : 0, row_end = to < kPageSize ? to : kPageSize;
      float* row_scores = scores + r * kPageSize;
      q[rows] = queries + r * row_stride;
      seeing[rows] = {row_scores, row.state, row_begin, row_end, row.range->temperature, row.range->bias};
      s[rows] = row_scores;
      begin = row_begin < begin ? row_begin : begin;
      end = row_end > end ? row_end : end;
      rows++;
    }
    if (rows == 0) continue;  // between two windows

    const auto keys_of = [&](int64_t index) __attribute__((always_inline)) {
      return page_head(span.layer->keys, shape, shape.key_format, span.pages[index], span.kv_head);
    };
    const char* page_keys = keys_of(page);
    const char* page_values = page_head(span.layer->values, shape, shape.value_format, span.pages[page], span.kv_head);
    const int64_t first_col = begin / kLanes * kLanes;
    const int64_t key_cols = (end + kLanes - 1) / kLanes * kLanes - first_col;

    // Spread over the products of all rows, each of `n` iterations for every 4 vectors of `cols`.
    const auto spread = [&](const char* from, const char* to, int64_t n, int64_t cols) __attribute__((always_inline)) {
      const int64_t blocks = (rows + kSpanRowBlock - 1) / kSpanRowBlock;
      const int64_t iterations = blocks * n * ((cols + 4 * kLanes - 1) / (4 * kLanes));
      const int64_t half = (to - from) / 2;
      return Prefetch{from, from + half, half / (iterations > 0 ? iterations : 1)};
    };

    for (int64_t r = 0; r < rows; r++) s[r] += first_col;
    with_rows<KeyRows>(shape.key_format, head_dim, [&](auto layout) {
      using PageKeys = Keys<decltype(layout)>;
      const PageKeys keys(page_keys, head_dim, rows, first_col, first_col + key_cols, tile);
      // Of the values those that are seen: a worker's last page is mostly empty.
      const int64_t slot_bytes = head_dim * kv_element_bytes(shape.value_format);
      const int64_t seen = end < kPageSize ? end * slot_bytes : head_bytes(shape, shape.value_format);
      Prefetch soon =
          spread(page_values + begin / 2 * 2 * slot_bytes, page_values + seen, head_dim / PageKeys::kDepth, key_cols);
      for (int64_t r = 0; r < rows; r += kSpanRowBlock) {
        const int64_t n = rows - r < kSpanRowBlock ? rows - r : kSpanRowBlock;
        keys.score(n, q + r, head_dim, first_col, key_cols, s + r, soon);
      }
    });

    const bool is_last = page + 1 == end_page;
    const char* next_keys =
        is_last ? page_head(span.layer->keys, shape, shape.key_format, span.next_page, span.next_kv_head)
                : keys_of(page + 1);
    const int64_t next_slots = is_last ? span.next_slots : end_slot - (page + 1) * kPageSize;
    with_rows<ValueRows>(shape.value_format, head_dim, [&](auto layout) {
      using PageValues = Values<decltype(layout)>;
      const PageValues values(page_values, head_dim, rows, begin, end, value_cols, tile);
      Prefetch soon =
          spread(next_keys, next_keys + key_bytes(shape, next_slots), (end - begin) / PageValues::kDepth, value_cols);
      for (int64_t r = 0; r < rows; r += kSpanRowBlock) {
        const int64_t n = rows - r < kSpanRowBlock ? rows - r : kSpanRowBlock;
        softmax_update(seeing + r, n, span.softcap, value_cols);
        values.add(seeing + r, n, soon);
      }
    });
  }
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

float finish_state(const float* state, int64_t head_dim, float sink, float* out) {
  float max = state[kStateMax], total = state[kStateSum], factor = 1;
  if (sink != -INFINITY) {
    const float seen_max = max;
    max = sink > seen_max ? sink : seen_max;
    factor = exp(broadcast(seen_max - max))[0];
    total = total * factor + exp(broadcast(sink - max))[0];
  }
  const float scale = total == 0 ? 0 : factor / total;
  for (int64_t d = 0; d < head_dim; d++) out[d] = state[kStateValues + d] * scale;
  return total == 0 ? -INFINITY : max + logf(total);
}

}  // namespace
}  // namespace hogwild
