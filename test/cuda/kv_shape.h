// The cache that tests of the CUDA device and its benchmark use.
#pragma once

#include "device/ops.h"

namespace hogwild {

inline KvShape bf16_shape(std::int64_t layers, std::int64_t kv_heads, std::int64_t head_dim, std::int64_t padding = 0) {
  return {.layers = layers,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .key_format = KvFormat::kBF16,
          .value_format = KvFormat::kBF16,
          .padding = padding};
}

}  // namespace hogwild
