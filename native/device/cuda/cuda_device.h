// The CUDA device: the ops of device/ops.h around the launchers of cuda/kernels.h. Everything is enqueued on one
// stream; what must come back is waited for.
//
// Also compiled by the host compiler against cuda/simt, where the same code runs on an emulated card.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "device/cuda/graphs.h"
#include "device/cuda/memory.h"
#include "device/cuda/step.h"
#include "device/device.h"
#include "kernels.h"

namespace hogwild::cuda {

class CudaDevice final : public Device {
 public:
  // `deterministic`: every op is batch-invariant, whatever the number of rows. Environment: HOGWILD_CUDA_GRAPHS=off
  // runs the ops of every step one by one, HOGWILD_CUDA_OVERLAP=off each kernel after the one before it.
  CudaDevice(int index, bool deterministic);
  ~CudaDevice() override;

  DeviceInfo info() const override {
    return {.type = "cuda", .name = name_, .index = index_, .simd = "", .threads = 0, .deterministic = deterministic_};
  }

  std::int64_t kv_padding(const KvShape& shape) const override;
  std::int64_t kv_first_page(const KvShape&, std::int64_t pages, std::int64_t layer) const override {
    return layer * pages;
  }
  std::int64_t own_memory() const override { return own_memory_; }
  std::int64_t free_memory() const override;
  Buffer allocate(std::size_t bytes, const char* purpose) override;
  void download(void* host, const void* device, std::size_t bytes) override;
  void upload(void* device, const void* host, std::size_t bytes) override;
  void copy(void* to, const void* from, std::size_t bytes) override;
  void synchronize() override;
  Matrix upload_weight(const WeightSource& source, WeightStorage& storage) override;
  Buffer upload_experts(std::span<const FeedForward> experts) override;

  std::unique_ptr<DeviceStep> upload(const StepView& step) override;
  std::int64_t bucket_rows(std::int64_t rows) const override;
  Dtype product_input(const Matrix& weight) const override;
  bool prefers_whole_passes() const override { return true; }
  void replay(const Device::GraphKey& key, const DeviceStep& step, const std::function<void()>& ops) override;

  void embedding(const DeviceStep& step, const EmbeddingParams& params) override;
  void rms_norm(const RmsNormParams& params) override;
  void matmul(const MatmulParams& params) override;
  void gated_activation(const GatedActivationParams& params) override;
  void gated_matmul(const MatmulParams& product, const GatedActivationParams& activation) override;
  void add(const AddParams& params) override;
  void softcap(const SoftcapParams& params) override;
  void experts(const ExpertsParams& params) override;
  void kv_append(const DeviceStep& step, const KvAppendParams& params) override;
  void attention(const DeviceStep& step, const AttentionParams& params) override;
  void attention_mass(const AttentionMassParams& params) override;
  void kv_move(const KvMoveParams& params) override;
  void kv_read(const KvReadParams& params) override;
  void kv_save(const KvCopyParams& params) override;
  void kv_load(const KvCopyParams& params) override;
  void sample(const SampleParams& params) override;
  double measure_read_bandwidth(std::size_t bytes) override;

 private:
  // What the work was shared out for, over how many CTAs, and where in attention_shares_ the result lies.
  struct AttentionShares {
    struct MadeFor {
      std::uint64_t step = 0;  // id
      std::int64_t kv_heads = 0, query_heads = 0, row_elements = 0, window = 0;
      bool has_softcap = false;  // it and the formats say which kernel
      KvFormat key_format = KvFormat::kF32, value_format = KvFormat::kF32;
      bool operator==(const MadeFor&) const = default;
    } made_for;
    std::int32_t max_ctas = 0;
    std::size_t index = 0;
  };
  // All layers of a step that are alike take theirs from one place; few models have more than two kinds.
  static constexpr std::size_t kMaxShares = 8;

  // The runtime's current device belongs to the calling thread.
  void use() const { check_cuda(cudaSetDevice(index_), "choosing the GPU"); }
  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind);
  // Calls visit(page on the device, the same in page_staging_, bytes, format, marked slots, their rows) for the keys
  // and the values of all pages.
  template <typename Visit>
  void for_each_staged_page(const KvCopyParams& params, Visit&& visit);
  // Fills `count` units of `unit_bytes` each at `to`, piece by piece: fill(first, n, where) makes some of them in host
  // memory.
  template <typename Fill>
  void upload_in_pieces(std::byte* to, std::int64_t count, std::size_t unit_bytes, Fill&& fill);
  Matrix upload_quantised(const WeightSource& source, WeightStorage& storage);
  // Host arrays of an op: room for them in argument_staging_; once they are filled, where they lie on the device.
  void open_arguments(const ArrayLayout& arrays);
  std::byte* upload_arguments();

  // Device memory of an engine: on this device, of `bytes`. Throws kInvalidArgument.
  struct ExternalArray {
    const char* name;
    const void* data;
    std::size_t bytes;
  };
  void check_external(const ExternalBuffers& buffers, std::span<const ExternalArray> arrays) const;
  template <typename Launch>
  void on_stream_of(const ExternalBuffers& buffers, Launch&& launch);

  void round_x(MatmulParams& params, Dtype dtype);
  void permute_x(MatmulParams& params, const std::int32_t* columns);
  bool multiply(MatmulLaunch launch);
  AttentionShares& shares_of(const CudaStep& step, const AttentionParams& params);
  AttentionLaunch attention_launch(const CudaStep& step, const AttentionParams& params,
                                   const AttentionShares& shares) const;

  int index_;
  bool deterministic_;
  std::string name_;
  int multiprocessors_ = 0;
  std::int64_t own_memory_ = 0;
  Stream stream_;
  DeviceMemory memory_;
  StepMemory steps_;
  GraphCache graphs_;
  std::vector<AttentionShares> shares_;  // that lie in attention_shares_

  StagedArrays argument_staging_;
  Buffer arguments_;  // of ops that are given host arrays
  PinnedBuffer results_;
  std::array<Buffer, kMaxShares> attention_shares_;
  Buffer attention_workspace_, matmul_workspace_, experts_workspace_, sample_workspace_, rounded_x_, permuted_x_;
  PinnedBuffer weight_staging_, page_staging_;
  Event weight_staged_[2], external_event_;
};

}  // namespace hogwild::cuda
