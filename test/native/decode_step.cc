// Decode steps of a small random model on the CPU device, for counting instructions (decode-step.sh) and timing.
//
//   decode_step STEPS [WORKERS]
//
// Prints the median of the steps' microseconds and a hash of all logits, which a change of no bit leaves alone.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "model/transformer.h"

namespace hogwild {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.vocab_size = 2048;
  config.hidden_size = 256;
  config.query_heads = 4;
  config.kv_heads = 2;
  config.head_dim = 64;
  config.rms_norm_eps = 1e-5f;
  config.attention_scale = 0.125f;
  LayerSpec layer;
  layer.intermediate_size = 512;
  config.layers.assign(4, layer);
  config.ropes.resize(1, {RopeSpec()});
  for (int u = 0; u < 32; ++u) config.ropes[0][0].inverse_frequencies.push_back(std::pow(10000.0, -u / 32.0));
  return config;
}

std::unique_ptr<Weights> random_weights(Device& device, const ModelConfig& config) {
  std::string path = "/tmp/hogwild_decode_step_XXXXXX";
  const int descriptor = ::mkstemp(path.data());
  std::FILE* file = descriptor < 0 ? nullptr : ::fdopen(descriptor, "wb");
  if (file == nullptr) throw Error(code::kInternal, "no temporary file");
  std::vector<TensorSource> sources;
  std::uint32_t state = 1;  // xorshift: quick under callgrind
  std::uint64_t offset = 0;
  const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
    std::vector<float> values(static_cast<std::size_t>(rows * cols));
    const float width = std::sqrt(3 / static_cast<float>(cols));
    for (float& value : values) {
      state ^= state << 13, state ^= state >> 17, state ^= state << 5;
      value = rows == 1 ? 1 : width * static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31f;
    }
    sources.push_back({.name = name, .path = path, .offset = offset, .rows = rows, .cols = cols});
    if (std::fwrite(values.data(), sizeof(float), values.size(), file) != values.size()) {
      throw Error(code::kInternal, "cannot write the temporary file");
    }
    offset += values.size() * sizeof(float);
  };
  const std::int64_t hidden = config.hidden_size, intermediate = config.layers[0].intermediate_size;
  const std::int64_t q = config.query_heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  add("embed", config.vocab_size, hidden);
  add("norm", 1, hidden);
  for (std::int64_t i = 0; i < config.n_layers(); ++i) {
    const std::string layer = "layers." + std::to_string(i) + ".";
    add(layer + "input_norm", 1, hidden);
    add(layer + "mlp_norm", 1, hidden);
    add(layer + "q_proj", q, hidden);
    add(layer + "k_proj", kv, hidden);
    add(layer + "v_proj", kv, hidden);
    add(layer + "o_proj", hidden, q);
    add(layer + "gate_proj", intermediate, hidden);
    add(layer + "up_proj", intermediate, hidden);
    add(layer + "down_proj", hidden, intermediate);
  }
  std::fclose(file);
  auto weights = std::make_unique<Weights>(device, sources);
  ::unlink(path.c_str());  // the mapping stays
  return weights;
}

int run(int steps, int workers) {
  const ModelConfig config = small_config();
  const std::shared_ptr<Device> device = create_cpu_device({.threads = 1, .simd = ""});
  Transformer model(device, config, random_weights(*device, config));
  const KvShape shape{config.n_layers(), config.kv_heads, config.head_dim};
  const std::shared_ptr<KvCache> cache = KvCache::create(device, shape, config.ropes[0][0], 8192);
  const std::atomic<bool> cancel = false;

  const auto tokens = [&](std::int32_t first, std::size_t count) {
    std::vector<std::int32_t> ids(count);
    for (std::size_t i = 0; i < count; ++i)
      ids[i] = static_cast<std::int32_t>((static_cast<std::size_t>(first) + 37 * i) % 2048);
    return ids;
  };
  const std::shared_ptr<CacheBlock> common = cache->create_block();
  std::vector<StepWorker> prompt(1);
  prompt[0].view.entries = {{.block = common}};
  prompt[0].view.target = common;
  prompt[0].tokens = tokens(1, 100);
  model.step(*cache, prompt, cancel);
  std::vector<std::shared_ptr<CacheBlock>> own;
  for (int w = 0; w < workers; ++w) own.push_back(cache->create_block());

  std::uint64_t hash = 14695981039346656037u;  // FNV-1a
  std::vector<double> microseconds;
  for (int step = 0; step < steps; ++step) {
    std::vector<StepWorker> now;
    for (int w = 0; w < workers; ++w) {
      StepWorker& worker = now.emplace_back();
      worker.view.entries = {{.block = common}};
      for (int other = 1; other <= workers; ++other) {
        worker.view.entries.push_back({.block = own[(w + other) % workers]});
      }
      worker.view.target = own[w];
      worker.tokens = tokens(100 * step + w, 1);
      worker.logits = LogitsWanted::kLast;
      worker.sampler.emplace();
    }
    const auto began = std::chrono::steady_clock::now();
    const StepResult result = model.step(*cache, now, cancel);
    microseconds.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - began).count());
    for (const StepResult::Worker& worker : result.workers) {
      for (const float logit : worker.logits) hash = (hash ^ std::bit_cast<std::uint32_t>(logit)) * 1099511628211u;
    }
  }
  std::nth_element(microseconds.begin(), microseconds.begin() + steps / 2, microseconds.end());
  std::printf("%.1f us, logits %016llx\n", microseconds[steps / 2], static_cast<unsigned long long>(hash));
  return 0;
}

}  // namespace
}  // namespace hogwild

int main(int argc, char** argv) {
  return hogwild::run(argc > 1 ? std::atoi(argv[1]) : 50, argc > 2 ? std::atoi(argv[2]) : 4);
}
