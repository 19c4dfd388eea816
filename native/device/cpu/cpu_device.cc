// The CPU device: cuts each op into slices for the thread pool. The arithmetic is in the kernels.
#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/format.h"
#include "core/fragments.h"
#include "core/limits.h"
#include "core/panels.h"
#include "device/cpu/attention_schedule.h"
#include "device/cpu/kernels.h"
#include "device/cpu/memory.h"
#include "device/cpu/parallel.h"
#include "device/cpu/routing.h"
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

void check_activations(Dtype dtype) { require(dtype == Dtype::kF32, "the CPU device takes activations in f32"); }

// Outputs of a quantised matrix that a thread takes at once: those of the kernels' widest block.
std::int64_t quant_unit_outputs(std::int64_t rows) { return (rows == 1 ? 4 : 2) * kPanelOutputs; }

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
        level_(select_level(requested_simd(options))),
        kernels_(*level_.kernels),
        pool_(options.threads > 0 ? options.threads : available_processors()),
        attention_(kernels_, pool_),
        samplers_(static_cast<std::size_t>(pool_.threads())),
        quant_scratch_(static_cast<std::size_t>(pool_.threads())) {}

  DeviceInfo info() const override {
    return {.type = "cpu",
            .name = name_,
            .index = 0,
            .simd = level_.name,
            .threads = pool_.threads(),
            .deterministic = true};
  }

  Buffer allocate(std::size_t bytes, const char* purpose) override {
    Buffer buffer = map_memory(bytes, purpose);
    prefer_large_pages(buffer);
    return buffer;
  }
  // Page after page, of each all layers: so the part of a pool that is in use is in one place, however large the pool,
  // and takes a few of the system's large pages, where it would else take thousands of small ones.
  std::int64_t kv_first_page(const KvShape&, std::int64_t, std::int64_t layer) const override { return layer; }
  using Device::upload;
  void download(void* host, const void* device, std::size_t bytes) override { std::memcpy(host, device, bytes); }
  void copy(void* to, const void* from, std::size_t bytes) override { std::memcpy(to, from, bytes); }
  void upload(void* device, const void* host, std::size_t bytes) override { std::memcpy(device, host, bytes); }
  void synchronize() override {}
  Matrix upload_weight(const WeightSource& source, WeightStorage& storage) override;
  void embedding(const DeviceStep& step, const EmbeddingParams& params) override;

  void rms_norm(const RmsNormParams& p) override {
    check_activations(p.out_dtype);
    float* out = static_cast<float*>(p.out);
    for_rows(pool_, p.rows, p.cols, [&](std::int64_t begin, std::int64_t end) {
      kernels_.rms_norm(p.x + begin * p.cols, p.weight, p.eps, end - begin, p.cols, out + begin * p.cols);
    });
  }

  void matmul(const MatmulParams& p) override { multiply_all({&p, 1}); }

  void gated_activation(const GatedActivationParams& p) override {
    check_activations(p.out_dtype);
    float* out = static_cast<float*>(p.out);
    for_elements(p.n, [&](std::int64_t first, std::int64_t n) {
      kernels_.gated_activation(p.gate + first, p.up + first, n, p.activation, out + first);
    });
  }

  void add(const AddParams& p) override {
    for_elements(p.n, [&](std::int64_t first, std::int64_t n) { kernels_.add(p.x + first, p.y + first, n, p.scale); });
  }

  void softcap(const SoftcapParams& p) override {
    for_elements(p.n,
                 [&](std::int64_t first, std::int64_t n) { kernels_.softcap(p.x + first, n, p.scale, p.softcap); });
  }

  void kv_append(const DeviceStep& step, const KvAppendParams& p) override {
    const StepView& view = step.view();
    const RopeTable rope = view.rope(p.layer);
    check_cache(p.shape, &rope);
    check_buffers(p.buffers);
    require(p.first >= 0 && p.rows >= 0 && p.first + p.rows <= std::ssize(view.slots), "more rows than the step has");
    // Dimensions of a key go to lines of their own, most of which come from memory: one takes as long as so many
    // elements of pointwise work, at least.
    constexpr std::int64_t kElementsPerDimension = 8;
    for_rows(pool_, p.rows * p.shape.kv_heads, p.shape.head_dim * kElementsPerDimension,
             [&](std::int64_t begin, std::int64_t end) {
               kernels_.kv_append(p.shape, p.layer, rope, view.slots.data() + p.first, begin, end,
                                  static_cast<const float*>(p.k), static_cast<const float*>(p.v));
             });
  }

  void attention_mass(const AttentionMassParams& p) override {
    const float* range_lse = p.range_lse;
    for (const AttentionMassParams::Range& range : p.ranges) {
      const float* lse = p.lse + range.token * p.query_heads;
      for (std::int64_t h = 0; h < p.query_heads; ++h) p.sums[range.sum] += std::exp(*range_lse++ - lse[h]);
    }
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

  void kv_save(const KvCopyParams& p) override { copy_pages(p, kernels_.kv_save); }
  void kv_load(const KvCopyParams& p) override { copy_pages(p, kernels_.kv_load); }

  void experts(const ExpertsParams& params) override;
  void attention(const DeviceStep& step, const AttentionParams& params) override;
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

  void copy_pages(const KvCopyParams& p, decltype(CpuKernels::kv_save) copy) {
    check_cache(p.shape, nullptr);
    std::vector<std::int64_t> tokens_before(p.pages.size());
    std::int64_t tokens = 0;
    for (std::size_t i = 0; i < p.pages.size(); i++) {
      tokens_before[i] = tokens;
      tokens += std::popcount(p.pages[i].slots);
    }
    const std::int64_t token_bytes = p.shape.token_bytes();
    pool_.run(std::ssize(p.pages), [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; i++) {
        const KvCopyParams::Page& page = p.pages[static_cast<std::size_t>(i)];
        std::uint8_t slots[kPageSize];
        std::int64_t n = 0;
        for (std::uint64_t rest = page.slots; rest != 0; rest &= rest - 1) {
          slots[n++] = static_cast<std::uint8_t>(std::countr_zero(rest));
        }
        copy(p.shape, p.layer, page.page, slots, n, p.rows + tokens_before[static_cast<std::size_t>(i)] * token_bytes);
      }
    });
  }

  static std::string requested_simd(const CpuOptions& options) {
    if (!options.simd.empty()) return options.simd;
    const char* name = std::getenv("HOGWILD_SIMD");
    return name ? name : "";
  }

  // How an op's x goes into a product.
  enum class XForm { kF32, kBF16, kGroups16, kGroups32 };
  static constexpr int kXForms = 4;

  XForm x_form(const Matrix& weight) const {
    if (is_plain(weight.format)) return kernels_.packs_x(weight.format) ? XForm::kBF16 : XForm::kF32;
    return dot_columns(code_info(weight.format)) == 16 ? XForm::kGroups16 : XForm::kGroups32;
  }
  static std::int64_t packed_bytes(XForm form, const MatmulParams& p);
  const void* pack_x(XForm form, const std::int32_t* columns, const MatmulParams& p, std::byte* to);
  // The first matrix of the op that takes x as matrix i does: itself, or one before it.
  int first_alike(const MatmulParams& p, int i) const {
    const auto alike = [&](const Matrix& a, const Matrix& b) {
      return x_form(a) == x_form(b) && a.columns == b.columns;
    };
    int first = 0;
    while (!alike(p.outputs[first].weight, p.outputs[i].weight)) first++;
    return first;
  }

  // Bytes that a thread needs for a quantised matrix: for panels of a unit of outputs where the matrix is not
  // repacked, then for the kernel.
  struct QuantScratch {
    std::int64_t panels, kernel;
  };
  QuantScratch quant_scratch(const Matrix& weight, std::int64_t rows) const {
    const std::int64_t panels = weight.order == Order::kPanels ? 0 : quant_unit_outputs(rows) / kPanelOutputs;
    return {panels * panel_bytes(code_info(weight.format), weight.cols),
            level_.quant->scratch_bytes(rows, weight.cols)};
  }

  // A matrix, what it is multiplied with, and how many outputs are a unit of work.
  struct Product {
    const MatmulParams* params;
    const MatmulParams::Output* output;
    const void* x;
    std::int64_t unit_outputs;
  };
  // All of them in one parallel section, as none reads what another writes.
  void multiply_all(std::span<const MatmulParams> ops);
  void multiply(const Product& product, std::int64_t begin, std::int64_t end, int thread);

  const std::string name_;
  const SimdLevel level_;
  const CpuKernels& kernels_;
  ThreadPool pool_;
  AttentionSchedule attention_;
  std::vector<SamplerScratch> samplers_;  // per thread
  Scratch packed_x_[kXForms];
  std::vector<Scratch> quant_scratch_;  // per thread
  std::vector<Product> products_;
  std::vector<std::int64_t> units_before_;  // of each product, and in all
  Routing routing_;
  std::vector<MatmulParams> expert_products_;
};

// In whole cache lines.
std::int64_t CpuDevice::packed_bytes(XForm form, const MatmulParams& p) {
  constexpr std::int64_t kLine = 64;
  switch (form) {
    case XForm::kF32:
      return 0;
    case XForm::kBF16:
      return packed_bf16_bytes(p.rows, p.k);
    case XForm::kGroups16:
      return ceil_div(packed_x_bytes(p.rows, p.k, 16), kLine) * kLine;
    case XForm::kGroups32:
      break;
  }
  return ceil_div(packed_x_bytes(p.rows, p.k, 32), kLine) * kLine;
}

// x [rows, k] in this form and the order of Matrix::columns, in `to` unless it is so already.
const void* CpuDevice::pack_x(XForm form, const std::int32_t* columns, const MatmulParams& p, std::byte* to) {
  if (form == XForm::kF32) return p.x;
  const float* x = static_cast<const float*>(p.x);
  if (form == XForm::kBF16) {
    for_rows(pool_, ceil_div(p.rows, kPackedRows), kPackedRows * p.k, [&](std::int64_t begin, std::int64_t end) {
      kernels_.pack_x(x, p.rows, p.k, begin * kPackedRows, std::min(end * kPackedRows, p.rows), to);
    });
    return to;
  }
  const std::int64_t blocks = level_.quant->row_blocks(p.rows), group = form == XForm::kGroups16 ? 16 : 32;
  const std::int64_t units = blocks * (p.k / kPanelColumns), unit_elements = ceil_div(p.rows, blocks) * kPanelColumns;
  for_rows(pool_, units, unit_elements, [&](std::int64_t begin, std::int64_t end) {
    level_.quant->pack_x(x, p.rows, p.k, columns, group, begin, end, to);
  });
  return to;
}

void CpuDevice::multiply_all(std::span<const MatmulParams> ops) {
  std::int64_t bytes[kXForms] = {}, scratch_bytes = 0;
  for (const MatmulParams& p : ops) {
    require(p.n_outputs >= 1 && p.n_outputs <= MatmulParams::kMaxOutputs, "matmul takes 1 to 3 matrices");
    check_activations(p.x_dtype);
    for (int i = 0; i < p.n_outputs; i++) {
      require(p.outputs[i].weight.cols == p.k, "a weight matrix needs k columns");
      const XForm form = x_form(p.outputs[i].weight);
      if (first_alike(p, i) == i) bytes[static_cast<int>(form)] += packed_bytes(form, p);
      if (is_plain(p.outputs[i].weight.format)) continue;
      const QuantScratch needed = quant_scratch(p.outputs[i].weight, p.rows);
      scratch_bytes = std::max(scratch_bytes, needed.panels + needed.kernel);
    }
  }
  for (Scratch& scratch : quant_scratch_) scratch.get<std::byte>(scratch_bytes);
  std::byte* unused[kXForms];
  for (int form = 0; form < kXForms; form++) unused[form] = packed_x_[form].get<std::byte>(bytes[form]);

  // Units are blocks of outputs, matrix after matrix.
  products_.clear();
  units_before_.assign(1, 0);
  for (const MatmulParams& p : ops) {
    if (p.rows == 0) continue;
    const void* xs[MatmulParams::kMaxOutputs] = {};
    for (int i = 0; i < p.n_outputs; i++) {
      const Matrix& weight = p.outputs[i].weight;
      const XForm form = x_form(weight);
      const void*& x = xs[first_alike(p, i)];
      if (x == nullptr) {
        x = pack_x(form, weight.columns, p, unused[static_cast<int>(form)]);
        unused[static_cast<int>(form)] += packed_bytes(form, p);
      }
      const std::int64_t unit_outputs = is_plain(weight.format) ? kernels_.output_block : quant_unit_outputs(p.rows);
      products_.push_back({.params = &p, .output = &p.outputs[i], .x = x, .unit_outputs = unit_outputs});
      units_before_.push_back(units_before_.back() + ceil_div(weight.rows, unit_outputs));
    }
  }
  pool_.run(units_before_.back(), [&](std::int64_t begin, std::int64_t end, int thread) {
    const auto next = std::upper_bound(units_before_.begin(), units_before_.end(), begin);
    for (std::size_t i = static_cast<std::size_t>(next - units_before_.begin()) - 1; begin < end; i++) {
      const Product& product = products_[i];
      const std::int64_t last = std::min(end, units_before_[i + 1]);
      multiply(product, (begin - units_before_[i]) * product.unit_outputs,
               std::min((last - units_before_[i]) * product.unit_outputs, product.output->weight.rows), thread);
      begin = last;
    }
  });
}

// Outputs [begin, end) of one matrix.
void CpuDevice::multiply(const Product& product, std::int64_t begin, std::int64_t end, int thread) {
  const auto& [params, output, x, unit] = product;
  const MatmulParams& p = *params;
  const Matrix& weight = output->weight;
  if (is_plain(weight.format)) {
    kernels_.matmul({.x = x, .rows = p.rows, .k = p.k, .output = output, .begin = begin, .end = end});
    return;
  }
  std::byte* scratch = quant_scratch_[static_cast<std::size_t>(thread)].get<std::byte>(0);
  const std::byte* data = static_cast<const std::byte*>(weight.data);
  QuantSlice slice = {.x = x,
                      .rows = p.rows,
                      .k = p.k,
                      .output = output,
                      .panels = scratch,
                      .begin = begin,
                      .end = end,
                      .scratch = scratch + quant_scratch(weight, p.rows).panels};
  if (weight.order == Order::kPanels) {
    slice.panels = data + begin / kPanelOutputs * panel_bytes(code_info(weight.format), p.k);
    level_.quant->matmul(slice);
    return;
  }
  // Not repacked: a block of outputs at a time is.
  for (slice.begin = begin; slice.begin < end; slice.begin += unit) {
    slice.end = std::min(slice.begin + unit, end);
    write_panels(weight.format, {data, weight.cols, {}}, slice.begin, slice.end, scratch);
    level_.quant->matmul(slice);
  }
}

void CpuDevice::experts(const ExpertsParams& p) {
  require(p.used >= 1 && p.used <= std::ssize(p.experts), "a row uses 1 to all of the experts");
  for (const FeedForward& expert : p.experts) {
    const auto is = [](const Matrix& m, std::int64_t rows, std::int64_t cols) {
      return m.rows == rows && m.cols == cols;
    };
    require(is(expert.gate_proj, p.intermediate, p.hidden) && is(expert.up_proj, p.intermediate, p.hidden) &&
                is(expert.down_proj, p.hidden, p.intermediate),
            "an expert's matrices are [F, H], [F, H] and [H, F]");
  }
  if (p.rows == 0) return;
  routing_.route(p, pool_);
  const std::int64_t pairs = p.rows * p.used;
  float* pair_x = p.scratch;  // [pairs, H]; outputs take the place of inputs
  float* gate = pair_x + pairs * p.hidden;
  float* up = gate + pairs * p.intermediate;
  for_rows(pool_, p.rows, p.used * p.hidden, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; row++) {
      for (const std::int64_t place : routing_.places(row)) {
        std::copy_n(p.x + row * p.hidden, p.hidden, pair_x + place * p.hidden);
      }
    }
  });

  const auto multiply_each = [&](auto&& product_of) {
    expert_products_.clear();
    for (const std::int32_t e : routing_.active()) {
      const FeedForward& expert = p.experts[static_cast<std::size_t>(e)];
      expert_products_.push_back(product_of(expert, routing_.first(e)));
      expert_products_.back().rows = routing_.count(e);
    }
    multiply_all(expert_products_);
  };
  multiply_each([&](const FeedForward& expert, std::int64_t first) {
    return MatmulParams{.x = pair_x + first * p.hidden,
                        .k = p.hidden,
                        .n_outputs = 2,
                        .outputs = {{expert.gate_proj, expert.gate_bias, gate + first * p.intermediate},
                                    {expert.up_proj, expert.up_bias, up + first * p.intermediate}}};
  });
  gated_activation({.gate = gate, .up = up, .n = pairs * p.intermediate, .activation = p.activation, .out = gate});
  multiply_each([&](const FeedForward& expert, std::int64_t first) {
    return MatmulParams{.x = gate + first * p.intermediate,
                        .k = p.intermediate,
                        .n_outputs = 1,
                        .outputs = {{expert.down_proj, expert.down_bias, pair_x + first * p.hidden}}};
  });
  for_rows(pool_, p.rows, p.used * p.hidden, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; row++) {
      kernels_.add_weighted(pair_x, routing_.places(row).data(), routing_.weights(row).data(), p.used, p.hidden,
                            p.out + row * p.hidden);
    }
  });
}

Matrix CpuDevice::upload_weight(const WeightSource& source, WeightStorage& storage) {
  Matrix matrix = {.data = source.data, .format = source.format, .rows = source.rows, .cols = source.cols};
  matrix.columns = source.columns;
  if (is_plain(source.format) || !source.repack) return matrix;
  matrix.order = Order::kPanels;
  std::byte* panels = allocate_weight(static_cast<std::size_t>(matrix_bytes(matrix)), storage);
  matrix.data = panels;
  const std::int64_t bytes = panel_bytes(code_info(source.format), source.cols);
  const FileRows rows = {source.data, source.cols, source.interleaved};
  pool_.run(panel_count(source.rows), [&](std::int64_t begin, std::int64_t end, int) {
    write_panels(source.format, rows, begin * kPanelOutputs, std::min(end * kPanelOutputs, source.rows),
                 panels + begin * bytes);
  });
  return matrix;
}

void CpuDevice::embedding(const DeviceStep& step, const EmbeddingParams& p) {
  const std::span<const std::int32_t> tokens = step.view().tokens;
  require(p.rows >= 0 && p.rows <= std::ssize(tokens), "more rows than the step has");
  for (const std::int32_t token : tokens) {
    if (token >= 0 && token < p.table.rows) continue;
    throw Error(code::kInvalidArgument,
                "token id " + std::to_string(token) + " is outside the vocabulary of " + std::to_string(p.table.rows));
  }
  const std::int64_t cols = p.table.cols;
  for_rows(pool_, p.rows, cols, [&](std::int64_t begin, std::int64_t end) {
    if (is_plain(p.table.format)) {
      kernels_.embedding(p.table, tokens.data() + begin, end - begin, p.scale, p.out + begin * cols);
      return;
    }
    for (std::int64_t i = begin; i < end; i++) {
      float* out = p.out + i * cols;
      dequantise_matrix_row(p.table, tokens[i], out);
      for (std::int64_t j = 0; j < cols; j++) out[j] *= p.scale;
    }
  });
}

void CpuDevice::attention(const DeviceStep& step, const AttentionParams& p) {
  const RopeTable rope = step.view().rope(p.layer);
  check_cache(p.shape, &rope);
  check_buffers(p.buffers);
  check_activations(p.out_dtype);
  require(p.query_heads > 0 && p.query_heads % p.shape.kv_heads == 0, "query heads must be a multiple of kv heads");
  require(p.window >= 0, "window must be >= 0");
  require(p.softcap == 0 || (p.softcap >= 1e-6f && p.softcap <= 1e6f), "softcap must be 0 or in [1e-6, 1e6]");
  attention_.run(p, step.view());
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
