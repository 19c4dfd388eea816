// A decoder's tensors by role, checked against its config.
#pragma once

#include <vector>

#include "device/device.h"
#include "model/config.h"
#include "model/weights.h"

namespace hogwild {

// Norms, biases and sinks are null where the layer has none.
struct Layer {
  const float* input_norm = nullptr;             // [hidden]
  const float* attention_output_norm = nullptr;  // [hidden]
  const float* mlp_norm = nullptr;               // [hidden]
  const float* mlp_output_norm = nullptr;        // [hidden]
  Matrix q_proj, k_proj, v_proj, o_proj;
  const float* q_bias = nullptr;
  const float* k_bias = nullptr;
  const float* v_bias = nullptr;
  const float* o_bias = nullptr;
  const float* q_norm = nullptr;       // [D], or [Q] for a norm of the whole row
  const float* k_norm = nullptr;       // [D], or [K]
  const float* sinks = nullptr;        // [Hq]
  FeedForward mlp;                     // where there are no experts
  Matrix router;                       // [E, hidden]
  const float* router_bias = nullptr;  // [E]
  std::vector<FeedForward> experts;    // [E]
  Buffer device_experts;               // of Device::upload_experts
};

struct Layers {
  Matrix embed;    // [V, hidden]
  Matrix lm_head;  // [V, hidden]; `embed` where they are tied
  const float* norm = nullptr;
  std::vector<Layer> layers;
  std::vector<Buffer> shifted_norms;  // copies with norm_offset added, where it is not 0
};

// Throws kInvalidModel where a tensor is missing or has another shape, kUnsupported where there is one that
// this decoder does not use. The result points into `weights`.
Layers load_layers(Device& device, const ModelConfig& config, const Weights& weights);

}  // namespace hogwild
