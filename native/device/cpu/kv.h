// Pages of the KV cache: their arrangement, RoPE, and what moves keys and values in and out.
// Part of kernels.cc.
#pragma once

namespace hogwild {
namespace {

// Inside a page, for each kv head: keys [D, P], so that the scores of neighbouring keys are
// neighbouring lanes and need no horizontal sums; values [P, D].
HOGWILD_INLINE int64_t head_offset(const KvShape& shape, int64_t page, int64_t kv_head) {
  return (page * shape.kv_heads + kv_head) * kPageSize * shape.head_dim;
}

// to = scale * rotate(from): pairs (u, u + R/2) of the first R dimensions, the others as they are.
HOGWILD_INLINE void rotate(const RopeTable& rope, int64_t angle, const float* from, int64_t head_dim, float scale,
                           float* to) {
  const int64_t half = rope.rotary_dim / 2;
  const float* cosines = rope.cos + angle * half;
  const float* sines = rope.sin + angle * half;
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

template <typename T>
void kv_append_typed(const KvShape& shape, const KvLayer& layer, const RopeTable& rope, const AppendSlot* slots,
                     int64_t n, const float* k, const float* v) {
  const int64_t head_dim = shape.head_dim;
  float rotated[kMaxHeadDim];
  for (int64_t t = 0; t < n; t++) {
    for (int64_t h = 0; h < shape.kv_heads; h++, k += head_dim, v += head_dim) {
      const int64_t head = head_offset(shape, slots[t].page, h);
      rotate(rope, slots[t].angle, k, head_dim, 1, rotated);
      T* key = (T*)layer.keys + head + slots[t].slot;
      for (int64_t d = 0; d < head_dim; d++) put(key + d * kPageSize, rotated[d]);
      T* value = (T*)layer.values + head + slots[t].slot * head_dim;
      for (int64_t d = 0; d < head_dim; d++) put(value + d, v[d]);
    }
  }
}

void kv_append(const KvShape& shape, const KvLayer& layer, const RopeTable& rope, const AppendSlot* slots, int64_t n,
               const float* k, const float* v) {
  switch (shape.dtype) {
    case Dtype::kF32:
      return kv_append_typed<float>(shape, layer, rope, slots, n, k, v);
    case Dtype::kF16:
      return kv_append_typed<F16>(shape, layer, rope, slots, n, k, v);
    case Dtype::kBF16:
      return kv_append_typed<Bf16>(shape, layer, rope, slots, n, k, v);
  }
}

template <typename T>
void kv_rebase_typed(const KvShape& shape, const KvLayer& layer, const RopeTable& rope,
                     const KvRebaseParams::Move* moves, int64_t n) {
  const int64_t head_dim = shape.head_dim;
  float key[kMaxHeadDim], rotated[kMaxHeadDim];
  for (const KvRebaseParams::Move* move = moves; move < moves + n; move++) {
    for (int64_t h = 0; h < shape.kv_heads; h++) {
      const int64_t from = head_offset(shape, move->from_page, h), to = head_offset(shape, move->to_page, h);
      const T* from_keys = (const T*)layer.keys + from + move->from_slot;
      T* to_keys = (T*)layer.keys + to + move->to_slot;
      if (move->angle < 0) {
        for (int64_t d = 0; d < head_dim; d++) {
          memcpy(to_keys + d * kPageSize, from_keys + d * kPageSize, move->length * sizeof(T));
        }
      } else {
        for (int64_t i = 0; i < move->length; i++) {
          for (int64_t d = 0; d < head_dim; d++) key[d] = to_f32(from_keys[d * kPageSize + i]);
          rotate(rope, move->angle, key, head_dim, 1, rotated);
          for (int64_t d = 0; d < head_dim; d++) put(to_keys + d * kPageSize + i, rotated[d]);
        }
      }
      memcpy((T*)layer.values + to + move->to_slot * head_dim,
             (const T*)layer.values + from + move->from_slot * head_dim, move->length * head_dim * sizeof(T));
    }
  }
}

void kv_rebase(const KvShape& shape, const KvLayer& layer, const RopeTable& rope, const KvRebaseParams::Move* moves,
               int64_t n) {
  switch (shape.dtype) {
    case Dtype::kF32:
      return kv_rebase_typed<float>(shape, layer, rope, moves, n);
    case Dtype::kF16:
      return kv_rebase_typed<F16>(shape, layer, rope, moves, n);
    case Dtype::kBF16:
      return kv_rebase_typed<Bf16>(shape, layer, rope, moves, n);
  }
}

template <typename T>
void kv_read_typed(const KvShape& shape, const KvLayer& layer, const AppendSlot* slots, int64_t n, float* k, float* v) {
  const int64_t head_dim = shape.head_dim;
  for (int64_t t = 0; t < n; t++) {
    for (int64_t h = 0; h < shape.kv_heads; h++, k += head_dim, v += head_dim) {
      const int64_t head = head_offset(shape, slots[t].page, h);
      const T* key = (const T*)layer.keys + head + slots[t].slot;
      for (int64_t d = 0; d < head_dim; d++) k[d] = to_f32(key[d * kPageSize]);
      const T* value = (const T*)layer.values + head + slots[t].slot * head_dim;
      for (int64_t d = 0; d < head_dim; d++) v[d] = to_f32(value[d]);
    }
  }
}

void kv_read(const KvShape& shape, const KvLayer& layer, const AppendSlot* slots, int64_t n, float* k, float* v) {
  switch (shape.dtype) {
    case Dtype::kF32:
      return kv_read_typed<float>(shape, layer, slots, n, k, v);
    case Dtype::kF16:
      return kv_read_typed<F16>(shape, layer, slots, n, k, v);
    case Dtype::kBF16:
      return kv_read_typed<Bf16>(shape, layer, slots, n, k, v);
  }
}

}  // namespace
}  // namespace hogwild
