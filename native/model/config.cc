#include "model/config.h"

#include <string>

#include "core/error.h"
#include "core/limits.h"

namespace hogwild {
namespace {

// 2^31 - 1: products of two sizes cannot overflow, and token ids fit 32 bits.
void check_size(const char* name, std::int64_t value) {
  if (value >= 1 && value <= INT32_MAX) return;
  throw Error(code::kInvalidModel, std::string(name) + ": expected 1 to " + std::to_string(INT32_MAX) + ", found " +
                                       std::to_string(value));
}

}  // namespace

void check_config(const ModelConfig& config) {
  check_size("vocab_size", config.vocab_size);
  check_size("hidden_size", config.hidden_size);
  check_size("intermediate_size", config.intermediate_size);
  check_size("layers", config.layers);
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
  if (config.rope.rotary_dim() > config.head_dim) {
    throw Error(code::kInvalidModel, "rope: expected at most head_dim / 2 = " + std::to_string(config.head_dim / 2) +
                                         " frequencies, found " +
                                         std::to_string(config.rope.inverse_frequencies.size()));
  }
  if (!(config.attention_scale > 0)) {
    throw Error(code::kInvalidModel,
                "attention_scale: expected a positive number, found " + std::to_string(config.attention_scale));
  }
}

}  // namespace hogwild
