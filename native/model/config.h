// What describes a decoder: its numbers, and what each of its layers computes.
#pragma once

#include <cstdint>
#include <vector>

#include "cache/rope_rows.h"
#include "device/device.h"

namespace hogwild {

enum class QkNorm : std::uint8_t { kNone, kHead, kRow };

// A mixture of experts in the place of one network: see ExpertsParams.
struct ExpertsSpec {
  std::int64_t count = 0;  // E; 0: none
  std::int64_t used = 0;
  bool normalized = false;
  bool router_bias = false;
};

// LayerSpec of lib/families.ts: which tensors a layer has (model/layers.h) and what it does with them.
struct LayerSpec {
  bool input_norm = true;
  bool attention_output_norm = false;  // of what attention adds to the residual stream
  bool mlp_norm = true;
  bool mlp_output_norm = false;
  QkNorm qk_norm = QkNorm::kNone;  // before RoPE: of each head [D], or of the whole row
  bool qkv_biases = false;
  bool o_bias = false;
  bool mlp_biases = false;  // of each expert too
  bool sinks = false;
  std::int32_t rope = 0;               // of each of ModelConfig::ropes; -1: q and k are not turned
  std::int64_t window = 0;             // see AttentionParams; 0: none
  float softcap = 0;                   // see AttentionParams; 0: none
  std::int64_t intermediate_size = 0;  // of the network, or of each expert
  ExpertsSpec experts;
};

struct ModelConfig {
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t query_heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  float rms_norm_eps = 0;
  float norm_offset = 0;  // added to every norm weight: 1 for Gemma
  Activation activation = Activation::kSilu;
  float embedding_scale = 1;  // sqrt(hidden_size) for Gemma
  float attention_scale = 0;  // normally 1 / sqrt(head_dim)
  float residual_scale = 1;   // multiplies what attention and MLP add to the residual stream
  float logit_scale = 1;
  float logit_softcap = 0;                   // logit = softcap * tanh(logit / softcap); 0: none
  std::vector<std::vector<RopeSpec>> ropes;  // what LayerSpec::rope names. A cache has one of these lists
  std::vector<LayerSpec> layers;

  std::int64_t q_size() const { return query_heads * head_dim; }
  std::int64_t kv_size() const { return kv_heads * head_dim; }
  std::int64_t n_ropes() const { return ropes.empty() ? 0 : static_cast<std::int64_t>(ropes.front().size()); }
  std::int64_t n_layers() const { return static_cast<std::int64_t>(layers.size()); }
};

// Throws kInvalidModel, or kUnsupported where the engine lacks something, naming the field.
void check_config(const ModelConfig& config);

}  // namespace hogwild
