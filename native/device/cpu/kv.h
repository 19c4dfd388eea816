// Pages of the KV cache: their arrangement, RoPE, and what moves keys and values in and out.
// Part of kernels.cc.
#pragma once

namespace hogwild {
namespace {

// Keys of so many slots lie together: the widest vector of f32. A key that is written, or the few keys of a page that
// has just begun, are few cache lines then.
constexpr int64_t kKeyGroup = 16;
static_assert(kPageSize % kKeyGroup == 0 && kKeyGroup % kLanes == 0);

// How the rows of one kv head of a page are arranged: keys [P / 16, D, 16], so that the scores of neighbouring keys are
// neighbouring lanes and need no horizontal sums; values [P, D]. Where pairs can be multiplied at once, the two that
// are added up lie together: keys [P / 16, D / 2, 16, 2], values [P / 2, D, 2]. The scales of int8 [P] come behind the
// codes.
template <typename T, bool kInPairs>
struct KeyRows {
  using Element = T;
  static constexpr bool kPaired = kInPairs;

  static HOGWILD_INLINE int64_t at(int64_t slot, int64_t d, int64_t head_dim) {
    const int64_t group = slot / kKeyGroup, lane = slot % kKeyGroup;
    return kPaired ? ((group * (head_dim / 2) + d / 2) * kKeyGroup + lane) * 2 + d % 2
                   : (group * head_dim + d) * kKeyGroup + lane;
  }
};

template <typename T, bool kInPairs>
struct ValueRows {
  using Element = T;
  static constexpr bool kPaired = kInPairs;

  static HOGWILD_INLINE int64_t at(int64_t slot, int64_t d, int64_t head_dim) {
    return kPaired ? (slot / 2 * head_dim + d) * 2 + slot % 2 : slot * head_dim + d;
  }
};

// Calls body(rows) with the KeyRows or ValueRows of a cache of this format.
template <template <typename, bool> typename Rows, typename Body>
HOGWILD_INLINE void with_rows(KvFormat format, [[maybe_unused]] int64_t head_dim, Body&& body) {
  switch (format) {
    case KvFormat::kF32:
      return body(Rows<float, false>());
    case KvFormat::kF16:
      return body(Rows<F16, false>());
    case KvFormat::kBF16:
#if defined(HOGWILD_HAS_PAIRS)
      if (head_dim % kLanes == 0) return body(Rows<Bf16, true>());  // whole vectors of pairs
#endif
      return body(Rows<Bf16, false>());
    case KvFormat::kInt8:
      return body(Rows<Int8, true>());
  }
}

// Bytes of one kv head of a page, and where it begins in its pool.
HOGWILD_INLINE int64_t head_bytes(const KvShape& shape, KvFormat format) {
  return kPageSize * (shape.head_dim * kv_element_bytes(format) + kv_scale_bytes(format));
}
HOGWILD_INLINE char* page_head(void* pool, const KvShape& shape, KvFormat format, int64_t page, int64_t kv_head) {
  return (char*)pool + (page * shape.layers * shape.kv_heads + kv_head) * head_bytes(shape, format);
}
HOGWILD_INLINE float* scales_of(const char* head, int64_t head_dim) { return (float*)(head + kPageSize * head_dim); }

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

// Rounds x [n] to multiples of max |x| / 127, which it returns: NaN, and codes 0, if one of them is not finite.
HOGWILD_INLINE float quantise(const float* x, int64_t n, Int8 (&codes)[kMaxHeadDim]) {
  uint32_t largest = 0;  // of |x|, as bits: they ascend with magnitude, and NaN's are the greatest
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  const float magnitude = magnitude_of(largest);
  const bool is_finite = magnitude < INFINITY;
  if (!is_finite || magnitude < kLeastMagnitude) {
    memset(codes, 0, sizeof codes);
    return is_finite ? 0 : NAN;
  }
  const float scale = magnitude / 127;
  for (int64_t i = 0; i < n; i++) codes[i].code = (int8_t)round_even(x[i] / scale);
  return scale;
}

// Row `slot` of a page's keys or values, from and to f32.
template <typename Rows>
HOGWILD_INLINE void put_row(char* head, int64_t head_dim, int64_t slot, const float* x) {
  typename Rows::Element* elements = (typename Rows::Element*)head;
  if constexpr (kIsInt8<typename Rows::Element>) {
    Int8 codes[kMaxHeadDim];
    scales_of(head, head_dim)[slot] = quantise(x, head_dim, codes);
    for (int64_t d = 0; d < head_dim; d++) elements[Rows::at(slot, d, head_dim)] = codes[d];
  } else {
    for (int64_t d = 0; d < head_dim; d++) put(elements + Rows::at(slot, d, head_dim), x[d]);
  }
}

template <typename Rows>
HOGWILD_INLINE void get_row(const char* head, int64_t head_dim, int64_t slot, float* x) {
  const typename Rows::Element* elements = (const typename Rows::Element*)head;
  for (int64_t d = 0; d < head_dim; d++) x[d] = to_f32(elements[Rows::at(slot, d, head_dim)]);
  if constexpr (kIsInt8<typename Rows::Element>) {
    const float scale = scales_of(head, head_dim)[slot];
    for (int64_t d = 0; d < head_dim; d++) x[d] *= scale;
  }
}

template <typename Rows>
HOGWILD_INLINE void copy_rows(const char* from, int64_t from_slot, char* to, int64_t to_slot, int64_t n,
                              int64_t head_dim) {
  const typename Rows::Element* from_elements = (const typename Rows::Element*)from;
  typename Rows::Element* to_elements = (typename Rows::Element*)to;
  for (int64_t d = 0; d < head_dim; d++) {
    for (int64_t i = 0; i < n; i++) {
      to_elements[Rows::at(to_slot + i, d, head_dim)] = from_elements[Rows::at(from_slot + i, d, head_dim)];
    }
  }
  if constexpr (kIsInt8<typename Rows::Element>) {
    memcpy(scales_of(to, head_dim) + to_slot, scales_of(from, head_dim) + from_slot, n * sizeof(float));
  }
}

// Brings the lines that put_row of a key writes.
template <typename Rows>
HOGWILD_INLINE void prefetch_row(char* head, int64_t head_dim, int64_t slot) {
  const typename Rows::Element* elements = (const typename Rows::Element*)head;
  constexpr int64_t kLine = 64;
  for (int64_t d = 0; d < head_dim; d += kLine / (kKeyGroup * (int64_t)sizeof *elements)) {
    __builtin_prefetch(elements + Rows::at(slot, d, head_dim), 1);
  }
}

void kv_append(const KvShape& shape, const KvLayer& layer, const RopeTable& rope, const AppendSlot* slots,
               int64_t begin, int64_t end, const float* k, const float* v) {
  const int64_t head_dim = shape.head_dim;
  const auto slot_of = [&](int64_t i) { return slots[i / shape.kv_heads]; };
  const auto head_of = [&](void* pool, KvFormat format, int64_t i) {
    return page_head(pool, shape, format, slot_of(i).page, i % shape.kv_heads);
  };
  with_rows<KeyRows>(shape.key_format, head_dim, [&](auto rows) {
    using Keys = decltype(rows);
    float rotated[kMaxHeadDim];
    prefetch_row<Keys>(head_of(layer.keys, shape.key_format, begin), head_dim, slot_of(begin).slot);
    for (int64_t i = begin; i < end; i++) {
      if (i + 1 < end) {
        prefetch_row<Keys>(head_of(layer.keys, shape.key_format, i + 1), head_dim, slot_of(i + 1).slot);
      }
      rotate(rope, slot_of(i).rope_row, k + i * head_dim, head_dim, 1, rotated);
      put_row<Keys>(head_of(layer.keys, shape.key_format, i), head_dim, slot_of(i).slot, rotated);
    }
  });
  with_rows<ValueRows>(shape.value_format, head_dim, [&](auto rows) {
    for (int64_t i = begin; i < end; i++) {
      char* head = head_of(layer.values, shape.value_format, i);
      put_row<decltype(rows)>(head, head_dim, slot_of(i).slot, v + i * head_dim);
    }
  });
}

void kv_move(const KvShape& shape, const KvLayer& layer, const RopeTable& rope, const KvMoveParams::Move* moves,
             int64_t n) {
  const int64_t head_dim = shape.head_dim;
  with_rows<KeyRows>(shape.key_format, head_dim, [&](auto rows) {
    using Keys = decltype(rows);
    float key[kMaxHeadDim], rotated[kMaxHeadDim];
    for (const KvMoveParams::Move* move = moves; move < moves + n; move++) {
      for (int64_t h = 0; h < shape.kv_heads; h++) {
        const char* from = page_head(layer.keys, shape, shape.key_format, move->from_page, h);
        char* to = page_head(layer.keys, shape, shape.key_format, move->to_page, h);
        if (move->rope_row < 0) {
          copy_rows<Keys>(from, move->from_slot, to, move->to_slot, move->length, head_dim);
          continue;
        }
        for (int64_t i = 0; i < move->length; i++) {
          get_row<Keys>(from, head_dim, move->from_slot + i, key);
          rotate(rope, move->rope_row, key, head_dim, 1, rotated);
          put_row<Keys>(to, head_dim, move->to_slot + i, rotated);
        }
      }
    }
  });
  with_rows<ValueRows>(shape.value_format, head_dim, [&](auto rows) {
    for (const KvMoveParams::Move* move = moves; move < moves + n; move++) {
      for (int64_t h = 0; h < shape.kv_heads; h++) {
        copy_rows<decltype(rows)>(page_head(layer.values, shape, shape.value_format, move->from_page, h),
                                  move->from_slot, page_head(layer.values, shape, shape.value_format, move->to_page, h),
                                  move->to_slot, move->length, head_dim);
      }
    }
  });
}

void kv_read(const KvShape& shape, const KvLayer& layer, const AppendSlot* slots, int64_t n, float* k, float* v) {
  const int64_t head_dim = shape.head_dim;
  with_rows<KeyRows>(shape.key_format, head_dim, [&](auto rows) {
    for (int64_t t = 0; t < n; t++) {
      for (int64_t h = 0; h < shape.kv_heads; h++, k += head_dim) {
        const char* head = page_head(layer.keys, shape, shape.key_format, slots[t].page, h);
        get_row<decltype(rows)>(head, head_dim, slots[t].slot, k);
      }
    }
  });
  with_rows<ValueRows>(shape.value_format, head_dim, [&](auto rows) {
    for (int64_t t = 0; t < n; t++) {
      for (int64_t h = 0; h < shape.kv_heads; h++, v += head_dim) {
        const char* head = page_head(layer.values, shape, shape.value_format, slots[t].page, h);
        get_row<decltype(rows)>(head, head_dim, slots[t].slot, v);
      }
    }
  });
}

// The rows of one kv head of a page, at its slots [n], and the same rows [n, D] one behind the other.
template <typename Rows, bool kToPage>
HOGWILD_INLINE void copy_plain_rows(char* head, int64_t head_dim, const uint8_t* slots, int64_t n, char* rows,
                                    char* scales) {
  typename Rows::Element* in_page = (typename Rows::Element*)head;
  for (int64_t i = 0; i < n; i++) {
    for (int64_t d = 0; d < head_dim; d++) {
      typename Rows::Element* element = in_page + Rows::at(slots[i], d, head_dim);
      char* plain = rows + (i * head_dim + d) * (int64_t)sizeof *element;
      if (kToPage) {
        memcpy(element, plain, sizeof *element);
      } else {
        memcpy(plain, element, sizeof *element);
      }
    }
  }
  if constexpr (kIsInt8<typename Rows::Element>) {
    for (int64_t i = 0; i < n; i++) {
      float* scale = scales_of(head, head_dim) + slots[i];
      if (kToPage) {
        memcpy(scale, scales + i * 4, 4);
      } else {
        memcpy(scales + i * 4, scale, 4);
      }
    }
  }
}

template <bool kToPage>
void kv_copy(const KvShape& shape, const KvLayer& layer, int64_t page, const uint8_t* slots, int64_t n, void* plain) {
  const int64_t head_dim = shape.head_dim;
  char* rows = (char*)plain;
  // Of all kv heads: rows, then scales.
  const auto copy_all = [&](auto arrangement, void* pool, KvFormat format) {
    const int64_t row_bytes = head_dim * kv_element_bytes(format), scale_bytes = kv_scale_bytes(format);
    char* scales = rows + shape.kv_heads * n * row_bytes;
    for (int64_t h = 0; h < shape.kv_heads; h++, rows += n * row_bytes) {
      copy_plain_rows<decltype(arrangement), kToPage>(page_head(pool, shape, format, page, h), head_dim, slots, n, rows,
                                                      scales + h * n * scale_bytes);
    }
    rows = scales + shape.kv_heads * n * scale_bytes;
  };
  with_rows<KeyRows>(shape.key_format, head_dim,
                     [&](auto arrangement) { copy_all(arrangement, layer.keys, shape.key_format); });
  with_rows<ValueRows>(shape.value_format, head_dim,
                       [&](auto arrangement) { copy_all(arrangement, layer.values, shape.value_format); });
}

}  // namespace
}  // namespace hogwild
