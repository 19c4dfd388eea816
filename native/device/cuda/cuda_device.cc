#include "device/cuda/cuda_device.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <thread>

#include "core/error.h"
#include "core/float16.h"
#include "core/format.h"
#include "core/fragments.h"
#include "device/sampling.h"

namespace hogwild::cuda {
namespace {

// Fewest tiles (of 64 keys) that are worth a CTA of their own: below, partial results cost more than they save.
constexpr std::int32_t kMinTiles = 2;
// More CTAs on a multiprocessor hide no more of the memory's latency, and leave more partial results.
constexpr int kMaxAttentionCtasPerMultiprocessor = 2;

// Weights go through pinned memory in pieces of this size, one being filled while the other is copied.
constexpr std::size_t kStagingBytes = std::size_t{16} << 20;

// An environment variable that is on (default) or off.
bool is_on(const char* name) {
  const char* const text = std::getenv(name);
  const std::string_view value = text == nullptr || *text == '\0' ? "on" : text;
  if (value == "on" || value == "off") return value == "on";
  throw Error(code::kInvalidArgument, std::string("the environment variable ") + name +
                                          ": expected on or off, found '" + std::string(value) + "'");
}

// Graphs hold kernels that overlap from CUDA 12.3 on.
bool has_overlap_in_graphs() {
  constexpr int kFirst = 12030;
  int driver = 0, runtime = 0;
  check_cuda(cudaDriverGetVersion(&driver), "asking for the driver's version");
  check_cuda(cudaRuntimeGetVersion(&runtime), "asking for CUDA's version");
  return std::min(driver, runtime) >= kFirst;
}

// Before streams and events are made: they belong to the current card.
int choose_card(int index) {
  check_cuda(cudaSetDevice(index), "choosing the GPU");
  return index;
}

const CudaStep& on_card(const DeviceStep& step) { return static_cast<const CudaStep&>(step); }

// What weights of a format on the card are multiplied with.
Dtype operand_dtype(Format format) { return is_plain(format) ? dtype_of(format) : Dtype::kBF16; }

bool overlap(const void* a, std::size_t a_bytes, const void* b, std::size_t b_bytes) {
  const auto first = reinterpret_cast<std::uintptr_t>(a), second = reinterpret_cast<std::uintptr_t>(b);
  return first < second + b_bytes && second < first + a_bytes;
}

}  // namespace

CudaDevice::CudaDevice(int index, bool deterministic)
    : index_(choose_card(index)),
      deterministic_(deterministic),
      memory_(index),
      steps_(memory_, stream_, deterministic),
      graphs_(stream_, is_on("HOGWILD_CUDA_GRAPHS")),
      argument_staging_(stream_),
      weight_staged_{Event(Event::Use::kOrder), Event(Event::Use::kOrder)},
      external_event_(Event::Use::kOrder) {
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, index), "reading its properties");
  name_ = properties.name;
  multiprocessors_ = properties.multiProcessorCount;
  own_memory_ = static_cast<std::int64_t>(properties.totalGlobalMem);
  bool wait_by_themselves = false;
  check_cuda(kernels_wait(&wait_by_themselves), "asking for its kernels");
  if (is_on("HOGWILD_CUDA_OVERLAP") && wait_by_themselves && has_overlap_in_graphs()) stream_.let_kernels_overlap();
}

CudaDevice::~CudaDevice() {
  // At the end of the process the runtime may be gone already, and everything with it.
  if (cudaSetDevice(index_) == cudaSuccess) static_cast<void>(cudaStreamSynchronize(stream_));
}

// ---- memory ---------------------------------------------------------------------------------------

std::int64_t CudaDevice::free_memory() const {
  check_cuda(cudaSetDevice(index_), "choosing the GPU");
  std::size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "asking for its free memory");
  return static_cast<std::int64_t>(free);
}

std::int64_t CudaDevice::kv_padding(const KvShape& shape) const {
  const std::int64_t row = kv_row_elements(shape.head_dim);
  if (row == 0) {
    throw Error(code::kUnsupported,
                "head_dim " + std::to_string(shape.head_dim) + ": the CUDA device supports multiples of 8 up to 256");
  }
  return row - shape.head_dim;
}

Buffer CudaDevice::allocate(std::size_t bytes, const char* purpose) { return memory_.allocate(bytes, purpose); }

void CudaDevice::copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  if (bytes > 0) check_cuda(cudaMemcpyAsync(to, from, bytes, kind, stream_), "a copy");
}

void CudaDevice::download(void* host, const void* device, std::size_t bytes) {
  use();
  copy(host, device, bytes, cudaMemcpyDeviceToHost);
  synchronize();
}

void CudaDevice::upload(void* device, const void* host, std::size_t bytes) {
  use();
  copy(device, host, bytes, cudaMemcpyHostToDevice);
  synchronize();  // `host` may end with the caller
}

void CudaDevice::copy(void* to, const void* from, std::size_t bytes) {
  use();
  copy(to, from, bytes, cudaMemcpyDeviceToDevice);
}

void CudaDevice::synchronize() {
  use();
  check_cuda(cudaStreamSynchronize(stream_), "its work");
}

// Two halves in turn: one is filled by the host while the other is being copied.
template <typename Fill>
void CudaDevice::upload_in_pieces(std::byte* to, std::int64_t count, std::size_t unit_bytes, Fill&& fill) {
  const std::size_t half_bytes = std::max(kStagingBytes / 2, unit_bytes);
  std::byte* staging = weight_staging_.reserve(2 * half_bytes);
  const auto piece = static_cast<std::int64_t>(half_bytes / unit_bytes);
  int half = 0;
  for (std::int64_t first = 0; first < count; first += piece, half ^= 1) {
    const std::int64_t n = std::min(piece, count - first);
    std::byte* from = staging + static_cast<std::size_t>(half) * half_bytes;
    check_cuda(cudaEventSynchronize(weight_staged_[half]), "a copy of weights");
    fill(first, n, from);
    copy(to + static_cast<std::size_t>(first) * unit_bytes, from, static_cast<std::size_t>(n) * unit_bytes,
         cudaMemcpyHostToDevice);
    check_cuda(cudaEventRecord(weight_staged_[half], stream_), "a copy of weights");
  }
}

// Kernels multiply in 16 bits: f32 weights are rounded to bf16 once, here.
Matrix CudaDevice::upload_weight(const WeightSource& host, WeightStorage& storage) {
  use();
  if (!is_plain(host.format)) return upload_quantised(host, storage);
  Matrix matrix = {.data = nullptr, .format = host.format, .rows = host.rows, .cols = host.cols};
  if (host.format == Format::kF32) matrix.format = Format::kBF16;
  const std::size_t row = static_cast<std::size_t>(padded_cols(host.cols)) * sizeof(std::uint16_t);
  storage.buffers.push_back(allocate(static_cast<std::size_t>(host.rows) * row, "weights"));
  std::byte* to = storage.buffers.back().as<std::byte>();
  matrix.data = to;
  const std::int64_t file_row = row_bytes(host.format, host.cols);
  upload_in_pieces(to, host.rows, row, [&](std::int64_t first, std::int64_t count, std::byte* where) {
    const std::byte* from = host.data + first * file_row;
    if (host.format != Format::kF32 && host.cols == padded_cols(host.cols)) {
      std::memcpy(where, from, static_cast<std::size_t>(count * file_row));
      return;
    }
    std::memset(where, 0, static_cast<std::size_t>(count) * row);
    for (std::int64_t r = 0; r < count; ++r, from += file_row, where += row) {
      if (host.format != Format::kF32) {
        std::memcpy(where, from, static_cast<std::size_t>(file_row));
        continue;
      }
      const float* values = reinterpret_cast<const float*>(from);
      auto* rounded = reinterpret_cast<std::uint16_t*>(where);
      for (std::int64_t i = 0; i < host.cols; ++i) rounded[i] = f32_to_bf16(values[i]);
    }
  });
  return matrix;
}

namespace {

// Calls body(begin, end) for parts of [0, n), each in a thread of its own, of at least `least` units.
template <typename Body>
void in_threads(std::int64_t n, std::int64_t least, Body&& body) {
  const auto processors = static_cast<std::int64_t>(std::thread::hardware_concurrency());
  const std::int64_t parts = std::clamp<std::int64_t>(n / least, 1, std::max<std::int64_t>(processors, 1));
  std::vector<std::jthread> threads;
  for (std::int64_t i = 1; i < parts; ++i) {
    threads.emplace_back([&body, n, parts, i] { body(n * i / parts, n * (i + 1) / parts); });
  }
  body(0, n / parts);
}

}  // namespace

Matrix CudaDevice::upload_quantised(const WeightSource& host, WeightStorage& storage) {
  constexpr std::int64_t kLeastBytes = std::int64_t{1} << 17;  // that are worth a thread
  Matrix matrix = {.data = nullptr,
                   .format = host.format,
                   .rows = host.rows,
                   .cols = host.cols,
                   .order = Order::kFragments,
                   .columns = nullptr};
  const auto bytes = static_cast<std::size_t>(matrix_bytes(matrix));
  storage.buffers.push_back(allocate(bytes, "weights"));
  std::byte* to = storage.buffers.back().as<std::byte>();
  matrix.data = to;
  const std::int64_t blocks = (host.rows + kFragmentOutputs - 1) / kFragmentOutputs;
  const std::int64_t block_bytes = static_cast<std::int64_t>(bytes) / blocks;
  const FileRows rows = {host.data, host.cols, host.interleaved};
  upload_in_pieces(
      to, blocks, static_cast<std::size_t>(block_bytes), [&](std::int64_t first, std::int64_t count, std::byte* from) {
        in_threads(count, std::max<std::int64_t>(kLeastBytes / block_bytes, 1),
                   [&](std::int64_t begin, std::int64_t end) {
                     write_fragments(host.format, rows, (first + begin) * kFragmentOutputs,
                                     std::min((first + end) * kFragmentOutputs, host.rows), from + begin * block_bytes);
                   });
      });
  if (host.columns != nullptr) {
    const std::int32_t*& columns = storage.columns[host.columns];
    if (columns == nullptr) {
      const std::size_t size = static_cast<std::size_t>(host.cols) * sizeof(std::int32_t);
      storage.buffers.push_back(allocate(size, "the order of columns"));
      upload(storage.buffers.back().data(), host.columns, size);
      columns = storage.buffers.back().as<const std::int32_t>();
    }
    matrix.columns = columns;
  }
  return matrix;
}

void CudaDevice::open_arguments(const ArrayLayout& arrays) {
  memory_.reserve(arguments_, arrays.bytes(), "an op's arguments");
  argument_staging_.open(arrays.bytes());
}

std::byte* CudaDevice::upload_arguments() {
  argument_staging_.copy_to(arguments_.data());
  return arguments_.as<std::byte>();
}

// ---- steps ----------------------------------------------------------------------------------------

std::int64_t CudaDevice::bucket_rows(std::int64_t rows) const { return cuda::bucket_rows(rows); }

std::unique_ptr<DeviceStep> CudaDevice::upload(const StepView& step) {
  use();
  return steps_.upload(step);
}

void CudaDevice::replay(const Device::GraphKey& key, const DeviceStep& device_step, const std::function<void()>& ops) {
  use();
  const CudaStep& step = on_card(device_step);
  if (step.layout.rows > kMaxGraphRows) return ops();
  // A graph shares out the work of the steps that it is replayed for: what lies in attention_shares_ is not known.
  const struct Forget {
    std::vector<AttentionShares>& shares;
    explicit Forget(std::vector<AttentionShares>& those) : shares(those) { shares.clear(); }
    ~Forget() { shares.clear(); }
  } forget(shares_);
  graphs_.replay(
      [&] {
        return CachedGraphKey{
            .ops = key, .step_memory = step.memory->data(), .layout = step.layout, .memory_moves = memory_.moves()};
      },
      ops);
}

// ---- ops ------------------------------------------------------------------------------------------

void CudaDevice::embedding(const DeviceStep& device_step, const EmbeddingParams& p) {
  use();
  const CudaStep& step = on_card(device_step);
  require(p.rows <= step.layout.rows && !step.view().tokens.empty(), "more rows than the step has");
  for (const std::int32_t token : step.view().tokens) {
    if (token >= 0 && token < p.table.rows) continue;
    throw Error(code::kInvalidArgument,
                "token id " + std::to_string(token) + " is outside the vocabulary of " + std::to_string(p.table.rows));
  }
  check_launch(is_plain(p.table.format) ? launch_embedding(p, step.arrays, stream_)
                                        : launch_quantised_embedding(p, step.arrays, stream_),
               "embedding");
}

void CudaDevice::rms_norm(const RmsNormParams& p) {
  use();
  if (p.rows > 0) check_launch(launch_rms_norm(p, stream_), "RMSNorm");
}

void CudaDevice::gated_activation(const GatedActivationParams& p) {
  use();
  if (p.n > 0) check_launch(launch_gated_activation(p, stream_), "the gated activation");
}

void CudaDevice::add(const AddParams& p) {
  use();
  check_launch(launch_add(p, stream_), "a sum");
}

void CudaDevice::softcap(const SoftcapParams& p) {
  use();
  check_launch(launch_softcap(p, stream_), "the soft cap");
}

Dtype CudaDevice::product_input(const Matrix& weight) const {
  // Rows that are padded are rounded by launch_round.
  return weight.cols == padded_cols(weight.cols) ? operand_dtype(weight.format) : Dtype::kF32;
}

// Products read x in the dtype of their weights, its rows padded: what is not so yet is rounded first.
void CudaDevice::round_x(MatmulParams& p, Dtype dtype) {
  if (p.x_dtype == dtype || p.x_dtype != Dtype::kF32) return;
  const std::int64_t k = padded_cols(p.k);
  memory_.reserve(rounded_x_, static_cast<std::size_t>(p.rows * k) * dtype_size(dtype), "rounded activations");
  check_launch(launch_round(static_cast<const float*>(p.x), p.rows, p.k, dtype, rounded_x_.data(), stream_),
               "rounding");
  p.x = rounded_x_.data();
  p.x_dtype = dtype;
}

void CudaDevice::matmul(const MatmulParams& p) {
  use();
  require(p.n_outputs >= 1 && p.n_outputs <= MatmulParams::kMaxOutputs, "matmul takes 1 to 3 matrices");
  for (int i = 0; i < p.n_outputs; ++i) require(p.outputs[i].weight.cols == p.k, "a weight matrix needs k columns");
  if (p.rows == 0) return;
  multiply({.params = p});
}

void CudaDevice::gated_matmul(const MatmulParams& p, const GatedActivationParams& activation) {
  use();
  require(p.n_outputs == 2 && activation.gate == p.outputs[0].y && activation.up == p.outputs[1].y,
          "what a gated product activates are its two outputs");
  for (const MatmulParams::Output& output : {p.outputs[0], p.outputs[1]}) {
    require(output.weight.cols == p.k && p.rows * output.weight.rows == activation.n,
            "gate and up need k columns, and as many outputs");
  }
  if (p.rows == 0) return;
  const GatedProducts gated = {activation.out, activation.activation, activation.out_dtype};
  if (!multiply({.params = p, .gated = gated})) gated_activation(activation);
}

// The columns of x in the order of a matrix.
void CudaDevice::permute_x(MatmulParams& p, const std::int32_t* columns) {
  memory_.reserve(permuted_x_, static_cast<std::size_t>(p.rows * p.k) * dtype_size(p.x_dtype), "activations in order");
  check_launch(launch_permute(p.x, columns, p.rows, p.k, permuted_x_.data(), stream_), "ordering activations");
  p.x = permuted_x_.data();
}

// Matrices of one format and one order of columns go together; others take a launch for each run of those that do.
// Rows of experts are in the order of their matrices. Where more rows than kMaxInvariantRows would change what each
// gets, and may not, they take a launch for so many of them. Returns whether gate and up have become what launch.gated
// says: not where they take two launches, or have more tiles than there are tickets for.
bool CudaDevice::multiply(MatmulLaunch launch) {
  const MatmulParams p = launch.params;
  const GatedProducts gated = std::exchange(launch.gated, {});
  const std::int32_t first_matrix = launch.experts.first_matrix;
  launch.multiprocessors = multiprocessors_;
  for (int first = 0, last = 0; first < p.n_outputs; first = last) {
    const Matrix& weight = p.outputs[first].weight;
    for (last = first + 1; last < p.n_outputs; ++last) {
      const Matrix& other = p.outputs[last].weight;
      if (other.format != weight.format || other.columns != weight.columns) break;
    }
    launch.params = p;
    launch.params.n_outputs = last - first;
    launch.experts.first_matrix = first_matrix + first;
    round_x(launch.params, operand_dtype(weight.format));
    launch.params.k = padded_cols(p.k);
    if (weight.columns != nullptr && launch.experts.runs == nullptr) permute_x(launch.params, weight.columns);
    std::copy(p.outputs + first, p.outputs + last, launch.params.outputs);
    for (MatmulParams::Output& output : launch.params.outputs) output.weight.cols = launch.params.k;
    const bool plain = is_plain(weight.format);
    const auto workspace_bytes = plain ? matmul_workspace_bytes : quantised_matmul_workspace_bytes;
    if (launch.params.n_outputs == p.n_outputs) launch.gated = gated;
    if (launch.gated.out != nullptr && workspace_bytes(launch) == 0) launch.gated = {};
    const std::int64_t most_rows = deterministic_ ? kMaxInvariantRows : p.rows;
    for (std::int64_t row = 0; row < p.rows; row += most_rows) {
      MatmulLaunch some = launch;
      some.params.rows = std::min(most_rows, p.rows - row);
      some.params.x = static_cast<const std::byte*>(launch.params.x) +
                      static_cast<std::size_t>(row * launch.params.k) * dtype_size(launch.params.x_dtype);
      for (int i = 0; i < some.params.n_outputs; ++i) {
        some.params.outputs[i].y += row * some.params.outputs[i].weight.rows;
      }
      if (launch.gated.out != nullptr) {
        some.gated.out = static_cast<std::byte*>(launch.gated.out) +
                         static_cast<std::size_t>(row * weight.rows) * dtype_size(launch.gated.out_dtype);
      }
      memory_.reserve(matmul_workspace_, workspace_bytes(some), "partial products");
      some.workspace = matmul_workspace_.data();
      check_launch(plain ? launch_matmul(some, stream_) : launch_quantised_matmul(some, stream_), "matmul");
    }
  }
  return launch.gated.out != nullptr;
}

namespace {

// Experts with the same three formats are a group: products of one kernel.
struct ExpertGroups {
  std::vector<std::int32_t> of_expert;    // [E]
  std::vector<const FeedForward*> first;  // an expert of each group
};

ExpertGroups group_experts(std::span<const FeedForward> experts) {
  ExpertGroups groups;
  for (const FeedForward& expert : experts) {
    const auto same = std::find_if(groups.first.begin(), groups.first.end(), [&expert](const FeedForward* other) {
      return expert.gate_proj.format == other->gate_proj.format && expert.up_proj.format == other->up_proj.format &&
             expert.down_proj.format == other->down_proj.format;
    });
    groups.of_expert.push_back(static_cast<std::int32_t>(same - groups.first.begin()));
    if (same == groups.first.end()) groups.first.push_back(&expert);
  }
  return groups;
}

}  // namespace

Buffer CudaDevice::upload_experts(std::span<const FeedForward> experts) {
  const ExpertGroups groups = group_experts(experts);
  std::vector<ExpertMatrix> matrices;
  for (std::size_t e = 0; e < experts.size(); ++e) {
    const auto add = [&](const Matrix& matrix, const float* bias) {
      matrices.push_back({matrix.data, bias, matrix.columns, groups.of_expert[e]});
    };
    add(experts[e].gate_proj, experts[e].gate_bias);
    add(experts[e].up_proj, experts[e].up_bias);
    add(experts[e].down_proj, experts[e].down_bias);
  }
  Buffer buffer = allocate(matrices.size() * sizeof(ExpertMatrix), "the addresses of experts");
  upload(buffer.data(), matrices.data(), matrices.size() * sizeof(ExpertMatrix));
  return buffer;
}

namespace {

// Rows of a run: as few as hold all rows of a step; of many rows about twice as many as an expert gets of them.
std::int32_t rows_of_a_run(const ExpertsParams& p) {
  constexpr std::int64_t kMaxRows = 64;
  const std::int64_t most = p.rows <= kMaxRows ? p.rows : 2 * p.rows * p.used / std::ssize(p.experts);
  return static_cast<std::int32_t>(
      std::clamp<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(most)), 8, kMaxRows));
}

}  // namespace

void CudaDevice::experts(const ExpertsParams& p) {
  use();
  require(p.used >= 1 && p.used <= std::ssize(p.experts), "a row uses 1 to all of the experts");
  require(p.device_experts != nullptr, "the experts have not been uploaded");
  if (p.rows == 0) return;
  const ExpertGroups groups = group_experts(p.experts);
  const auto pairs = static_cast<std::size_t>(p.rows * p.used);
  RoutingLaunch routing{.params = p,
                        .n_rows = p.step == nullptr ? nullptr : on_card(*p.step).arrays.plan.counts,
                        .run_rows = rows_of_a_run(p)};
  routing.params.step = nullptr;
  const std::int64_t max_runs = max_expert_runs(p.rows * p.used, std::ssize(p.experts), routing.run_rows);

  ArrayLayout arrays;
  const std::size_t experts = arrays.place<std::int32_t>(pairs);
  const std::size_t weights = arrays.place<float>(pairs);
  const std::size_t places = arrays.place<std::int32_t>(pairs);
  const std::size_t runs = arrays.place<ExpertRun>(static_cast<std::size_t>(max_runs));
  const std::size_t n_runs = arrays.place<std::int32_t>(1);
  const auto padded_size = [&](std::int64_t cols) { return pairs * static_cast<std::size_t>(padded_cols(cols)); };
  // Of one group, where there are several.
  const std::size_t group_runs = arrays.place<ExpertRun>(static_cast<std::size_t>(max_runs));
  const std::size_t n_group_runs = arrays.place<std::int32_t>(1);
  const std::size_t inputs = arrays.place<std::uint16_t>(padded_size(p.hidden));
  const std::size_t hidden = arrays.place<std::uint16_t>(padded_size(p.intermediate));
  memory_.reserve(experts_workspace_, arrays.bytes(), "routing to experts");
  std::byte* memory = experts_workspace_.as<std::byte>();
  routing.experts = reinterpret_cast<std::int32_t*>(memory + experts);
  routing.weights = reinterpret_cast<float*>(memory + weights);
  routing.places = reinterpret_cast<std::int32_t*>(memory + places);
  routing.runs = reinterpret_cast<ExpertRun*>(memory + runs);
  routing.n_runs = reinterpret_cast<std::int32_t*>(memory + n_runs);
  SelectedRuns selected{.matrices = static_cast<const ExpertMatrix*>(p.device_experts),
                        .runs = reinterpret_cast<ExpertRun*>(memory + group_runs),
                        .n_runs = reinterpret_cast<std::int32_t*>(memory + n_group_runs)};
  const bool all_alike = groups.first.size() == 1;
  const ExpertProducts products{.runs = all_alike ? routing.runs : selected.runs,
                                .n_runs = all_alike ? routing.n_runs : selected.n_runs,
                                .matrices = selected.matrices,
                                .first_matrix = 0,
                                .max_runs = static_cast<std::int32_t>(max_runs)};

  const auto n = static_cast<std::int64_t>(pairs);
  float* y = p.scratch;  // [pairs, H]
  float* gate = y + n * p.hidden;
  float* up = gate + n * p.intermediate;
  const bool sorted = std::any_of(p.experts.begin(), p.experts.end(), [](const FeedForward& expert) {
    return expert.gate_proj.columns != nullptr || expert.up_proj.columns != nullptr ||
           expert.down_proj.columns != nullptr;
  });
  const auto gather = [&](const GatherParams& rows) {
    check_launch(launch_gather(routing, rows, stream_), "routing to experts");
  };
  const auto multiply_experts = [&](const FeedForward& any, const void* x, std::int64_t k, int first, int count,
                                    const GatedProducts& gated = {}) {
    const Matrix matrices[] = {any.gate_proj, any.up_proj, any.down_proj};
    float* const to[] = {gate, up, y};
    MatmulLaunch launch;
    launch.params.x = x;
    launch.params.x_dtype = operand_dtype(matrices[first].format);
    launch.params.rows = routing.run_rows;
    launch.params.k = k;
    launch.params.n_outputs = count;
    launch.experts = products;
    launch.experts.first_matrix = first;
    launch.gated = gated;
    for (int i = 0; i < count; ++i) {
      launch.params.outputs[i].weight = matrices[first + i];
      launch.params.outputs[i].weight.columns = nullptr;  // as the rows are
      launch.params.outputs[i].y = to[first + i];
    }
    return multiply(launch);
  };
  // Where columns keep their order and rows need no padding, what is activated is the input of the last product.
  // (Operands of 16 bits are written by fours, from aligned addresses.)
  GatedActivationParams activation{
      .gate = gate, .up = up, .n = n * p.intermediate, .activation = p.activation, .out = gate};
  const bool is_input = !sorted && p.intermediate == padded_cols(p.intermediate) && p.hidden == padded_cols(p.hidden);
  if (is_input) activation.out = memory + hidden;

  check_launch(launch_routing(routing, stream_), "routing to experts");
  // Each group gathers and activates the rows of all: no product of its runs reads those of others.
  for (selected.group = 0; selected.group < std::ssize(groups.first); ++selected.group) {
    const FeedForward& any = *groups.first[static_cast<std::size_t>(selected.group)];
    const Dtype gate_in = operand_dtype(any.gate_proj.format), up_in = operand_dtype(any.up_proj.format);
    const Dtype activated = operand_dtype(any.down_proj.format);
    if (is_input) activation.out_dtype = activated;
    if (!all_alike) check_launch(launch_select_runs(routing, selected, stream_), "routing to experts");
    bool is_activated = false;
    if (!sorted && gate_in == up_in) {
      gather({.x = p.x, .cols = p.hidden, .dtype = gate_in, .out = memory + inputs});
      is_activated = multiply_experts(any, memory + inputs, p.hidden, 0, 2,
                                      {activation.out, activation.activation, activation.out_dtype});
    } else {
      for (const int matrix : {0, 1}) {
        gather({.x = p.x,
                .cols = p.hidden,
                .matrices = sorted ? products.matrices : nullptr,
                .matrix = matrix,
                .dtype = matrix == 0 ? gate_in : up_in,
                .out = memory + inputs});
        multiply_experts(any, memory + inputs, p.hidden, matrix, 1);
      }
    }
    if (!is_activated) gated_activation(activation);
    if (!is_input) {
      gather({.x = gate,
              .at_places = true,
              .cols = p.intermediate,
              .matrices = sorted ? products.matrices : nullptr,
              .matrix = kExpertMatrices - 1,
              .dtype = activated,
              .out = memory + hidden});
    }
    multiply_experts(any, memory + hidden, p.intermediate, kExpertMatrices - 1, 1);
  }
  check_launch(launch_combine(routing, y, stream_), "experts");
}

void CudaDevice::check_external(const ExternalBuffers& buffers, std::span<const ExternalArray> arrays) const {
  if (!buffers.is_external) return;
  if (const auto stream = static_cast<cudaStream_t>(buffers.stream)) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(stream, &status), "the engine's stream");
    require(status == cudaStreamCaptureStatusNone,
            "buffers.stream: expected a stream that captures no graph: what a pass does differs from step to step");
  }
  for (const ExternalArray& array : arrays) {
    const auto refuse = [&array](const std::string& what) {
      throw Error(code::kInvalidArgument, std::string("buffers.") + array.name + ": " + what);
    };
    if (array.data == nullptr || array.bytes == 0) continue;
    // Both ends: an allocation that is too short mostly ends before the last byte.
    for (const std::size_t offset : {std::size_t{0}, array.bytes - 1}) {
      cudaPointerAttributes attributes;
      const cudaError_t error =
          cudaPointerGetAttributes(&attributes, static_cast<const std::byte*>(array.data) + offset);
      if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
      const bool is_device =
          error == cudaSuccess && (attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged);
      if (!is_device) refuse("expected " + std::to_string(array.bytes) + " bytes of device memory");
      if (attributes.type == cudaMemoryTypeDevice && attributes.device != index_) {
        refuse("expected memory of GPU " + std::to_string(index_) + ", found that of GPU " +
               std::to_string(attributes.device));
      }
    }
  }
}

// Runs `launch` on the stream of `buffers`, after what this device has enqueued and before what it will.
template <typename Launch>
void CudaDevice::on_stream_of(const ExternalBuffers& buffers, Launch&& launch) {
  if (buffers.stream == nullptr) return launch(stream_);
  const auto stream = static_cast<cudaStream_t>(buffers.stream);
  const auto order = [this](cudaStream_t first, cudaStream_t then) {
    check_cuda(cudaEventRecord(external_event_, first), "ordering two streams");
    check_cuda(cudaStreamWaitEvent(then, external_event_, 0), "ordering two streams");
  };
  order(stream_, stream);
  launch(stream);
  order(stream, stream_);
}

void CudaDevice::kv_append(const DeviceStep& device_step, const KvAppendParams& p) {
  use();
  const CudaStep& step = on_card(device_step);
  require(p.first >= 0 && p.rows >= 0 && p.first + p.rows <= step.layout.rows && !step.view().slots.empty(),
          "more rows than the step has");
  const std::size_t bytes =
      static_cast<std::size_t>(p.rows * p.shape.kv_heads * p.shape.head_dim) * dtype_size(p.buffers.dtype);
  check_external(p.buffers, {{{"k", p.k, bytes}, {"v", p.v, bytes}}});
  on_stream_of(p.buffers, [&](KernelStream stream) {
    check_launch(launch_kv_append(p, step.arrays_of(p.layer), stream), "append");
  });
}

CudaDevice::AttentionShares& CudaDevice::shares_of(const CudaStep& step, const AttentionParams& p) {
  const AttentionShares::MadeFor made_for = {.step = step.id,
                                             .kv_heads = p.shape.kv_heads,
                                             .query_heads = p.query_heads,
                                             .row_elements = p.shape.row_elements(),
                                             .window = p.window,
                                             .has_softcap = p.softcap != 0,
                                             .key_format = p.shape.key_format,
                                             .value_format = p.shape.value_format};
  for (AttentionShares& shares : shares_) {
    if (shares.made_for == made_for) return shares;
  }
  if (shares_.size() == kMaxShares) shares_.clear();
  AttentionShares wanted = {.made_for = made_for, .max_ctas = 0, .index = shares_.size()};
  int ctas = 0;
  check_launch(attention_ctas_per_multiprocessor(attention_launch(step, p, wanted), &ctas), "attention");
  wanted.max_ctas = multiprocessors_ * std::clamp(ctas, 1, kMaxAttentionCtasPerMultiprocessor);
  const AttentionLaunch sizes = attention_launch(step, p, wanted);
  memory_.reserve(attention_shares_[wanted.index], attention_shares_bytes(sizes), "attention's shares of work");
  memory_.reserve(attention_workspace_, attention_workspace_bytes(sizes), "partial attention results");
  check_launch(launch_attention_plan(attention_launch(step, p, wanted), stream_), "attention");
  return shares_.emplace_back(wanted);
}

AttentionLaunch CudaDevice::attention_launch(const CudaStep& step, const AttentionParams& p,
                                             const AttentionShares& shares) const {
  return {.params = p,
          .step = step.arrays_of(p.layer),
          .max_ctas = shares.max_ctas,
          .min_tiles = kMinTiles,
          .multiprocessors = multiprocessors_,
          .shares = attention_shares_[shares.index].data(),
          .workspace = attention_workspace_.data()};
}

void CudaDevice::attention(const DeviceStep& device_step, const AttentionParams& p) {
  use();
  const CudaStep& step = on_card(device_step);
  require(p.query_heads > 0 && p.query_heads % p.shape.kv_heads == 0, "query heads must be a multiple of kv heads");
  const std::int64_t rows = step.view().plan.n_tokens * p.query_heads;
  if (rows == 0) return;
  const auto elements = static_cast<std::size_t>(rows * p.shape.head_dim);
  const std::size_t q_bytes = elements * dtype_size(p.buffers.dtype), bytes = elements * dtype_size(p.out_dtype);
  const std::size_t lse_bytes = p.lse == nullptr ? 0 : static_cast<std::size_t>(rows) * sizeof(float);
  const std::size_t sink_bytes = p.sinks == nullptr ? 0 : static_cast<std::size_t>(p.query_heads) * sizeof(float);
  for (const auto& [read, read_bytes] : {std::pair(p.q, q_bytes), {p.sinks, sink_bytes}}) {
    require(!overlap(read, read_bytes, p.out, bytes) && !overlap(read, read_bytes, p.lse, lse_bytes),
            "q, sinks, out and lse: expected memory of their own: queries are read while results are written");
  }
  require(!overlap(p.out, bytes, p.lse, lse_bytes), "out and lse: expected memory of their own");
  check_external(
      p.buffers,
      {{{"q", p.q, q_bytes}, {"sinks", p.sinks, sink_bytes}, {"out", p.out, bytes}, {"lse", p.lse, lse_bytes}}});

  const AttentionLaunch launch = attention_launch(step, p, shares_of(step, p));
  on_stream_of(p.buffers, [&](KernelStream stream) { check_launch(launch_attention(launch, stream), "attention"); });
}

void CudaDevice::attention_mass(const AttentionMassParams& p) {
  use();
  if (p.ranges.empty()) return;
  ArrayLayout arrays;
  const std::size_t ranges = arrays.place<AttentionMassParams::Range>(p.ranges.size());
  open_arguments(arrays);
  argument_staging_.put(ranges, p.ranges);
  AttentionMassParams uploaded = p;
  uploaded.ranges = {reinterpret_cast<const AttentionMassParams::Range*>(upload_arguments() + ranges), p.ranges.size()};
  check_launch(launch_attention_mass(uploaded, stream_), "attention mass");
}

void CudaDevice::kv_move(const KvMoveParams& p) {
  use();
  if (p.moves.empty()) return;
  std::int64_t rope_rows = 0;
  for (const KvMoveParams::Move& move : p.moves) rope_rows = std::max<std::int64_t>(rope_rows, move.rope_row + 1);
  const auto values = static_cast<std::size_t>(rope_rows * (p.rope.rotary_dim / 2));
  ArrayLayout arrays;
  const std::size_t moves = arrays.place<KvMoveParams::Move>(p.moves.size());
  const std::size_t cos = arrays.place<float>(values);
  const std::size_t sin = arrays.place<float>(values);
  open_arguments(arrays);
  argument_staging_.put(moves, p.moves);
  argument_staging_.put(cos, std::span(p.rope.cos, values));
  argument_staging_.put(sin, std::span(p.rope.sin, values));
  const std::byte* arguments = upload_arguments();
  KvMoveParams uploaded = p;
  uploaded.rope.cos = reinterpret_cast<const float*>(arguments + cos);
  uploaded.rope.sin = reinterpret_cast<const float*>(arguments + sin);
  uploaded.moves = {reinterpret_cast<const KvMoveParams::Move*>(arguments + moves), p.moves.size()};
  check_launch(launch_kv_move(uploaded, stream_), "compact");
}

void CudaDevice::kv_read(const KvReadParams& p) {
  use();
  if (p.slots.empty()) return;
  ArrayLayout arrays;
  const std::size_t slots = arrays.place<AppendSlot>(p.slots.size());
  open_arguments(arrays);
  argument_staging_.put(slots, p.slots);
  KvReadParams uploaded = p;
  uploaded.slots = {reinterpret_cast<const AppendSlot*>(upload_arguments() + slots), p.slots.size()};
  check_launch(launch_kv_read(uploaded, stream_), "reading the cache");
}

template <typename Visit>
void CudaDevice::for_each_staged_page(const KvCopyParams& p, Visit&& visit) {
  const auto key_bytes = static_cast<std::size_t>(p.shape.page_bytes(p.shape.key_format));
  const auto value_bytes = static_cast<std::size_t>(p.shape.page_bytes(p.shape.value_format));
  std::byte* staged = page_staging_.reserve(p.pages.size() * (key_bytes + value_bytes));
  std::byte* rows = p.rows;
  const auto one = [&](void* pool, const KvCopyParams::Page& page, KvFormat format, std::size_t bytes) {
    std::byte* on_device = static_cast<std::byte*>(pool) + static_cast<std::size_t>(page.page) * bytes;
    visit(on_device, staged, bytes, format, page.slots, rows);
    staged += bytes;
    rows += std::popcount(page.slots) * p.shape.kv_heads * p.shape.data_bytes(format);
  };
  for (const KvCopyParams::Page& page : p.pages) {
    one(p.layer.keys, page, p.shape.key_format, key_bytes);
    one(p.layer.values, page, p.shape.value_format, value_bytes);
  }
}

void CudaDevice::kv_save(const KvCopyParams& p) {
  use();
  for_each_staged_page(p, [&](const std::byte* page, std::byte* staged, std::size_t bytes, auto...) {
    copy(staged, page, bytes, cudaMemcpyDeviceToHost);
  });
  synchronize();
  for_each_staged_page(p, [&](auto, const std::byte* staged, auto, KvFormat format, std::uint64_t slots,
                              std::byte* rows) { gather_rows(p.shape, format, staged, slots, rows); });
}

// Padding and slots that are not marked become zeros.
void CudaDevice::kv_load(const KvCopyParams& p) {
  use();
  for_each_staged_page(p, [&](std::byte* page, std::byte* staged, std::size_t bytes, KvFormat format,
                              std::uint64_t slots, const std::byte* rows) {
    std::memset(staged, 0, bytes);
    scatter_rows(p.shape, format, staged, slots, rows);
    copy(page, staged, bytes, cudaMemcpyHostToDevice);
  });
  synchronize();
}

// One copy brings the rows and ids, one brings the tokens back.
void CudaDevice::sample(const SampleParams& p) {
  use();
  std::size_t n_seen = 0, n_forbidden = 0;
  bool any_top_k = false, any_top_p = false;
  for (const SampleParams::Row& row : p.rows) {
    check_sampling(row, p.vocab);
    any_top_k |= row.top_k > 0 && row.top_k < p.vocab;
    any_top_p |= row.top_p < 1;
    if (has_penalty(row)) n_seen += row.seen.size();
    n_forbidden += row.forbidden.size();
  }
  if (p.rows.empty()) return;
  const std::size_t n = p.rows.size();
  ArrayLayout arrays;
  const std::size_t rows_at = arrays.place<SampleRow>(n);
  const std::size_t seen_at = arrays.place<SeenToken>(n_seen);
  const std::size_t forbidden_at = arrays.place<std::int32_t>(n_forbidden);
  const std::size_t sampled_at = arrays.place<SampledRow>(n);
  open_arguments(arrays);
  auto* row_to = argument_staging_.host<SampleRow>(rows_at);
  auto* const seen = argument_staging_.host<SeenToken>(seen_at);
  auto* const forbidden = argument_staging_.host<std::int32_t>(forbidden_at);
  SeenToken* seen_to = seen;
  std::int32_t* forbidden_to = forbidden;
  for (const SampleParams::Row& row : p.rows) {
    const auto first_seen = static_cast<std::int32_t>(seen_to - seen);
    const auto first_forbidden = static_cast<std::int32_t>(forbidden_to - forbidden);
    for (std::size_t i = 0; has_penalty(row) && i < row.seen.size(); ++i) {
      *seen_to++ = {.id = row.seen[i], .subtracted = subtracted(row, i)};
    }
    forbidden_to = std::copy(row.forbidden.begin(), row.forbidden.end(), forbidden_to);
    *row_to++ = {.logits_row = row.logits_row,
                 .uniform = uniform_random(row.seed, row.draw),
                 .temperature = row.temperature,
                 .top_p = row.top_p,
                 .min_p = row.min_p,
                 .repetition_penalty = row.repetition_penalty,
                 .top_k = row.top_k,
                 .first_seen = first_seen,
                 .n_seen = static_cast<std::int32_t>(seen_to - seen) - first_seen,
                 .first_forbidden = first_forbidden,
                 .n_forbidden = static_cast<std::int32_t>(row.forbidden.size())};
  }
  std::byte* arguments = upload_arguments();
  const auto rows = static_cast<std::int64_t>(n);
  memory_.reserve(sample_workspace_, sample_workspace_bytes(rows, p.vocab), "sampling");
  const SampleLaunch launch{.logits = p.logits,
                            .vocab = p.vocab,
                            .rows = reinterpret_cast<const SampleRow*>(arguments + rows_at),
                            .seen = reinterpret_cast<const SeenToken*>(arguments + seen_at),
                            .forbidden = reinterpret_cast<const std::int32_t*>(arguments + forbidden_at),
                            .n = rows,
                            .any_top_k = any_top_k,
                            .any_top_p = any_top_p,
                            .finite = p.finite,
                            .sampled = reinterpret_cast<SampledRow*>(arguments + sampled_at),
                            .workspace = sample_workspace_.data()};
  check_launch(launch_sample(launch, stream_), "sampling");
  std::byte* results = results_.reserve(n * sizeof(SampledRow));
  const auto* sampled = reinterpret_cast<const SampledRow*>(results);
  copy(results, launch.sampled, n * sizeof(SampledRow), cudaMemcpyDeviceToHost);
  synchronize();
  for (std::size_t i = 0; i < n; ++i) {
    check_sampled(sampled[i].status);
    p.tokens[i] = sampled[i].token;
    if (p.logprobs != nullptr) p.logprobs[i] = sampled[i].logprob;
  }
}

double CudaDevice::measure_read_bandwidth(std::size_t bytes) {
  use();
  const Buffer buffer = allocate(bytes, "measuring the bandwidth");
  const Buffer sum = allocate(sizeof(std::uint32_t), "measuring the bandwidth");
  const Event begin(Event::Use::kTiming), end(Event::Use::kTiming);
  std::vector<float> milliseconds(9);
  for (float& elapsed : milliseconds) {
    check_cuda(cudaEventRecord(begin, stream_), "measuring the bandwidth");
    check_launch(launch_read(buffer.data(), bytes, multiprocessors_, sum.as<std::uint32_t>(), stream_), "reading");
    check_cuda(cudaEventRecord(end, stream_), "measuring the bandwidth");
    synchronize();
    check_cuda(cudaEventElapsedTime(&elapsed, begin, end), "measuring the bandwidth");
  }
  std::nth_element(milliseconds.begin(), milliseconds.begin() + 4, milliseconds.end());
  return static_cast<double>(bytes) / (milliseconds[4] * 1e-3);
}

}  // namespace hogwild::cuda
