#include "model/config.h"

#include <iterator>
#include <string>

#include "core/error.h"
#include "core/limits.h"

namespace hogwild {
namespace {

// 2^31 - 1: products of two sizes cannot overflow, and token ids fit 32 bits.
void check_size(const char* name, std::int64_t value) {
  if (value >= 1 && value <= INT32_MAX) return;
  throw Error(code::kInvalidModel,
              std::string(name) + ": expected 1 to " + std::to_string(INT32_MAX) + ", found " + std::to_string(value));
}

void check_positive(const char* name, float value) {
  if (value > 0) return;
  throw Error(code::kInvalidModel, std::string(name) + ": expected a positive number, found " + std::to_string(value));
}

void check_not_negative(const char* name, float value) {
  if (value >= 0) return;
  throw Error(code::kInvalidModel, std::string(name) + ": expected 0 or more, found " + std::to_string(value));
}

void check_ropes(const ModelConfig& config, const std::vector<RopeSpec>& ropes) {
  if (std::ssize(ropes) != config.n_ropes()) {
    throw Error(code::kInvalidModel, "ropes: expected lists of one length, found " + std::to_string(config.n_ropes()) +
                                         " and " + std::to_string(ropes.size()));
  }
  for (const RopeSpec& rope : ropes) {
    if (rope.rotary_dim() >= 2 && rope.rotary_dim() <= config.head_dim) continue;
    throw Error(code::kInvalidModel, "ropes: expected 1 to head_dim / 2 = " + std::to_string(config.head_dim / 2) +
                                         " frequencies, found " + std::to_string(rope.inverse_frequencies.size()));
  }
}

// A router of one row would be taken for a vector.
constexpr std::int64_t kMinExperts = 2;

void check_experts(const ModelConfig& config, const LayerSpec& layer) {
  const ExpertsSpec& experts = layer.experts;
  if (experts.count == 0) return;
  if (experts.count < kMinExperts || experts.count > kMaxExperts) {
    throw Error(code::kUnsupported, "experts.count: supported are " + std::to_string(kMinExperts) + " to " +
                                        std::to_string(kMaxExperts) + ", found " + std::to_string(experts.count));
  }
  if (experts.used < 1 || experts.used > experts.count) {
    throw Error(code::kInvalidModel, "experts.used: expected 1 to experts.count = " + std::to_string(experts.count) +
                                         ", found " + std::to_string(experts.used));
  }
  if (!layer.mlp_norm || layer.mlp_output_norm || config.residual_scale != 1) {
    throw Error(code::kUnsupported,
                "experts: supported are those with a norm before them and neither a norm nor a "
                "scale on their output");
  }
}

void check_layer(const ModelConfig& config, const LayerSpec& layer) {
  check_experts(config, layer);
  check_size("intermediate_size", layer.intermediate_size);
  check_not_negative("softcap", layer.softcap);
  if (layer.window < 0) {
    throw Error(code::kInvalidModel, "window: expected 0 or more, found " + std::to_string(layer.window));
  }
  if (layer.rope < -1 || layer.rope >= config.n_ropes()) {
    throw Error(code::kInvalidModel, "rope: expected -1 to " + std::to_string(config.n_ropes() - 1) +
                                         " (one of `ropes` or none), found " + std::to_string(layer.rope));
  }
}

}  // namespace

void check_config(const ModelConfig& config) {
  check_size("vocab_size", config.vocab_size);
  if (config.vocab_size > kMaxVocab) {
    throw Error(code::kUnsupported, "vocab_size: supported are 1 to " + std::to_string(kMaxVocab) + ", found " +
                                        std::to_string(config.vocab_size));
  }
  check_size("hidden_size", config.hidden_size);
  check_size("layers", config.n_layers());
  check_size("query_heads", config.query_heads);
  check_size("kv_heads", config.kv_heads);
  if (config.query_heads % config.kv_heads != 0) {
    throw Error(code::kInvalidModel, "query_heads: expected a multiple of kv_heads (" +
                                         std::to_string(config.kv_heads) + "), found " +
                                         std::to_string(config.query_heads));
  }
  if (!is_supported_head_dim(config.head_dim)) {
    throw Error(code::kUnsupported, "head_dim: supported are multiples of " + std::to_string(kHeadDimMultiple) +
                                        " up to " + std::to_string(kMaxHeadDim) + ", found " +
                                        std::to_string(config.head_dim));
  }
  if (config.ropes.empty()) throw Error(code::kInvalidModel, "ropes: expected at least one list, found none");
  for (const std::vector<RopeSpec>& ropes : config.ropes) check_ropes(config, ropes);
  check_positive("attention_scale", config.attention_scale);
  check_positive("residual_scale", config.residual_scale);
  check_positive("logit_scale", config.logit_scale);
  check_not_negative("logit_softcap", config.logit_softcap);
  for (const LayerSpec& layer : config.layers) check_layer(config, layer);
}

}  // namespace hogwild
