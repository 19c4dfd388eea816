// A device that measures another: it forwards every call and adds up what each op takes. Ops that a device may do at
// once are measured one by one.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "device/device.h"

namespace hogwild {

// An op over all its calls. The matrix products of a model are told apart by their sizes.
struct OpProfile {
  std::string op;  // e.g. "attention", "matmul 576 x 1536": k x the outputs of all matrices
  std::int64_t calls = 0;
  double seconds = 0;
  // What must come from memory or go there: weights, cached keys and values (each counted once per
  // call, whoever sees them), logits that are sampled. Other activations stay in the processor's caches.
  double bytes = 0;
};

class ProfileDevice final : public Device {
 public:
  explicit ProfileDevice(std::shared_ptr<Device> device) : device_(std::move(device)) {}

  // What was measured since the last call, the most time first.
  std::vector<OpProfile> take_profile();

  DeviceInfo info() const override { return device_->info(); }
  std::int64_t own_memory() const override { return device_->own_memory(); }
  std::int64_t free_memory() const override { return device_->free_memory(); }
  Buffer allocate(std::size_t bytes, const char* purpose) override { return device_->allocate(bytes, purpose); }
  void download(void* host, const void* device, std::size_t bytes) override { device_->download(host, device, bytes); }
  void upload(void* device, const void* host, std::size_t bytes) override { device_->upload(device, host, bytes); }
  void copy(void* to, const void* from, std::size_t bytes) override { device_->copy(to, from, bytes); }
  void synchronize() override { device_->synchronize(); }
  Matrix upload_weight(const WeightSource& source, WeightStorage& storage) override {
    return device_->upload_weight(source, storage);
  }
  Buffer upload_experts(std::span<const FeedForward> experts) override { return device_->upload_experts(experts); }
  std::int64_t kv_padding(const KvShape& shape) const override { return device_->kv_padding(shape); }
  std::int64_t kv_first_page(const KvShape& shape, std::int64_t pages, std::int64_t layer) const override {
    return device_->kv_first_page(shape, pages, layer);
  }
  std::unique_ptr<DeviceStep> upload(const StepView& step) override { return device_->upload(step); }
  Dtype product_input(const Matrix& weight) const override { return device_->product_input(weight); }
  double measure_read_bandwidth(std::size_t bytes) override { return device_->measure_read_bandwidth(bytes); }

  void embedding(const DeviceStep& step, const EmbeddingParams& params) override;
  void rms_norm(const RmsNormParams& params) override;
  void matmul(const MatmulParams& params) override;
  void gated_activation(const GatedActivationParams& params) override;
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

 private:
  using Key = std::tuple<const char*, std::int64_t, std::int64_t>;  // op, k, outputs; sizes 0 where there is one kind

  std::int64_t tokens_seen(const AttentionPlanView& plan, const PlanSegment& segment, std::int64_t window);
  template <typename Op>
  void measure(const Key& key, std::int64_t bytes, Op&& op);

  std::shared_ptr<Device> device_;
  std::vector<std::pair<std::int64_t, std::int64_t>> seen_;  // scratch of tokens_seen
  std::map<Key, OpProfile> profiles_;                        // `op` is filled in by take_profile
};

}  // namespace hogwild
