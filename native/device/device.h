// What the model and the cache need of a device. `cpu/cpu_device.cc` implements it everywhere;
// `cuda/cuda_device.cc` does the same on NVIDIA GPUs. Nothing above this header asks
// which one it is.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/ops.h"

namespace hogwild {

// Device memory, freed with its owner. `data` is zero-filled at first.
class Buffer {
 public:
  using Release = void (*)(void* data, std::size_t bytes, int index);

  Buffer() = default;
  // `index`: of the card that the memory is on.
  Buffer(void* data, std::size_t bytes, Release release, int index = 0)
      : data_(data), bytes_(bytes), release_(release), index_(index) {}
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  Release release_ = nullptr;
  int index_ = 0;
};

// A weight matrix as its file has it, row after row. Matrices of plain formats are aligned to their elements, with rows
// in the engine's order.
struct WeightSource {
  const std::byte* data = nullptr;
  Format format = Format::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  InterleavedHeads interleaved = {};      // quantised formats only
  const std::int32_t* columns = nullptr;  // Matrix::columns; stays where it is while the result is in use
  // Whether a device may arrange a quantised matrix anew in memory of its own. Else, and where it computes in the
  // host's memory, it reads `data` in each product; rows are in order then.
  bool repack = true;
};

// What devices keep of a model's weights. Only a device fills it.
struct WeightStorage {
  std::vector<Buffer> buffers;
  std::size_t used = 0;  // bytes of the last buffer
  // Copies of WeightSource::columns, where a device has memory of its own: those that are the same array are one.
  std::map<const std::int32_t*, const std::int32_t*> columns;
};

struct DeviceInfo {
  std::string type;           // "cpu" | "cuda"
  std::string name;           // processor or card
  int index = 0;              // cuda: which of the cards
  std::string simd;           // cpu: level in use, "baseline", "avx2", "avxvnni", "avx512", ...
  int threads = 0;            // cpu: threads that compute, the calling one included
  bool deterministic = true;  // what a row gets does not depend, to the last bit, on what else is in the step
};

// Calls come from one thread at a time (the device's runner, see addon/promise_task.h), but for `info`,
// `kv_padding`, `kv_first_page`, `product_input`, `own_memory`, `free_memory` and, where `own_memory` is 0, `allocate`:
// these may come from any thread. Ops may be asynchronous on the device; `synchronize` waits for all of them.
// `download` waits by itself.
class Device {
 public:
  virtual ~Device() = default;

  virtual DeviceInfo info() const = 0;

  // Elements to be added to each row of a cache of this shape (KvShape::padding). Throws kUnsupported, naming
  // what is supported, where the device cannot keep such a cache.
  virtual std::int64_t kv_padding(const KvShape&) const { return 0; }
  // Where a layer of a pool of `pages` pages begins (KvLayer), in pages of one layer.
  virtual std::int64_t kv_first_page(const KvShape& shape, std::int64_t pages, std::int64_t layer) const = 0;

  // Bytes of memory of its own, in all; 0: it computes in the host's. Allocating its own takes a device time and must
  // not come between the ops of a step, and engines may have buffers of theirs in it.
  virtual std::int64_t own_memory() const { return 0; }
  // Those of them that nobody uses now; 0 where it has none of its own.
  virtual std::int64_t free_memory() const { return 0; }

  // Throws kOutOfMemory with the size and `purpose` in the message. Memory that is never touched
  // costs nothing where the system allows it (a page pool is bounded, not pre-paid).
  virtual Buffer allocate(std::size_t bytes, const char* purpose) = 0;
  virtual void download(void* host, const void* device, std::size_t bytes) = 0;
  virtual void upload(void* device, const void* host, std::size_t bytes) = 0;
  // Inside the device's memory, as an op.
  virtual void copy(void* to, const void* from, std::size_t bytes) = 0;
  virtual void synchronize() = 0;

  // Makes a weight readable by ops. Where the result points to `source.data`, that stays mapped and unchanged while the
  // result is in use; else the copy is in `storage`, and complete after synchronize(). Throws kUnsupported, naming what
  // is supported, for formats that the device does not have.
  virtual Matrix upload_weight(const WeightSource& source, WeightStorage& storage) = 0;

  // What the device needs beside the matrices of a layer's experts; empty where that is nothing.
  virtual Buffer upload_experts(std::span<const FeedForward>) { return {}; }

  // What ops before a product with this matrix write for it (`out_dtype`, `x_dtype`): where the device rounds x, it
  // is rounded there, once, and read in its 16 bits. A product takes x in f32 too.
  virtual Dtype product_input(const Matrix&) const { return Dtype::kF32; }

  // Makes a step readable by ops. What `step` points to stays where it is and unchanged while the result is in use;
  // a device with memory of its own copies it. Any number of steps may be in use, of this device only.
  virtual std::unique_ptr<DeviceStep> upload(const StepView& step) { return std::make_unique<DeviceStep>(step); }

  // Rows that the ops of a step of `rows` new tokens are to be called with: more where the device replays one
  // captured graph for several numbers of rows. Rows beyond the step may hold anything; nobody reads them.
  virtual std::int64_t bucket_rows(std::int64_t rows) const { return rows; }

  // Whether a step should be handed over layer after layer without a pause: a device that runs behind its callers
  // loses time in pauses, one that runs with them lets others come between.
  virtual bool prefers_whole_passes() const { return false; }

  // Runs `ops`, which calls ops of `step` on this device and nothing else, or replays the graph captured for this
  // key. The caller guarantees identical parameters per key: only the contents of `step` may differ.
  struct GraphKey {
    std::uint64_t model = 0, cache = 0, buffers = 0;  // who calls; changes with every pointer in an argument
    std::int64_t rows = 0;
    bool output_wanted = false;
    auto operator<=>(const GraphKey&) const = default;
  };
  virtual void replay(const GraphKey&, const DeviceStep&, const std::function<void()>& ops) { ops(); }

  virtual void embedding(const DeviceStep& step, const EmbeddingParams& params) = 0;
  virtual void rms_norm(const RmsNormParams& params) = 0;
  virtual void matmul(const MatmulParams& params) = 0;
  virtual void gated_activation(const GatedActivationParams& params) = 0;
  // Both: the product's two outputs are the activation's gate and up. A device may do them at once.
  virtual void gated_matmul(const MatmulParams& product, const GatedActivationParams& activation) {
    matmul(product);
    gated_activation(activation);
  }
  virtual void add(const AddParams& params) = 0;
  virtual void softcap(const SoftcapParams& params) = 0;
  virtual void experts(const ExpertsParams& params) = 0;
  virtual void kv_append(const DeviceStep& step, const KvAppendParams& params) = 0;
  virtual void attention(const DeviceStep& step, const AttentionParams& params) = 0;
  virtual void attention_mass(const AttentionMassParams& params) = 0;
  virtual void kv_move(const KvMoveParams& params) = 0;
  virtual void kv_read(const KvReadParams& params) = 0;
  // Pages to host memory, and back. The copy is complete when they return.
  virtual void kv_save(const KvCopyParams& params) = 0;
  virtual void kv_load(const KvCopyParams& params) = 0;
  virtual void sample(const SampleParams& params) = 0;

  // Bytes per second at which this device reads a buffer of `bytes` (all threads), median of several passes.
  // At least 256 MiB are read on a CPU, so that no cache holds them.
  virtual double measure_read_bandwidth(std::size_t bytes) = 0;
};

struct CpuOptions {
  int threads = 0;   // 0: as many as the process may run on
  std::string simd;  // "": the best that this processor has (HOGWILD_SIMD overrides)
};

// Throws kUnsupported for a SIMD level that this build or this processor lacks, naming those it has.
std::shared_ptr<Device> create_cpu_device(const CpuOptions& options);

// Processors that this process may run on.
int available_processors();

// SIMD levels that this processor can run, best last.
std::vector<std::string> available_simd_levels();

// Whether and why (not) CUDA can be used: for `doctor` and for device: 'auto'.
struct CudaCard {
  std::string name;
  std::int64_t memory = 0;     // bytes
  int compute_capability = 0;  // major * 10 + minor
  std::string reason;  // why it cannot be used; empty where it looks usable (create_cuda_device has the last word)
};
struct CudaStatus {
  bool compiled = false;        // this binary holds CUDA kernels
  std::vector<CudaCard> cards;  // those that the driver shows, by index
  std::string reason;           // why none can be used; empty where one can
};
CudaStatus cuda_status();

// Throws kUnsupported where CUDA or this card cannot be used, saying why; kInvalidArgument where there is
// no card of this index.
std::shared_ptr<Device> create_cuda_device(int index, bool deterministic = false);

}  // namespace hogwild
