// The numbers that describe a decoder.
#pragma once

#include <cstdint>

#include "cache/rope_rows.h"
#include "device/ops.h"

namespace hogwild {

struct ModelConfig {
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t layers = 0;
  std::int64_t query_heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  float rms_norm_eps = 0;
  float norm_offset = 0;      // added to every norm weight: 1 for Gemma
  float embedding_scale = 1;  // sqrt(hidden_size) for Gemma
  float attention_scale = 0;  // 1 / sqrt(head_dim)
  Activation activation = Activation::kSilu;
  RopeSpec rope;

  std::int64_t q_size() const { return query_heads * head_dim; }
  std::int64_t kv_size() const { return kv_heads * head_dim; }
};

// Throws kInvalidModel, or kUnsupported where the engine lacks something, naming the field.
void check_config(const ModelConfig& config);

}  // namespace hogwild
