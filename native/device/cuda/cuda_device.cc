// The CUDA device: memory, uploads and graphs around the launchers of cuda/kernels.h. Everything is enqueued
// on one stream; what must come back is waited for.
//
// Also compiled by the host compiler against cuda/simt, where the same code runs on an emulated card.
#if !defined(HOGWILD_SIMT)
#include <cuda_runtime_api.h>
#endif

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/float16.h"
#include "device/device.h"
#include "device/sampling.h"
#include "kernels.h"

namespace hogwild {
namespace {

// Compute capability 8.0 (Ampere): the first with bf16 tensor cores and cp.async.
constexpr int kMinCapability = 80;

// A step of at most so many rows is recorded as a graph, one for each number of rows below.
constexpr std::int64_t kBucketRows[] = {1, 2, 4, 8, 16, 32, 64};
constexpr std::size_t kMaxGraphs = 32;

// Fewest tiles (of 64 keys) that are worth a CTA of their own: below, partial results cost more than they save.
constexpr std::int32_t kMinTiles = 2;
constexpr std::int32_t kAttentionCtasPerMultiprocessor = 2;

// Weights go through pinned memory in pieces of this size, one being filled while the other is copied.
constexpr std::size_t kStagingBytes = std::size_t{16} << 20;

std::string describe(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // not to be found by the next call
  throw Error(code::kInternal, std::string("the GPU failed at ") + what + " (" + describe(error) + ")");
}

void check_launch(cudaError_t error, const char* op) {
  if (error == cudaErrorInvalidValue) {
    throw Error(code::kUnsupported, std::string(op) + ": the CUDA device has no kernel for these sizes");
  }
  check_cuda(error, op);
}

void check(bool good, const char* message) {
  if (!good) throw Error(code::kInvalidArgument, message);
}

// Memory that is there for the host and the device to copy from.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer() { cudaFreeHost(data_); }

  // Contents are lost when it grows.
  std::byte* reserve(std::size_t bytes) {
    if (bytes <= bytes_) return data_;
    cudaFreeHost(std::exchange(data_, nullptr));
    bytes_ = 0;
    void* data = nullptr;
    if (cudaMallocHost(&data, bytes) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      throw Error(code::kOutOfMemory, "the system refused " + std::to_string(bytes) + " bytes of pinned memory");
    }
    data_ = static_cast<std::byte*>(data);
    bytes_ = bytes;
    return data_;
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

class Event {
 public:
  Event() { check_cuda(cudaEventCreate(&event_), "creating an event"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class GraphExec {
 public:
  explicit GraphExec(cudaGraphExec_t exec) : exec_(exec) {}
  GraphExec(GraphExec&& other) noexcept : exec_(std::exchange(other.exec_, nullptr)) {}
  GraphExec& operator=(GraphExec&&) = delete;
  ~GraphExec() {
    if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
  }
  cudaGraphExec_t get() const { return exec_; }

 private:
  cudaGraphExec_t exec_;
};

// Where the parts of a step lie in the memory that one copy fills, for so many of each. Recorded steps have
// their sizes rounded up, so that few layouts serve all.
struct StepLayout {
  std::int64_t rows = 0, segments = 0, pages = 0, angles = 0, rotary_half = 0;
  auto operator<=>(const StepLayout&) const = default;

  struct Offsets {
    std::size_t counts, tokens, slots, segments, query_ranges, pages, cos, sin, bytes;
  };
  Offsets offsets() const {
    constexpr std::size_t kAlignment = 256;
    std::size_t end = 0;
    const auto place = [&](std::int64_t n, std::size_t size) {
      const std::size_t at = end;
      end += (static_cast<std::size_t>(n) * size + kAlignment - 1) / kAlignment * kAlignment;
      return at;
    };
    Offsets at;
    at.counts = place(2, sizeof(std::int32_t));
    at.tokens = place(rows, sizeof(std::int32_t));
    at.slots = place(rows, sizeof(AppendSlot));
    at.segments = place(segments, sizeof(cuda::Segment));
    at.query_ranges = place(segments * rows, sizeof(cuda::DeviceQueryRange));
    at.pages = place(pages, sizeof(std::int64_t));
    at.cos = place(angles * rotary_half, sizeof(float));
    at.sin = place(angles * rotary_half, sizeof(float));
    at.bytes = end;
    return at;
  }
};

std::int64_t round_up_to_power(std::int64_t n, std::int64_t least) {
  return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(std::max(n, least))));
}

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(int index);
  ~CudaDevice() override;

  DeviceInfo info() const override {
    return {.type = "cuda", .name = name_, .index = index_, .simd = "", .threads = 0};
  }

  std::int64_t kv_padding(const KvShape& shape) const override;
  Buffer allocate(std::size_t bytes, const char* purpose) override;
  void download(void* host, const void* device, std::size_t bytes) override;
  void upload(void* device, const void* host, std::size_t bytes) override;
  void synchronize() override;
  Matrix upload_weight(const Matrix& host, std::vector<Buffer>& storage) override;

  void begin_step(const StepView& step) override;
  std::int64_t bucket_rows(std::int64_t rows) const override;
  bool prefers_whole_passes() const override { return true; }
  void replay(const GraphKey& key, const std::function<void()>& ops) override;

  void embedding(const EmbeddingParams& params) override;
  void rms_norm(const RmsNormParams& params) override;
  void matmul(const MatmulParams& params) override;
  void gated_activation(const GatedActivationParams& params) override;
  void kv_append(const KvAppendParams& params) override;
  void attention(const AttentionParams& params) override;
  void kv_move(const KvMoveParams& params) override;
  void kv_read(const KvReadParams& params) override;
  void sample(const SampleParams& params) override;
  double measure_read_bandwidth(std::size_t bytes) override;

 private:
  // What a captured graph refers to, beside what its caller names: the step's layout and the device's memory.
  struct CachedGraphKey {
    GraphKey step;
    StepLayout layout;
    std::uint64_t memory_moved = 0;
    auto operator<=>(const CachedGraphKey&) const = default;
  };
  struct CachedGraph {
    CachedGraphKey key;
    std::optional<GraphExec> graph;  // empty after the first call, which only made room for everything
  };

  // The heads that a plan of the work was made for.
  struct PlannedFor {
    std::int64_t kv_heads = 0, query_heads = 0, row_elements = 0;
    bool operator==(const PlannedFor&) const = default;
  };

  // The runtime's current device belongs to the calling thread.
  void use() const { check_cuda(cudaSetDevice(index_), "choosing the GPU"); }
  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    if (bytes > 0) check_cuda(cudaMemcpyAsync(to, from, bytes, kind, stream_), "a copy");
  }
  // Makes `buffer` hold `bytes`; its contents are lost when it moves.
  void reserve(Buffer& buffer, std::size_t bytes, const char* purpose);
  // A device copy of an op's host arrays, in the op's own memory from `at` on.
  template <typename T>
  const T* upload_argument(std::span<const T> values, std::size_t& at);

  cuda::AttentionLaunch attention_launch(const AttentionParams& params) const;
  template <typename Launch>
  void on_stream_of(const ExternalBuffers& buffers, Launch&& launch);
  void capture(CachedGraph& cached, const std::function<void()>& ops);

  int index_;
  std::string name_;
  int multiprocessors_ = 0;
  cudaStream_t stream_ = nullptr;

  StepView step_;
  StepLayout layout_;
  RopeTable rope_;         // of the step, in device memory
  cuda::DevicePlan plan_;  // of the step
  std::optional<PlannedFor> planned_for_;
  Buffer step_memory_;
  PinnedBuffer step_staging_;
  std::optional<Event> step_staged_;  // when the copy from step_staging_ has been made

  Buffer arguments_;
  Buffer attention_workspace_, matmul_workspace_, sample_workspace_;
  PinnedBuffer weight_staging_;
  std::optional<Event> weight_staged_[2], caller_event_;
  std::uint64_t memory_moved_ = 0;
  std::list<CachedGraph> graphs_;  // the last used first
};

CudaDevice::CudaDevice(int index) : index_(index) {
  use();
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, index), "reading its properties");
  name_ = properties.name;
  multiprocessors_ = properties.multiProcessorCount;
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  step_staged_.emplace();
  for (std::optional<Event>& event : weight_staged_) event.emplace();
  caller_event_.emplace();
}

CudaDevice::~CudaDevice() {
  // At the end of the process the runtime may be gone already, and everything with it.
  if (cudaSetDevice(index_) != cudaSuccess) return;
  static_cast<void>(cudaStreamSynchronize(stream_));
  graphs_.clear();
  cudaStreamDestroy(stream_);
}

// ---- memory ---------------------------------------------------------------------------------------

std::int64_t CudaDevice::kv_padding(const KvShape& shape) const {
  if (shape.dtype == Dtype::kF32) {
    throw Error(code::kUnsupported, "the CUDA device keeps keys and values in bf16 or f16, not in f32");
  }
  const std::int64_t row = cuda::kv_row_elements(shape.head_dim);
  if (row == 0) {
    throw Error(code::kUnsupported,
                "head_dim " + std::to_string(shape.head_dim) + ": the CUDA device supports multiples of 8 up to 256");
  }
  return row - shape.head_dim;
}

Buffer CudaDevice::allocate(std::size_t bytes, const char* purpose) {
  use();
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, std::max<std::size_t>(bytes, 1));
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    std::size_t free = 0, total = 0;
    static_cast<void>(cudaMemGetInfo(&free, &total));
    throw Error(code::kOutOfMemory, "the GPU refused " + std::to_string(bytes) + " bytes for " + purpose + ": " +
                                        std::to_string(free) + " of its " + std::to_string(total) + " bytes are free");
  }
  check_cuda(error, "an allocation");
  Buffer buffer(data, bytes, [](void* memory, std::size_t) { static_cast<void>(cudaFree(memory)); });
  check_cuda(cudaMemsetAsync(data, 0, bytes, stream_), "clearing memory");
  return buffer;
}

void CudaDevice::reserve(Buffer& buffer, std::size_t bytes, const char* purpose) {
  if (bytes <= buffer.bytes()) return;
  ++memory_moved_;
  buffer = Buffer();  // waits for what still uses it
  buffer = allocate(std::bit_ceil(bytes), purpose);
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

void CudaDevice::synchronize() {
  use();
  check_cuda(cudaStreamSynchronize(stream_), "its work");
}

// Kernels multiply in 16 bits: f32 weights are rounded to bf16 once, here.
Matrix CudaDevice::upload_weight(const Matrix& host, std::vector<Buffer>& storage) {
  if (host.cols % 8 != 0) {
    throw Error(code::kUnsupported, "a weight matrix with rows of " + std::to_string(host.cols) +
                                        " elements: the CUDA device needs a multiple of 8");
  }
  Matrix matrix = host;
  if (host.dtype == Dtype::kF32) matrix.dtype = Dtype::kBF16;
  const std::int64_t n = host.rows * host.cols;
  const std::size_t size = dtype_size(matrix.dtype);
  storage.push_back(allocate(static_cast<std::size_t>(n) * size, "weights"));
  std::byte* to = storage.back().as<std::byte>();
  matrix.data = to;

  // Two halves in turn: one is filled by the host while the other is being copied.
  constexpr std::size_t kHalf = kStagingBytes / 2;
  std::byte* staging = weight_staging_.reserve(kStagingBytes);
  const std::int64_t piece = static_cast<std::int64_t>(kHalf / size);
  int half = 0;
  for (std::int64_t first = 0; first < n; first += piece, half ^= 1) {
    const std::int64_t count = std::min(piece, n - first);
    std::byte* from = staging + half * kHalf;
    check_cuda(cudaEventSynchronize(weight_staged_[half]->get()), "a copy of weights");
    if (host.dtype == Dtype::kF32) {
      const float* values = static_cast<const float*>(host.data) + first;
      auto* rounded = reinterpret_cast<std::uint16_t*>(from);
      for (std::int64_t i = 0; i < count; ++i) rounded[i] = f32_to_bf16(values[i]);
    } else {
      std::memcpy(from, static_cast<const std::byte*>(host.data) + first * static_cast<std::int64_t>(size),
                  static_cast<std::size_t>(count) * size);
    }
    copy(to + first * static_cast<std::int64_t>(size), from, static_cast<std::size_t>(count) * size,
         cudaMemcpyHostToDevice);
    check_cuda(cudaEventRecord(weight_staged_[half]->get(), stream_), "a copy of weights");
  }
  return matrix;
}

template <typename T>
const T* CudaDevice::upload_argument(std::span<const T> values, std::size_t& at) {
  constexpr std::size_t kAlignment = 256;
  auto* to = reinterpret_cast<T*>(arguments_.as<std::byte>() + at);
  copy(to, values.data(), values.size_bytes(), cudaMemcpyHostToDevice);
  at += (values.size_bytes() + kAlignment - 1) / kAlignment * kAlignment;
  return to;
}

// ---- steps ----------------------------------------------------------------------------------------

std::int64_t CudaDevice::bucket_rows(std::int64_t rows) const {
  for (const std::int64_t recorded : kBucketRows) {
    if (rows <= recorded) return recorded;
  }
  return rows;
}

void CudaDevice::begin_step(const StepView& step) {
  if (step.id != 0 && step.id == step_.id) return;
  use();
  step_ = {};  // until all is copied there is no step
  const cuda::FlatPlan plan = cuda::flatten(step.plan);
  const std::int64_t rows = std::max({step.plan.n_tokens, static_cast<std::int64_t>(step.slots.size()),
                                      static_cast<std::int64_t>(step.tokens.size())});
  std::int64_t angles = 0;
  for (const QueryRange& range : step.plan.query_ranges) angles = std::max<std::int64_t>(angles, range.rope_row + 1);
  for (const AppendSlot& slot : step.slots) angles = std::max<std::int64_t>(angles, slot.rope_row + 1);

  StepLayout layout{.rows = bucket_rows(rows),
                    .segments = std::ssize(plan.segments),
                    .pages = std::ssize(plan.pages),
                    .angles = angles,
                    .rotary_half = step.rope.rotary_dim / 2};
  if (rows <= kBucketRows[std::size(kBucketRows) - 1]) {
    layout.segments = round_up_to_power(layout.segments, 16);
    layout.pages = round_up_to_power(layout.pages, 64);
    layout.angles = round_up_to_power(layout.angles, 64);
  }
  const StepLayout::Offsets at = layout.offsets();
  reserve(step_memory_, at.bytes, "a step's plan");
  check_cuda(cudaEventSynchronize(step_staged_->get()), "the copy of a plan");
  std::byte* staging = step_staging_.reserve(at.bytes);
  const auto put = [staging](std::size_t offset, const auto& values) {
    if (!values.empty()) std::memcpy(staging + offset, values.data(), values.size() * sizeof(values[0]));
  };
  put(at.counts, plan.counts);
  put(at.segments, plan.segments);
  put(at.pages, plan.pages);
  put(at.query_ranges, plan.query_ranges);
  put(at.tokens, step.tokens);
  put(at.slots, step.slots);
  // Surplus rows: any token, and no slot.
  auto* tokens = reinterpret_cast<std::int32_t*>(staging + at.tokens);
  std::fill(tokens + step.tokens.size(), tokens + layout.rows, 0);
  auto* slots = reinterpret_cast<AppendSlot*>(staging + at.slots);
  std::fill(slots + step.slots.size(), slots + layout.rows, AppendSlot{.page = -1, .slot = 0, .rope_row = 0});
  const auto angle_values = static_cast<std::size_t>(angles * layout.rotary_half);
  put(at.cos, std::span(step.rope.cos, angle_values));
  put(at.sin, std::span(step.rope.sin, angle_values));
  std::byte* memory = step_memory_.as<std::byte>();
  copy(memory, staging, at.bytes, cudaMemcpyHostToDevice);
  check_cuda(cudaEventRecord(step_staged_->get(), stream_), "the copy of a plan");

  plan_ = {.counts = reinterpret_cast<const std::int32_t*>(memory + at.counts),
           .segments = reinterpret_cast<const cuda::Segment*>(memory + at.segments),
           .query_ranges = reinterpret_cast<const cuda::DeviceQueryRange*>(memory + at.query_ranges),
           .pages = reinterpret_cast<const std::int64_t*>(memory + at.pages)};
  rope_ = {.cos = reinterpret_cast<const float*>(memory + at.cos),
           .sin = reinterpret_cast<const float*>(memory + at.sin),
           .rotary_dim = step.rope.rotary_dim};
  layout_ = layout;
  planned_for_.reset();
  step_ = step;
}

// The first call runs the ops, which makes room for everything; the second captures them; later ones replay.
void CudaDevice::replay(const GraphKey& step, const std::function<void()>& ops) {
  use();
  if (step.rows > kBucketRows[std::size(kBucketRows) - 1]) return ops();
  const CachedGraphKey key{.step = step, .layout = layout_, .memory_moved = memory_moved_};
  const auto found =
      std::find_if(graphs_.begin(), graphs_.end(), [&](const CachedGraph& cached) { return cached.key == key; });
  if (found == graphs_.end()) {
    ops();
    graphs_.push_front({{.step = step, .layout = layout_, .memory_moved = memory_moved_}, std::nullopt});
    if (graphs_.size() > kMaxGraphs) graphs_.pop_back();
    return;
  }
  graphs_.splice(graphs_.begin(), graphs_, found);
  if (!found->graph) capture(*found, ops);
  check_cuda(cudaGraphLaunch(found->graph->get(), stream_), "launching a step");
}

void CudaDevice::capture(CachedGraph& cached, const std::function<void()>& ops) {
  check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capturing a step");
  cudaGraph_t graph = nullptr;
  try {
    ops();
  } catch (...) {  // an aborted step: the stream must not go on capturing
    if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess) static_cast<void>(cudaGraphDestroy(graph));
    static_cast<void>(cudaGetLastError());
    throw;
  }
  check_cuda(cudaStreamEndCapture(stream_, &graph), "capturing a step");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&exec, graph, 0);
  static_cast<void>(cudaGraphDestroy(graph));
  check_cuda(error, "capturing a step");
  cached.graph.emplace(exec);
}

// ---- ops ------------------------------------------------------------------------------------------

void CudaDevice::embedding(const EmbeddingParams& p) {
  use();
  check(p.rows <= layout_.rows && !step_.tokens.empty(), "more rows than the step has");
  for (const std::int32_t token : step_.tokens) {
    if (token >= 0 && token < p.table.rows) continue;
    throw Error(code::kInvalidArgument,
                "token id " + std::to_string(token) + " is outside the vocabulary of " + std::to_string(p.table.rows));
  }
  const auto* tokens = reinterpret_cast<const std::int32_t*>(step_memory_.as<std::byte>() + layout_.offsets().tokens);
  check_launch(cuda::launch_embedding(
                   {.tokens = tokens, .rows = p.rows, .table = p.table, .scale = p.scale, .out = p.out}, stream_),
               "embedding");
}

void CudaDevice::rms_norm(const RmsNormParams& p) {
  use();
  if (p.rows > 0) check_launch(cuda::launch_rms_norm(p, stream_), "RMSNorm");
}

void CudaDevice::gated_activation(const GatedActivationParams& p) {
  use();
  if (p.n > 0) check_launch(cuda::launch_gated_activation(p, stream_), "the gated activation");
}

void CudaDevice::matmul(const MatmulParams& p) {
  use();
  check(p.n_outputs >= 1 && p.n_outputs <= MatmulParams::kMaxOutputs, "matmul takes 1 to 3 matrices");
  for (int i = 0; i < p.n_outputs; ++i) check(p.outputs[i].weight.cols == p.k, "a weight matrix needs k columns");
  if (p.rows == 0) return;
  // Matrices of one dtype go together; a model that mixes dtypes takes a launch for each run of them.
  for (int first = 0, last = 0; first < p.n_outputs; first = last) {
    const Dtype dtype = p.outputs[first].weight.dtype;
    for (last = first + 1; last < p.n_outputs && p.outputs[last].weight.dtype == dtype; ++last) {
    }
    cuda::MatmulLaunch launch{.params = p, .multiprocessors = multiprocessors_};
    launch.params.n_outputs = last - first;
    std::copy(p.outputs + first, p.outputs + last, launch.params.outputs);
    reserve(matmul_workspace_, cuda::matmul_workspace_bytes(launch), "partial products");
    launch.workspace = matmul_workspace_.data();
    check_launch(cuda::launch_matmul(launch, stream_), "matmul");
  }
}

// Runs `launch` on the stream of `buffers`, after what this device has enqueued and before what it will.
template <typename Launch>
void CudaDevice::on_stream_of(const ExternalBuffers& buffers, Launch&& launch) {
  if (buffers.stream == nullptr) return launch(stream_);
  const auto stream = static_cast<cudaStream_t>(buffers.stream);
  const auto order = [this](cudaStream_t first, cudaStream_t then) {
    check_cuda(cudaEventRecord(caller_event_->get(), first), "ordering two streams");
    check_cuda(cudaStreamWaitEvent(then, caller_event_->get(), 0), "ordering two streams");
  };
  order(stream_, stream);
  launch(stream);
  order(stream, stream_);
}

void CudaDevice::kv_append(const KvAppendParams& p) {
  use();
  check(p.first >= 0 && p.rows >= 0 && p.first + p.rows <= layout_.rows && !step_.slots.empty(),
        "more rows than the step has");
  const auto* slots = reinterpret_cast<const AppendSlot*>(step_memory_.as<std::byte>() + layout_.offsets().slots);
  on_stream_of(p.buffers, [&](cudaStream_t stream) {
    check_launch(cuda::launch_kv_append({.shape = p.shape,
                                         .layer = p.layer,
                                         .rope = rope_,
                                         .dtype = p.buffers.dtype,
                                         .slots = slots + p.first,
                                         .rows = p.rows,
                                         .k = p.k,
                                         .v = p.v},
                                        stream),
                 "append");
  });
}

cuda::AttentionLaunch CudaDevice::attention_launch(const AttentionParams& p) const {
  return {.shape = p.shape,
          .layer = p.layer,
          .plan = plan_,
          .rope = rope_,
          .query_heads = p.query_heads,
          .scale = p.scale,
          .dtype = p.buffers.dtype,
          .q = p.q,
          .out = p.out,
          .lse = p.lse,
          .max_tokens = static_cast<std::int32_t>(layout_.rows),
          .max_segments = static_cast<std::int32_t>(layout_.segments),
          .max_ctas = multiprocessors_ * kAttentionCtasPerMultiprocessor,
          .min_tiles = kMinTiles,
          .workspace = nullptr};
}

void CudaDevice::attention(const AttentionParams& p) {
  use();
  check(p.query_heads > 0 && p.query_heads % p.shape.kv_heads == 0, "query heads must be a multiple of kv heads");
  if (step_.plan.n_tokens == 0) return;
  cuda::AttentionLaunch launch = attention_launch(p);
  const std::size_t bytes = cuda::attention_workspace_bytes(launch);
  check_launch(bytes == 0 ? cudaErrorInvalidValue : cudaSuccess, "attention");
  const std::uint64_t moved = memory_moved_;
  reserve(attention_workspace_, bytes, "partial attention results");
  launch.workspace = attention_workspace_.data();
  // The shares of the work lie in the workspace: all layers of the step take them from there.
  const PlannedFor heads{p.shape.kv_heads, p.query_heads, p.shape.row_elements()};
  if (planned_for_ != heads || memory_moved_ != moved) {
    check_launch(cuda::launch_attention_plan(launch, stream_), "attention");
    planned_for_ = heads;
  }
  on_stream_of(p.buffers,
               [&](cudaStream_t stream) { check_launch(cuda::launch_attention(launch, stream), "attention"); });
}

void CudaDevice::kv_move(const KvMoveParams& p) {
  use();
  if (p.moves.empty()) return;
  std::int64_t angles = 0;
  for (const KvMoveParams::Move& move : p.moves) angles = std::max<std::int64_t>(angles, move.rope_row + 1);
  const auto values = static_cast<std::size_t>(angles * (p.rope.rotary_dim / 2));
  reserve(arguments_, p.moves.size_bytes() + 2 * values * sizeof(float) + 1024, "an op's arguments");
  std::size_t at = 0;
  cuda::KvMoveLaunch launch{.shape = p.shape, .layer = p.layer, .rope = p.rope, .n = std::ssize(p.moves)};
  launch.moves = upload_argument(p.moves, at);
  launch.rope.cos = upload_argument(std::span(p.rope.cos, values), at);
  launch.rope.sin = upload_argument(std::span(p.rope.sin, values), at);
  check_launch(cuda::launch_kv_move(launch, stream_), "compact");
}

void CudaDevice::kv_read(const KvReadParams& p) {
  use();
  if (p.slots.empty()) return;
  reserve(arguments_, p.slots.size_bytes() + 1024, "an op's arguments");
  std::size_t at = 0;
  check_launch(cuda::launch_kv_read({.shape = p.shape,
                                     .layer = p.layer,
                                     .slots = upload_argument(p.slots, at),
                                     .n = std::ssize(p.slots),
                                     .k = p.k,
                                     .v = p.v},
                                    stream_),
               "reading the cache");
}

void CudaDevice::sample(const SampleParams& p) {
  use();
  std::vector<cuda::SampleRow> rows;
  std::vector<std::int32_t> ids;
  const auto add_ids = [&ids](std::span<const std::int32_t> added) {
    const auto first = static_cast<std::int32_t>(ids.size());
    ids.insert(ids.end(), added.begin(), added.end());
    return first;
  };
  for (const SampleParams::Row& row : p.rows) {
    check_sampling(row, p.vocab);
    rows.push_back({.logits_row = row.logits_row,
                    .uniform = uniform_random(row.seed, row.draw),
                    .temperature = row.temperature,
                    .top_p = row.top_p,
                    .min_p = row.min_p,
                    .repetition_penalty = row.repetition_penalty,
                    .top_k = row.top_k,
                    .first_seen = add_ids(row.seen),
                    .n_seen = static_cast<std::int32_t>(row.seen.size()),
                    .first_forbidden = add_ids(row.forbidden),
                    .n_forbidden = static_cast<std::int32_t>(row.forbidden.size())});
  }
  if (rows.empty()) return;
  const std::int64_t n = std::ssize(rows);
  std::vector<cuda::SampledRow> sampled(rows.size());
  const std::size_t result_bytes = sampled.size() * sizeof(sampled[0]);
  reserve(arguments_, rows.size() * sizeof(rows[0]) + ids.size() * sizeof(ids[0]) + result_bytes + 1024,
          "an op's arguments");
  reserve(sample_workspace_, cuda::sample_workspace_bytes(n, p.vocab), "sampling");
  std::size_t at = 0;
  cuda::SampleLaunch launch{.logits = p.logits, .vocab = p.vocab, .n = n, .workspace = sample_workspace_.data()};
  launch.rows = upload_argument(std::span<const cuda::SampleRow>(rows), at);
  launch.ids = upload_argument(std::span<const std::int32_t>(ids), at);
  launch.sampled = reinterpret_cast<cuda::SampledRow*>(arguments_.as<std::byte>() + at);
  check_launch(cuda::launch_sample(launch, stream_), "sampling");
  download(sampled.data(), launch.sampled, result_bytes);
  for (std::size_t i = 0; i < sampled.size(); ++i) {
    check_sampled(sampled[i].status);
    p.tokens[i] = sampled[i].token;
    if (p.logprobs != nullptr) p.logprobs[i] = sampled[i].logprob;
  }
}

double CudaDevice::measure_read_bandwidth(std::size_t bytes) {
  use();
  const Buffer buffer = allocate(bytes, "measuring the bandwidth");
  const Buffer sum = allocate(sizeof(std::uint32_t), "measuring the bandwidth");
  const Event begin, end;
  std::vector<float> milliseconds(9);
  for (float& elapsed : milliseconds) {
    check_cuda(cudaEventRecord(begin.get(), stream_), "measuring the bandwidth");
    check_launch(cuda::launch_read(buffer.data(), bytes, multiprocessors_, sum.as<std::uint32_t>(), stream_),
                 "reading");
    check_cuda(cudaEventRecord(end.get(), stream_), "measuring the bandwidth");
    synchronize();
    check_cuda(cudaEventElapsedTime(&elapsed, begin.get(), end.get()), "measuring the bandwidth");
  }
  std::nth_element(milliseconds.begin(), milliseconds.begin() + 4, milliseconds.end());
  return static_cast<double>(bytes) / (milliseconds[4] * 1e-3);
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

CudaStatus cuda_status() {
  CudaStatus status{.compiled = true, .cards = {}, .reason = ""};
  int driver = 0, runtime = 0, count = 0;
  static_cast<void>(cudaDriverGetVersion(&driver));
  static_cast<void>(cudaRuntimeGetVersion(&runtime));
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    if (driver == 0) {
      status.reason = "no NVIDIA driver was found";
    } else if (driver < runtime) {
      status.reason = "the NVIDIA driver is too old: it supports CUDA " + version_text(driver) +
                      ", this build needs CUDA " + version_text(runtime);
    } else {
      status.reason = "no NVIDIA GPU can be used (" + describe(error) + ")";
    }
    return status;
  }
  if (count == 0) status.reason = "the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES may hide them)";
  for (int index = 0; index < count; ++index) {
    CudaCard& card = status.cards.emplace_back();
    cudaDeviceProp properties;
    if (const cudaError_t failure = cudaGetDeviceProperties(&properties, index); failure != cudaSuccess) {
      card.reason = describe(failure);
      continue;
    }
    card.name = properties.name;
    card.memory = static_cast<std::int64_t>(properties.totalGlobalMem);
    card.compute_capability = properties.major * 10 + properties.minor;
    if (card.compute_capability < kMinCapability) {
      card.reason = "its compute capability is " + std::to_string(properties.major) + "." +
                    std::to_string(properties.minor) + ", hogwild needs 8.0 or newer";
    } else if (cudaSetDevice(index) != cudaSuccess || cuda::probe_kernels() != cudaSuccess) {
      static_cast<void>(cudaGetLastError());
      card.reason = "this build has no kernels for it: rebuild hogwild on this machine";
    }
  }
  const bool usable =
      std::any_of(status.cards.begin(), status.cards.end(), [](const CudaCard& card) { return card.reason.empty(); });
  if (!usable && status.reason.empty()) status.reason = status.cards[0].name + ": " + status.cards[0].reason;
  return status;
}

std::shared_ptr<Device> create_cuda_device(int index) {
  const CudaStatus status = cuda_status();
  if (status.cards.empty()) throw Error(code::kUnsupported, "device 'cuda' cannot be used: " + status.reason);
  const auto n = static_cast<int>(status.cards.size());
  if (index < 0 || index >= n) {
    throw Error(code::kInvalidArgument,
                "there is no GPU " + std::to_string(index) + ": this machine has " + std::to_string(n));
  }
  const std::string& reason = status.cards[index].reason;
  if (!reason.empty()) {
    throw Error(code::kUnsupported, "GPU " + std::to_string(index) + " cannot be used: " + reason);
  }
  return std::make_shared<CudaDevice>(index);
}

}  // namespace hogwild
