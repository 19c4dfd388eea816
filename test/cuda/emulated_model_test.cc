// A whole model on the emulated card: how many kernels a step takes, and that they overlap.
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../native/check.h"
#include "core/float16.h"
#include "core/format.h"
#include "kv_shape.h"
#include "model/transformer.h"
#include "model/weights.h"
#include "simt/cuda_api.h"
#include "worker_step.h"

namespace hogwild {
namespace {

constexpr std::int64_t kHidden = 64, kHeads = 4, kKvHeads = 2, kDim = 32, kIntermediate = 128, kVocab = 50;

ModelConfig config_of(std::int64_t layers) {
  ModelConfig config;
  config.vocab_size = kVocab;
  config.hidden_size = kHidden;
  config.query_heads = kHeads;
  config.kv_heads = kKvHeads;
  config.head_dim = kDim;
  config.rms_norm_eps = 1e-5f;
  config.attention_scale = 1 / std::sqrt(static_cast<float>(kDim));
  RopeSpec rope;
  for (std::int64_t u = 0; u < kDim / 2; ++u) rope.inverse_frequencies.push_back(std::pow(0.5, static_cast<double>(u)));
  config.ropes = {{rope}};
  LayerSpec layer;
  layer.intermediate_size = kIntermediate;
  config.layers.assign(static_cast<std::size_t>(layers), layer);
  return config;
}

// A file of tensors that lives as long as this object.
class ModelFile {
 public:
  // Matrices in `format`: bf16, or blocks of 32 codes behind a scale in f16.
  ModelFile(std::int64_t layers, Format format) {
    add("embed", kVocab, kHidden, format);
    add_norm("norm");
    for (std::int64_t i = 0; i < layers; ++i) {
      const std::string layer = "layers." + std::to_string(i) + ".";
      add_norm(layer + "input_norm");
      add(layer + "q_proj", kHeads * kDim, kHidden, format);
      add(layer + "k_proj", kKvHeads * kDim, kHidden, format);
      add(layer + "v_proj", kKvHeads * kDim, kHidden, format);
      add(layer + "o_proj", kHidden, kHeads * kDim, format);
      add_norm(layer + "mlp_norm");
      add(layer + "gate_proj", kIntermediate, kHidden, format);
      add(layer + "up_proj", kIntermediate, kHidden, format);
      add(layer + "down_proj", kHidden, kIntermediate, format);
    }
    const int file = ::mkstemp(path_.data());
    const bool written = file >= 0 && ::write(file, bytes_.data(), bytes_.size()) == std::ssize(bytes_);
    if (file >= 0) ::close(file);
    if (!written) throw std::runtime_error("cannot write a temporary file");
    for (TensorSource& source : sources_) source.path = path_;
  }
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;
  ~ModelFile() { ::unlink(path_.c_str()); }

  const std::vector<TensorSource>& sources() const { return sources_; }

 private:
  void append(const void* value, std::size_t size) {
    const auto* from = static_cast<const unsigned char*>(value);
    bytes_.insert(bytes_.end(), from, from + size);
  }
  void add(const std::string& name, std::int64_t rows, std::int64_t cols, Format format) {
    sources_.push_back(
        {.name = name, .path = "", .offset = bytes_.size(), .format = format, .rows = rows, .cols = cols});
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      const auto number = static_cast<std::int8_t>(next_ = next_ * 75 % 65537);
      if (format == Format::kBF16) {
        const std::uint16_t bits = f32_to_bf16(0.002f * static_cast<float>(number));
        append(&bits, sizeof bits);
        continue;
      }
      const std::uint16_t scale = f32_to_f16(0.002f);
      if (i % 32 == 0) append(&scale, sizeof scale);
      append(&number, sizeof number);
    }
  }
  void add_norm(const std::string& name) {
    sources_.push_back(
        {.name = name, .path = "", .offset = bytes_.size(), .format = Format::kF32, .rows = 1, .cols = kHidden});
    const float one = 1;
    for (std::int64_t i = 0; i < kHidden; ++i) append(&one, sizeof one);
  }

  std::string path_ = "/tmp/hogwild_emulated_model_XXXXXX";
  std::vector<unsigned char> bytes_;
  std::vector<TensorSource> sources_;
  unsigned next_ = 1;
};

struct Counts {
  int kernels = 0, overlapping = 0;
};

// Of the first step of one token and its logits; `logits`: of some steps more, which are captured and replayed.
Counts decode(std::int64_t layers, Format format, std::vector<float>* logits = nullptr) {
  simt::card = {.allocated = simt::card.allocated};
  const ModelFile file(layers, format);
  const std::shared_ptr<Device> device = create_cuda_device(0);
  const ModelConfig config = config_of(layers);
  Transformer model(device, config, std::make_unique<Weights>(*device, file.sources()));
  const auto cache = KvCache::create(device, bf16_shape(layers, kKvHeads, kDim), config.ropes[0][0], 256);
  const std::shared_ptr<CacheBlock> block = cache->create_block();
  const std::atomic<bool> cancel = false;
  const auto step = [&](std::int32_t token) {
    StepWorker worker;
    worker.view.entries = {{.block = block}};
    worker.view.target = block;
    worker.tokens = {token};
    worker.logits = LogitsWanted::kLast;
    return model.step(*cache, {worker}, cancel).workers[0].logits;
  };
  const simt::Card before = simt::card;
  step(3);
  const Counts counts = {simt::card.kernel_launches - before.kernel_launches,
                         simt::card.overlapping - before.overlapping};
  for (std::int32_t i = 0; logits != nullptr && i < 5; ++i) {
    const std::vector<float> row = step(7 * i + 1);
    logits->insert(logits->end(), row.begin(), row.end());
  }
  return counts;
}

// Kernels of the attention of one layer, where the work of the step has been shared out.
int kernels_of_attention() {
  const auto device = create_cuda_device(0);
  const WorkerStep step(1, 20, 4, 0, kDim);
  const KvShape shape = bf16_shape(1, kKvHeads, kDim);
  const Buffer pages = device->allocate(static_cast<std::size_t>(8 * shape.page_bytes(KvFormat::kBF16)), "a test");
  const Buffer rows = device->allocate(2 * kHeads * kDim * sizeof(float), "a test");
  const auto on_device = device->upload(step.view());
  int before = 0;
  for (int i = 0; i < 2; ++i) {
    before = simt::card.kernel_launches;
    device->attention(*on_device, {.shape = shape,
                                   .layer = {pages.data(), pages.as<std::byte>() + pages.bytes() / 2},
                                   .query_heads = kHeads,
                                   .scale = 1,
                                   .q = rows.data(),
                                   .out = rows.as<float>() + kHeads * kDim});
  }
  return simt::card.kernel_launches - before;
}

// A norm, the products q, k and v, append, the product o, a norm, gate and up with their activation, down: and
// attention.
TEST(kernels_of_a_layer) {
  const int attention = kernels_of_attention();
  for (const Format format : {Format::kBF16, Format::kQ8_0}) {
    const Counts one = decode(1, format), three = decode(3, format);
    const int kernels = three.kernels - one.kernels;
    CHECK_MESSAGE(kernels == 2 * (7 + attention), std::to_string(kernels) + " kernels of two layers");
    CHECK(three.overlapping - one.overlapping == kernels);  // each with the one before
  }
}

// Kernels that overlap give the bits of those that do not, from step to step.
TEST(steps_do_not_depend_on_overlapping) {
  for (const Format format : {Format::kBF16, Format::kQ8_0}) {
    std::vector<float> overlapping, serial;
    decode(2, format, &overlapping);
    CHECK(simt::card.graph_launches > 0);
    simt::options.overlap = false;
    decode(2, format, &serial);
    simt::options = {};
    CHECK(overlapping.size() == 5 * kVocab && overlapping == serial);
    CHECK(std::isfinite(overlapping[0]) && overlapping[0] != 0);
  }
}

}  // namespace
}  // namespace hogwild

HOGWILD_TEST_MAIN
