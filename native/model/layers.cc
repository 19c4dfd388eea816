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
    for (std::int64_t i = 0; i < config_.layers; ++i) layers_.layers.push_back(layer(i));
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

  const float* optional_vector(const std::string& name, std::int64_t size) {
    return weights_.has(name) ? vector(name, size) : nullptr;
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

  const float* optional_norm(const std::string& name, std::int64_t size) {
    return weights_.has(name) ? norm(name, size) : nullptr;
  }

  Layer layer(std::int64_t index) {
    const std::string prefix = "layers." + std::to_string(index) + ".";
    const std::int64_t hidden = config_.hidden_size;
    const std::int64_t intermediate = config_.intermediate_size;
    const std::int64_t q_size = config_.q_size();
    const std::int64_t kv_size = config_.kv_size();
    Layer layer;
    layer.input_norm = norm(prefix + "input_norm", hidden);
    layer.post_attention_norm = norm(prefix + "post_attention_norm", hidden);
    layer.q_proj = matrix(prefix + "q_proj", q_size, hidden);
    layer.k_proj = matrix(prefix + "k_proj", kv_size, hidden);
    layer.v_proj = matrix(prefix + "v_proj", kv_size, hidden);
    layer.o_proj = matrix(prefix + "o_proj", hidden, q_size);
    layer.q_bias = optional_vector(prefix + "q_bias", q_size);
    layer.k_bias = optional_vector(prefix + "k_bias", kv_size);
    layer.v_bias = optional_vector(prefix + "v_bias", kv_size);
    layer.o_bias = optional_vector(prefix + "o_bias", hidden);
    layer.q_norm = optional_norm(prefix + "q_norm", config_.head_dim);
    layer.k_norm = optional_norm(prefix + "k_norm", config_.head_dim);
    layer.gate_proj = matrix(prefix + "gate_proj", intermediate, hidden);
    layer.up_proj = matrix(prefix + "up_proj", intermediate, hidden);
    layer.down_proj = matrix(prefix + "down_proj", hidden, intermediate);
    layer.gate_bias = optional_vector(prefix + "gate_bias", intermediate);
    layer.up_bias = optional_vector(prefix + "up_bias", intermediate);
    layer.down_bias = optional_vector(prefix + "down_bias", hidden);
    return layer;
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
