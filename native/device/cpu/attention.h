// Concurrent attention over one span of a segment (see AttentionSpan in kernels.h): the flash-decoding
// form (Dao et al. 2023) of online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867), with every
// page of keys and values read once for all rows and each row's query rotated to meet the segment.
// Part of kernels.cc.
#pragma once

#include <stddef.h>

namespace hogwild {
namespace {

// c[r][j] = (kAccumulate ? c[r][j] : 0) + sum_i a[r][i] * b[i][j] for j < cols, i ascending. Every
// element is one chain of fma's, so the shape of the block does not show in the result.
template <int R, int J, bool kAccumulate>
HOGWILD_INLINE void product_block(const float* const* a, const float* b, int64_t b_stride, float* const* c, int64_t n,
                                  int64_t col) {
  Vec acc[R][J];
  for (int r = 0; r < R; r++) {
    for (int j = 0; j < J; j++) acc[r][j] = kAccumulate ? load(c[r] + col + j * kLanes) : Vec{};
  }
  for (int64_t i = 0; i < n; i++) {
    Vec as[R];
    for (int r = 0; r < R; r++) as[r] = broadcast(a[r][i]);
    for (int j = 0; j < J; j++) {
      const Vec bs = load(b + i * b_stride + col + j * kLanes);
      for (int r = 0; r < R; r++) acc[r][j] = fma(as[r], bs, acc[r][j]);
    }
  }
  for (int r = 0; r < R; r++) {
    for (int j = 0; j < J; j++) store(c[r] + col + j * kLanes, acc[r][j]);
  }
}

template <int R, bool kAccumulate>
void product_rows(const float* const* a, const float* b, int64_t b_stride, float* const* c, int64_t n, int64_t cols) {
  constexpr int J = R == 1 ? 8 : 4;  // enough independent fma's to hide their latency
  int64_t col = 0;
  for (; col + J * kLanes <= cols; col += J * kLanes) product_block<R, J, kAccumulate>(a, b, b_stride, c, n, col);
  for (; col < cols; col += kLanes) product_block<R, 1, kAccumulate>(a, b, b_stride, c, n, col);
}

template <bool kAccumulate>
HOGWILD_INLINE void product(int64_t rows, const float* const* a, const float* b, int64_t b_stride, float* const* c,
                            int64_t n, int64_t cols) {
  switch (rows) {
    case 1:
      return product_rows<1, kAccumulate>(a, b, b_stride, c, n, cols);
    case 2:
      return product_rows<2, kAccumulate>(a, b, b_stride, c, n, cols);
    case 3:
      return product_rows<3, kAccumulate>(a, b, b_stride, c, n, cols);
  }
  static_assert(kSpanRowBlock == 3);
}

// Converts columns [0, cols) of `rows` rows to f32, filled up with zeros to whole vectors. Meanwhile
// the same rows at `next` (or null) are asked for from memory.
template <typename T>
HOGWILD_INLINE void stage(const T* from, int64_t rows, int64_t cols, int64_t stride, float* to, int64_t to_stride,
                          const T* next) {
  for (int64_t r = 0; r < rows; r++, from += stride, to += to_stride) {
    if (next) {
      for (int64_t c = 0; c < stride; c += (int64_t)(64 / sizeof(T))) prefetch(next + r * stride + c);
    }
    int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) store(to + c, load(from + c));
    if (c < cols) store(to + c, load_partial(from + c, cols - c));
  }
}

// Turns one row's scores [begin, end) into weights exp(score - maximum) and brings its state to the
// new maximum. The other lanes up to whole vectors become exact zeros: keys that it must not see.
HOGWILD_INLINE void softmax_update(float* scores, int64_t begin, int64_t end, float bias, float* state,
                                   int64_t value_cols) {
  const int64_t first = begin / kLanes * kLanes;
  const int64_t last = (end + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = first; i < begin; i++) scores[i] = -INFINITY;
  for (int64_t i = end; i < last; i++) scores[i] = -INFINITY;

  Vec best = broadcast(-INFINITY);
  for (int64_t i = first; i < last; i += kLanes) {
    const Vec s = load(scores + i) + bias;
    store(scores + i, s);
    best = max(s, best);
  }
  const float old_max = state[kStateMax];
  const float page_max = max_lane(best);
  const float new_max = page_max > old_max ? page_max : old_max;
  const float base = new_max == -INFINITY ? 0 : new_max;  // nothing seen yet: exp(-inf - 0) = 0

  Vec total = {};
  for (int64_t i = first; i < last; i += kLanes) {
    const Vec weight = exp(load(scores + i) - base);
    store(scores + i, weight);
    total += weight;
  }
  if (new_max != old_max) {
    const float factor = exp(broadcast(old_max - base))[0];
    state[kStateMax] = new_max;
    state[kStateSum] *= factor;
    float* values = state + kStateValues;
    for (int64_t d = 0; d < value_cols; d += kLanes) store(values + d, load(values + d) * factor);
  }
  state[kStateSum] += sum(total);
}

template <typename T>
void attention_span_typed(const AttentionSpan& span) {
  const KvShape& shape = *span.shape;
  const int64_t head_dim = shape.head_dim;
  const int64_t value_stride = padded_head_dim(head_dim);
  const int64_t value_cols = (head_dim + kLanes - 1) / kLanes * kLanes;
  float* queries = span.scratch;
  float* keys = queries + span.n_rows * value_stride;
  float* values = keys + kPageSize * value_stride;
  float* scores = values + kPageSize * value_stride;

  int64_t last_slot = 0;  // slots of the segment that some row sees, counted from its first page
  for (int64_t r = 0; r < span.n_rows; r++) {
    const AttentionRow& row = span.rows[r];
    rotate(*span.rope, row.visit->angle, row.q, head_dim, span.scale, queries + r * value_stride);
    row.state[kStateMax] = -INFINITY;
    row.state[kStateSum] = 0;
    memset(row.state + kStateValues, 0, value_stride * sizeof(float));
    const int64_t limit = span.first_slot + row.visit->limit;
    last_slot = limit > last_slot ? limit : last_slot;
  }

  const int64_t seen_pages = (last_slot + kPageSize - 1) / kPageSize;
  const int64_t end_page = span.first_page + kSpanPages < seen_pages ? span.first_page + kSpanPages : seen_pages;
  for (int64_t page = span.first_page; page < end_page; page++) {
    const int64_t begin = page == 0 ? span.first_slot : 0;
    const int64_t left = last_slot - page * kPageSize;
    const int64_t end = left < kPageSize ? left : kPageSize;
    const int64_t at = head_offset(shape, span.pages[page], span.kv_head);
    const T* next_keys = page + 1 < seen_pages
                             ? (const T*)span.layer->keys + head_offset(shape, span.pages[page + 1], span.kv_head)
                             : NULL;
    const T* page_values = (const T*)span.layer->values + at;
    const int64_t key_cols = (end + kLanes - 1) / kLanes * kLanes;
    stage((const T*)span.layer->keys + at, head_dim, key_cols, kPageSize, keys, kPageSize, page_values);
    stage(page_values, end, head_dim, head_dim, values, value_stride, next_keys);

    // Blocks of rows that see something of this page.
    int64_t r = 0;
    while (r < span.n_rows) {
      const float* q[kSpanRowBlock];
      float* s[kSpanRowBlock];
      float* out[kSpanRowBlock];
      int64_t row_end[kSpanRowBlock];
      float bias[kSpanRowBlock];
      int64_t rows = 0;
      int64_t common = kPageSize;  // keys that all rows of the block see: [begin, common)
      for (; r < span.n_rows && rows < kSpanRowBlock; r++) {
        const AttentionRow& row = span.rows[r];
        const int64_t visible = span.first_slot + row.visit->limit - page * kPageSize;
        if (visible <= begin) continue;
        q[rows] = queries + r * value_stride;
        s[rows] = scores + rows * kPageSize;
        out[rows] = row.state;
        row_end[rows] = visible < kPageSize ? visible : kPageSize;
        bias[rows] = row.visit->bias;
        common = row_end[rows] < common ? row_end[rows] : common;
        rows++;
      }
      if (rows == 0) break;
      product<false>(rows, q, keys, kPageSize, s, head_dim, key_cols);
      const float* weights[kSpanRowBlock];
      for (int64_t i = 0; i < rows; i++) {
        softmax_update(s[i], begin, row_end[i], bias[i], out[i], value_cols);
        out[i] += kStateValues;
        weights[i] = s[i] + begin;
      }
      product<true>(rows, weights, values + begin * value_stride, value_stride, out, common - begin, value_cols);
      // What only some of them see is left to each alone: a value that a row must not see does not
      // touch it, not even as 0 * NaN.
      for (int64_t i = 0; i < rows; i++) {
        weights[i] = s[i] + common;
        product<true>(1, weights + i, values + common * value_stride, value_stride, out + i, row_end[i] - common,
                      value_cols);
      }
    }
  }
}

void attention_span(const AttentionSpan& span) {
  switch (span.shape->dtype) {
    case Dtype::kF32:
      return attention_span_typed<float>(span);
    case Dtype::kF16:
      return attention_span_typed<F16>(span);
    case Dtype::kBF16:
      return attention_span_typed<Bf16>(span);
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

float finish_state(const float* state, int64_t head_dim, float* out) {
  const float total = state[kStateSum];
  const float scale = total == 0 ? 0 : 1 / total;
  for (int64_t d = 0; d < head_dim; d++) out[d] = state[kStateValues + d] * scale;
  return total == 0 ? -INFINITY : state[kStateMax] + logf(total);
}

}  // namespace
}  // namespace hogwild
