// Weights and the step against their definitions: a naive decoder in double precision, built on lists
// of tokens, with its own attention; files with every defect; aborts at every op of a step.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "core/float16.h"
#include "core/format.h"
#include "core/int4.h"
#include "core/limits.h"
#include "core/panels.h"
#include "core/quant.h"
#include "entries.h"
#include "model/transformer.h"
#include "model/weights.h"

namespace hogwild {
namespace {

using BlockPtr = std::shared_ptr<CacheBlock>;
using Rng = std::mt19937_64;

// ---- tensors and their file -------------------------------------------------------------------------

struct Tensor {
  std::int64_t rows = 1;
  std::int64_t cols = 0;
  std::vector<float> values;
};
using Tensors = std::map<std::string, Tensor>;

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::vector<unsigned char>& bytes) {
    const int file = ::mkstemp(path_.data());
    if (file < 0) throw std::runtime_error("no temporary file");
    const bool written = ::write(file, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
    ::close(file);
    if (!written) throw std::runtime_error("cannot write the temporary file");
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() { ::unlink(path_.c_str()); }

  const std::string& path() const { return path_; }

 private:
  std::string path_ = "/tmp/hogwild_model_test_XXXXXX";
};

// The tensors one after the other behind `padding` bytes: an odd number misaligns them all.
struct TensorFile {
  std::unique_ptr<TemporaryFile> file;
  std::vector<TensorSource> sources;

  explicit TensorFile(const Tensors& tensors, Dtype dtype = Dtype::kF32, std::size_t padding = 16) {
    std::vector<unsigned char> bytes(padding);
    const auto append = [&](auto value) {
      const auto raw = std::bit_cast<std::array<unsigned char, sizeof value>>(value);
      bytes.insert(bytes.end(), raw.begin(), raw.end());
    };
    for (const auto& [name, tensor] : tensors) {
      sources.push_back({.name = name,
                         .path = "",
                         .offset = bytes.size(),
                         .format = format_of(dtype),
                         .rows = tensor.rows,
                         .cols = tensor.cols});
      for (const float value : tensor.values) {
        if (dtype == Dtype::kF32) append(value);
        if (dtype == Dtype::kF16) append(f32_to_f16(value));
        if (dtype == Dtype::kBF16) append(f32_to_bf16(value));
      }
    }
    file = std::make_unique<TemporaryFile>(bytes);
    for (TensorSource& source : sources) source.path = file->path();
  }

  TensorSource& operator[](const std::string& name) {
    return *std::find_if(sources.begin(), sources.end(), [&](const TensorSource& s) { return s.name == name; });
  }
};

// ---- a small random model ---------------------------------------------------------------------------

struct Architecture {
  bool tied = true;
  bool biases = false;      // of every projection
  bool head_norms = false;  // q_norm and k_norm
  bool gemma = false;       // norm offset, embedding scale, GELU
};

ModelConfig tiny_config(const Architecture& architecture) {
  ModelConfig config;
  config.vocab_size = 37;
  config.hidden_size = 24;
  config.query_heads = 6;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.rms_norm_eps = 1e-5f;
  config.attention_scale = 1 / std::sqrt(8.0f);
  config.ropes = {{{.inverse_frequencies = {1.0, 0.3, 0.1, 0.02}, .attention_factor = 1.1}}};
  LayerSpec layer;
  layer.qk_norm = architecture.head_norms ? QkNorm::kHead : QkNorm::kNone;
  layer.qkv_biases = layer.o_bias = layer.mlp_biases = architecture.biases;
  layer.intermediate_size = 40;
  config.layers = {layer, layer};
  if (architecture.gemma) {
    config.norm_offset = 1;
    config.embedding_scale = std::sqrt(24.0f);
    config.activation = Activation::kGeluTanh;
  }
  return config;
}

Tensors random_tensors(const ModelConfig& config, const Architecture& architecture, std::uint64_t seed) {
  Rng rng(seed);
  Tensors tensors;
  const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t cols, double mean, double deviation) {
    std::normal_distribution<double> normal(mean, deviation);
    Tensor tensor{rows, cols, std::vector<float>(rows * cols)};
    for (float& value : tensor.values) value = static_cast<float>(normal(rng));
    tensors[name] = std::move(tensor);
  };
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t q = config.query_heads * config.head_dim;
  const std::int64_t kv = config.kv_heads * config.head_dim;
  const double norm_mean = architecture.gemma ? 0 : 1;
  const auto add_norm = [&](const std::string& name, std::int64_t size) { add(name, 1, size, norm_mean, 0.2); };
  const auto add_projection = [&](const std::string& name, std::int64_t rows, std::int64_t cols) {
    add(name + "_proj", rows, cols, 0, 1.5 / std::sqrt(static_cast<double>(cols)));
    if (architecture.biases) add(name + "_bias", 1, rows, 0, 0.3);
  };
  add("embed", config.vocab_size, hidden, 0, 1);
  if (!architecture.tied) add("lm_head", config.vocab_size, hidden, 0, 1);
  add_norm("norm", hidden);
  for (std::int64_t i = 0; i < config.n_layers(); ++i) {
    const std::int64_t intermediate = config.layers[i].intermediate_size;
    const std::string layer = "layers." + std::to_string(i) + ".";
    add_norm(layer + "input_norm", hidden);
    add_norm(layer + "mlp_norm", hidden);
    add_projection(layer + "q", q, hidden);
    add_projection(layer + "k", kv, hidden);
    add_projection(layer + "v", kv, hidden);
    add_projection(layer + "o", hidden, q);
    if (architecture.head_norms) {
      add_norm(layer + "q_norm", config.head_dim);
      add_norm(layer + "k_norm", config.head_dim);
    }
    add_projection(layer + "gate", intermediate, hidden);
    add_projection(layer + "up", intermediate, hidden);
    add_projection(layer + "down", hidden, intermediate);
  }
  return tensors;
}

// ---- the definition, in double precision ------------------------------------------------------------

using Row = std::vector<double>;

struct ReferenceBlock {
  std::vector<std::vector<Row>> keys, values;  // [layer][token]: [Hkv * D], keys before RoPE
};

struct ReferenceWorker {
  std::vector<ReferenceBlock*> view;
  ReferenceBlock* target = nullptr;
  std::vector<std::int32_t> tokens;
};

class Reference {
 public:
  Reference(const ModelConfig& config, const Tensors& tensors) : config_(config), tensors_(tensors) {}

  ReferenceBlock block() const {
    ReferenceBlock block;
    block.keys.resize(config_.n_layers());
    block.values.resize(config_.n_layers());
    return block;
  }

  // Logits of every new token: [worker][token][V].
  std::vector<std::vector<Row>> step(const std::vector<ReferenceWorker>& workers) const {
    std::vector<std::vector<Row>> x(workers.size());
    for (std::size_t w = 0; w < workers.size(); ++w) {
      for (const std::int32_t token : workers[w].tokens) {
        Row row = row_of("embed", token);
        for (double& value : row) value *= config_.embedding_scale;
        x[w].push_back(row);
      }
    }
    for (std::int64_t layer = 0; layer < config_.n_layers(); ++layer) {
      const std::string name = "layers." + std::to_string(layer) + ".";
      std::vector<std::vector<Row>> queries(workers.size());
      for (std::size_t w = 0; w < workers.size(); ++w) {
        for (const Row& row : x[w]) {
          const Row input = norm(name + "input_norm", row);
          queries[w].push_back(head_norm(name + "q_norm", project(name + "q", input)));
          workers[w].target->keys[layer].push_back(head_norm(name + "k_norm", project(name + "k", input)));
          workers[w].target->values[layer].push_back(project(name + "v", input));
        }
      }
      for (std::size_t w = 0; w < workers.size(); ++w) {
        for (std::size_t i = 0; i < x[w].size(); ++i) {
          Row& row = x[w][i];
          add(row, project(name + "o", attend(workers[w], layer, i, queries[w][i])));
          const Row input = norm(name + "mlp_norm", row);
          Row gate = project(name + "gate", input);
          const Row up = project(name + "up", input);
          for (std::size_t j = 0; j < gate.size(); ++j) gate[j] = activate(gate[j]) * up[j];
          add(row, project(name + "down", gate));
        }
      }
    }
    for (std::vector<Row>& rows : x) {
      for (Row& row : rows) row = multiply(tensors_.contains("lm_head") ? "lm_head" : "embed", norm("norm", row));
    }
    return x;
  }

 private:
  static void add(Row& to, const Row& from) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += from[i];
  }

  Row row_of(const std::string& name, std::int64_t index) const {
    const Tensor& tensor = tensors_.at(name);
    const auto begin = tensor.values.begin() + index * tensor.cols;
    return Row(begin, begin + tensor.cols);
  }

  Row multiply(const std::string& name, const Row& x) const {
    const Tensor& tensor = tensors_.at(name);
    Row y(tensor.rows);
    for (std::int64_t r = 0; r < tensor.rows; ++r) {
      for (std::int64_t c = 0; c < tensor.cols; ++c) y[r] += tensor.values[r * tensor.cols + c] * x[c];
    }
    return y;
  }

  Row project(const std::string& name, const Row& x) const {
    Row y = multiply(name + "_proj", x);
    if (tensors_.contains(name + "_bias")) add(y, row_of(name + "_bias", 0));
    return y;
  }

  Row norm(const std::string& name, Row x) const {
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double factor = 1 / std::sqrt(squares / x.size() + config_.rms_norm_eps);
    const Row weight = row_of(name, 0);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] *= factor * (weight[i] + config_.norm_offset);
    return x;
  }

  Row head_norm(const std::string& name, Row x) const {
    if (!tensors_.contains(name)) return x;
    for (std::size_t h = 0; h < x.size(); h += config_.head_dim) {
      const Row head = norm(name, Row(x.begin() + h, x.begin() + h + config_.head_dim));
      std::copy(head.begin(), head.end(), x.begin() + h);
    }
    return x;
  }

  double activate(double x) const {
    if (config_.activation == Activation::kSilu) return x / (1 + std::exp(-x));
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
  }

  Row rotate(Row x, std::int64_t position) const {
    const RopeSpec& rope = config_.ropes[0][0];
    const std::size_t half = rope.inverse_frequencies.size();
    for (std::size_t u = 0; u < half; ++u) {
      const double angle = position * rope.inverse_frequencies[u];
      const double cos = rope.attention_factor * std::cos(angle);
      const double sin = rope.attention_factor * std::sin(angle);
      const double a = x[u], b = x[u + half];
      x[u] = a * cos - b * sin;
      x[u + half] = b * cos + a * sin;
    }
    return x;
  }

  Row attend(const ReferenceWorker& worker, std::int64_t layer, std::size_t token, const Row& query) const {
    std::int64_t position = 0;  // of this token in its view
    for (const ReferenceBlock* block : worker.view) {
      position += static_cast<std::int64_t>(block->keys[layer].size());
      if (block == worker.target) break;
    }
    position -= static_cast<std::int64_t>(worker.tokens.size() - token);

    const std::int64_t d = config_.head_dim;
    Row out;
    for (std::int64_t head = 0; head < config_.query_heads; ++head) {
      const std::int64_t at = head * config_.kv_heads / config_.query_heads * d;
      const Row q = rotate(Row(query.begin() + head * d, query.begin() + (head + 1) * d), position);
      std::vector<double> scores;
      std::vector<const double*> values;
      std::int64_t key_position = 0;
      for (const ReferenceBlock* block : worker.view) {
        for (std::size_t j = 0; j < block->keys[layer].size(); ++j, ++key_position) {
          if (key_position > position) continue;
          const Row& key = block->keys[layer][j];
          const Row k = rotate(Row(key.begin() + at, key.begin() + at + d), key_position);
          double score = 0;
          for (std::int64_t i = 0; i < d; ++i) score += q[i] * k[i];
          scores.push_back(score * config_.attention_scale);
          values.push_back(block->values[layer][j].data() + at);
        }
      }
      const double greatest = *std::max_element(scores.begin(), scores.end());
      double total = 0;
      Row mean(d);
      for (std::size_t j = 0; j < scores.size(); ++j) {
        const double weight = std::exp(scores[j] - greatest);
        total += weight;
        for (std::int64_t i = 0; i < d; ++i) mean[i] += weight * values[j][i];
      }
      for (const double value : mean) out.push_back(value / total);
    }
    return out;
  }

  const ModelConfig& config_;
  const Tensors& tensors_;
};

// ---- a device that notices every op -----------------------------------------------------------------

// Forwards to the CPU device; `before_op` may set a cancel flag or throw.
class WatchedDevice : public Device {
 public:
  std::function<void()> before_op = [] {};

  DeviceInfo info() const override { return cpu_->info(); }
  std::int64_t kv_first_page(const KvShape& shape, std::int64_t pages, std::int64_t layer) const override {
    return cpu_->kv_first_page(shape, pages, layer);
  }
  Buffer allocate(std::size_t bytes, const char* purpose) override {
    before_op();
    return cpu_->allocate(bytes, purpose);
  }
  using Device::upload;
  void download(void* host, const void* device, std::size_t bytes) override { cpu_->download(host, device, bytes); }
  void upload(void* device, const void* host, std::size_t bytes) override { cpu_->upload(device, host, bytes); }
  void copy(void* to, const void* from, std::size_t bytes) override { cpu_->copy(to, from, bytes); }
  void synchronize() override { cpu_->synchronize(); }
  Matrix upload_weight(const WeightSource& source, WeightStorage& storage) override {
    return cpu_->upload_weight(source, storage);
  }
  void embedding(const DeviceStep& s, const EmbeddingParams& p) override { run(&Device::embedding, s, p); }
  void rms_norm(const RmsNormParams& p) override { run(&Device::rms_norm, p); }
  void matmul(const MatmulParams& p) override { run(&Device::matmul, p); }
  void gated_activation(const GatedActivationParams& p) override { run(&Device::gated_activation, p); }
  void add(const AddParams& p) override { run(&Device::add, p); }
  void softcap(const SoftcapParams& p) override { run(&Device::softcap, p); }
  void experts(const ExpertsParams& p) override { run(&Device::experts, p); }
  void kv_append(const DeviceStep& s, const KvAppendParams& p) override { run(&Device::kv_append, s, p); }
  void attention(const DeviceStep& s, const AttentionParams& p) override { run(&Device::attention, s, p); }
  void attention_mass(const AttentionMassParams& p) override { run(&Device::attention_mass, p); }
  void kv_move(const KvMoveParams& p) override { run(&Device::kv_move, p); }
  void kv_read(const KvReadParams& p) override { cpu_->kv_read(p); }
  void kv_save(const KvCopyParams& p) override { cpu_->kv_save(p); }
  void kv_load(const KvCopyParams& p) override { cpu_->kv_load(p); }
  void sample(const SampleParams& p) override { run(&Device::sample, p); }
  double measure_read_bandwidth(std::size_t bytes) override { return cpu_->measure_read_bandwidth(bytes); }

 private:
  template <typename... Params>
  void run(void (Device::*op)(const Params&...), const Params&... params) {
    before_op();
    (cpu_.get()->*op)(params...);
  }

  std::shared_ptr<Device> cpu_ = create_cpu_device({.threads = 2});
};

// ---- a model and its cache --------------------------------------------------------------------------

struct World {
  Architecture architecture;
  ModelConfig config;
  Tensors tensors;
  std::shared_ptr<WatchedDevice> device = std::make_shared<WatchedDevice>();
  std::unique_ptr<Transformer> model;
  std::shared_ptr<KvCache> cache;
  std::atomic<bool> cancel = false;

  explicit World(const Architecture& architecture = {}, std::int64_t capacity = 4096)
      : architecture(architecture),
        config(tiny_config(architecture)),
        tensors(random_tensors(config, architecture, 7)) {
    TensorFile file(tensors);  // mapped until the model ends, though its name goes
    model = std::make_unique<Transformer>(device, config, std::make_unique<Weights>(*device, file.sources));
    cache = create_cache(capacity);
  }

  KvShape shape() const {
    return {.layers = config.n_layers(), .kv_heads = config.kv_heads, .head_dim = config.head_dim};
  }
  std::shared_ptr<KvCache> create_cache(std::int64_t capacity) const {
    return KvCache::create(device, shape(), config.ropes[0][0], capacity);
  }

  StepWorker worker(const std::vector<BlockPtr>& view, BlockPtr target, std::vector<std::int32_t> tokens,
                    LogitsWanted logits = LogitsWanted::kAll) const {
    StepWorker worker;
    worker.view.entries = entries_of(view);
    worker.view.target = std::move(target);
    worker.tokens = std::move(tokens);
    worker.logits = logits;
    return worker;
  }

  StepResult step(std::vector<StepWorker> workers) { return model->step(*cache, workers, cancel); }

  std::vector<float> prefill(const BlockPtr& block, const std::vector<std::int32_t>& tokens) {
    return step({worker({block}, block, tokens)}).workers[0].logits;
  }

  std::vector<std::int32_t> random_tokens(std::size_t count, std::uint64_t seed) const {
    Rng rng(seed);
    std::vector<std::int32_t> tokens(count);
    for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(rng() % config.vocab_size);
    return tokens;
  }
};

// Everything that can be seen of a block, bit for bit.
struct BlockContents {
  std::vector<std::int32_t> tokens;
  std::vector<std::uint32_t> bits;
  std::vector<std::int64_t> rotated_at;
  std::vector<std::vector<std::int64_t>> pages;

  bool operator==(const BlockContents&) const = default;
};

BlockContents contents(const CacheBlock& block, const KvShape& shape) {
  BlockContents contents{.tokens = block.tokens(), .bits = {}, .rotated_at = {}, .pages = {}};
  for (const Segment& segment : block.segments()) contents.pages.push_back(segment.pages);
  const std::size_t n = block.length() * shape.kv_heads * shape.head_dim;
  for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
    std::vector<float> k(n), v(n);
    std::vector<std::int64_t> rotated_at(block.length());
    block.read(layer, k.data(), v.data(), rotated_at.data());
    for (const std::vector<float>* values : {&k, &v}) {
      for (const float value : *values) contents.bits.push_back(std::bit_cast<std::uint32_t>(value));
    }
    contents.rotated_at.insert(contents.rotated_at.end(), rotated_at.begin(), rotated_at.end());
  }
  return contents;
}

double greatest_difference(const std::vector<float>& logits, const std::vector<Row>& expected) {
  double greatest = 0;
  std::size_t at = 0;
  for (const Row& row : expected) {
    for (const double value : row) greatest = std::max(greatest, std::abs(logits.at(at++) - value));
  }
  return at == logits.size() ? greatest : std::numeric_limits<double>::infinity();
}

std::vector<float> slice(const std::vector<float>& values, std::size_t first, std::size_t count) {
  return {values.begin() + first, values.begin() + first + count};
}

// Bits, so that -0 and 0 differ and NaN equals itself.
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(y);
  });
}

// ---- the step ---------------------------------------------------------------------------------------

// float32 against float64 where logits have a standard deviation of about 5; seen: 1.1e-4.
constexpr double kTolerance = 2e-4;

void compare_with_definition(const Architecture& architecture) {
  World world(architecture);
  const Reference reference(world.config, world.tensors);
  constexpr std::size_t kBlocks = 4;  // common, and one per worker
  std::vector<BlockPtr> blocks;
  std::vector<ReferenceBlock> lists;
  for (std::size_t b = 0; b < kBlocks; ++b) {
    blocks.push_back(world.cache->create_block());
    lists.push_back(reference.block());
  }
  const auto check_step = [&](const std::vector<std::pair<std::vector<int>, std::vector<std::int32_t>>>& parts) {
    std::vector<StepWorker> workers;
    std::vector<ReferenceWorker> expected;
    for (const auto& [view, tokens] : parts) {  // the first of `view` is the target, the rest the view
      StepWorker worker = world.worker({}, blocks[view[0]], tokens);
      ReferenceWorker other{{}, &lists[view[0]], tokens};
      for (std::size_t i = 1; i < view.size(); ++i) {
        worker.view.entries.push_back({.block = blocks[view[i]]});
        other.view.push_back(&lists[view[i]]);
      }
      workers.push_back(worker);
      expected.push_back(other);
    }
    const StepResult result = world.step(workers);
    const auto logits = reference.step(expected);
    for (std::size_t w = 0; w < parts.size(); ++w) {
      const double difference = greatest_difference(result.workers[w].logits, logits[w]);
      CHECK_MESSAGE(difference < kTolerance, std::to_string(difference));
    }
  };
  check_step({{{0, 0}, world.random_tokens(70, 1)}});  // longer than a page
  check_step({{{1, 1}, {3}}, {{2, 2}, {5, 6}}});       // headers on their own
  check_step({{{1, 0, 2, 3, 1}, {1, 2, 3}},            // ragged, each view in its own order
              {{2, 0, 1, 3, 2}, {7}},
              {{3, 0, 2, 1, 3}, {4, 4}}});
  check_step({{{3, 0, 1, 2, 3}, {9}}, {{1, 0, 2, 3, 1}, {8, 1}}});   // one worker idle, another order
  check_step({{{1, 0, 1, 2, 3}, {6, 5}}, {{2, 0, 1, 2, 3}, {4}}});   // targets in mid-view
  check_step({{{2, 2, 0, 1, 3}, {11, 12, 13}}, {{3, 0, 3}, {14}}});  // target first; a view without others
}

TEST(step_of_a_llama_equals_the_definition) { compare_with_definition({}); }
TEST(step_with_biases_and_untied_head_equals_the_definition) {
  compare_with_definition({.tied = false, .biases = true});
}
TEST(step_with_head_norms_equals_the_definition) { compare_with_definition({.head_norms = true}); }
TEST(step_with_norm_offset_and_gelu_equals_the_definition) { compare_with_definition({.gemma = true}); }

TEST(a_long_input_in_chunks_equals_one_pass_bit_for_bit) {
  World world;
  const std::vector<std::int32_t> tokens = world.random_tokens(1100, 3);  // chunks of 512, 512 and 76
  const BlockPtr common = world.cache->create_block();
  world.prefill(common, world.random_tokens(90, 4));

  const BlockPtr alone = world.cache->create_block();
  const std::vector<float> in_chunks = world.step({world.worker({common, alone}, alone, tokens)}).workers[0].logits;
  // In company a step goes through each layer as a whole. The other worker is not in the view.
  const BlockPtr accompanied = world.cache->create_block();
  const BlockPtr other = world.cache->create_block();
  const std::vector<float> in_one =
      world.step({world.worker({common, accompanied}, accompanied, tokens), world.worker({other}, other, {1, 2, 3})})
          .workers[0]
          .logits;
  CHECK(same_bits(in_chunks, in_one));

  // Tokens of one's own may come in any number of steps.
  const BlockPtr stepwise = world.cache->create_block();
  std::vector<float> in_steps;
  for (std::size_t first = 0; first < tokens.size();) {
    const std::size_t n = std::min<std::size_t>(first % 7 == 0 ? 1 : 130, tokens.size() - first);
    const std::vector<float> logits =
        world.step({world.worker({common, stepwise}, stepwise, {tokens.begin() + first, tokens.begin() + first + n})})
            .workers[0]
            .logits;
    in_steps.insert(in_steps.end(), logits.begin(), logits.end());
    first += n;
  }
  CHECK(same_bits(in_chunks, in_steps));
  const BlockContents expected = contents(*alone, world.shape());
  for (const BlockPtr& block : {accompanied, stepwise}) {
    const BlockContents found = contents(*block, world.shape());
    CHECK(found.tokens == expected.tokens && found.bits == expected.bits && found.rotated_at == expected.rotated_at);
  }
}

// Workers that see each other cannot go in chunks: all must append before any attends.
TEST(long_inputs_of_several_workers_equal_the_definition) {
  World world;
  const Reference reference(world.config, world.tensors);
  const BlockPtr first = world.cache->create_block();
  const BlockPtr second = world.cache->create_block();
  ReferenceBlock first_list = reference.block();
  ReferenceBlock second_list = reference.block();
  const std::vector<std::int32_t> long_input = world.random_tokens(300, 11);
  const std::vector<std::int32_t> other_input = world.random_tokens(230, 12);
  const StepResult result = world.step(
      {world.worker({second, first}, first, long_input), world.worker({first, second}, second, other_input)});
  const auto logits = reference.step({{{&second_list, &first_list}, &first_list, long_input},
                                      {{&first_list, &second_list}, &second_list, other_input}});
  const double difference0 = greatest_difference(result.workers[0].logits, logits[0]);
  CHECK_MESSAGE(difference0 < kTolerance, std::to_string(difference0));
  const double difference1 = greatest_difference(result.workers[1].logits, logits[1]);
  CHECK_MESSAGE(difference1 < kTolerance, std::to_string(difference1));
}

TEST(company_order_and_number_of_workers_change_no_bit) {
  World world;
  const BlockPtr common = world.cache->create_block();
  world.prefill(common, world.random_tokens(40, 5));
  const auto run = [&](const std::vector<std::int32_t>& seeds) {  // logits by seed; nobody sees the others
    std::vector<StepWorker> workers;
    for (const std::int32_t seed : seeds) {
      const BlockPtr own = world.cache->create_block();
      workers.push_back(world.worker({common, own}, own, world.random_tokens(seed % 3 + 1, seed)));
    }
    const StepResult result = world.step(workers);
    std::map<std::int32_t, std::vector<float>> logits;
    for (std::size_t w = 0; w < seeds.size(); ++w) logits[seeds[w]] = result.workers[w].logits;
    return logits;
  };
  auto together = run({1, 2, 3, 4, 5});
  auto reversed = run({5, 4, 3, 2, 1});
  for (std::int32_t seed = 1; seed <= 5; ++seed) {
    CHECK(same_bits(together[seed], reversed[seed]));
    CHECK(same_bits(together[seed], run({seed})[seed]));
  }
}

// ---- pieces -----------------------------------------------------------------------------------------

// Steps of several caches take turns, piece by piece: nobody's bits change, and a short step is done after
// one turn.
TEST(steps_of_several_caches_take_turns) {
  World world({}, 8192);
  struct Cache {
    std::shared_ptr<KvCache> cache;
    BlockPtr first, second;
  };
  const auto create = [&] {
    Cache made{.cache = world.create_cache(4096), .first = nullptr, .second = nullptr};
    made.first = made.cache->create_block();
    made.second = made.cache->create_block();
    return made;
  };
  const auto long_input = [&](const Cache& c) {  // of one worker: chunk by chunk through all layers
    return std::vector<StepWorker>{world.worker({c.first}, c.first, world.random_tokens(1300, 21))};
  };
  const auto long_inputs = [&](const Cache& c) {  // of two that see each other: layer by layer, in three chunks
    return std::vector<StepWorker>{world.worker({c.second, c.first}, c.first, world.random_tokens(700, 22)),
                                   world.worker({c.first, c.second}, c.second, world.random_tokens(600, 23))};
  };
  const auto short_input = [&](const Cache& c) {
    return std::vector<StepWorker>{world.worker({c.first}, c.first, {1, 2, 3})};
  };
  const auto run = [&](const std::function<std::vector<StepWorker>(const Cache&)>& make) {
    const Cache c = create();
    StepResult result = world.model->step(*c.cache, make(c), world.cancel);
    return std::pair(std::move(result),
                     std::pair(contents(*c.first, world.shape()), contents(*c.second, world.shape())));
  };
  const auto [one, one_contents] = run(long_input);
  const auto [two, two_contents] = run(long_inputs);
  const auto [brief, brief_contents] = run(short_input);

  const Cache caches[] = {create(), create(), create(), create()};
  std::vector<std::unique_ptr<Step>> steps;
  steps.push_back(world.model->begin(*caches[0].cache, long_input(caches[0])));
  steps.push_back(world.model->begin(*caches[1].cache, long_inputs(caches[1])));
  steps.push_back(world.model->begin(*caches[2].cache, long_input(caches[2])));
  int turns[3] = {};
  const auto is_brief = [&] {
    const Cache c = create();
    const std::unique_ptr<Step> step = world.model->begin(*c.cache, short_input(c));
    CHECK(step->advance(world.cancel));
    CHECK(same_bits(step->result().workers[0].logits, brief.workers[0].logits));
    CHECK(contents(*c.first, world.shape()) == brief_contents.first);
  };
  for (bool any = true; any;) {
    any = false;
    for (std::size_t i = 0; i < 3; ++i) {
      if (steps[i] == nullptr) continue;
      any = true;
      ++turns[i];
      CHECK(caches[i].first->length() == 0);
      if (i == 2 && turns[i] == 5) {  // given up between two pieces
        steps[i].reset();
        CHECK(caches[i].first->length() == 0);
        CHECK(caches[i].cache->stats().free_pages == caches[i].cache->stats().pages);
        continue;
      }
      if (!steps[i]->advance(world.cancel)) continue;
      const StepResult& result = steps[i]->result();
      const StepResult& expected = i == 0 ? one : two;
      for (std::size_t w = 0; w < expected.workers.size(); ++w) {
        CHECK(same_bits(result.workers[w].logits, expected.workers[w].logits));
      }
      CHECK(result.seconds > 0);
      steps[i].reset();
      const auto& expected_contents = i == 0 ? one_contents : two_contents;
      CHECK(contents(*caches[i].first, world.shape()) == expected_contents.first);
      CHECK(contents(*caches[i].second, world.shape()) == expected_contents.second);
    }
    is_brief();
  }
  // Two layers each: 3 chunks that go through alone, then 512 / 64 groups of logits; and 1300 rows a layer.
  CHECK(turns[0] >= 3 * 2 + 1300 / 64 && turns[1] >= 2 * 1300 / 512 + 1300 / 64);

  // A step that is aborted between two pieces.
  const std::unique_ptr<Step> step = world.model->begin(*caches[2].cache, long_input(caches[2]));
  CHECK(!step->advance(world.cancel));
  world.cancel = true;
  CHECK_CODE(code::kAborted, step->advance(world.cancel));
  world.cancel = false;
}

// Views of thousands of segments: plans come in smaller pieces, the bits are the same.
TEST(a_view_of_many_segments_has_a_bounded_plan) {
  World world({}, 64 * 1024);
  const BlockPtr source = world.cache->create_block();
  const BlockPtr common = world.cache->create_block();
  world.prefill(source, {1, 2, 3});
  common->append_from(*source);
  while (common->segments().size() < 4096) common->append_from(*common);
  const std::vector<std::int32_t> tokens = world.random_tokens(270, 32);

  const BlockPtr whole = world.cache->create_block();
  {
    const StepReservation step(*world.cache,
                               {{.entries = entries_of({common, whole}), .target = whole, .tokens = tokens}});
    const std::int64_t rows = ChunkedPlan::chunk_rows(step);
    CHECK(rows >= 64 && rows < 270 && rows * step.most_segments() <= std::int64_t{1} << 20);
  }
  const std::vector<float> logits =
      world.step({world.worker({common, whole}, whole, tokens, LogitsWanted::kLast)}).workers[0].logits;
  // In company the chunks' plans do not fit together, so they are made again for every layer.
  const BlockPtr accompanied = world.cache->create_block();
  const BlockPtr other = world.cache->create_block();
  const StepResult both = world.step({world.worker({common, accompanied}, accompanied, tokens, LogitsWanted::kLast),
                                      world.worker({common, other}, other, {5}, LogitsWanted::kNone)});
  CHECK(same_bits(both.workers[0].logits, logits));
}

// ---- what is wanted ---------------------------------------------------------------------------------

TEST(penalties_concern_what_is_seen) {
  World world;
  std::vector<BlockPtr> blocks;
  for (int i = 0; i < 3; ++i) blocks.push_back(world.cache->create_block());
  world.prefill(blocks[0], {3, 1, 3});
  world.prefill(blocks[1], {30});
  world.prefill(blocks[2], {20});
  std::vector<StepWorker> workers{world.worker({blocks[0], blocks[1], blocks[2]}, blocks[0], {7}),
                                  world.worker({blocks[1]}, blocks[1], {9, 8})};
  constexpr float kInf = std::numeric_limits<float>::infinity();
  workers[0].view.entries[2].bias = -kInf;
  const auto seen = [&](std::size_t worker, std::int64_t vocab, PenaltyScope scope, std::int64_t last_n) {
    workers[worker].penalty_scope = scope;
    workers[worker].penalty_last_n = last_n;
    const SeenIds found = seen_ids(workers, worker, vocab);
    std::map<std::int32_t, std::int32_t> counts;
    for (std::size_t i = 0; i < found.ids.size(); ++i) counts[found.ids[i]] = found.counts.at(i);
    CHECK(counts.size() == found.counts.size() && std::is_sorted(found.ids.begin(), found.ids.end()));
    return counts;
  };
  using Counts = std::map<std::int32_t, std::int32_t>;
  const auto view = PenaltyScope::kView, own = PenaltyScope::kOwn;
  CHECK((seen(0, 37, view, 0) == Counts{{1, 1}, {3, 2}, {7, 1}, {8, 1}, {9, 1}, {30, 1}}));
  CHECK((seen(1, 37, view, 0) == Counts{{8, 1}, {9, 1}, {30, 1}}));
  CHECK((seen(0, 8, view, 0) == Counts{{1, 1}, {3, 2}, {7, 1}}));
  CHECK((seen(0, 37, own, 0) == Counts{{1, 1}, {3, 2}, {7, 1}}));
  CHECK((seen(0, 37, own, 2) == Counts{{3, 1}, {7, 1}}));
  CHECK((seen(1, 37, own, 100) == Counts{{8, 1}, {9, 1}, {30, 1}}));
  // The view up to the last new token: 3 1 3 7, with nothing of what stands behind.
  CHECK((seen(0, 37, view, 3) == Counts{{1, 1}, {3, 1}, {7, 1}}));
  CHECK((seen(0, 37, view, 100) == Counts{{1, 1}, {3, 2}, {7, 1}}));
  // Across blocks: 30 9 8 | (20) | 3 1 3 7, the hidden one keeps its place; then 7 again, at the end of the first.
  workers[0].view = {.entries = {{.block = blocks[1]}, {.block = blocks[2], .bias = -kInf}, {.block = blocks[0]}},
                     .target = blocks[0],
                     .tokens = {}};
  CHECK((seen(0, 37, view, 5) == Counts{{1, 1}, {3, 2}, {7, 1}}));
  CHECK((seen(0, 37, view, 6) == Counts{{1, 1}, {3, 2}, {7, 1}, {8, 1}}));
  workers[0].view = {.entries = entries_of({blocks[1], blocks[0], blocks[0]}), .target = blocks[0], .tokens = {}};
  CHECK((seen(0, 37, view, 5) == Counts{{1, 1}, {3, 2}, {7, 1}, {8, 1}}));
  CHECK((seen(0, 37, view, 0) == Counts{{1, 2}, {3, 4}, {7, 2}, {8, 1}, {9, 1}, {30, 1}}));
  // What is late is not seen: 30 | 3 1 3 7 | 3 1 3.
  for (ViewEntry& entry : workers[0].view.entries) entry.lag = true;
  CHECK((seen(0, 37, view, 0) == Counts{{1, 2}, {3, 4}, {7, 1}, {30, 1}}));
  CHECK((seen(0, 37, view, 5) == Counts{{1, 1}, {3, 2}, {7, 1}, {30, 1}}));
  CHECK((seen(0, 37, own, 0) == Counts{{1, 1}, {3, 2}, {7, 1}}));
}

// A model that computes NaN or infinity is refused by the name of the tensor that it comes from, whatever is
// wanted of the step, and the cache is as it was.
TEST(damaged_weights_are_the_fault_of_the_model) {
  const float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  const auto try_damage = [&](const std::string& name, std::size_t at, float value, bool also_without_outputs) {
    World world({.tied = false});
    Tensors tensors = world.tensors;
    tensors.at(name).values.at(at) = value;
    const TensorFile file(tensors);
    Transformer damaged(world.device, world.config, std::make_unique<Weights>(*world.device, file.sources));
    const BlockPtr block = world.cache->create_block(), other = world.cache->create_block();
    world.prefill(block, {1, 2, 3});
    const BlockContents before = contents(*block, world.shape());
    const std::int64_t free_pages = world.cache->stats().free_pages;
    const auto refused = [&](std::vector<StepWorker> workers) {
      try {
        damaged.step(*world.cache, std::move(workers), world.cancel);
        CHECK_MESSAGE(false, name);
      } catch (const Error& error) {
        CHECK_MESSAGE(error.code() == std::string(code::kInvalidModel), error.what());
        CHECK_MESSAGE(
            std::string(error.what()).find("'" + name + "' of '" + file.file->path() + "'") != std::string::npos,
            error.what());
      }
      CHECK(contents(*block, world.shape()) == before && other->length() == 0);
      CHECK(world.cache->stats().free_pages == free_pages);
    };
    StepWorker greedy = world.worker({block}, block, {4, 5}, LogitsWanted::kNone);
    greedy.sampler.emplace();
    StepWorker drawn = greedy;
    drawn.sampler->temperature = 1;
    refused({greedy});
    refused({drawn});
    refused({world.worker({block}, block, {4, 5}, LogitsWanted::kLast)});
    refused({world.worker({block}, block, world.random_tokens(100, 3), LogitsWanted::kAll)});
    if (!also_without_outputs) return;
    refused({world.worker({block}, block, {4, 5}, LogitsWanted::kNone)});
    refused({world.worker({block}, block, world.random_tokens(1100, 3), LogitsWanted::kNone)});
    refused({world.worker({block}, block, world.random_tokens(300, 3), LogitsWanted::kNone),
             world.worker({other}, other, world.random_tokens(300, 4), LogitsWanted::kNone)});
  };
  for (const float value : {kNan, kInf, -kInf}) {
    for (const char* name : {"layers.0.k_proj", "layers.1.v_proj", "layers.0.down_proj", "layers.1.input_norm"}) {
      try_damage(name, 5, value, true);
    }
    try_damage("lm_head", 30, value, false);
    try_damage("norm", 7, value, false);
    try_damage("layers.1.gate_proj", 3, value, false);
  }

  // One token's embedding: the rows before the last count, too.
  World world({.tied = false});
  Tensors tensors = world.tensors;
  tensors.at("embed").values.at(9 * 24 + 3) = kNan;
  const TensorFile file(tensors);
  Transformer damaged(world.device, world.config, std::make_unique<Weights>(*world.device, file.sources));
  const BlockPtr block = world.cache->create_block(), other = world.cache->create_block();
  for (const LogitsWanted wanted : {LogitsWanted::kNone, LogitsWanted::kLast, LogitsWanted::kAll}) {
    CHECK_CODE(code::kInvalidModel,
               damaged.step(*world.cache, {world.worker({block}, block, {9, 1, 2, 3}, wanted)}, world.cancel));
    // In company of a worker that is well and wants logits.
    CHECK_CODE(code::kInvalidModel, damaged.step(*world.cache,
                                                 {world.worker({block}, block, {1, 9, 2}, wanted),
                                                  world.worker({other}, other, {3}, LogitsWanted::kLast)},
                                                 world.cancel));
  }
  CHECK(block->length() == 0 && other->length() == 0);
  damaged.step(*world.cache, {world.worker({block}, block, {1, 2, 3})}, world.cancel);  // those are well

  // No weight is damaged: they are too large.
  Tensors large = world.tensors;
  for (float& value : large.at("layers.0.gate_proj").values) value *= 1e30f;
  for (float& value : large.at("layers.0.up_proj").values) value *= 1e30f;
  const TensorFile large_file(large);
  Transformer overflowing(world.device, world.config, std::make_unique<Weights>(*world.device, large_file.sources));
  try {
    overflowing.step(*world.cache, {world.worker({other}, other, {1})}, world.cancel);
    CHECK(false);
  } catch (const Error& error) {
    CHECK(error.code() == std::string(code::kInvalidModel));
    CHECK_MESSAGE(std::string(error.what()).find("too large") != std::string::npos, error.what());
  }
}

TEST(only_what_is_wanted_comes_back) {
  World world;
  const std::size_t vocab = world.config.vocab_size;
  const std::vector<std::int32_t> tokens = world.random_tokens(80, 6);  // more rows than one group of logits
  const BlockPtr whole = world.cache->create_block();
  const std::vector<float> all = world.prefill(whole, tokens);
  CHECK(all.size() == tokens.size() * vocab);
  const std::vector<float> last = slice(all, all.size() - vocab, vocab);

  std::vector<StepWorker> workers;
  for (const LogitsWanted wanted : {LogitsWanted::kNone, LogitsWanted::kLast, LogitsWanted::kAll}) {
    for (const bool sampled : {false, true}) {
      const BlockPtr block = world.cache->create_block();
      workers.push_back(world.worker({block}, block, tokens, wanted));
      if (!sampled) continue;
      workers.back().sampler.emplace();  // greedy
      workers.back().logprob = wanted == LogitsWanted::kLast;
    }
  }
  workers.back().forbidden = {static_cast<std::int32_t>(std::max_element(last.begin(), last.end()) - last.begin())};
  const StepResult result = world.step(workers);
  const std::size_t expected_sizes[] = {0, 0, vocab, vocab, all.size(), all.size()};
  const auto best = static_cast<std::int32_t>(std::max_element(last.begin(), last.end()) - last.begin());
  double total = 0;
  for (const float logit : last) total += std::exp(static_cast<double>(logit) - last[best]);
  for (std::size_t w = 0; w < workers.size(); ++w) {
    const StepResult::Worker& got = result.workers[w];
    CHECK(got.logits.size() == expected_sizes[w]);
    if (got.logits.size() == vocab) CHECK(same_bits(got.logits, last));
    if (got.logits.size() == all.size()) CHECK(same_bits(got.logits, all));
    const bool forbidden = w + 1 == workers.size();
    CHECK(workers[w].sampler ? (got.choices[0].token == best) != forbidden : got.choices[0].token == -1);
    if (workers[w].logprob) CHECK(std::abs(got.choices[0].logprob + std::log(total)) < 1e-5);
  }
}

TEST(an_abort_or_a_failure_at_any_op_leaves_the_cache_as_it_was) {
  World world({}, 2048);
  const BlockPtr common = world.cache->create_block();
  const BlockPtr first = world.cache->create_block();
  const BlockPtr second = world.cache->create_block();
  world.prefill(common, world.random_tokens(30, 7));
  world.prefill(first, {1, 2, 3});
  const auto several = [&] {
    std::vector<StepWorker> workers = {world.worker({common, second, first}, first, {4, 5}),
                                       world.worker({common, first, second}, second, {6}, LogitsWanted::kNone)};
    workers[1].sampler.emplace();
    return workers;
  };
  const auto chunked = [&] {
    return std::vector<StepWorker>{
        world.worker({common, first}, first, world.random_tokens(1030, 8), LogitsWanted::kLast)};
  };
  const auto state = [&] {
    return std::tuple(contents(*common, world.shape()), contents(*first, world.shape()),
                      contents(*second, world.shape()), world.cache->stats().free_pages);
  };
  const auto before = state();

  // `interrupt` runs before op number n, for every n until the step gets through.
  const auto try_every_op = [&](const std::function<std::vector<StepWorker>()>& make_step, const char* code,
                                const std::function<void()>& interrupt) {
    int interrupted = 0;
    for (;; ++interrupted) {
      int ops = 0;
      world.cancel = false;
      world.device->before_op = [&] {
        if (ops++ == interrupted) interrupt();
      };
      std::vector<StepWorker> workers = make_step();
      const std::string thrown =
          hogwild::testing::code_of([&] { world.model->step(*world.cache, workers, world.cancel); });
      world.device->before_op = [] {};
      if (thrown.empty()) break;
      CHECK(thrown == code);
      CHECK(state() == before);
    }
    world.cancel = false;
    CHECK(interrupted > 15);
    CHECK(state() != before);
    first->truncate(3);
    second->clear();
    CHECK(state() == before);
  };
  const auto cancel = [&] { world.cancel = true; };
  const auto fail = [] { throw Error(code::kInternal, "the device failed"); };
  try_every_op(several, code::kAborted, cancel);
  try_every_op(chunked, code::kAborted, cancel);
  try_every_op(several, code::kInternal, fail);
  try_every_op(chunked, code::kInternal, fail);

  world.cancel = true;  // before the step begins
  CHECK_CODE(code::kAborted, world.step(several()));
  CHECK(state() == before);
}

TEST(a_step_that_is_refused_names_the_reason_and_changes_nothing) {
  World world({}, 640);
  const BlockPtr block = world.cache->create_block();
  world.prefill(block, {1, 2, 3});
  const BlockContents before = contents(*block, world.shape());
  const std::int64_t free_pages = world.cache->stats().free_pages;
  const auto refused = [&](const char* code, const std::string& part, std::vector<StepWorker> workers) {
    try {
      world.step(std::move(workers));
      CHECK_MESSAGE(false, part);
    } catch (const Error& error) {
      CHECK(error.code() == std::string(code));
      CHECK_MESSAGE(std::string(error.what()).find(part) != std::string::npos, error.what());
    }
    CHECK(contents(*block, world.shape()) == before);
    CHECK(world.cache->stats().free_pages == free_pages);
  };
  refused(code::kInvalidArgument, "workers", {});
  refused(code::kInvalidArgument, "workers[0].tokens", {world.worker({block}, block, {})});
  refused(code::kInvalidArgument, "received 37", {world.worker({block}, block, {1, 37})});
  refused(code::kInvalidArgument, "received -1", {world.worker({block}, block, {-1})});
  refused(code::kInvalidArgument, "[0, 37)", {world.worker({block}, block, {INT32_MAX})});
  const BlockPtr other = world.cache->create_block();
  refused(code::kInvalidArgument, "workers[1].tokens",
          {world.worker({block}, block, {1}), world.worker({other}, other, {99})});
  StepWorker forbidding = world.worker({block}, block, {1});
  forbidding.sampler.emplace();
  forbidding.forbidden = {37};
  refused(code::kInvalidArgument, "workers[0].forbidden", {forbidding});
  refused(code::kWriteConflict, "", {world.worker({block}, block, {1}), world.worker({block}, block, {2})});
  // Room for the first chunk, but not for all: nothing is computed, nothing stays.
  refused(code::kOutOfPages, "", {world.worker({block}, block, world.random_tokens(700, 1))});

  KvShape other_shape = world.shape();
  other_shape.kv_heads = 3;
  RopeSpec other_rope = world.config.ropes[0][0];
  other_rope.attention_factor = 1;
  for (const std::shared_ptr<KvCache>& cache :
       {KvCache::create(world.device, other_shape, world.config.ropes[0][0], 64),
        KvCache::create(world.device, world.shape(), other_rope, 64),
        KvCache::create(create_cpu_device({}), world.shape(), world.config.ropes[0][0], 64)}) {
    const BlockPtr elsewhere = cache->create_block();
    std::vector<StepWorker> workers = {world.worker({elsewhere}, elsewhere, {1})};
    CHECK_CODE(code::kInvalidArgument, world.model->step(*cache, workers, world.cancel));
  }
}

// ---- loading ----------------------------------------------------------------------------------------

std::string load_error(TensorFile& file, const ModelConfig& config, const std::string& expected_code) {
  const std::shared_ptr<Device> device = create_cpu_device({});
  try {
    Transformer(device, config, std::make_unique<Weights>(*device, file.sources));
  } catch (const Error& error) {
    CHECK(error.code() == expected_code);
    return error.what();
  }
  CHECK_MESSAGE(false, "loaded");
  return "";
}

TEST(a_model_that_does_not_fit_its_description_is_refused_by_name) {
  const ModelConfig config = tiny_config({});
  const Tensors tensors = random_tensors(config, {}, 1);
  const auto contains = [](const std::string& text, const std::string& part) {
    CHECK_MESSAGE(text.find(part) != std::string::npos, text);
  };
  const auto change_tensor = [&](const std::string& name, const std::function<void(TensorSource&)>& change) {
    TensorFile file(tensors);
    change(file[name]);
    const std::string message = load_error(file, config, code::kInvalidModel);
    contains(message, name);
    return message;
  };
  const std::string name = "layers.1.k_proj";
  contains(change_tensor(name, [](TensorSource& s) { s.rows += 1; }), "[16, 24]");
  change_tensor("norm", [](TensorSource& s) { s.cols -= 1; });
  // Outside the file, or sizes that overflow.
  for (const std::uint64_t offset : {std::uint64_t{1} << 20, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
    contains(change_tensor(name, [&](TensorSource& s) { s.offset = offset; }), "/tmp/hogwild_model_test_");
  }
  for (const std::int64_t size : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1} << 60,
                                  std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min()}) {
    change_tensor(name, [&](TensorSource& s) { s.rows = size; });
    change_tensor(name, [&](TensorSource& s) { s.cols = size; });
    change_tensor("norm", [&](TensorSource& s) { s.cols = size; });
  }

  TensorFile missing(tensors);
  std::erase_if(missing.sources, [&](const TensorSource& s) { return s.name == name; });
  contains(load_error(missing, config, code::kInvalidModel), name);
  TensorFile twice(tensors);
  twice.sources.push_back(twice[name]);
  contains(load_error(twice, config, code::kInvalidModel), name);
  TensorFile unknown(tensors);
  unknown.sources.push_back(unknown["norm"]);
  unknown.sources.back().name = "layers.0.pre_feedforward_norm";
  contains(load_error(unknown, config, code::kUnsupported), "layers.0.pre_feedforward_norm");
  TensorFile no_file(tensors);
  no_file[name].path = "/tmp/no such file";
  contains(load_error(no_file, config, code::kInvalidModel), "/tmp/no such file");
  TensorFile folder(tensors);
  folder[name].path = "/tmp";
  contains(load_error(folder, config, code::kInvalidModel), "/tmp");
  const TemporaryFile empty({});
  TensorFile in_empty(tensors);
  in_empty[name].path = empty.path();
  contains(load_error(in_empty, config, code::kInvalidModel), empty.path());

  TensorFile good(tensors);
  const auto change_config = [&](const char* part, const char* expected_code, const auto& change) {
    ModelConfig changed = config;
    change(changed);
    contains(load_error(good, changed, expected_code), part);
  };
  change_config("head_dim", code::kUnsupported, [](ModelConfig& c) { c.head_dim = 12; });
  change_config("head_dim", code::kUnsupported, [](ModelConfig& c) { c.head_dim = 264; });
  change_config("kv_heads", code::kInvalidModel, [](ModelConfig& c) { c.kv_heads = 4; });
  change_config("vocab_size", code::kInvalidModel, [](ModelConfig& c) { c.vocab_size = std::int64_t{1} << 60; });
  change_config("vocab_size", code::kUnsupported, [](ModelConfig& c) { c.vocab_size = kMaxVocab + 1; });
  change_config("layers", code::kInvalidModel, [](ModelConfig& c) { c.layers.clear(); });
  change_config("layers.2.", code::kInvalidModel, [](ModelConfig& c) { c.layers.resize(3, c.layers.front()); });
  change_config("layers.1.", code::kUnsupported, [](ModelConfig& c) { c.layers.resize(1); });
  change_config("attention_scale", code::kInvalidModel, [](ModelConfig& c) { c.attention_scale = 0; });
  for (const float scale : {0.0f, -1.0f, std::nanf("")}) {
    change_config("residual_scale", code::kInvalidModel, [&](ModelConfig& c) { c.residual_scale = scale; });
    change_config("logit_scale", code::kInvalidModel, [&](ModelConfig& c) { c.logit_scale = scale; });
  }
  for (const float softcap : {-1.0f, std::nanf("")}) {
    change_config("logit_softcap", code::kInvalidModel, [&](ModelConfig& c) { c.logit_softcap = softcap; });
    change_config("softcap", code::kInvalidModel, [&](ModelConfig& c) { c.layers[1].softcap = softcap; });
  }
  change_config("window", code::kInvalidModel, [](ModelConfig& c) { c.layers[0].window = -1; });
  change_config("intermediate_size", code::kInvalidModel, [](ModelConfig& c) { c.layers[1].intermediate_size = 0; });
  for (const std::int32_t rope : {-2, 1}) {
    change_config("rope", code::kInvalidModel, [&](ModelConfig& c) { c.layers[1].rope = rope; });
  }
  for (const std::size_t frequencies : {0, 5}) {
    change_config("ropes", code::kInvalidModel,
                  [&](ModelConfig& c) { c.ropes[0][0].inverse_frequencies.resize(frequencies); });
  }
  change_config("ropes", code::kInvalidModel, [](ModelConfig& c) { c.ropes.clear(); });
  change_config("ropes", code::kInvalidModel, [](ModelConfig& c) { c.ropes.push_back({}); });
  change_config("layers.1.sinks", code::kInvalidModel, [](ModelConfig& c) { c.layers[1].sinks = true; });
  change_config("layers.1.q_norm", code::kInvalidModel, [](ModelConfig& c) { c.layers[1].qk_norm = QkNorm::kRow; });
  change_config("layers.0.mlp_norm", code::kUnsupported, [](ModelConfig& c) { c.layers[0].mlp_norm = false; });
}

TEST(weights_are_read_in_place_copied_or_converted) {
  const std::shared_ptr<Device> device = create_cpu_device({});
  Rng rng(5);
  std::normal_distribution<float> normal;
  Tensor matrix{3, 5, std::vector<float>(15)};
  for (float& value : matrix.values) value = normal(rng);
  matrix.values[0] = 1e-7f;  // a subnormal f16
  const Tensors tensors = {{"m", matrix}, {"v", {1, 15, matrix.values}}};

  const auto widen = [](const Matrix& m, std::int64_t i) {
    if (m.format == Format::kF32) return static_cast<const float*>(m.data)[i];
    const std::uint16_t bits = static_cast<const std::uint16_t*>(m.data)[i];
    return m.format == Format::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
  };
  const auto round = [](float x, Dtype dtype) {
    if (dtype == Dtype::kF16) return f16_to_f32(f32_to_f16(x));
    if (dtype == Dtype::kBF16) return bf16_to_f32(f32_to_bf16(x));
    return x;
  };
  constexpr Dtype kDtypes[] = {Dtype::kF32, Dtype::kF16, Dtype::kBF16};
  for (const Dtype stored : kDtypes) {
    for (const std::size_t padding : {16, 17}) {  // 17: not aligned to any element
      const TensorFile file(tensors, stored, padding);
      const auto check_weights = [&](std::optional<Dtype> convert_to, bool mapped) {
        const Weights weights(*device, file.sources, {.convert_to = convert_to, .mapped = mapped});
        const Dtype dtype = convert_to.value_or(stored);
        const Matrix m = weights.matrix("m", 3, 5);
        CHECK(m.format == format_of(dtype));
        CHECK(reinterpret_cast<std::uintptr_t>(m.data) % dtype_size(dtype) == 0);
        CHECK(weights.bytes() == 15 * static_cast<std::int64_t>(dtype_size(dtype)));
        const float* v = weights.vector("v", 15);
        for (std::int64_t i = 0; i < 15; ++i) {
          const float in_file = round(matrix.values[i], stored);
          CHECK(v[i] == in_file);
          CHECK(widen(m, i) == round(in_file, dtype));
        }
      };
      for (const bool mapped : {true, false}) {
        check_weights(std::nullopt, mapped);
        for (const Dtype convert_to : kDtypes) check_weights(convert_to, mapped);
      }
    }
  }

  Tensors large = tensors;
  large["m"].values[7] = 65519.f;  // rounds to 65504, the largest f16
  CHECK(widen(Weights(*device, TensorFile(large).sources, {.convert_to = Dtype::kF16}).matrix("m", 3, 5), 7) ==
        65504.f);
  large["m"].values[7] = std::numeric_limits<float>::infinity();  // infinite in the file
  CHECK(
      std::isinf(widen(Weights(*device, TensorFile(large).sources, {.convert_to = Dtype::kF16}).matrix("m", 3, 5), 7)));
  large["m"].values[7] = 65520.f;
  CHECK_CODE(code::kInvalidModel, Weights(*device, TensorFile(large).sources, {.convert_to = Dtype::kF16}));
}

// Of each head of 10, the first 8 rows are in order where they were neighbours: 2u to u, 2u + 1 to u + 4.
TEST(interleaved_heads_are_put_in_order) {
  const std::shared_ptr<Device> device = create_cpu_device({});
  constexpr std::int64_t kRows = 20, kCols = 3;
  const auto row_in_file = [](std::int64_t row) {
    constexpr std::int64_t kOrder[] = {0, 2, 4, 6, 1, 3, 5, 7, 8, 9};
    return row / 10 * 10 + kOrder[row % 10];
  };
  Tensors tensors = {{"m", {kRows, kCols, {}}}, {"v", {1, kRows, {}}}};
  for (int i = 0; i < kRows * kCols; ++i) tensors["m"].values.push_back(static_cast<float>(i));
  for (int i = 0; i < kRows; ++i) tensors["v"].values.push_back(static_cast<float>(i));
  TensorFile file(tensors);
  const auto interleave = [&](std::int64_t head_dim, std::int64_t rotary_dim) {
    for (TensorSource& source : file.sources) source.interleaved = {head_dim, rotary_dim};
  };
  interleave(10, 8);
  for (const bool mapped : {true, false}) {
    for (const bool convert : {true, false}) {  // bf16 is exact for these numbers
      const auto convert_to = convert ? std::optional(Dtype::kBF16) : std::nullopt;
      const Weights weights(*device, file.sources, {.convert_to = convert_to, .mapped = mapped});
      const Matrix m = weights.matrix("m", kRows, kCols);
      const float* v = weights.vector("v", kRows);
      for (std::int64_t row = 0; row < kRows; ++row) {
        CHECK(v[row] == static_cast<float>(row_in_file(row)));
        for (std::int64_t i = row * kCols, j = row_in_file(row) * kCols; i < (row + 1) * kCols; ++i, ++j) {
          const float value = convert ? bf16_to_f32(static_cast<const std::uint16_t*>(m.data)[i])
                                      : static_cast<const float*>(m.data)[i];
          CHECK(value == static_cast<float>(j));
        }
      }
    }
  }
  for (const auto& [head_dim, rotary_dim] : {std::pair{3, 2}, {10, 12}, {10, 7}, {10, 0}, {-10, 8}, {40, 8}}) {
    interleave(head_dim, rotary_dim);
    CHECK_CODE(code::kInvalidModel, Weights(*device, file.sources));
  }
}

// Gate and up of a stack of transposed experts [E, H, 2 F], whose columns take turns, and their biases [E, 2 F].
TEST(strided_tensors_are_read) {
  const std::shared_ptr<Device> device = create_cpu_device({});
  constexpr std::int64_t kExperts = 2, kHidden = 67, kSize = 131;  // more than a tile of the copy
  Tensors tensors = {{"w", {1, kExperts * kHidden * 2 * kSize, {}}}, {"b", {1, kExperts * 2 * kSize, {}}}};
  for (auto& [name, tensor] : tensors) {
    for (std::int64_t i = 0; i < tensor.cols; ++i) tensor.values.push_back(static_cast<float>(i % 1021 - 500));
  }
  for (const Dtype dtype : {Dtype::kF32, Dtype::kF16}) {
    TensorFile file(tensors, dtype, 17);
    const std::uint64_t size = dtype_size(dtype), w = file["w"].offset, b = file["b"].offset;
    file.sources = {};
    for (const std::int64_t up : {0, 1}) {
      file.sources.push_back({.name = up ? "up" : "gate",
                              .path = file.file->path(),
                              .offset = w + (kHidden * 2 * kSize + up) * size,
                              .format = format_of(dtype),
                              .rows = kSize,
                              .cols = kHidden,
                              .row_stride = 2,
                              .col_stride = 2 * kSize});
      file.sources.push_back({.name = up ? "up_bias" : "gate_bias",
                              .path = file.file->path(),
                              .offset = b + (2 * kSize + up) * size,
                              .format = format_of(dtype),
                              .rows = 1,
                              .cols = kSize,
                              .row_stride = 1,
                              .col_stride = 2});
    }
    for (const bool mapped : {true, false}) {
      const Weights weights(*device, file.sources, {.convert_to = Dtype::kF32, .mapped = mapped});
      for (const std::int64_t up : {0, 1}) {
        const Matrix m = weights.matrix(up ? "up" : "gate", kSize, kHidden);
        const float* bias = weights.vector(up ? "up_bias" : "gate_bias", kSize);
        bool equal = true;
        for (std::int64_t r = 0; r < kSize; ++r) {
          equal &= bias[r] == tensors["b"].values[2 * kSize + 2 * r + up];
          for (std::int64_t c = 0; c < kHidden; ++c) {
            equal &= static_cast<const float*>(m.data)[r * kHidden + c] ==
                     tensors["w"].values[kHidden * 2 * kSize + c * 2 * kSize + 2 * r + up];
          }
        }
        CHECK(equal);
      }
    }
    // The last element lies one behind the end, or nowhere.
    file.sources.resize(1);
    const TensorSource good = file["gate"];
    for (const auto change : std::initializer_list<void (*)(TensorSource&)>{
             [](TensorSource& s) { s.offset += 1 << 20; }, [](TensorSource& s) { s.row_stride = 3; },
             [](TensorSource& s) { s.col_stride = INT64_MAX; }, [](TensorSource& s) { s.row_stride = INT64_MAX; },
             [](TensorSource& s) { s.row_stride = -2; }, [](TensorSource& s) { s.col_stride = 0; },
             [](TensorSource& s) { s.rows = INT64_MAX; }}) {
      change(file["gate"]);
      CHECK_CODE(code::kInvalidModel, Weights(*device, file.sources));
      file["gate"] = good;
    }
  }
}

// Rows of gate and up in turn, codes and exponents apart, as a Hugging Face folder of gpt-oss has them.
TEST(mxfp4_in_two_tensors_is_read) {
  const std::shared_ptr<Device> device = create_cpu_device({});
  constexpr std::int64_t kRows = 5, kCols = 96, kBlocks = kCols / 32;
  constexpr float kValues[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
  Rng rng(11);
  std::vector<unsigned char> bytes(7);  // misaligned
  const std::uint64_t codes = bytes.size();
  for (std::int64_t i = 0; i < 2 * kRows * kBlocks * 16; ++i) bytes.push_back(static_cast<unsigned char>(rng()));
  const std::uint64_t exponents = bytes.size();
  for (std::int64_t i = 0; i < 2 * kRows * kBlocks; ++i) {
    bytes.push_back(static_cast<unsigned char>(120 + rng() % 16));
  }
  const TemporaryFile file(bytes);
  const auto source = [&](std::int64_t up) {
    return TensorSource{.name = up ? "up" : "gate",
                        .path = file.path(),
                        .offset = codes + up * kBlocks * 16,
                        .format = Format::kMXFP4,
                        .rows = kRows,
                        .cols = kCols,
                        .row_stride = 2 * kCols,
                        .col_stride = 1,
                        .exponents = {{file.path(), exponents + up * kBlocks}}};
  };
  for (const bool mapped : {true, false}) {
    const Weights weights(*device, {source(0), source(1)}, {.convert_to = Dtype::kF32, .mapped = mapped});
    for (const std::int64_t up : {0, 1}) {
      const Matrix m = weights.matrix(up ? "up" : "gate", kRows, kCols);
      bool equal = true;
      for (std::int64_t r = 0; r < kRows; ++r) {
        for (std::int64_t c = 0; c < kCols; ++c) {
          const std::int64_t block = (2 * r + up) * kBlocks + c / 32;
          const int code = bytes[codes + block * 16 + c % 32 / 2] >> (c % 2 * 4) & 15;
          const float value = std::ldexp(kValues[code], bytes[exponents + block] - 127);
          equal &= static_cast<const float*>(m.data)[r * kCols + c] == value;
        }
      }
      CHECK(equal);
    }
  }
  for (const auto change : std::initializer_list<void (*)(TensorSource&)>{
           [](TensorSource& s) { s.offset += 2 * kRows * kBlocks + 1; },
           [](TensorSource& s) { s.exponents->offset += 1; }, [](TensorSource& s) { s.row_stride += 16; },
           [](TensorSource& s) { s.col_stride = 2; }, [](TensorSource& s) { s.format = Format::kQ4_0; },
           [](TensorSource& s) { s.exponents->path += "x"; },
           [](TensorSource& s) { s.row_stride = INT64_MAX / 32 * 32; }}) {
    TensorSource bad = source(1);
    change(bad);
    CHECK_CODE(code::kInvalidModel, Weights(*device, {bad}));
  }
}

// Codes, scales, zeros and the order of columns apart, as Hugging Face folders have them; of 24 outputs the last 16.
TEST(int4_in_several_tensors_is_read) {
  const std::shared_ptr<Device> device = create_cpu_device({});
  constexpr std::int64_t kOutputs = 24, kFirst = 8, kRows = kOutputs - kFirst, kCols = 128, kGroup = 64;
  constexpr std::int64_t kGroups = kCols / kGroup;
  constexpr int kAwqPlaces[] = {0, 4, 1, 5, 2, 6, 3, 7};
  Rng rng(12);
  for (const Int4Layout layout : {Int4Layout::kAwq, Int4Layout::kGptq, Int4Layout::kCompressedTensors}) {
    const bool is_awq = layout == Int4Layout::kAwq, is_compressed = layout == Int4Layout::kCompressedTensors;
    std::vector<unsigned char> bytes(5);  // misaligned
    const auto put = [&](std::uint64_t at, std::int64_t word, int place, unsigned integer) {
      bytes[at + static_cast<std::uint64_t>(4 * word + place / 2)] |=
          static_cast<unsigned char>(integer << place % 2 * 4);
    };
    const std::uint64_t code_at = bytes.size();
    bytes.resize(bytes.size() + kOutputs * kCols / 2);
    const std::uint64_t zero_at = bytes.size();
    bytes.resize(bytes.size() + kOutputs * kGroups / 2);
    const std::uint64_t scale_at = bytes.size();
    bytes.resize(bytes.size() + kOutputs * kGroups * sizeof(std::uint16_t));
    const std::uint64_t group_at = bytes.size();
    // Even columns are one group, odd ones the other; AWQ has columns in order.
    std::vector<std::int32_t> group_of(kCols);
    for (std::int64_t k = 0; k < kCols; ++k) group_of[k] = static_cast<std::int32_t>(is_awq ? k / kGroup : k % 2);
    bytes.insert(bytes.end(), reinterpret_cast<unsigned char*>(group_of.data()),
                 reinterpret_cast<unsigned char*>(group_of.data() + kCols));

    std::vector<float> expected(kOutputs * kCols);
    for (std::int64_t n = 0; n < kOutputs; ++n) {
      float scales[kGroups], zeros[kGroups];
      for (std::int64_t g = 0; g < kGroups; ++g) {
        // Of the smallest numbers too, which f16 does not have.
        const std::uint16_t scale = f32_to_bf16(std::ldexp(1 + static_cast<float>(rng() % 100), n == 9 ? -60 : -8));
        const std::int64_t place = is_compressed ? n * kGroups + g : g * kOutputs + n;
        std::memcpy(bytes.data() + scale_at + 2 * place, &scale, sizeof scale);
        scales[g] = bf16_to_f32(scale);
        const unsigned zero = rng() % 16;
        zeros[g] = static_cast<float>((zero + (layout == Int4Layout::kGptq ? 1 : 0)) % 16);
        const std::int64_t word = is_compressed ? n / 8 * kGroups + g : g * (kOutputs / 8) + n / 8;
        put(zero_at, word, is_awq ? kAwqPlaces[n % 8] : static_cast<int>(n % 8), zero);
      }
      for (std::int64_t k = 0; k < kCols; ++k) {
        const unsigned code = rng() % 16;
        if (is_awq) put(code_at, k * (kOutputs / 8) + n / 8, kAwqPlaces[n % 8], code);
        if (is_compressed) put(code_at, n * (kCols / 8) + k / 8, static_cast<int>(k % 8), code);
        if (layout == Int4Layout::kGptq) put(code_at, k / 8 * kOutputs + n, static_cast<int>(k % 8), code);
        expected[n * kCols + k] = scales[group_of[k]] * (static_cast<float>(code) - zeros[group_of[k]]);
      }
    }
    const TemporaryFile file(bytes);
    const std::string path = file.path();
    const TensorSource source{
        .name = "w",
        .path = path,
        .offset = code_at,
        .format = Format::kInt4G64,
        .rows = kRows,
        .cols = kCols,
        .integers = {{.layout = layout,
                      .outputs = kOutputs,
                      .first = kFirst,
                      .scales = {path, scale_at},
                      .scale_dtype = Dtype::kBF16,
                      .zeros = {{path, zero_at}},
                      .zero_rule = layout == Int4Layout::kGptq ? Int4Zeros::kLessOneOr8 : Int4Zeros::kStored,
                      .groups = {{path, group_at}}}}};
    for (const bool mapped : {true, false}) {
      const Weights converted(*device, {source}, {.convert_to = Dtype::kF32, .mapped = mapped});
      const float* values = static_cast<const float*>(converted.matrix("w", kRows, kCols).data);
      CHECK(std::equal(values, values + kRows * kCols, expected.begin() + kFirst * kCols));
      for (const bool repack : {true, false}) {
        const Weights kept(*device, {source}, {.mapped = mapped, .repack = repack});
        std::vector<float> row(kCols);
        bool equal = true;
        for (std::int64_t n = 0; n < kRows; ++n) {
          dequantise_matrix_row(kept.matrix("w", kRows, kCols), n, row.data());
          equal &= std::equal(row.begin(), row.end(), expected.begin() + (kFirst + n) * kCols);
        }
        CHECK(equal);
      }
    }
    for (const auto change : std::initializer_list<void (*)(TensorSource&)>{
             [](TensorSource& s) { s.offset += 1 << 20; },
             [](TensorSource& s) { s.offset = UINT64_MAX; },
             [](TensorSource& s) { s.integers->scales.offset += 1 << 20; },
             [](TensorSource& s) { s.integers->zeros->offset += 1 << 20; },
             [](TensorSource& s) { s.integers->groups->offset += 1; },
             [](TensorSource& s) { s.integers->groups->offset -= 1; },
             [](TensorSource& s) { s.integers->scales.path += "x"; },
             [](TensorSource& s) { s.rows += 8; },
             [](TensorSource& s) { s.rows = 12; },
             [](TensorSource& s) { s.rows = 0; },
             [](TensorSource& s) { s.integers->first = 4; },
             [](TensorSource& s) { s.integers->first = -8; },
             [](TensorSource& s) { s.integers->first = INT64_MAX; },
             [](TensorSource& s) { s.integers->outputs = INT64_MIN; },
             [](TensorSource& s) { s.integers->outputs = INT64_MAX / 8 * 8; },
             [](TensorSource& s) { s.integers->outputs = 8; },
             [](TensorSource& s) { s.cols = 96; },
             [](TensorSource& s) { s.cols = INT64_MAX / 64 * 64; },
             [](TensorSource& s) { s.row_stride = 128; },
             [](TensorSource& s) { s.format = Format::kQ4_0; },
             [](TensorSource& s) { s.format = Format::kF32; },
             [](TensorSource& s) { s.exponents = {s.path, 0}; }}) {
      TensorSource bad = source;
      change(bad);
      CHECK_CODE(code::kInvalidModel, Weights(*device, {bad}));
    }
  }
}

// What stored zeros mean; of symmetric integers files say one thing and hold another.
TEST(int4_zeros) {
  constexpr std::int64_t kOutputs = 8, kCols = 32;
  const std::vector<unsigned char> codes(kOutputs * kCols / 2, 0x88);
  const std::vector<std::uint16_t> scales(kOutputs, f32_to_bf16(1));
  const auto zero_of = [&](unsigned stored, unsigned last, Int4Zeros rule) {
    std::uint32_t zeros = stored * 0x1111111u | last << 28;
    std::vector<std::byte> block(static_cast<std::size_t>(kOutputs * row_bytes(Format::kInt4G32, kCols)));
    write_int4_rows({.layout = Int4Layout::kGptq,
                     .outputs = kOutputs,
                     .cols = kCols,
                     .group = 32,
                     .codes = reinterpret_cast<const std::byte*>(codes.data()),
                     .scales = reinterpret_cast<const std::byte*>(scales.data()),
                     .scale_dtype = Dtype::kBF16,
                     .zeros = reinterpret_cast<const std::byte*>(&zeros),
                     .zero_rule = rule},
                    0, kOutputs, {}, block.data());
    float row[kCols];
    dequantise_row(Format::kInt4G32, block.data(), kCols, row);
    return static_cast<int>(8 - row[0]);
  };
  for (const Int4Zeros rule : {Int4Zeros::kStoredOr8, Int4Zeros::kLessOneOr8}) {
    CHECK(zero_of(7, 7, rule) == 8);
    CHECK(zero_of(8, 8, rule) == 8);
  }
  CHECK(zero_of(7, 8, Int4Zeros::kStoredOr8) == 7);
  CHECK(zero_of(8, 7, Int4Zeros::kLessOneOr8) == 9);
  CHECK(zero_of(7, 7, Int4Zeros::kStored) == 7);
  CHECK(zero_of(8, 8, Int4Zeros::kLessOne) == 9);
  CHECK(zero_of(15, 3, Int4Zeros::kLessOne) == 0);
}

// A file that changes while its pages are in use is noticed before the next step; one that was read is not needed.
TEST(changed_files_are_noticed) {
  const auto try_change = [](const WeightOptions& options, const std::function<void(const std::string&)>& change) {
    World world;
    const TensorFile file(world.tensors);
    Transformer model(world.device, world.config, std::make_unique<Weights>(*world.device, file.sources, options));
    const BlockPtr block = world.cache->create_block();
    const auto run = [&] { return model.step(*world.cache, {world.worker({block}, block, {1, 2})}, world.cancel); };
    const std::vector<float> before = run().workers[0].logits;
    block->clear();
    change(file.file->path());
    std::string thrown = hogwild::testing::code_of([&] { CHECK(same_bits(run().workers[0].logits, before)); });
    if (!thrown.empty()) CHECK(block->length() == 0);
    return thrown;
  };
  const auto shorten = [](const std::string& path) { CHECK(::truncate(path.c_str(), 1000) == 0); };
  const auto overwrite = [](const std::string& path) {
    std::FILE* file = std::fopen(path.c_str(), "r+b");
    CHECK(file != nullptr && std::fputc(7, file) == 7 && std::fclose(file) == 0);
  };
  const auto remove = [](const std::string& path) { CHECK(::unlink(path.c_str()) == 0); };
  CHECK(try_change({}, shorten) == code::kInvalidModel);
  CHECK(try_change({.convert_to = Dtype::kF32}, overwrite) == code::kInvalidModel);
  CHECK(try_change({}, remove).empty());                             // the mapping keeps what it had
  CHECK(try_change({.convert_to = Dtype::kBF16}, shorten).empty());  // all was converted
  CHECK(try_change({.mapped = false}, shorten).empty());
  CHECK(try_change({.mapped = false}, overwrite).empty());
}

TEST(weight_bytes_are_those_of_a_decode_step) {
  for (const bool tied : {false, true}) {
    World world({.tied = tied, .biases = true});
    std::int64_t expected = 0;
    for (const auto& [name, tensor] : world.tensors) {
      if (tensor.rows > 1 && (tied || name != "embed")) expected += tensor.rows * tensor.cols * 4;
    }
    CHECK(world.model->weight_bytes() == expected);
  }
}

// ---- 16-bit floats ----------------------------------------------------------------------------------

// The two neighbours of x and the nearest, by the definition: ties to the even bit pattern.
std::uint16_t nearest(float x, const std::function<double(std::uint16_t)>& value_of, std::uint16_t infinity) {
  std::uint16_t low = 0, high = infinity;  // magnitudes grow with their bit pattern
  const double magnitude = std::abs(static_cast<double>(x));
  while (high - low > 1) {
    const auto middle = static_cast<std::uint16_t>((low + high) / 2);
    (value_of(middle) <= magnitude ? low : high) = middle;
  }
  // The value behind the largest finite one, had the format one more binade.
  const double above =
      high == infinity ? 2 * value_of(low) - value_of(static_cast<std::uint16_t>(low - 1)) : value_of(high);
  const double to_low = magnitude - value_of(low), to_high = above - magnitude;
  const bool up = to_high < to_low || (to_high == to_low && low % 2 == 1);
  return static_cast<std::uint16_t>((up ? high : low) | (std::signbit(x) ? 0x8000 : 0));
}

TEST(sixteen_bit_floats_round_to_nearest_even) {
  const auto half = [](std::uint16_t bits) {  // IEEE 754 binary16, from its definition
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    return exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  };
  const auto brain = [](std::uint16_t bits) {
    const int exponent = bits >> 7 & 255, mantissa = bits & 127;
    return exponent == 0 ? std::ldexp(mantissa, -133) : std::ldexp(128 + mantissa, exponent - 134);
  };
  bool exact = true;
  for (int bits = 0; bits < 1 << 16; ++bits) {
    const auto word = static_cast<std::uint16_t>(bits);
    const std::uint16_t magnitude = word & 0x7fff;
    const double sign = word >> 15 ? -1 : 1;
    if (magnitude < 0x7c00) exact &= f16_to_f32(word) == sign * half(magnitude) && f32_to_f16(f16_to_f32(word)) == word;
    if (magnitude > 0x7c00)
      exact &= std::isnan(f16_to_f32(word)) && std::isnan(f16_to_f32(f32_to_f16(f16_to_f32(word))));
    if (magnitude < 0x7f80)
      exact &= bf16_to_f32(word) == sign * brain(magnitude) && f32_to_bf16(bf16_to_f32(word)) == word;
    if (magnitude > 0x7f80)
      exact &= std::isnan(bf16_to_f32(word)) && std::isnan(bf16_to_f32(f32_to_bf16(bf16_to_f32(word))));
  }
  CHECK(exact);

  Rng rng(9);
  bool rounded = true;
  const auto check_value = [&](float x) {
    if (!std::isfinite(x)) return;
    rounded &= f32_to_f16(x) == nearest(x, half, 0x7c00);
    rounded &= f32_to_bf16(x) == nearest(x, brain, 0x7f80);
  };
  for (int i = 0; i < 200'000; ++i) check_value(std::bit_cast<float>(static_cast<std::uint32_t>(rng())));
  for (int i = 0; i < 200'000; ++i) {  // around the values and the ties of f16
    const float x = f16_to_f32(static_cast<std::uint16_t>(rng()));
    const float y = f16_to_f32(static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(x) >> 13 & 0x7fff));
    for (const float value : {x, (x + y) / 2, std::nextafter((x + y) / 2, 0.f), std::nextafter((x + y) / 2, 1e30f)}) {
      check_value(value);
    }
  }
  CHECK(rounded);
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK(f32_to_f16(infinity) == 0x7c00 && f32_to_f16(-infinity) == 0xfc00);
  CHECK(f32_to_bf16(infinity) == 0x7f80 && f32_to_bf16(-infinity) == 0xff80);
  CHECK(f16_to_f32(0x7c00) == infinity && bf16_to_f32(0xff80) == -infinity);
}

}  // namespace
}  // namespace hogwild

HOGWILD_TEST_MAIN
