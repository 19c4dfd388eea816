// The CPU device: cuts each op into slices for the thread pool. The arithmetic is in the kernels.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "device/cpu/kernels.h"
#include "device/cpu/sampler.h"
#include "device/cpu/simd_dispatch.h"
#include "device/cpu/thread_pool.h"
#include "device/device.h"

namespace hogwild {
namespace {

// Elements of pointwise work below which one thread is done before a second has begun.
constexpr std::int64_t kMinParallelElements = 8192;

// Partial softmax states that a call may keep. Beyond (long prefills) each tile of rows goes through
// its spans in order and merges at once; tokens whose views differ then read the cache once each, so a step of few
// tokens may keep more.
constexpr std::size_t kMaxStateBytes = std::size_t{16} << 20;
constexpr std::size_t kMaxStateBytesOfFew = std::size_t{256} << 20;
constexpr std::int64_t kFewTokens = 16;

constexpr std::int64_t kSpanTokens = kSpanPages * kPageSize;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

void check(bool good, const char* message) {
  if (!good) throw Error(code::kInvalidArgument, message);
}

void check_cache(const KvShape& shape, const RopeTable* rope) {
  check(shape.head_dim > 0 && shape.head_dim % 8 == 0 && shape.head_dim <= kMaxHeadDim,
        "head_dim must be a multiple of 8 up to 256");
  check(!rope || (rope->rotary_dim >= 0 && rope->rotary_dim % 2 == 0 && rope->rotary_dim <= shape.head_dim),
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

Buffer map_memory(std::size_t bytes, const char* purpose) {
  void* data = MAP_FAILED;
  if (bytes <= static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max())) {
    data = mmap(nullptr, std::max<std::size_t>(bytes, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  if (data == MAP_FAILED) {
    throw Error(code::kOutOfMemory, "the system refused " + std::to_string(bytes) + " bytes of memory for " + purpose);
  }
  return Buffer(data, bytes, [](void* memory, std::size_t size, int) { munmap(memory, std::max<std::size_t>(size, 1)); });
}

// Scratch memory aligned to cache lines that only grows.
class Scratch {
 public:
  template <typename T>
  T* get(std::int64_t n) {
    const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(T);
    if (bytes > buffer_.bytes()) buffer_ = map_memory(bytes, "scratch space");
    return buffer_.as<T>();
  }

 private:
  Buffer buffer_;
};

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(const CpuOptions& options)
      : name_(processor_name()),
        kernels_(select_kernels(requested_simd(options))),
        pool_(options.threads > 0 ? options.threads : available_processors()),
        threads_(pool_.threads()) {}

  DeviceInfo info() const override {
    return {.type = "cpu", .name = name_, .index = 0, .simd = kernels_.name, .threads = pool_.threads()};
  }

  Buffer allocate(std::size_t bytes, const char* purpose) override { return map_memory(bytes, purpose); }
  void download(void* host, const void* device, std::size_t bytes) override { std::memcpy(host, device, bytes); }
  void upload(void* device, const void* host, std::size_t bytes) override { std::memcpy(device, host, bytes); }
  void synchronize() override {}
  Matrix upload_weight(const Matrix& host, std::vector<Buffer>&) override { return host; }
  void begin_step(const StepView& step) override { step_ = step; }

  void embedding(const EmbeddingParams& params) override {
    check(params.rows >= 0 && params.rows <= std::ssize(step_.tokens), "more rows than the step has");
    for (const std::int32_t token : step_.tokens) {
      if (token < 0 || token >= params.table.rows) {
        throw Error(code::kInvalidArgument, "token id " + std::to_string(token) + " is outside the vocabulary of " +
                                                std::to_string(params.table.rows));
      }
    }
    kernels_.embedding(params.table, step_.tokens.data(), params.rows, params.scale, params.out);
  }

  void rms_norm(const RmsNormParams& p) override {
    rows_in_parallel(p.rows, p.cols, [&](std::int64_t begin, std::int64_t end) {
      kernels_.rms_norm(p.x + begin * p.cols, p.weight, p.eps, end - begin, p.cols, p.out + begin * p.cols);
    });
  }

  void matmul(const MatmulParams& p) override {
    check(p.n_outputs >= 1 && p.n_outputs <= MatmulParams::kMaxOutputs, "matmul takes 1 to 3 matrices");
    // Units are blocks of outputs, matrix after matrix.
    std::int64_t blocks_before[MatmulParams::kMaxOutputs + 1] = {0};
    for (int i = 0; i < p.n_outputs; i++) {
      check(p.outputs[i].weight.cols == p.k, "a weight matrix needs k columns");
      blocks_before[i + 1] = blocks_before[i] + ceil_div(p.outputs[i].weight.rows, kMatmulOutputBlock);
    }
    if (p.rows == 0) return;
    const void* packed_x = nullptr;
    const auto packs_x = [&](const MatmulParams::Output& output) { return kernels_.packs_x(output.weight.dtype); };
    if (std::any_of(p.outputs, p.outputs + p.n_outputs, packs_x)) {
      std::uint16_t* packed = packed_x_.get<std::uint16_t>(p.rows * p.k);
      rows_in_parallel(p.rows, p.k, [&](std::int64_t begin, std::int64_t end) {
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
    constexpr std::int64_t kUnit = 1024;
    rows_in_parallel(ceil_div(p.n, kUnit), kUnit, [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t first = begin * kUnit, n = std::min(end * kUnit, p.n) - first;
      kernels_.gated_activation(p.gate + first, p.up + first, n, p.activation, p.out + first);
    });
  }

  void kv_append(const KvAppendParams& p) override {
    check_cache(p.shape, &step_.rope);
    check_buffers(p.buffers);
    check(p.first >= 0 && p.rows >= 0 && p.first + p.rows <= std::ssize(step_.slots), "more rows than the step has");
    const std::int64_t cols = p.shape.kv_heads * p.shape.head_dim;
    const float* k = static_cast<const float*>(p.k);
    const float* v = static_cast<const float*>(p.v);
    rows_in_parallel(p.rows, cols, [&](std::int64_t begin, std::int64_t end) {
      const AppendSlot* slots = step_.slots.data() + p.first + begin;
      kernels_.kv_append(p.shape, p.layer, step_.rope, slots, end - begin, k + begin * cols, v + begin * cols);
    });
  }

  void kv_move(const KvMoveParams& p) override {
    check_cache(p.shape, &p.rope);
    pool_.run(std::ssize(p.moves), [&](std::int64_t begin, std::int64_t end, int) {
      kernels_.kv_move(p.shape, p.layer, p.rope, p.moves.data() + begin, end - begin);
    });
  }

  void kv_read(const KvReadParams& p) override {
    check_cache(p.shape, nullptr);
    const std::int64_t cols = p.shape.kv_heads * p.shape.head_dim;
    rows_in_parallel(std::ssize(p.slots), cols, [&](std::int64_t begin, std::int64_t end) {
      kernels_.kv_read(p.shape, p.layer, p.slots.data() + begin, end - begin, p.k + begin * cols, p.v + begin * cols);
    });
  }

  void attention(const AttentionParams& params) override;
  void sample(const SampleParams& params) override;
  double measure_read_bandwidth(std::size_t bytes) override;

 private:
  // What one thread keeps from call to call.
  struct PerThread {
    Scratch floats;
    std::vector<AttentionRow> rows;
    SamplerScratch sampler;
  };

  // Rows [row_begin, row_end) of a segment's (query range, query head of one kv head) pairs meet one span.
  struct SpanUnit {
    std::int64_t segment = 0;
    std::int64_t kv_head = 0;
    std::int64_t span = 0;
    std::int64_t row_begin = 0;
    std::int64_t row_end = 0;
  };

  static std::string requested_simd(const CpuOptions& options) {
    if (!options.simd.empty()) return options.simd;
    const char* name = std::getenv("HOGWILD_SIMD");
    return name ? name : "";
  }

  template <typename Body>
  void rows_in_parallel(std::int64_t rows, std::int64_t cols, Body&& body) {
    if (rows * cols < kMinParallelElements) {
      if (rows > 0) body(std::int64_t{0}, rows);
    } else {
      pool_.run(rows, [&](std::int64_t begin, std::int64_t end, int) { body(begin, end); });
    }
  }

  AttentionSpan make_span(const AttentionParams& p, const PlanSegment& segment, std::int64_t kv_head,
                          std::int64_t span) const {
    return {.shape = &p.shape,
            .layer = &p.layer,
            .rope = &step_.rope,
            .scale = p.scale,
            .kv_head = kv_head,
            .pages = step_.plan.pages.data() + segment.first_page,
            .first_slot = segment.first_slot,
            .first_page = span * kSpanPages,
            .rows = nullptr,
            .n_rows = 0,
            .scratch = nullptr};
  }

  void run_span(AttentionSpan& span, PerThread& thread) {
    span.rows = thread.rows.data();
    span.n_rows = std::ssize(thread.rows);
    kernels_.attention_span(span);
  }

  // merged = merged joined with state, in place; the first state itself where `merged` is null.
  void join(float*& merged, float* state, std::int64_t head_dim) const {
    if (merged) {
      kernels_.merge_state(merged, state, head_dim);
    } else {
      merged = state;
    }
  }

  // Writes one (token, query head); `merged` is null where it sees nothing.
  void finish(const AttentionParams& p, std::int64_t token, std::int64_t head, const float* merged) const {
    const std::int64_t row = token * p.query_heads + head;
    float* out = static_cast<float*>(p.out) + row * p.shape.head_dim;
    float lse = -std::numeric_limits<float>::infinity();
    if (merged) {
      lse = kernels_.finish_state(merged, p.shape.head_dim, out);
    } else {
      std::fill_n(out, p.shape.head_dim, 0.0f);
    }
    if (p.lse) p.lse[row] = lse;
  }

  void attend_by_span(const AttentionParams& params, std::int64_t n_states);
  void attend_by_rows(const AttentionParams& params);

  const std::string name_;
  const CpuKernels& kernels_;
  StepView step_;
  ThreadPool pool_;
  std::vector<PerThread> threads_;
  Scratch states_;
  Scratch packed_x_;
  std::vector<std::int64_t> first_state_;       // per range, in states per query head
  std::vector<std::int64_t> segment_of_range_;  // per range
  std::vector<SpanUnit> units_;
};

std::int64_t spans_seen(const PlanSegment& segment, const QueryRange& range) {
  return ceil_div(segment.first_slot + range.limit, kSpanTokens);
}

void CpuDevice::attention(const AttentionParams& p) {
  check_cache(p.shape, &step_.rope);
  check_buffers(p.buffers);
  check(p.query_heads > 0 && p.query_heads % p.shape.kv_heads == 0, "query heads must be a multiple of kv heads");
  first_state_.resize(step_.plan.query_ranges.size());
  segment_of_range_.resize(step_.plan.query_ranges.size());
  std::int64_t n_states = 0;
  for (std::int64_t s = 0; s < std::ssize(step_.plan.segments); s++) {
    const PlanSegment& segment = step_.plan.segments[s];
    for (std::int64_t v = segment.first_query_range; v < segment.first_query_range + segment.n_query_ranges; v++) {
      first_state_[v] = n_states;
      segment_of_range_[v] = s;
      n_states += spans_seen(segment, step_.plan.query_ranges[v]);
    }
  }
  n_states *= p.query_heads;
  const std::size_t state_bytes = static_cast<std::size_t>(n_states * state_size(p.shape.head_dim)) * sizeof(float);
  if (state_bytes <= (step_.plan.n_tokens <= kFewTokens ? kMaxStateBytesOfFew : kMaxStateBytes)) {
    attend_by_span(p, n_states);
  } else {
    attend_by_rows(p);
  }
}

// Decoding: every span is read once for all rows that see it; states are merged afterwards.
void CpuDevice::attend_by_span(const AttentionParams& p, std::int64_t n_states) {
  const std::int64_t head_dim = p.shape.head_dim;
  const std::int64_t group = p.query_heads / p.shape.kv_heads;
  const std::int64_t size = state_size(head_dim);
  float* states = states_.get<float>(n_states * size);
  // State of (query range, span, query head).
  const auto state = [&](std::int64_t range, std::int64_t span, std::int64_t head) {
    return states + ((first_state_[range] + span) * p.query_heads + head) * size;
  };

  units_.clear();
  for (std::int64_t s = 0; s < std::ssize(step_.plan.segments); s++) {
    const PlanSegment& segment = step_.plan.segments[s];
    for (std::int64_t kv_head = 0; kv_head < p.shape.kv_heads; kv_head++) {
      for (std::int64_t row = 0; row < segment.n_query_ranges * group; row += kMaxSpanRows) {
        const std::int64_t row_end = std::min(row + kMaxSpanRows, segment.n_query_ranges * group);
        std::int64_t spans = 0;
        for (std::int64_t v = row / group; v * group < row_end; v++) {
          spans = std::max(spans, spans_seen(segment, step_.plan.query_ranges[segment.first_query_range + v]));
        }
        for (std::int64_t span = 0; span < spans; span++) units_.push_back({s, kv_head, span, row, row_end});
      }
    }
  }
  for (PerThread& thread : threads_) {
    thread.floats.get<float>(span_scratch_size(kMaxSpanRows, head_dim));
    thread.rows.reserve(kMaxSpanRows);
  }

  pool_.run(std::ssize(units_), [&](std::int64_t begin, std::int64_t end, int thread_index) {
    PerThread& thread = threads_[thread_index];
    for (std::int64_t u = begin; u < end; u++) {
      const SpanUnit& unit = units_[u];
      const PlanSegment& segment = step_.plan.segments[unit.segment];
      thread.rows.clear();
      for (std::int64_t r = unit.row_begin; r < unit.row_end; r++) {
        const std::int64_t v = segment.first_query_range + r / group;
        const QueryRange& range = step_.plan.query_ranges[v];
        if (unit.span >= spans_seen(segment, range)) continue;
        const std::int64_t head = unit.kv_head * group + r % group;
        thread.rows.push_back({.range = &range,
                               .q = static_cast<const float*>(p.q) + (range.token * p.query_heads + head) * head_dim,
                               .state = state(v, unit.span, head)});
      }
      AttentionSpan span = make_span(p, segment, unit.kv_head, unit.span);
      span.scratch = thread.floats.get<float>(0);
      run_span(span, thread);
    }
  });

  rows_in_parallel(step_.plan.n_tokens, p.query_heads * head_dim, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; t++) {
      for (std::int64_t head = 0; head < p.query_heads; head++) {
        float* merged = nullptr;
        for (std::int64_t i = step_.plan.token_query_ranges_at[t]; i < step_.plan.token_query_ranges_at[t + 1]; i++) {
          const std::int64_t v = step_.plan.token_query_ranges[i];
          const std::int64_t spans = spans_seen(step_.plan.segments[segment_of_range_[v]], step_.plan.query_ranges[v]);
          for (std::int64_t span = 0; span < spans; span++) join(merged, state(v, span, head), head_dim);
        }
        finish(p, t, head, merged);
      }
    }
  });
}

// Long prefills: a tile of rows goes through its spans in view order and merges as it goes. The same
// states are merged in the same order as above, so the results are the same to the last bit.
void CpuDevice::attend_by_rows(const AttentionParams& p) {
  const std::int64_t head_dim = p.shape.head_dim;
  const std::int64_t group = p.query_heads / p.shape.kv_heads;
  const std::int64_t size = state_size(head_dim);
  const auto n_query_ranges = [&](std::int64_t t) {
    return step_.plan.token_query_ranges_at[t + 1] - step_.plan.token_query_ranges_at[t];
  };
  const auto range_of = [&](std::int64_t t, std::int64_t i) {
    return step_.plan.token_query_ranges[step_.plan.token_query_ranges_at[t] + i];
  };
  const auto same_segments = [&](std::int64_t a, std::int64_t b) {
    if (n_query_ranges(a) != n_query_ranges(b)) return false;
    for (std::int64_t i = 0; i < n_query_ranges(a); i++) {
      if (segment_of_range_[range_of(a, i)] != segment_of_range_[range_of(b, i)]) return false;
    }
    return true;
  };

  units_.clear();
  for (std::int64_t t = 0, next = 0; t < step_.plan.n_tokens; t = next) {
    for (next = t + 1; next < step_.plan.n_tokens && same_segments(t, next); next++) {
    }
    for (std::int64_t row = t * group; row < next * group; row += kMaxSpanRows) {
      const std::int64_t row_end = std::min(row + kMaxSpanRows, next * group);
      for (std::int64_t kv_head = 0; kv_head < p.shape.kv_heads; kv_head++) {
        units_.push_back({.kv_head = kv_head, .row_begin = row, .row_end = row_end});
      }
    }
  }
  const std::int64_t span_scratch = span_scratch_size(kMaxSpanRows, head_dim);
  for (PerThread& thread : threads_) {
    thread.floats.get<float>(span_scratch + 2 * kMaxSpanRows * size);
    thread.rows.reserve(kMaxSpanRows);
  }

  pool_.run(std::ssize(units_), [&](std::int64_t begin, std::int64_t end, int thread_index) {
    PerThread& thread = threads_[thread_index];
    for (std::int64_t u = begin; u < end; u++) {
      const SpanUnit& unit = units_[u];
      const std::int64_t first_token = unit.row_begin / group;
      float* scratch = thread.floats.get<float>(0);
      float* merged_states = scratch + span_scratch;
      float* span_states = merged_states + kMaxSpanRows * size;
      float* merged[kMaxSpanRows] = {};
      for (std::int64_t i = 0; i < n_query_ranges(first_token); i++) {
        const PlanSegment& segment = step_.plan.segments[segment_of_range_[range_of(first_token, i)]];
        for (std::int64_t span_index = 0;; span_index++) {
          thread.rows.clear();
          for (std::int64_t r = unit.row_begin; r < unit.row_end; r++) {
            const QueryRange& range = step_.plan.query_ranges[range_of(r / group, i)];
            if (span_index >= spans_seen(segment, range)) continue;
            const std::int64_t head = unit.kv_head * group + r % group;
            const std::int64_t local = r - unit.row_begin;
            thread.rows.push_back(
                {.range = &range,
                 .q = static_cast<const float*>(p.q) + (range.token * p.query_heads + head) * head_dim,
                 .state = (merged[local] ? span_states : merged_states) + local * size});
          }
          if (thread.rows.empty()) break;
          AttentionSpan span = make_span(p, segment, unit.kv_head, span_index);
          span.scratch = scratch;
          run_span(span, thread);
          for (const AttentionRow& row : thread.rows) {
            const bool first = row.state < span_states;
            const std::int64_t local = (row.state - (first ? merged_states : span_states)) / size;
            join(merged[local], row.state, head_dim);
          }
        }
      }
      for (std::int64_t r = unit.row_begin; r < unit.row_end; r++) {
        finish(p, r / group, unit.kv_head * group + r % group, merged[r - unit.row_begin]);
      }
    }
  });
}

void CpuDevice::sample(const SampleParams& p) {
  std::vector<std::exception_ptr> errors(p.rows.size());
  pool_.run(std::ssize(p.rows), [&](std::int64_t begin, std::int64_t end, int thread) {
    for (std::int64_t i = begin; i < end; i++) {
      try {
        const SampleParams::Row& row = p.rows[i];
        const SampledToken sampled = sample_row(kernels_, p.logits + row.logits_row * p.vocab, p.vocab, row,
                                                p.logprobs != nullptr, p.finite, threads_[thread].sampler);
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
  check(options.threads >= 0, "threads must be >= 0");
  return std::make_shared<CpuDevice>(options);
}

}  // namespace hogwild
