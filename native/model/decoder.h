// A loaded model and what it does with some rows (new tokens) of a step, op by op. step.h has the order.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "device/device.h"
#include "model/config.h"
#include "model/layers.h"
#include "model/outputs.h"
#include "model/weights.h"

namespace hogwild {

// Activations that a step keeps while other steps may run: each step under way has its own. n rows that go
// through the layers together, c <= n of a chunk.
struct Activations {
  Buffer x;                   // [n, hidden]: the residual stream
  Buffer q;                   // [n, Hq, D]
  Buffer attended;            // [c, Hq, D]
  std::uint64_t version = 0;  // of all activations of the process; another one once a buffer moves
  SpareRows spare_rows;       // of logits; room for all that the step under way has taken
  bool in_use = false;
};

// Rows [first, first + n) of the activations, and their step on the device, whose row 0 is the first of them.
struct Rows {
  KvCache& cache;
  Activations& activations;
  const DeviceStep& step;
  std::int64_t first = 0;
  std::int64_t n = 0;
  const std::atomic<bool>& cancel;
};

// Throws kAborted once `cancel` is set.
void check_cancelled(const std::atomic<bool>& cancel);

class Decoder {
 public:
  // Checks that every tensor is there with the right shape, and that there is no tensor that this
  // architecture does not use. Throws kInvalidModel, kUnsupported.
  Decoder(std::shared_ptr<Device> device, ModelConfig config, std::unique_ptr<Weights> weights);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  std::uint64_t id() const { return id_; }  // of all decoders of the process
  Device& device() const { return *device_; }
  const ModelConfig& config() const { return config_; }
  const Weights& weights() const { return *weights_; }
  std::int64_t weight_bytes() const;  // that a step of one token reads: no untied embedding, no unused expert

  // Activations that nobody uses, with room for n rows and for chunks of c. Those of finished steps are
  // used again, the same ones first: so a device finds what it has captured for them.
  Activations& take_activations(std::int64_t n, std::int64_t c);

  // ---- ops on rows. `cancel` is looked at between them.

  void embed(const Rows& rows);
  // What the first layer reads in the place of an embedding: `values` [k, hidden], from row `first` of the activations.
  void put_embeddings(const Activations& activations, std::int64_t first, std::span<const float> values);
  // q, k, v; keys and values go to the cache. k and v can be looked at until the next op.
  void project_and_append(std::int64_t layer, const Rows& rows);
  // `lse`: [n, Hq] or null.
  void attend(std::int64_t layer, const Rows& rows, float* lse = nullptr);
  AttentionParams attention(std::int64_t layer, const Rows& rows, float* lse = nullptr) const;  // what `attend` does
  // Adds the attention's output, then that of the feed-forward network.
  void output_and_mlp(std::int64_t layer, const Rows& rows);
  // Logits [rows.size(), V] of some rows, in ascending order, at most kMaxLogitRows. `first_row` is the step's
  // row in row 0 of the activations. They are there until the next op.
  const float* logits(const Activations& activations, std::span<const LogitsRow> rows, std::int64_t first_row);
  // [V] of them is 38 MiB for a vocabulary of 152k.
  static constexpr std::int64_t kMaxLogitRows = 64;
  // Brings logits of the caller's to the device, at most kMaxLogitRows of [V]: [rows.size(), V], until the next op.
  const float* put_logits(std::span<const EditedLogits* const> rows);
  // [hidden] of a row of the activations, behind the final norm; until the next op.
  const float* hidden(const Activations& activations, std::int64_t row);

  const float* keys() const { return shared_.as<float>(); }  // [n, Hkv, D] of the last project_and_append
  const float* values(std::int64_t n) const { return shared_.as<float>() + n * config_.kv_size(); }

 private:
  float* k() const { return shared_.as<float>(); }
  float* v(std::int64_t n) const { return shared_.as<float>() + n * config_.kv_size(); }
  float* x(const Rows& rows) const { return rows.activations.x.as<float>() + rows.first * config_.hidden_size; }
  float* q(const Rows& rows) const { return rows.activations.q.as<float>() + rows.first * config_.q_size(); }

  std::int64_t mlp_scratch_floats(std::int64_t rows) const;  // the largest of all layers

  void rms_norm(const float* in, const float* weight, std::int64_t rows, std::int64_t cols, void* out,
                Dtype out_dtype = Dtype::kF32);
  // What a product reads.
  struct Input {
    const void* data;
    Dtype dtype;
  };
  // In which dtype these weights want it (Device::product_input).
  Dtype input_of(std::initializer_list<const Matrix*> weights) const;
  // The residual stream under this norm, in normed_; as it is where there is none.
  Input normed(const float* norm, Dtype dtype, const Rows& rows);
  // x += residual_scale * norm(weight in + bias), without the norm where there is none. Overwrites normed_.
  void add_to_residual(const Input& in, const Matrix& weight, const float* bias, const float* norm, const Rows& rows);
  // Add to the residual stream what comes of its normed copy.
  void mlp(std::int64_t layer, const Rows& rows);
  void experts(std::int64_t layer, const Rows& rows);
  // Whether the buffer had to move. Its contents are lost then.
  bool reserve(Buffer& buffer, std::int64_t floats, const char* purpose);
  void reserve_scratch(std::int64_t normed_floats, std::int64_t shared_floats);

  const std::uint64_t id_;
  std::shared_ptr<Device> device_;
  ModelConfig config_;
  std::unique_ptr<Weights> weights_;
  Layers layers_;

  std::vector<std::unique_ptr<Activations>> activations_;
  // Scratch within one op or two, grown when a step needs more and kept.
  Buffer normed_;  // [c, hidden]
  // Shared in turn by k and v, gate and up and their product (of experts: ExpertsParams::scratch), and the logits.
  Buffer shared_;
};

}  // namespace hogwild
