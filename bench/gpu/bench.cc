// The CUDA device's speed on the card that is there: attention over 300 to 65,536 cached tokens, its plan, and
// whole steps, beside the card's copy bandwidth of the same run. Prints JSON.
//
//   bench_gpu [--layers N] [--runs N] [--tokens 300,4096,...]
//
// Shapes are QwQ-32B's (40 query heads, 8 kv heads of 128, hidden size 5120, 27648 in between, 64 layers,
// vocabulary 152064), weights, keys and values are random bf16. `scripts/gpu.sh bench` builds this with nvcc alone.
#if !defined(HOGWILD_SIMT)
#include <cuda_runtime_api.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/float16.h"
#include "device/device.h"
#include "kernels.h"

namespace hogwild {
namespace {

constexpr std::int64_t kQueryHeads = 40, kKvHeads = 8, kHeadDim = 128, kHidden = 5120, kIntermediate = 27648;
constexpr std::int64_t kModelLayers = 64, kVocab = 152064;
constexpr std::int64_t kOwnTokens = 64;  // of each worker, behind what all share
constexpr std::int64_t kWorkers[] = {1, 2, 4, 8};

struct Options {
  std::int64_t layers = 4;
  int runs = 30;
  std::vector<std::int64_t> tokens = {300, 1024, 4096, 8192, 16384, 32768, 65536};
};

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw Error(code::kInternal, std::string(what) + ": " + cudaGetErrorString(error));
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// A plan of W workers with one new token each: a common block, then each worker's own, seen by all.
struct Step {
  std::vector<std::int64_t> pages, token_query_ranges, token_query_ranges_at;
  std::vector<PlanSegment> segments;
  std::vector<QueryRange> query_ranges;
  std::vector<AppendSlot> slots;
  std::vector<std::int32_t> tokens;
  std::vector<float> cos, sin;
  std::int64_t workers;

  Step(std::int64_t workers, std::int64_t cached) : workers(workers) {
    const std::int64_t own = std::min(kOwnTokens, cached / (2 * workers));
    const auto add = [&](std::int64_t length) {
      PlanSegment segment{.first_page = std::ssize(pages),
                          .first_slot = 0,
                          .length = length,
                          .first_query_range = std::ssize(query_ranges),
                          .n_query_ranges = workers};
      for (std::int64_t at = 0; at < length; at += kPageSize) pages.push_back(std::ssize(pages));
      for (std::int64_t w = 0; w < workers; ++w) {
        query_ranges.push_back({.token = static_cast<std::int32_t>(w),
                                .rope_row = static_cast<std::int32_t>(w),
                                .limit = length,
                                .bias = 0,
                                .order = static_cast<std::int32_t>(segments.size())});
      }
      segments.push_back(segment);
    };
    add(cached - workers * own);
    for (std::int64_t w = 0; w < workers; ++w) {
      add(own);
      slots.push_back({.page = pages.back(), .slot = static_cast<std::int32_t>((own - 1) % kPageSize), .rope_row = 0});
      tokens.push_back(static_cast<std::int32_t>(w));
    }
    token_query_ranges_at.push_back(0);
    for (std::int64_t w = 0; w < workers; ++w) {
      for (std::int64_t s = 0; s < std::ssize(segments); ++s) token_query_ranges.push_back(s * workers + w);
      token_query_ranges_at.push_back(std::ssize(token_query_ranges));
    }
    for (std::int64_t i = 0; i < workers * kHeadDim / 2; ++i) {
      cos.push_back(std::cos(0.1f * static_cast<float>(i)));
      sin.push_back(std::sin(0.1f * static_cast<float>(i)));
    }
  }
  StepView view() const {
    return {.id = 0,
            .plan = {workers, pages, segments, query_ranges, token_query_ranges, token_query_ranges_at},
            .rope = {.cos = cos.data(), .sin = sin.data(), .rotary_dim = kHeadDim},
            .slots = slots,
            .tokens = tokens};
  }
};

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options), device_(create_cuda_device(0)) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
    check(cudaEventCreate(&begin_), "an event");
    check(cudaEventCreate(&end_), "an event");
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, 0), "the card");
    multiprocessors_ = properties.multiProcessorCount;
    flush_bytes_ = std::max<std::size_t>(4 * static_cast<std::size_t>(properties.l2CacheSize), 1 << 20);
    flush_ = device_->allocate(flush_bytes_, "flushing the L2");
  }

  void run() {
    int driver = 0;
    static_cast<void>(cudaDriverGetVersion(&driver));
    std::printf("{\"card\": \"%s\", \"driver_cuda\": %d, \"runs\": %d,\n", device_->info().name.c_str(), driver,
                options_.runs);
    copy_bandwidth_ = copy_bandwidth();
    std::printf("\"copy_gb_per_s\": %.1f,\n\"read_gb_per_s\": %.1f,\n", copy_bandwidth_ * 1e-9,
                device_->measure_read_bandwidth(flush_bytes_) * 1e-9);
    std::printf("\"attention\": [");
    const char* comma = "";
    for (const std::int64_t tokens : options_.tokens) {
      double one = 0;
      for (const std::int64_t workers : kWorkers) {
        const auto [plan_us, us] = attention(workers, tokens);
        if (workers == 1) one = us;
        const double bytes = 2.0 * static_cast<double>(tokens * kKvHeads * kHeadDim) * 2;
        std::printf(
            "%s\n {\"tokens\": %lld, \"workers\": %lld, \"us\": %.2f, \"plan_us\": %.2f, \"over_one\": %.3f, "
            "\"copy_share\": %.3f}",
            comma, static_cast<long long>(tokens), static_cast<long long>(workers), us, plan_us, us / one,
            bytes / (us * 1e-6) / copy_bandwidth_);
        std::fflush(stdout);
        comma = ",";
      }
    }
    std::printf("],\n\"step\": [");
    comma = "";
    for (const std::int64_t workers : {std::int64_t{1}, std::int64_t{4}}) {
      const auto [ms, share] = step(workers, options_.tokens.back());
      std::printf(
          "%s\n {\"workers\": %lld, \"tokens\": %lld, \"layers\": %lld, \"ms\": %.3f, \"ms_of_%lld_layers\": "
          "%.3f, \"time_over_bytes_at_copy_bandwidth\": %.3f}",
          comma, static_cast<long long>(workers), static_cast<long long>(options_.tokens.back()),
          static_cast<long long>(options_.layers), ms, static_cast<long long>(kModelLayers),
          ms / static_cast<double>(options_.layers) * static_cast<double>(kModelLayers), share);
      comma = ",";
    }
    std::printf("]}\n");
  }

 private:
  // Median of the runs, in seconds, of what `work` enqueues on the stream, each with a cold L2.
  template <typename Work>
  double time(Work&& work) {
    std::vector<double> seconds;
    for (int run = 0; run < options_.runs + 3; ++run) {
      check(cudaMemsetAsync(flush_.data(), run, flush_bytes_, stream_), "flushing");
      check(cudaEventRecord(begin_, stream_), "timing");
      work();
      check(cudaEventRecord(end_, stream_), "timing");
      check(cudaStreamSynchronize(stream_), "the work");
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin_, end_), "timing");
      if (run >= 3) seconds.push_back(milliseconds * 1e-3);
    }
    return median(seconds);
  }

  double copy_bandwidth() {
    const std::size_t half = flush_bytes_ / 2;
    auto* data = flush_.as<std::byte>();
    return 2.0 * static_cast<double>(half) /
           time([&] { check(cudaMemcpyAsync(data, data + half, half, cudaMemcpyDefault, stream_), "a copy"); });
  }

  template <typename T>
  const T* upload(const std::vector<T>& values) {
    buffers_.push_back(device_->allocate(values.size() * sizeof(T) + 16, "the bench"));
    device_->upload(buffers_.back().data(), values.data(), values.size() * sizeof(T));
    return buffers_.back().as<T>();
  }
  template <typename T>
  T* allocate(std::int64_t n) {
    buffers_.push_back(device_->allocate(static_cast<std::size_t>(n) * sizeof(T), "the bench"));
    return buffers_.back().as<T>();
  }

  // Zeros would leave the tensor cores cooler, and the clock higher, than a model does.
  std::uint16_t* random_bf16(std::int64_t n) {
    constexpr std::int64_t kPiece = std::int64_t{1} << 20;
    auto* data = allocate<std::uint16_t>(n);
    std::normal_distribution<float> normal(0, 0.05f);
    std::vector<std::uint16_t> piece(static_cast<std::size_t>(std::min(n, kPiece)));
    for (std::uint16_t& value : piece) value = f32_to_bf16(normal(random_));
    device_->upload(data, piece.data(), piece.size() * sizeof(piece[0]));
    for (std::int64_t at = kPiece; at < n; at += kPiece) {
      const auto bytes = static_cast<std::size_t>(std::min(n - at, kPiece)) * sizeof(piece[0]);
      check(cudaMemcpyAsync(data + at, data, bytes, cudaMemcpyDefault, stream_), "filling memory");
    }
    check(cudaStreamSynchronize(stream_), "filling memory");
    return data;
  }

  float* random_f32(std::int64_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<std::size_t>(n));
    for (float& value : values) value = normal(random_);
    float* data = allocate<float>(n);
    device_->upload(data, values.data(), values.size() * sizeof(float));
    return data;
  }

  static KvShape shape(std::int64_t layers) {
    return {.layers = layers, .kv_heads = kKvHeads, .head_dim = kHeadDim, .dtype = Dtype::kBF16};
  }

  struct AttentionTimes {
    double plan_us, us;
  };
  AttentionTimes attention(std::int64_t workers, std::int64_t tokens) {
    const Step step(workers, tokens);
    const cuda::FlatPlan plan = cuda::flatten(step.view().plan);
    const std::int64_t pool = std::ssize(step.pages) * shape(1).page_elements();
    cuda::AttentionLaunch launch{.shape = shape(1)};
    launch.layer = {.keys = random_bf16(pool), .values = random_bf16(pool)};
    launch.plan = {upload(plan.counts), upload(plan.segments), upload(plan.query_ranges), upload(plan.pages)};
    launch.rope = {.cos = upload(step.cos), .sin = upload(step.sin), .rotary_dim = kHeadDim};
    launch.query_heads = kQueryHeads;
    launch.scale = 1 / std::sqrt(static_cast<float>(kHeadDim));
    launch.q = random_f32(workers * kQueryHeads * kHeadDim);
    launch.out = allocate<float>(workers * kQueryHeads * kHeadDim);
    launch.max_tokens = static_cast<std::int32_t>(workers);
    launch.max_segments = plan.counts[1];
    launch.max_ctas = 2 * multiprocessors_;
    launch.min_tiles = 2;
    launch.workspace = allocate<std::byte>(static_cast<std::int64_t>(cuda::attention_workspace_bytes(launch)));
    device_->synchronize();
    const double plan_s = time([&] { check(cuda::launch_attention_plan(launch, stream_), "the plan"); });
    const double s = time([&] { check(cuda::launch_attention(launch, stream_), "attention"); });
    buffers_.clear();
    return {plan_s * 1e6, s * 1e6};
  }

  struct StepTimes {
    double ms, over_bytes;
  };
  // All layers as model/transformer.cc calls them, through the device and its recorded graphs, and the logits.
  StepTimes step(std::int64_t workers, std::int64_t tokens) {
    const Step step(workers, tokens);
    const std::int64_t rows = device_->bucket_rows(workers), layers = options_.layers;
    const std::int64_t q_size = kQueryHeads * kHeadDim, kv_size = kKvHeads * kHeadDim;
    const auto matrix = [&](std::int64_t n, std::int64_t k) { return Matrix{random_bf16(n * k), Dtype::kBF16, n, k}; };
    struct Layer {
      Matrix q, k, v, o, gate, up, down;
    };
    std::vector<Layer> weights;
    for (std::int64_t i = 0; i < layers; ++i) {
      weights.push_back({matrix(q_size, kHidden), matrix(kv_size, kHidden), matrix(kv_size, kHidden),
                         matrix(kHidden, q_size), matrix(kIntermediate, kHidden), matrix(kIntermediate, kHidden),
                         matrix(kHidden, kIntermediate)});
    }
    const Matrix head = matrix(kVocab, kHidden);
    const float* norm = random_f32(kHidden);
    float* x = random_f32(rows * kHidden);
    float* normed = allocate<float>(rows * kHidden);
    float* q = allocate<float>(rows * q_size);
    float* attended = allocate<float>(rows * q_size);
    float* k = allocate<float>(rows * kv_size);
    float* v = allocate<float>(rows * kv_size);
    float* gate = allocate<float>(rows * kIntermediate);
    float* up = allocate<float>(rows * kIntermediate);
    float* logits = allocate<float>(rows * kVocab);
    const KvShape kv = shape(layers);
    const std::int64_t pool = std::ssize(step.pages) * kv.page_elements();
    auto* keys = random_bf16(layers * pool);
    auto* values = random_bf16(layers * pool);

    const auto run_layers = [&] {
      for (std::int64_t i = 0; i < layers; ++i) {
        const Layer& layer = weights[static_cast<std::size_t>(i)];
        const KvLayer pages = {keys + i * pool, values + i * pool};
        device_->rms_norm({.x = x, .weight = norm, .eps = 1e-5f, .rows = rows, .cols = kHidden, .out = normed});
        device_->matmul({.x = normed,
                         .rows = rows,
                         .k = kHidden,
                         .n_outputs = 3,
                         .outputs = {{layer.q, nullptr, q}, {layer.k, nullptr, k}, {layer.v, nullptr, v}}});
        device_->kv_append({.shape = kv, .layer = pages, .first = 0, .rows = rows, .k = k, .v = v});
        device_->attention({.shape = kv,
                            .layer = pages,
                            .query_heads = kQueryHeads,
                            .scale = 0.088f,
                            .q = q,
                            .out = attended,
                            .lse = nullptr});
        device_->matmul(
            {.x = attended, .rows = rows, .k = q_size, .n_outputs = 1, .outputs = {{layer.o, nullptr, x, true}}});
        device_->rms_norm({.x = x, .weight = norm, .eps = 1e-5f, .rows = rows, .cols = kHidden, .out = normed});
        device_->matmul({.x = normed,
                         .rows = rows,
                         .k = kHidden,
                         .n_outputs = 2,
                         .outputs = {{layer.gate, nullptr, gate}, {layer.up, nullptr, up}}});
        device_->gated_activation({.gate = gate, .up = up, .n = rows * kIntermediate, .out = gate});
        device_->matmul(
            {.x = gate, .rows = rows, .k = kIntermediate, .n_outputs = 1, .outputs = {{layer.down, nullptr, x, true}}});
      }
      device_->matmul({.x = x, .rows = rows, .k = kHidden, .n_outputs = 1, .outputs = {{head, nullptr, logits}}});
    };
    std::vector<double> seconds;
    for (int run = 0; run < options_.runs + 3; ++run) {
      device_->synchronize();
      // Events around all of it, on a stream of their own: what the host does for a step is included.
      check(cudaEventRecord(begin_, stream_), "timing");
      device_->begin_step(step.view());
      device_->repeat({.model = 1, .cache = 1, .buffers = static_cast<std::uint64_t>(workers), .rows = rows},
                      run_layers);
      device_->synchronize();
      check(cudaEventRecord(end_, stream_), "timing");
      check(cudaStreamSynchronize(stream_), "timing");
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin_, end_), "timing");
      if (run >= 3) seconds.push_back(milliseconds * 1e-3);
    }
    const double weight_bytes =
        2.0 * static_cast<double>(layers * (kHidden * (2 * q_size + 2 * kv_size) + 3 * kHidden * kIntermediate) +
                                  kVocab * kHidden);
    const double kv_bytes = 2.0 * 2 * static_cast<double>(layers * tokens * kv_size);
    buffers_.clear();
    const double s = median(seconds);
    return {s * 1e3, s * copy_bandwidth_ / (weight_bytes + kv_bytes)};
  }

  Options options_;
  std::shared_ptr<Device> device_;
  std::mt19937 random_{1};
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  int multiprocessors_ = 0;
  std::size_t flush_bytes_ = 0;
  Buffer flush_;
  std::vector<Buffer> buffers_;  // of the measurement under way
  double copy_bandwidth_ = 0;
};

std::vector<std::int64_t> parse_list(const char* text) {
  std::vector<std::int64_t> values;
  std::stringstream list(text);
  for (std::string value; std::getline(list, value, ',');) values.push_back(std::stoll(value));
  return values;
}

}  // namespace
}  // namespace hogwild

int main(int argc, char** argv) {
  hogwild::Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--layers") == 0) options.layers = std::atoll(argv[i + 1]);
    if (std::strcmp(argv[i], "--runs") == 0) options.runs = std::atoi(argv[i + 1]);
    if (std::strcmp(argv[i], "--tokens") == 0) options.tokens = hogwild::parse_list(argv[i + 1]);
  }
  try {
    const hogwild::CudaStatus status = hogwild::cuda_status();
    if (!status.reason.empty()) {
      std::fprintf(stderr, "nothing was measured: %s\n", status.reason.c_str());
      return 3;
    }
    hogwild::Bench(options).run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
