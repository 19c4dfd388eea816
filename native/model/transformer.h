// The decoder: one step of any number of workers with any number of new tokens each.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "cache/attention_plan.h"
#include "cache/kv_cache.h"
#include "device/device.h"
#include "model/weights.h"

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
};

enum class LogitsWanted : std::uint8_t { kNone, kLast, kAll };

struct StepWorker {
  WorkerView view;  // its `tokens` need not be set: those below count
  std::vector<std::int32_t> tokens;
  LogitsWanted logits = LogitsWanted::kNone;
  std::optional<SampleParams::Row> sampler;  // its `logits_row`, `seen` and `forbidden` need not be set
  std::vector<std::int32_t> seen;
  std::vector<std::int32_t> forbidden;
  bool logprob = false;
};

struct StepResult {
  struct Worker {
    std::int32_t token = -1;    // sampled, or -1
    float logprob = 0;          // of `token`, where asked for
    std::vector<float> logits;  // kLast: [V]; kAll: [new tokens, V]
  };
  std::vector<Worker> workers;
};

class Transformer {
 public:
  // Checks that every tensor is there with the right shape, and that there is no tensor that this
  // architecture does not use. Throws kInvalidModel, kUnsupported.
  Transformer(std::shared_ptr<Device> device, ModelConfig config, std::unique_ptr<Weights> weights);
  ~Transformer();

  const ModelConfig& config() const;
  Device& device() const;
  std::int64_t weight_bytes() const;  // that one decode step reads: all matrices, but no untied embedding

  // One forward pass (docs/semantics.md, "A step"). In every layer all workers append before any attends.
  // On return the new tokens are in their blocks; on a throw (kAborted once `cancel` is set, looked at
  // several times per layer) the cache is as it was. A single worker's long input is cut into chunks,
  // which changes no bit of the result.
  StepResult step(KvCache& cache, std::vector<StepWorker>& workers, const std::atomic<bool>& cancel);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hogwild
