#include "model/layers.h"

#include <set>
#include <string>
#include <utility>

#include "core/error.h"

namespace hogwild {
namespace {

class Loader {
 public:
  Loader(Device& device, const ModelConfig& config, const Weights& weights)
      : device_(device), config_(config), weights_(weights) {}

  Layers load() {
    const std::int64_t hidden = config_.hidden_size;
    layers_.embed = matrix("embed", config_.vocab_size, hidden);
    layers_.lm_head = weights_.has("lm_head") ? matrix("lm_head", config_.vocab_size, hidden) : layers_.embed;
    layers_.norm = norm("norm", hidden);
    for (std::size_t i = 0; i < config_.layers.size(); ++i) {
      layers_.layers.push_back(layer("layers." + std::to_string(i) + ".", config_.layers[i]));
    }
    for (const std::string& name : weights_.names()) {
      if (used_.contains(name)) continue;
      throw Error(code::kUnsupported, "tensor '" + name + "' has no place in this model's architecture");
    }
    return std::move(layers_);
  }

 private:
  Matrix matrix(const std::string& name, std::int64_t rows, std::int64_t cols) {
    used_.insert(name);
    return weights_.matrix(name, rows, cols);
  }

  const float* vector(const std::string& name, std::int64_t size) {
    used_.insert(name);
    return weights_.vector(name, size);
  }

  const float* norm(const std::string& name, std::int64_t size) {
    const float* weight = vector(name, size);
    if (config_.norm_offset == 0) return weight;
    const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(float);
    std::vector<float> shifted(static_cast<std::size_t>(size));
    device_.download(shifted.data(), weight, bytes);
    for (float& value : shifted) value += config_.norm_offset;
    layers_.shifted_norms.push_back(device_.allocate(bytes, "norms"));
    device_.upload(layers_.shifted_norms.back().data(), shifted.data(), bytes);
    return layers_.shifted_norms.back().as<float>();
  }

  Layer layer(const std::string& prefix, const LayerSpec& spec) {
    const std::int64_t hidden = config_.hidden_size;
    const std::int64_t q_size = config_.q_size();
    const std::int64_t kv_size = config_.kv_size();
    const auto norm_if = [&](bool has, const char* name, std::int64_t size) {
      return has ? norm(prefix + name, size) : nullptr;
    };
    const auto vector_if = [&](bool has, const char* name, std::int64_t size) {
      return has ? vector(prefix + name, size) : nullptr;
    };
    const bool has_qk_norm = spec.qk_norm != QkNorm::kNone;
    const bool per_head = spec.qk_norm == QkNorm::kHead;
    Layer layer;
    layer.input_norm = norm_if(spec.input_norm, "input_norm", hidden);
    layer.attention_output_norm = norm_if(spec.attention_output_norm, "attention_output_norm", hidden);
    layer.mlp_norm = norm_if(spec.mlp_norm, "mlp_norm", hidden);
    layer.mlp_output_norm = norm_if(spec.mlp_output_norm, "mlp_output_norm", hidden);
    layer.q_proj = matrix(prefix + "q_proj", q_size, hidden);
    layer.k_proj = matrix(prefix + "k_proj", kv_size, hidden);
    layer.v_proj = matrix(prefix + "v_proj", kv_size, hidden);
    layer.o_proj = matrix(prefix + "o_proj", hidden, q_size);
    layer.q_bias = vector_if(spec.qkv_biases, "q_bias", q_size);
    layer.k_bias = vector_if(spec.qkv_biases, "k_bias", kv_size);
    layer.v_bias = vector_if(spec.qkv_biases, "v_bias", kv_size);
    layer.o_bias = vector_if(spec.o_bias, "o_bias", hidden);
    layer.q_norm = norm_if(has_qk_norm, "q_norm", per_head ? config_.head_dim : q_size);
    layer.k_norm = norm_if(has_qk_norm, "k_norm", per_head ? config_.head_dim : kv_size);
    layer.sinks = vector_if(spec.sinks, "sinks", config_.query_heads);
    if (spec.experts.count == 0) {
      layer.mlp = feed_forward(prefix, spec);
      return layer;
    }
    layer.router = matrix(prefix + "router", spec.experts.count, hidden);
    layer.router_bias = vector_if(spec.experts.router_bias, "router_bias", spec.experts.count);
    for (std::int64_t e = 0; e < spec.experts.count; ++e) {
      layer.experts.push_back(feed_forward(prefix + "experts." + std::to_string(e) + ".", spec));
    }
    layer.device_experts = device_.upload_experts(layer.experts);
    return layer;
  }

  FeedForward feed_forward(const std::string& prefix, const LayerSpec& spec) {
    const std::int64_t hidden = config_.hidden_size, intermediate = spec.intermediate_size;
    const auto bias = [&](const char* name, std::int64_t size) {
      return spec.mlp_biases ? vector(prefix + name, size) : nullptr;
    };
    return {.gate_proj = matrix(prefix + "gate_proj", intermediate, hidden),
            .up_proj = matrix(prefix + "up_proj", intermediate, hidden),
            .down_proj = matrix(prefix + "down_proj", hidden, intermediate),
            .gate_bias = bias("gate_bias", intermediate),
            .up_bias = bias("up_bias", intermediate),
            .down_bias = bias("down_bias", hidden)};
  }

  Device& device_;
  const ModelConfig& config_;
  const Weights& weights_;
  Layers layers_;
  std::set<std::string> used_;  // names of tensors
};

}  // namespace

Layers load_layers(Device& device, const ModelConfig& config, const Weights& weights) {
  return Loader(device, config, weights).load();
}

}  // namespace hogwild
