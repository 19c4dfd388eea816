// The CPU device: cuts each op into slices for the thread pool. The arithmetic is in the kernels.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/format.h"
#include "core/limits.h"
#include "device/cpu/attention_schedule.h"
#include "device/cpu/kernels.h"
#include "device/cpu/memory.h"
#include "device/cpu/parallel.h"
#include "device/cpu/sampler.h"
#include "device/cpu/simd_dispatch.h"
#include "device/cpu/thread_pool.h"
#include "device/device.h"

namespace hogwild {
namespace {

void check_cache(const KvShape& shape, const RopeTable* rope) {
  require(is_supported_head_dim(shape.head_dim), "head_dim must be a multiple of 8 up to 256");
  require(!rope || (rope->rotary_dim >= 0 && rope->rotary_dim % 2 == 0 && rope->rotary_dim <= shape.head_dim),
          "rotary_dim must be even and at most head_dim");
}

void check_buffers(const ExternalBuffers& buffers) {
  if (buffers.dtype == Dtype::kF32 && buffers.stream == nullptr) return;
  throw Error(code::kUnsupported, "the CPU device takes queries, keys and values in f32, without a stream");
}

std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(std::min(line.size(), line.find(':') + 2));
  }
  return "CPU";
}

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(const CpuOptions& options)
      : name_(processor_name()),
        kernels_(select_kernels(requested_simd(options))),
        pool_(options.threads > 0 ? options.threads : available_processors()),
        attention_(kernels_, pool_),
        samplers_(static_cast<std::size_t>(pool_.threads())) {}

  DeviceInfo info() const override {
    return {.type = "cpu", .name = name_, .index = 0, .simd = kernels_.name, .threads = pool_.threads()};
  }

  Buffer allocate(std::size_t bytes, const char* purpose) override { return map_memory(bytes, purpose); }
  void download(void* host, const void* device, std::size_t bytes) override { std::memcpy(host, device, bytes); }
  void upload(void* device, const void* host, std::size_t bytes) override { std::memcpy(device, host, bytes); }
  void synchronize() override {}
  Matrix upload_weight(const Matrix& host, std::vector<Buffer>&) override {
    require(is_plain(host.format), "the CPU device takes weights in f32, f16 and bf16");
    return host;
  }
  void begin_step(const StepView& step) override { step_ = step; }

  void embedding(const EmbeddingParams& params) override {
    require(params.rows >= 0 && params.rows <= std::ssize(step_.tokens), "more rows than the step has");
    for (const std::int32_t token : step_.tokens) {
      if (token < 0 || token >= params.table.rows) {
        throw Error(code::kInvalidArgument, "token id " + std::to_string(token) + " is outside the vocabulary of " +
                                                std::to_string(params.table.rows));
      }
    }
    kernels_.embedding(params.table, step_.tokens.data(), params.rows, params.scale, params.out);
  }

  void rms_norm(const RmsNormParams& p) override {
    for_rows(pool_, p.rows, p.cols, [&](std::int64_t begin, std::int64_t end) {
      kernels_.rms_norm(p.x + begin * p.cols, p.weight, p.eps, end - begin, p.cols, p.out + begin * p.cols);
    });
  }

  void matmul(const MatmulParams& p) override {
    require(p.n_outputs >= 1 && p.n_outputs <= MatmulParams::kMaxOutputs, "matmul takes 1 to 3 matrices");
    // Units are blocks of outputs, matrix after matrix.
    std::int64_t blocks_before[MatmulParams::kMaxOutputs + 1] = {0};
    for (int i = 0; i < p.n_outputs; i++) {
      require(p.outputs[i].weight.cols == p.k, "a weight matrix needs k columns");
      blocks_before[i + 1] = blocks_before[i] + ceil_div(p.outputs[i].weight.rows, kMatmulOutputBlock);
    }
    if (p.rows == 0) return;
    const void* packed_x = nullptr;
    const auto packs_x = [&](const MatmulParams::Output& output) { return kernels_.packs_x(output.weight.format); };
    if (std::any_of(p.outputs, p.outputs + p.n_outputs, packs_x)) {
      std::uint16_t* packed = packed_x_.get<std::uint16_t>(p.rows * p.k);
      for_rows(pool_, p.rows, p.k, [&](std::int64_t begin, std::int64_t end) {
        kernels_.pack_x(p.x + begin * p.k, (end - begin) * p.k, packed + begin * p.k);
      });
      packed_x = packed;
    }
    pool_.run(blocks_before[p.n_outputs], [&](std::int64_t begin, std::int64_t end, int) {
      for (int i = 0; i < p.n_outputs; i++) {
        const std::int64_t first = std::max(begin, blocks_before[i]) - blocks_before[i];
        const std::int64_t last = std::min(end, blocks_before[i + 1]) - blocks_before[i];
        if (first >= last) continue;
        kernels_.matmul({.x = packs_x(p.outputs[i]) ? packed_x : p.x,
                         .rows = p.rows,
                         .k = p.k,
                         .output = &p.outputs[i],
                         .begin = first * kMatmulOutputBlock,
                         .end = std::min(last * kMatmulOutputBlock, p.outputs[i].weight.rows)});
      }
    });
  }

  void gated_activation(const GatedActivationParams& p) override {
    for_elements(p.n, [&](std::int64_t first, std::int64_t n) {
      kernels_.gated_activation(p.gate + first, p.up + first, n, p.activation, p.out + first);
    });
  }

  void add(const AddParams& p) override {
    for_elements(p.n, [&](std::int64_t first, std::int64_t n) { kernels_.add(p.x + first, p.y + first, n, p.scale); });
  }

  void softcap(const SoftcapParams& p) override {
    for_elements(p.n,
                 [&](std::int64_t first, std::int64_t n) { kernels_.softcap(p.x + first, n, p.scale, p.softcap); });
  }

  void kv_append(const KvAppendParams& p) override {
    check_cache(p.shape, &step_.rope);
    check_buffers(p.buffers);
    require(p.first >= 0 && p.rows >= 0 && p.first + p.rows <= std::ssize(step_.slots), "more rows than the step has");
    const std::int64_t cols = p.shape.kv_heads * p.shape.head_dim;
    const float* k = static_cast<const float*>(p.k);
    const float* v = static_cast<const float*>(p.v);
    for_rows(pool_, p.rows, cols, [&](std::int64_t begin, std::int64_t end) {
      const AppendSlot* slots = step_.slots.data() + p.first + begin;
      kernels_.kv_append(p.shape, p.layer, step_.rope, slots, end - begin, k + begin * cols, v + begin * cols);
    });
  }

  void kv_move(const KvMoveParams& p) override {
    check_cache(p.shape, &p.rope);
    require(kv_can_turn(p.shape.key_format) ||
                std::all_of(p.moves.begin(), p.moves.end(), [](const auto& move) { return move.rope_row < 0; }),
            "int8 keys are moved as they are, not turned");
    pool_.run(std::ssize(p.moves), [&](std::int64_t begin, std::int64_t end, int) {
      kernels_.kv_move(p.shape, p.layer, p.rope, p.moves.data() + begin, end - begin);
    });
  }

  void kv_read(const KvReadParams& p) override {
    check_cache(p.shape, nullptr);
    const std::int64_t cols = p.shape.kv_heads * p.shape.head_dim;
    for_rows(pool_, std::ssize(p.slots), cols, [&](std::int64_t begin, std::int64_t end) {
      kernels_.kv_read(p.shape, p.layer, p.slots.data() + begin, end - begin, p.k + begin * cols, p.v + begin * cols);
    });
  }

  void attention(const AttentionParams& params) override;
  void sample(const SampleParams& params) override;
  double measure_read_bandwidth(std::size_t bytes) override;

 private:
  // Calls body(first, n) for slices of [0, n).
  template <typename Body>
  void for_elements(std::int64_t n, Body&& body) {
    constexpr std::int64_t kUnit = 1024;
    for_rows(pool_, ceil_div(n, kUnit), kUnit, [&](std::int64_t begin, std::int64_t end) {
      body(begin * kUnit, std::min(end * kUnit, n) - begin * kUnit);
    });
  }

  static std::string requested_simd(const CpuOptions& options) {
    if (!options.simd.empty()) return options.simd;
    const char* name = std::getenv("HOGWILD_SIMD");
    return name ? name : "";
  }

  const std::string name_;
  const CpuKernels& kernels_;
  StepView step_;
  ThreadPool pool_;
  AttentionSchedule attention_;
  std::vector<SamplerScratch> samplers_;  // per thread
  Scratch packed_x_;
};

void CpuDevice::attention(const AttentionParams& p) {
  check_cache(p.shape, &step_.rope);
  check_buffers(p.buffers);
  require(p.query_heads > 0 && p.query_heads % p.shape.kv_heads == 0, "query heads must be a multiple of kv heads");
  require(p.window >= 0, "window must be >= 0");
  require(p.softcap >= 0 && std::isfinite(p.softcap), "softcap must be finite and >= 0");
  attention_.run(p, step_);
}

void CpuDevice::sample(const SampleParams& p) {
  std::vector<std::exception_ptr> errors(p.rows.size());
  pool_.run(std::ssize(p.rows), [&](std::int64_t begin, std::int64_t end, int thread) {
    for (std::int64_t i = begin; i < end; i++) {
      try {
        const SampleParams::Row& row = p.rows[i];
        const SampledToken sampled =
            sample_row(kernels_, p.logits + row.logits_row * p.vocab, p.vocab, row, p.logprobs != nullptr, p.finite,
                       samplers_[static_cast<std::size_t>(thread)]);
        p.tokens[i] = sampled.token;
        if (p.logprobs) p.logprobs[i] = sampled.logprob;
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  });
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

double CpuDevice::measure_read_bandwidth(std::size_t bytes) {
  constexpr std::size_t kMinBytes = std::size_t{256} << 20;  // larger than the last-level cache of any processor here
  constexpr std::size_t kUnitBytes = std::size_t{64} << 10;
  constexpr int kPasses = 9;
  const std::int64_t units = static_cast<std::int64_t>(ceil_div(std::max(bytes, kMinBytes), kUnitBytes));
  const Buffer buffer = map_memory(units * kUnitBytes, "the bandwidth measurement");
  const auto each_unit = [&](auto&& body) {
    pool_.run(units, [&](std::int64_t begin, std::int64_t end, int) {
      body(buffer.as<float>() + begin * (kUnitBytes / sizeof(float)), (end - begin) * (kUnitBytes / sizeof(float)));
    });
  };
  each_unit([](float* data, std::int64_t n) { std::fill_n(data, n, 1.0f); });

  std::vector<double> seconds;
  std::atomic<bool> kept{true};
  for (int pass = 0; pass < kPasses; pass++) {
    const auto start = std::chrono::steady_clock::now();
    each_unit([&](float* data, std::int64_t n) {
      if (kernels_.read(data, n) < 0) kept = false;  // never: the sums are positive, but this uses them
    });
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + kPasses / 2, seconds.end());
  return static_cast<double>(buffer.bytes()) / seconds[kPasses / 2];
}

}  // namespace

std::shared_ptr<Device> create_cpu_device(const CpuOptions& options) {
  require(options.threads >= 0, "threads must be >= 0");
  return std::make_shared<CpuDevice>(options);
}

}  // namespace hogwild
