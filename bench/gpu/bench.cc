// The CUDA device's speed on the card that is there, part by part, as JSON: one object a line, flushed at once, so that
// a run that is cut off loses nothing.
//
//   bench [--seconds N] [part...]     parts: card gaps attention matmul sample steps pointwise host (default: all)
//
// --seconds: nothing more is begun after so long (each part says how much it left out).
//
// Work is timed as it runs in a step: in one captured graph of many layers, each on memory of its own, together four
// times what the L2 holds. Beside each time stands the share of the copy bandwidth that `card` has measured, of a copy
// of 4 GiB. What comes first in a part matters most.
#if !defined(HOGWILD_SIMT)
#include <cuda_runtime_api.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/float16.h"
#include "core/fragments.h"
#include "device/device.h"
#include "kernels.h"
#include "kv_shape.h"
#include "worker_step.h"

namespace hogwild {
namespace {

#if defined(HOGWILD_SIMT)  // only to see that it runs
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

struct ModelShape {
  const char* name;
  std::int64_t layers, hidden, intermediate, query_heads, kv_heads, head_dim, vocab;
};
constexpr ModelShape kQwq = {"QwQ-32B", 64, 5120, 27648, 40, 8, 128, 152064};
constexpr ModelShape kQwen3 = {"Qwen3-8B", 36, 4096, 12288, 32, 8, 128, 151936};
constexpr ModelShape kSmall = {"small", 2, 256, 512, 4, 2, 64, 3000};

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw Error(code::kInternal, std::string(what) + ": " + cudaGetErrorString(error));
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <typename T>
T median(std::vector<T> values) {
  std::nth_element(values.begin(), values.begin() + std::ssize(values) / 2, values.end());
  return values[values.size() / 2];
}

class Bench {
 public:
  explicit Bench(double seconds) : deadline_(now() + seconds) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
    check(cudaEventCreate(&begin_), "an event");
    check(cudaEventCreate(&end_), "an event");
    check(cudaGetDeviceProperties(&card_, 0), "the card");
  }
  ~Bench() {
    cudaEventDestroy(end_);
    cudaEventDestroy(begin_);
    cudaStreamDestroy(stream_);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  // Runs a part. False where it failed.
  bool run(const std::string& name) {
    part_ = name;
    left_out_ = 0;
    bool is_good = true;
    try {
      if (name == "card") measure_card();
      if (name == "gaps") measure_gaps();
      if (name == "attention") measure_attention();
      if (name == "matmul") measure_matmul();
      if (name == "sample") measure_sampling();
      if (name == "steps") measure_steps();
      if (name == "pointwise") measure_pointwise();
      if (name == "host") measure_host();
    } catch (const std::exception& error) {
      std::string text = error.what();
      std::replace(text.begin(), text.end(), '"', '\'');
      print("\"error\": \"%s\"", text.c_str());
      is_good = false;
    }
    buffers_.clear();
    if (left_out_ > 0) print("\"left_out\": %d", left_out_);
    return is_good;
  }

 private:
  // ---- output and time --------------------------------------------------------------------------------

  __attribute__((format(printf, 2, 3))) void print(const char* format, ...) const {
    std::printf("{\"part\": \"%s\", ", part_.c_str());
    std::va_list arguments;
    va_start(arguments, format);
    std::vprintf(format, arguments);
    va_end(arguments);
    std::printf("}\n");
    std::fflush(stdout);
  }

  bool is_late() {
    if (now() < deadline_) return false;
    ++left_out_;
    return true;
  }

  double share(double bytes, double seconds) const { return copy_ > 0 ? bytes / seconds / copy_ : 0; }

  // Seconds of `work` on the stream: the median of several runs of a graph that holds it, or of plain calls.
  double time(const std::function<void()>& work, bool as_graph = true) {
    constexpr int kRuns = kEmulated ? 1 : 9, kWarmUp = kEmulated ? 0 : 2;
    work();  // loads modules
    check(cudaStreamSynchronize(stream_), "the work");
    cudaGraphExec_t exec = nullptr;
    if (as_graph) {
      cudaGraph_t graph = nullptr;
      check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capturing");
      work();
      check(cudaStreamEndCapture(stream_, &graph), "capturing");
      check(cudaGraphInstantiate(&exec, graph, 0), "capturing");
      check(cudaGraphDestroy(graph), "capturing");
    }
    std::vector<double> seconds;
    for (int run = 0; run < kRuns + kWarmUp; ++run) {
      check(cudaEventRecord(begin_, stream_), "timing");
      if (as_graph) {
        check(cudaGraphLaunch(exec, stream_), "timing");
      } else {
        work();
      }
      check(cudaEventRecord(end_, stream_), "timing");
      check(cudaStreamSynchronize(stream_), "the work");
      float milliseconds = 0;
      check(cudaEventElapsedTime(&milliseconds, begin_, end_), "timing");
      if (run >= kWarmUp) seconds.push_back(milliseconds * 1e-3);
    }
    if (as_graph) check(cudaGraphExecDestroy(exec), "a graph");
    return median(std::move(seconds));
  }

  // Of `bytes` each, that hold four times what the L2 does.
  std::int64_t copies_beyond_l2(std::int64_t bytes, std::int64_t least) const {
    return std::max(least, (kEmulated ? 0 : 4) * static_cast<std::int64_t>(card_.l2CacheSize) / bytes + 1);
  }

  // ---- memory -----------------------------------------------------------------------------------------

  template <typename T>
  T* allocate(std::int64_t n) {
    buffers_.push_back(device_->allocate(static_cast<std::size_t>(n) * sizeof(T) + 256, "the benchmark"));
    return buffers_.back().as<T>();
  }
  template <typename T>
  T* upload(const std::vector<T>& values) {
    T* data = allocate<T>(std::ssize(values));
    device_->upload(data, values.data(), values.size() * sizeof(T));
    return data;
  }
  float random() {  // xorshift64 (Marsaglia 2003), in [-1, 1)
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return static_cast<float>(static_cast<std::int32_t>(random_ >> 32)) * (1.f / 2147483648.f);
  }
  // Zeros would leave the tensor cores cooler, and the clock higher, than a model does.
  std::uint16_t* random_bf16(std::int64_t n) {
    constexpr std::int64_t kPiece = std::int64_t{1} << 23;
    auto* data = allocate<std::uint16_t>(n);
    std::vector<std::uint16_t> piece(static_cast<std::size_t>(std::min(n, kPiece)));
    for (std::uint16_t& value : piece) value = f32_to_bf16(0.05f * random());
    device_->upload(data, piece.data(), piece.size() * sizeof(piece[0]));
    for (std::int64_t at = kPiece; at < n; at += kPiece) {
      const auto bytes = static_cast<std::size_t>(std::min(n - at, kPiece)) * sizeof(piece[0]);
      check(cudaMemcpyAsync(data + at, data, bytes, cudaMemcpyDefault, stream_), "filling memory");
    }
    check(cudaStreamSynchronize(stream_), "filling memory");
    return data;
  }
  float* random_f32(std::int64_t n) {
    std::vector<float> values(static_cast<std::size_t>(n));
    for (float& value : values) value = random();
    return upload(values);
  }

  // ---- parts ------------------------------------------------------------------------------------------

  void measure_card() {
    int driver = 0, runtime = 0;
    static_cast<void>(cudaDriverGetVersion(&driver));
    static_cast<void>(cudaRuntimeGetVersion(&runtime));
    print(
        "\"name\": \"%s\", \"multiprocessors\": %d, \"l2_mb\": %d, \"memory_gb\": %.1f, \"driver_cuda\": %d, \"cuda\": "
        "%d",
        card_.name, card_.multiProcessorCount, card_.l2CacheSize >> 20,
        static_cast<double>(card_.totalGlobalMem) * 1e-9, driver, runtime);
    const std::int64_t bytes = kEmulated ? 1 << 20 : std::int64_t{8} << 30, half = bytes / 2;
    auto* data = reinterpret_cast<std::byte*>(random_bf16(bytes / 2));
    copy_ = static_cast<double>(bytes) /
            time(
                [&] {
                  check(cudaMemcpyAsync(data, data + half, static_cast<std::size_t>(half), cudaMemcpyDefault, stream_),
                        "a copy");
                },
                false);
    auto* result = allocate<std::uint32_t>(1);
    const double read =
        static_cast<double>(bytes) / time(
                                         [&] {
                                           check(cuda::launch_read(data, static_cast<std::size_t>(bytes),
                                                                   card_.multiProcessorCount, result, stream_),
                                                 "reading");
                                         },
                                         false);
    print("\"copy_gb_s\": %.0f, \"read_gb_s\": %.0f", copy_ * 1e-9, read * 1e-9);
  }

  // What a kernel that does next to nothing takes, one behind the other.
  void measure_gaps() {
    const float* x = random_f32(1024);
    float* out = allocate<float>(1024);
    constexpr int kKernels = kEmulated ? 4 : 512;
    const auto chain = [&](bool* after_kernel) {
      for (int i = 0; i < kKernels; ++i) {
        check(cuda::launch_gated_activation({.gate = x, .up = x + 512, .n = 256, .out = out}, {stream_, after_kernel}),
              "a kernel");
      }
    };
    const auto apart = [&] { chain(nullptr); };
    const auto overlapping = [&] {
      bool after_kernel = false;
      chain(&after_kernel);
    };
    const double in_graph = time(apart), launched = time(apart, false);
    bool can_overlap = false;
    check(cuda::kernels_wait(&can_overlap), "the kernels");
    print("\"us_in_graph\": %.2f, \"us_launched\": %.2f, \"us_overlapping\": %.2f", in_graph / kKernels * 1e6,
          launched / kKernels * 1e6, can_overlap ? time(overlapping) / kKernels * 1e6 : 0);
  }

  struct Heads {
    std::int64_t query, kv, dim;
  };
  void measure_attention() {
    const auto all = [this](Heads heads, const std::vector<std::int64_t>& tokens,
                            const std::vector<std::int64_t>& workers) {
      for (const std::int64_t t : tokens) {
        double one = 0;
        for (const std::int64_t w : workers) {
          if (is_late()) continue;
          one = attention(heads, t, w, one);
          buffers_.clear();
        }
      }
    };
    if (kEmulated) return all({10, 2, 128}, {300}, {1, 4});
    // The goals first, then the other models' heads, then what is long or wide.
    const std::vector<std::int64_t> lengths = {300, 1024, 4096, 16384, 65536};
    all({32, 4, 128}, lengths, {1, 4});
    all({40, 8, 128}, lengths, {1, 4});
    for (const Heads heads : {Heads{28, 4, 128}, Heads{64, 8, 128}}) all(heads, {1024, 16384, 65536}, {1, 4});
    all({4, 2, 32}, {300, 4096}, {1, 4});  // the demo model's
    all({32, 4, 128}, {64, 1024, 16384, 65536}, {1, 2, 8, 16});
    all({40, 8, 128}, {1024, 65536}, {1, 2, 8, 16});
    all({32, 4, 128}, {131072, 262144}, {1, 4});
    all({40, 8, 128}, {131072, 262144}, {1, 4});
  }

  // Returns the seconds with one worker: `one`, or what was measured now.
  double attention(Heads heads, std::int64_t tokens, std::int64_t workers, double one) {
    const std::int64_t own = std::max<std::int64_t>(1, std::min<std::int64_t>(64, tokens / (2 * workers)));
    const WorkerStep step(workers, tokens - workers * own, own);
    const WorkerStep alone(1, tokens - own, own);
    const KvShape shape = bf16_shape(1, heads.kv, heads.dim);
    const std::int64_t pages = std::max(std::ssize(step.pages), std::ssize(alone.pages));
    const std::int64_t pool = pages * shape.page_elements();
    const std::int64_t bytes = 2 * tokens * heads.kv * heads.dim * 2;
    const std::int64_t layers = kEmulated ? 2 : std::min<std::int64_t>(copies_beyond_l2(bytes, 8), 200);
    std::uint16_t* memory = random_bf16(2 * pool * layers);
    const float* q = random_f32(workers * heads.query * heads.dim);
    float* out = allocate<float>(workers * heads.query * heads.dim);
    const auto launch_of = [&](const WorkerStep& s) {
      const cuda::FlatPlan plan = cuda::flatten(s.view().plan);
      cuda::AttentionLaunch launch;
      launch.params = {.shape = shape,
                       .layer = {.keys = memory, .values = memory},
                       .query_heads = heads.query,
                       .scale = 1 / std::sqrt(static_cast<float>(heads.dim)),
                       .q = q,
                       .out = out};
      launch.step.rope = {.cos = upload(s.cos), .sin = upload(s.sin), .rotary_dim = std::min(s.rotary_dim, heads.dim)};
      launch.step.plan = {.counts = upload(plan.counts),
                          .segments = upload(plan.segments),
                          .query_ranges = upload(plan.query_ranges),
                          .pages = upload(plan.pages),
                          .views = upload(plan.views),
                          .max_tokens = plan.counts[0],
                          .max_segments = plan.counts[1]};
      int ctas = 0;
      check(cuda::attention_ctas_per_multiprocessor(launch, &ctas), "attention");
      launch.max_ctas = std::clamp(ctas, 1, 2) * card_.multiProcessorCount;
      launch.min_tiles = 2;
      launch.multiprocessors = card_.multiProcessorCount;
      launch.shares = allocate<std::byte>(static_cast<std::int64_t>(cuda::attention_shares_bytes(launch)));
      launch.workspace = allocate<std::byte>(static_cast<std::int64_t>(cuda::attention_workspace_bytes(launch)));
      return launch;
    };
    cuda::AttentionLaunch launch = launch_of(step), single = launch_of(alone);
    const double plan = time([&] { check(cuda::launch_attention_plan(launch, stream_), "the plan"); });
    check(cuda::launch_attention_plan(single, stream_), "the plan");
    const auto seconds_of = [&](cuda::AttentionLaunch& which, std::int64_t times) {
      return time([&] {
               for (std::int64_t i = 0; i < layers; ++i) {
                 which.params.layer = {.keys = memory + 2 * pool * i, .values = memory + 2 * pool * i + pool};
                 for (std::int64_t n = 0; n < times; ++n) check(cuda::launch_attention(which, stream_), "attention");
               }
             }) /
             static_cast<double>(layers);
    };
    const double seconds = seconds_of(launch, 1);
    if (one == 0) one = workers == 1 ? seconds : seconds_of(single, 1);
    // Beside it one pass for each worker, as the paper's Table 2 has it, by the same kernel.
    const double passes = workers == 1 ? seconds : seconds_of(single, workers);
    print(
        "\"heads\": \"%lld/%lld\", \"head_dim\": %lld, \"tokens\": %lld, \"workers\": %lld, \"us\": %.2f, "
        "\"plan_us\": %.2f, \"gb_s\": %.0f, \"copy_share\": %.3f, \"over_one\": %.3f, \"pass_per_worker_us\": %.2f",
        static_cast<long long>(heads.query), static_cast<long long>(heads.kv), static_cast<long long>(heads.dim),
        static_cast<long long>(tokens), static_cast<long long>(workers), seconds * 1e6, plan * 1e6,
        static_cast<double>(bytes) / seconds * 1e-9, share(static_cast<double>(bytes), seconds), seconds / one,
        passes * 1e6);
    return one;
  }

  void measure_matmul() {
    struct Case {
      const char* name;
      std::vector<std::int64_t> outputs;
      std::int64_t k;
      Format format = Format::kBF16;
    };
    const ModelShape& m = kEmulated ? kSmall : kQwq;
    const Case cases[] = {{"gate_up", {m.intermediate, m.intermediate}, m.hidden},
                          {"down", {m.hidden}, m.intermediate},
                          {"qkv", {m.hidden, m.hidden / 5 / 8 * 8, m.hidden / 5 / 8 * 8}, m.hidden},
                          {"o", {m.hidden}, m.hidden},
                          {"head", {m.vocab}, m.hidden},
                          {"gate_up q4_k", {m.intermediate, m.intermediate}, m.hidden, Format::kQ4_K},
                          {"gate_up q4_0", {m.intermediate, m.intermediate}, m.hidden, Format::kQ4_0},
                          {"gate_up mxfp4", {m.intermediate, m.intermediate}, m.hidden, Format::kMXFP4},
                          {"gate_up int4_g128", {m.intermediate, m.intermediate}, m.hidden, Format::kInt4G128},
                          {"gate_up q6_k", {m.intermediate, m.intermediate}, m.hidden, Format::kQ6_K},
                          {"gate_up q8_0", {m.intermediate, m.intermediate}, m.hidden, Format::kQ8_0}};
    for (const Case& c : cases) {
      const bool plain = is_plain(c.format);
      const auto matrix_of = [&](std::int64_t outputs) {
        return Matrix{nullptr, c.format, outputs, c.k, plain ? Order::kRows : Order::kFragments};
      };
      std::int64_t n = 0, bytes = 0;
      for (const std::int64_t outputs : c.outputs) {
        n += outputs;
        bytes += matrix_bytes(matrix_of(outputs));
      }
      const std::int64_t copies = copies_beyond_l2(bytes, 2);
      std::vector<const std::byte*> weights;
      for (const std::int64_t rows : {1, 4, 8, 16, 32, 64}) {
        if (kEmulated && rows > 4) continue;
        if (is_late()) continue;
        while (std::ssize(weights) < copies) {
          weights.push_back(reinterpret_cast<const std::byte*>(random_bf16(bytes / 2)));
        }
        const std::uint16_t* x = random_bf16(rows * c.k);
        float* y = allocate<float>(rows * n);
        cuda::MatmulLaunch launch{.multiprocessors = card_.multiProcessorCount};
        launch.params = {
            .x = x, .x_dtype = Dtype::kBF16, .rows = rows, .k = c.k, .n_outputs = static_cast<int>(c.outputs.size())};
        for (std::size_t i = 0; i < c.outputs.size(); ++i) {
          launch.params.outputs[i].weight = matrix_of(c.outputs[i]);
        }
        launch.workspace = allocate<std::byte>(static_cast<std::int64_t>(
            plain ? cuda::matmul_workspace_bytes(launch) : cuda::quantised_matmul_workspace_bytes(launch)));
        const std::int64_t launches = std::max<std::int64_t>(copies, kEmulated ? 1 : 8);
        const double seconds =
            time([&] {
              for (std::int64_t i = 0; i < launches; ++i) {
                const std::byte* at = weights[static_cast<std::size_t>(i % copies)];
                float* to = y;
                for (std::size_t o = 0; o < c.outputs.size(); ++o) {
                  launch.params.outputs[o].weight.data = at;
                  launch.params.outputs[o].y = to;
                  at += matrix_bytes(launch.params.outputs[o].weight);
                  to += rows * c.outputs[o];
                }
                check(plain ? cuda::launch_matmul(launch, stream_) : cuda::launch_quantised_matmul(launch, stream_),
                      "matmul");
              }
            }) /
            static_cast<double>(launches);
        print("\"name\": \"%s\", \"rows\": %lld, \"us\": %.2f, \"gb_s\": %.0f, \"copy_share\": %.3f", c.name,
              static_cast<long long>(rows), seconds * 1e6, static_cast<double>(bytes) / seconds * 1e-9,
              share(static_cast<double>(bytes), seconds));
      }
      buffers_.clear();
    }
  }

  void measure_sampling() {
    const std::int64_t vocab = (kEmulated ? kSmall : kQwq).vocab;
    struct Way {
      const char* name;
      float temperature;
      int top_k;
      float top_p;
    };
    for (const std::int64_t rows : {1, 4, 8}) {
      if (kEmulated && rows > 1) continue;
      std::vector<float> logits(static_cast<std::size_t>(rows * vocab));
      for (float& value : logits) value = 3 * (random() + random() + random() + random());  // roughly normal
      const float* device_logits = upload(logits);
      for (const Way& way :
           {Way{"temperature", 0.8f, 0, 1.f}, Way{"top_k 40, top_p 0.95", 0.8f, 40, 0.95f},
            Way{"top_k 40", 0.8f, 40, 1.f}, Way{"top_p 0.95", 0.8f, 0, 0.95f}, Way{"greedy", 0.f, 0, 1.f}}) {
        if (is_late()) continue;
        std::vector<cuda::SampleRow> all;
        for (std::int64_t i = 0; i < rows; ++i) {
          all.push_back({.logits_row = i,
                         .uniform = 0.37,
                         .temperature = way.temperature,
                         .top_p = way.top_p,
                         .top_k = way.top_k});
        }
        const auto bytes = static_cast<std::int64_t>(cuda::sample_workspace_bytes(rows, vocab));
        const cuda::SampleLaunch launch{.logits = device_logits,
                                        .vocab = vocab,
                                        .rows = upload(all),
                                        .seen = nullptr,
                                        .forbidden = nullptr,
                                        .n = rows,
                                        .any_top_k = way.top_k > 0,
                                        .any_top_p = way.top_p < 1,
                                        .sampled = allocate<cuda::SampledRow>(rows),
                                        .workspace = allocate<std::byte>(bytes)};
        // Launched one by one, as the device does it.
        const double seconds = time([&] { check(cuda::launch_sample(launch, stream_), "sampling"); }, false);
        print("\"rows\": %lld, \"vocab\": %lld, \"way\": \"%s\", \"us\": %.1f", static_cast<long long>(rows),
              static_cast<long long>(vocab), way.name, seconds * 1e6);
      }
      buffers_.clear();
    }
  }

  void measure_steps() {
    if (kEmulated) return steps(kSmall, 2, {300});
    steps(kQwq, 8, {4096, 65536});
    steps(kQwen3, 12, {4096, 65536});
  }

  // All layers as model/transformer.cc calls them, through the device and its graphs, and the logits. What the host
  // does for a step is included.
  void steps(const ModelShape& m, std::int64_t layers, const std::vector<std::int64_t>& lengths) {
    const std::int64_t q_size = m.query_heads * m.head_dim, kv_size = m.kv_heads * m.head_dim;
    const auto matrix = [&](std::int64_t n, std::int64_t k) { return Matrix{random_bf16(n * k), Format::kBF16, n, k}; };
    struct Layer {
      Matrix q, k, v, o, gate, up, down;
    };
    std::vector<Layer> weights;
    for (std::int64_t i = 0; i < layers; ++i) {
      if (is_late()) return buffers_.clear();
      weights.push_back({matrix(q_size, m.hidden), matrix(kv_size, m.hidden), matrix(kv_size, m.hidden),
                         matrix(m.hidden, q_size), matrix(m.intermediate, m.hidden), matrix(m.intermediate, m.hidden),
                         matrix(m.hidden, m.intermediate)});
    }
    const Matrix head = matrix(m.vocab, m.hidden);
    const float* norm = random_f32(m.hidden);
    const std::int64_t most_rows = 4;
    float* x = random_f32(most_rows * m.hidden);
    auto* normed = allocate<std::uint16_t>(most_rows * m.hidden);
    float* q = allocate<float>(most_rows * q_size);
    auto* attended = allocate<std::uint16_t>(most_rows * q_size);
    float* k = allocate<float>(most_rows * kv_size);
    float* v = allocate<float>(most_rows * kv_size);
    float* gate = allocate<float>(most_rows * m.intermediate);
    float* up = allocate<float>(most_rows * m.intermediate);
    auto* activated = allocate<std::uint16_t>(most_rows * m.intermediate);
    float* logits = allocate<float>(most_rows * m.vocab);
    const KvShape kv = bf16_shape(layers, m.kv_heads, m.head_dim);
    std::uint64_t key = 0;
    for (const std::int64_t tokens : lengths) {
      const std::size_t kept = buffers_.size();
      const std::int64_t own = std::min<std::int64_t>(64, tokens / 8);
      const std::int64_t pool = (tokens / kPageSize + 2 * most_rows) * kv.page_elements();
      auto* cache = random_bf16(2 * layers * pool);
      for (const std::int64_t workers : {std::int64_t{1}, most_rows}) {
        if (is_late()) continue;
        const WorkerStep step(workers, tokens - workers * own, own, 0, m.head_dim);
        const std::int64_t rows = device_->bucket_rows(workers);
        ++key;
        const auto run_layers = [&](const DeviceStep& on_device) {
          for (std::int64_t i = 0; i < layers; ++i) {
            const Layer& layer = weights[static_cast<std::size_t>(i)];
            const KvLayer pages = {cache + 2 * i * pool, cache + (2 * i + 1) * pool};
            device_->rms_norm({.x = x,
                               .weight = norm,
                               .eps = 1e-5f,
                               .rows = rows,
                               .cols = m.hidden,
                               .out = normed,
                               .out_dtype = Dtype::kBF16});
            device_->matmul({.x = normed,
                             .x_dtype = Dtype::kBF16,
                             .rows = rows,
                             .k = m.hidden,
                             .n_outputs = 3,
                             .outputs = {{layer.q, nullptr, q}, {layer.k, nullptr, k}, {layer.v, nullptr, v}}});
            device_->kv_append(on_device, {.shape = kv, .layer = pages, .first = 0, .rows = rows, .k = k, .v = v});
            device_->attention(on_device, {.shape = kv,
                                           .layer = pages,
                                           .query_heads = m.query_heads,
                                           .scale = 0.088f,
                                           .q = q,
                                           .out = attended,
                                           .lse = nullptr,
                                           .out_dtype = Dtype::kBF16});
            device_->matmul({.x = attended,
                             .x_dtype = Dtype::kBF16,
                             .rows = rows,
                             .k = q_size,
                             .n_outputs = 1,
                             .outputs = {{layer.o, nullptr, x, true}}});
            device_->rms_norm({.x = x,
                               .weight = norm,
                               .eps = 1e-5f,
                               .rows = rows,
                               .cols = m.hidden,
                               .out = normed,
                               .out_dtype = Dtype::kBF16});
            device_->gated_matmul(
                {.x = normed,
                 .x_dtype = Dtype::kBF16,
                 .rows = rows,
                 .k = m.hidden,
                 .n_outputs = 2,
                 .outputs = {{layer.gate, nullptr, gate}, {layer.up, nullptr, up}}},
                {.gate = gate, .up = up, .n = rows * m.intermediate, .out = activated, .out_dtype = Dtype::kBF16});
            device_->matmul({.x = activated,
                             .x_dtype = Dtype::kBF16,
                             .rows = rows,
                             .k = m.intermediate,
                             .n_outputs = 1,
                             .outputs = {{layer.down, nullptr, x, true}}});
          }
          device_->matmul({.x = x, .rows = rows, .k = m.hidden, .n_outputs = 1, .outputs = {{head, nullptr, logits}}});
        };
        std::vector<double> seconds;
        for (int run = 0; run < (kEmulated ? 3 : 13); ++run) {
          device_->synchronize();
          const double start = now();
          const auto on_device = device_->upload(step.view());
          device_->replay({.model = 1, .cache = 1, .buffers = key, .rows = rows}, *on_device,
                          [&] { run_layers(*on_device); });
          device_->synchronize();
          if (run >= 2) seconds.push_back(now() - start);
        }
        const double s = median(std::move(seconds));
        const double layer_bytes =
            2.0 * static_cast<double>(m.hidden * (2 * q_size + 2 * kv_size + 3 * m.intermediate)) +
            4.0 * static_cast<double>(tokens * kv_size);
        const double bytes = static_cast<double>(layers) * layer_bytes + 2.0 * static_cast<double>(m.vocab * m.hidden);
        print(
            "\"model\": \"%s\", \"layers\": %lld, \"of\": %lld, \"tokens\": %lld, \"workers\": %lld, \"ms\": %.3f, "
            "\"time_over_bytes_at_copy_bandwidth\": %.3f",
            m.name, static_cast<long long>(layers), static_cast<long long>(m.layers), static_cast<long long>(tokens),
            static_cast<long long>(workers), s * 1e3, copy_ > 0 ? s * copy_ / bytes : 0);
      }
      buffers_.resize(kept);
    }
    buffers_.clear();
  }

  void measure_pointwise() {
    const ModelShape& m = kEmulated ? kSmall : kQwq;
    constexpr int kKernels = kEmulated ? 2 : 64;
    for (const std::int64_t rows : {4, 64}) {
      if (is_late()) continue;
      const float* x = random_f32(rows * 2 * m.intermediate);
      float* out = allocate<float>(rows * m.intermediate);
      const auto line = [&](const char* name, const std::function<cudaError_t()>& launch) {
        const double seconds = time([&] {
          for (int i = 0; i < kKernels; ++i) check(launch(), name);
        });
        print("\"name\": \"%s\", \"rows\": %lld, \"us\": %.2f", name, static_cast<long long>(rows),
              seconds / kKernels * 1e6);
      };
      line("rms_norm", [&] {
        return cuda::launch_rms_norm({.x = x, .weight = x, .eps = 1e-5f, .rows = rows, .cols = m.hidden, .out = out},
                                     stream_);
      });
      line("gated_activation", [&] {
        return cuda::launch_gated_activation(
            {.gate = x, .up = x + rows * m.intermediate, .n = rows * m.intermediate, .out = out}, stream_);
      });
      const KvShape shape = bf16_shape(1, m.kv_heads, m.head_dim);
      std::vector<AppendSlot> slots;
      for (std::int64_t i = 0; i < rows; ++i) slots.push_back({.page = i, .slot = 3, .rope_row = 0});
      std::uint16_t* pool = random_bf16(2 * rows * shape.page_elements());
      const KvAppendParams append{
          .shape = shape, .layer = {pool, pool + rows * shape.page_elements()}, .rows = rows, .k = x, .v = x};
      const cuda::StepArrays step{.tokens = nullptr, .slots = upload(slots), .rope = {x, x, m.head_dim}, .plan = {}};
      line("append", [&] { return cuda::launch_kv_append(append, step, stream_); });
      buffers_.clear();
    }
  }

  // What the host does for a step of 640 launches and for sampling, beside what the card does.
  void measure_host() {
    constexpr int kLaunches = kEmulated ? 10 : 640;
    const std::int64_t rows = 4, hidden = 256, vocab = 1024;
    float* x = random_f32(rows * hidden * 8);
    const Matrix weight{random_bf16(hidden * hidden), Format::kBF16, hidden, hidden};
    const WorkerStep step(rows, 5000, 40);
    const auto ops = [&] {
      for (int i = 0; i < kLaunches; ++i) {
        device_->matmul(
            {.x = x, .rows = rows, .k = hidden, .n_outputs = 1, .outputs = {{weight, nullptr, x + rows * hidden}}});
      }
    };
    std::vector<SampleParams::Row> draws(static_cast<std::size_t>(rows));
    for (std::size_t i = 0; i < draws.size(); ++i)
      draws[i] = {.logits_row = static_cast<std::int64_t>(i), .temperature = 1};
    std::vector<std::int32_t> tokens(draws.size());
    const float* logits = random_f32(rows * vocab);
    std::vector<double> upload_us, launch_us, all_us, sample_us;
    double direct = 0, capture = 0;
    for (int run = 0; run < (kEmulated ? 4 : 60); ++run) {
      const double start = now();
      const auto on_device = device_->upload(step.view());
      const double uploaded = now();
      device_->replay({.model = 3, .cache = 3, .buffers = 3, .rows = rows}, *on_device, ops);
      const double launched = now();
      device_->synchronize();
      const double done = now();
      device_->sample({.logits = logits, .vocab = vocab, .rows = draws, .tokens = tokens.data(), .logprobs = nullptr});
      const double sampled = now();
      if (run == 0) direct = launched - uploaded;
      if (run == 1) capture = launched - uploaded;
      if (run < (kEmulated ? 2 : 10)) continue;
      upload_us.push_back((uploaded - start) * 1e6);
      launch_us.push_back((launched - uploaded) * 1e6);
      all_us.push_back((done - start) * 1e6);
      sample_us.push_back((sampled - done) * 1e6);
    }
    print(
        "\"launches\": %d, \"direct_us\": %.0f, \"capture_us\": %.0f, \"upload_us\": %.1f, \"graph_launch_us\": %.1f, "
        "\"until_done_us\": %.1f, \"sample_us\": %.1f",
        kLaunches, direct * 1e6, capture * 1e6, median(upload_us), median(launch_us), median(all_us),
        median(sample_us));
  }

  std::shared_ptr<Device> device_ = create_cuda_device(0);
  cudaStream_t stream_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  cudaDeviceProp card_ = {};
  double deadline_;
  std::vector<Buffer> buffers_;  // of the measurement under way
  std::uint64_t random_ = 88172645463325252ull;
  double copy_ = 0;  // bytes/s
  std::string part_;
  int left_out_ = 0;
};

constexpr const char* kParts[] = {"card", "gaps", "attention", "matmul", "sample", "steps", "pointwise", "host"};

int run(int argc, char** argv) {
  double seconds = 1e9;
  std::vector<std::string> parts;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool is_part = std::find(std::begin(kParts), std::end(kParts), argument) != std::end(kParts);
    if (argument == "--seconds" && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else if (is_part) {
      parts.push_back(argument);
    } else {
      std::fprintf(stderr, "bench [--seconds N] [part...]: '%s' is neither\n", argument.c_str());
      return 2;
    }
  }
  if (parts.empty()) parts.assign(std::begin(kParts), std::end(kParts));
  const CudaStatus status = cuda_status();
  if (!status.reason.empty()) {
    std::fprintf(stderr, "nothing was measured: %s\n", status.reason.c_str());
    return 3;
  }
  Bench bench(seconds);
  bool is_good = true;
  for (const std::string& part : parts) is_good &= bench.run(part);
  return is_good ? 0 : 1;
}

}  // namespace
}  // namespace hogwild

int main(int argc, char** argv) {
  try {
    return hogwild::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
