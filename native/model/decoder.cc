#include "model/decoder.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "core/panels.h"

namespace hogwild {
namespace {

std::atomic<std::uint64_t> next_id = 1;

}  // namespace

void check_cancelled(const std::atomic<bool>& cancel) {
  if (cancel.load(std::memory_order_relaxed)) throw Error(code::kAborted, "the step was aborted");
}

Decoder::Decoder(std::shared_ptr<Device> device, ModelConfig config, std::unique_ptr<Weights> weights)
    : id_(next_id++), device_(std::move(device)), config_(std::move(config)), weights_(std::move(weights)) {
  check_config(config_, *device_);
  layers_ = load_layers(*device_, config_, *weights_);
}

std::int64_t Decoder::weight_bytes() const {
  const Matrix& embed = layers_.embed;
  return weights_->bytes() - (weights_->has("lm_head") ? matrix_bytes(embed) : 0);
}

// ---- memory ---------------------------------------------------------------------------------------

bool Decoder::reserve(Buffer& buffer, std::int64_t floats, const char* purpose) {
  const std::size_t bytes = static_cast<std::size_t>(floats) * sizeof(float);
  if (buffer.bytes() >= bytes) return false;
  buffer = Buffer();  // first, so that old and new are not in memory together
  buffer = device_->allocate(bytes, purpose);
  return true;
}

void Decoder::reserve_scratch(std::int64_t normed_floats, std::int64_t shared_floats) {
  bool moved = reserve(normed_, normed_floats, "activations");
  moved |= reserve(shared_, shared_floats, "activations");
  if (!moved) return;
  for (const auto& activations : activations_) activations->version = next_id++;
}

Activations& Decoder::take_activations(std::int64_t n, std::int64_t c) {
  auto idle = std::find_if(activations_.begin(), activations_.end(), [](const auto& a) { return !a->in_use; });
  if (idle == activations_.end()) idle = activations_.insert(idle, std::make_unique<Activations>());
  Activations& activations = **idle;
  bool moved = reserve(activations.x, n * config_.hidden_size, "activations");
  moved |= reserve(activations.q, n * config_.q_size(), "queries");
  moved |= reserve(activations.attended, c * config_.q_size(), "attention output");
  if (moved) activations.version = next_id++;
  reserve_scratch(c * config_.hidden_size, c * 2 * std::max(config_.kv_size(), intermediate_size()));
  activations.in_use = true;
  return activations;
}

// ---- ops ------------------------------------------------------------------------------------------

std::int64_t Decoder::intermediate_size() const {
  std::int64_t size = 0;
  for (const LayerSpec& layer : config_.layers) size = std::max(size, layer.intermediate_size);
  return size;
}

void Decoder::rms_norm(const float* in, const float* weight, std::int64_t rows, std::int64_t cols, float* out) {
  device_->rms_norm({.x = in, .weight = weight, .eps = config_.rms_norm_eps, .rows = rows, .cols = cols, .out = out});
}

void Decoder::embed(const Rows& rows) {
  device_->embedding(rows.step,
                     {.rows = rows.n, .table = layers_.embed, .scale = config_.embedding_scale, .out = x(rows)});
}

void Decoder::project_and_append(std::int64_t index, const Rows& rows) {
  const Layer& layer = layers_.layers[index];
  const float* in = normed(layer.input_norm, rows);
  device_->matmul({.x = in,
                   .rows = rows.n,
                   .k = config_.hidden_size,
                   .n_outputs = 3,
                   .outputs = {{layer.q_proj, layer.q_bias, q(rows)},
                               {layer.k_proj, layer.k_bias, k()},
                               {layer.v_proj, layer.v_bias, v(rows.n)}}});
  const std::int64_t head_dim = config_.head_dim;
  switch (config_.layers[index].qk_norm) {
    case QkNorm::kNone:
      break;
    case QkNorm::kHead:
      rms_norm(q(rows), layer.q_norm, rows.n * config_.query_heads, head_dim, q(rows));
      rms_norm(k(), layer.k_norm, rows.n * config_.kv_heads, head_dim, k());
      break;
    case QkNorm::kRow:
      rms_norm(q(rows), layer.q_norm, rows.n, config_.q_size(), q(rows));
      rms_norm(k(), layer.k_norm, rows.n, config_.kv_size(), k());
      break;
  }
  device_->kv_append(rows.step, {.shape = rows.cache.shape(),
                                 .layer = rows.cache.layer(index),
                                 .first = 0,
                                 .rows = rows.n,
                                 .k = k(),
                                 .v = v(rows.n)});
}

void Decoder::attend(std::int64_t index, const Rows& rows) {
  device_->attention(rows.step, {.shape = rows.cache.shape(),
                                 .layer = rows.cache.layer(index),
                                 .query_heads = config_.query_heads,
                                 .scale = config_.attention_scale,
                                 .q = q(rows),
                                 .out = rows.activations.attended.as<float>()});
}

void Decoder::output_and_mlp(std::int64_t index, const Rows& rows) {
  const Layer& layer = layers_.layers[index];
  const std::int64_t intermediate = config_.layers[index].intermediate_size;
  add_to_residual(rows.activations.attended.as<float>(), layer.o_proj, layer.o_bias, layer.attention_output_norm, rows);
  const float* in = normed(layer.mlp_norm, rows);
  check_cancelled(rows.cancel);
  float* gate = shared_.as<float>();         // [n, intermediate]
  float* up = gate + rows.n * intermediate;  // [n, intermediate]
  device_->matmul({.x = in,
                   .rows = rows.n,
                   .k = config_.hidden_size,
                   .n_outputs = 2,
                   .outputs = {{layer.gate_proj, layer.gate_bias, gate}, {layer.up_proj, layer.up_bias, up}}});
  device_->gated_activation(
      {.gate = gate, .up = up, .n = rows.n * intermediate, .activation = config_.activation, .out = gate});
  check_cancelled(rows.cancel);
  add_to_residual(gate, layer.down_proj, layer.down_bias, layer.mlp_output_norm, rows);
}

const float* Decoder::normed(const float* norm, const Rows& rows) {
  if (norm == nullptr) return x(rows);
  rms_norm(x(rows), norm, rows.n, config_.hidden_size, normed_.as<float>());
  return normed_.as<float>();
}

void Decoder::add_to_residual(const float* in, const Matrix& weight, const float* bias, const float* norm,
                              const Rows& rows) {
  const bool at_once = norm == nullptr && config_.residual_scale == 1;
  float* out = at_once ? x(rows) : normed_.as<float>();
  device_->matmul(
      {.x = in, .rows = rows.n, .k = weight.cols, .n_outputs = 1, .outputs = {{weight, bias, out, at_once}}});
  if (at_once) return;
  if (norm != nullptr) rms_norm(out, norm, rows.n, config_.hidden_size, out);
  device_->add({.x = x(rows), .y = out, .n = rows.n * config_.hidden_size, .scale = config_.residual_scale});
}

const float* Decoder::logits(const Activations& activations, std::span<const LogitsRow> rows, std::int64_t first_row) {
  const auto n = static_cast<std::int64_t>(rows.size());
  const std::int64_t hidden = config_.hidden_size;
  reserve_scratch(n * hidden, n * config_.vocab_size);
  for (std::int64_t i = 0, run = 0; i < n; i += run) {  // neighbours together
    for (run = 1; i + run < n && rows[i + run].row == rows[i].row + run; ++run) {
    }
    rms_norm(activations.x.as<float>() + (rows[i].row - first_row) * hidden, layers_.norm, run, hidden,
             normed_.as<float>() + i * hidden);
  }
  device_->matmul({.x = normed_.as<float>(),
                   .rows = n,
                   .k = hidden,
                   .n_outputs = 1,
                   .outputs = {{layers_.lm_head, nullptr, shared_.as<float>()}}});
  if (config_.logit_scale != 1 || config_.logit_softcap != 0) {
    device_->softcap({.x = shared_.as<float>(),
                      .n = n * config_.vocab_size,
                      .scale = config_.logit_scale,
                      .softcap = config_.logit_softcap});
  }
  return shared_.as<float>();
}

}  // namespace hogwild
