// Pages of the KV cache: their arrangement, RoPE, and what moves keys and values in and out.
// Part of kernels.cc.
#pragma once

namespace hogwild {
namespace {

// How a page is arranged, for each kv head: keys [D, P], so that the scores of neighbouring keys are
// neighbouring lanes and need no horizontal sums; values [P, D]. Where pairs of bf16 can be multiplied at once,
// the two that are added up lie together: keys [D / 2, P, 2], values [P / 2, D, 2].
template <typename T, bool kInPairs>
struct PageLayout {
  using Element = T;
  static constexpr bool kPaired = kInPairs;

  static HOGWILD_INLINE int64_t key(int64_t slot, int64_t d) {
    return kPaired ? (d / 2 * kPageSize + slot) * 2 + d % 2 : d * kPageSize + slot;
  }
  static HOGWILD_INLINE int64_t value(int64_t slot, int64_t d, int64_t head_dim) {
    return kPaired ? (slot / 2 * head_dim + d) * 2 + slot % 2 : slot * head_dim + d;
  }
};

// Calls body(layout) with the PageLayout of this cache.
template <typename Body>
HOGWILD_INLINE void with_layout(const KvShape& shape, Body&& body) {
  switch (shape.dtype) {
    case Dtype::kF32:
      return body(PageLayout<float, false>());
    case Dtype::kF16:
      return body(PageLayout<F16, false>());
    case Dtype::kBF16:
#if defined(HOGWILD_HAS_PAIRS)
      if (shape.head_dim % kLanes == 0) return body(PageLayout<Bf16, true>());  // whole vectors of pairs
#endif
      return body(PageLayout<Bf16, false>());
  }
}

HOGWILD_INLINE int64_t head_offset(const KvShape& shape, int64_t page, int64_t kv_head) {
  return (page * shape.kv_heads + kv_head) * kPageSize * shape.head_dim;
}

// to = scale * rotate(from): pairs (u, u + R/2) of the first R dimensions, the others as they are.
HOGWILD_INLINE void rotate(const RopeTable& rope, int64_t rope_row, const float* from, int64_t head_dim, float scale,
                           float* to) {
  const int64_t half = rope.rotary_dim / 2;
  const float* cosines = rope.cos + rope_row * half;
  const float* sines = rope.sin + rope_row * half;
  int64_t u = 0;
  for (; u + kLanes <= half; u += kLanes) {
    const Vec c = load(cosines + u), s = load(sines + u), a = load(from + u), b = load(from + half + u);
    store(to + u, (a * c - b * s) * scale);
    store(to + half + u, (b * c + a * s) * scale);
  }
  for (; u < half; u++) {
    const float a = from[u], b = from[half + u];
    to[u] = (a * cosines[u] - b * sines[u]) * scale;
    to[half + u] = (b * cosines[u] + a * sines[u]) * scale;
  }
  for (u = 2 * half; u < head_dim; u++) to[u] = from[u] * scale;
}

template <typename Layout>
void append(const KvShape& shape, const KvLayer& layer, const RopeTable& rope, const AppendSlot* slots, int64_t n,
            const float* k, const float* v) {
  using T = typename Layout::Element;
  const int64_t head_dim = shape.head_dim;
  float rotated[kMaxHeadDim];
  for (int64_t t = 0; t < n; t++) {
    const int64_t slot = slots[t].slot;
    for (int64_t h = 0; h < shape.kv_heads; h++, k += head_dim, v += head_dim) {
      const int64_t head = head_offset(shape, slots[t].page, h);
      rotate(rope, slots[t].rope_row, k, head_dim, 1, rotated);
      T* keys = (T*)layer.keys + head;
      T* values = (T*)layer.values + head;
      for (int64_t d = 0; d < head_dim; d++) put(keys + Layout::key(slot, d), rotated[d]);
      for (int64_t d = 0; d < head_dim; d++) put(values + Layout::value(slot, d, head_dim), v[d]);
    }
  }
}

void kv_append(const KvShape& shape, const KvLayer& layer, const RopeTable& rope, const AppendSlot* slots, int64_t n,
               const float* k, const float* v) {
  with_layout(shape, [&](auto layout) { append<decltype(layout)>(shape, layer, rope, slots, n, k, v); });
}

template <typename Layout>
void move_tokens(const KvShape& shape, const KvLayer& layer, const RopeTable& rope, const KvMoveParams::Move* moves,
                 int64_t n) {
  using T = typename Layout::Element;
  const int64_t head_dim = shape.head_dim;
  float key[kMaxHeadDim], rotated[kMaxHeadDim];
  for (const KvMoveParams::Move* move = moves; move < moves + n; move++) {
    const int64_t from_slot = move->from_slot, to_slot = move->to_slot;
    for (int64_t h = 0; h < shape.kv_heads; h++) {
      const int64_t from = head_offset(shape, move->from_page, h), to = head_offset(shape, move->to_page, h);
      const T* from_keys = (const T*)layer.keys + from;
      const T* from_values = (const T*)layer.values + from;
      T* to_keys = (T*)layer.keys + to;
      T* to_values = (T*)layer.values + to;
      if (move->rope_row < 0) {
        for (int64_t d = 0; d < head_dim; d++) {
          for (int64_t i = 0; i < move->length; i++) {
            to_keys[Layout::key(to_slot + i, d)] = from_keys[Layout::key(from_slot + i, d)];
          }
        }
      } else {
        for (int64_t i = 0; i < move->length; i++) {
          for (int64_t d = 0; d < head_dim; d++) key[d] = to_f32(from_keys[Layout::key(from_slot + i, d)]);
          rotate(rope, move->rope_row, key, head_dim, 1, rotated);
          for (int64_t d = 0; d < head_dim; d++) put(to_keys + Layout::key(to_slot + i, d), rotated[d]);
        }
      }
      for (int64_t i = 0; i < move->length; i++) {
        for (int64_t d = 0; d < head_dim; d++) {
          to_values[Layout::value(to_slot + i, d, head_dim)] = from_values[Layout::value(from_slot + i, d, head_dim)];
        }
      }
    }
  }
}

void kv_move(const KvShape& shape, const KvLayer& layer, const RopeTable& rope, const KvMoveParams::Move* moves,
             int64_t n) {
  with_layout(shape, [&](auto layout) { move_tokens<decltype(layout)>(shape, layer, rope, moves, n); });
}

template <typename Layout>
void read_tokens(const KvShape& shape, const KvLayer& layer, const AppendSlot* slots, int64_t n, float* k, float* v) {
  using T = typename Layout::Element;
  const int64_t head_dim = shape.head_dim;
  for (int64_t t = 0; t < n; t++) {
    const int64_t slot = slots[t].slot;
    for (int64_t h = 0; h < shape.kv_heads; h++, k += head_dim, v += head_dim) {
      const int64_t head = head_offset(shape, slots[t].page, h);
      const T* keys = (const T*)layer.keys + head;
      const T* values = (const T*)layer.values + head;
      for (int64_t d = 0; d < head_dim; d++) k[d] = to_f32(keys[Layout::key(slot, d)]);
      for (int64_t d = 0; d < head_dim; d++) v[d] = to_f32(values[Layout::value(slot, d, head_dim)]);
    }
  }
}

void kv_read(const KvShape& shape, const KvLayer& layer, const AppendSlot* slots, int64_t n, float* k, float* v) {
  with_layout(shape, [&](auto layout) { read_tokens<decltype(layout)>(shape, layer, slots, n, k, v); });
}

}  // namespace
}  // namespace hogwild
