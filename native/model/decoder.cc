#include "model/decoder.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "core/format.h"

namespace hogwild {
namespace {

std::atomic<std::uint64_t> next_id = 1;

}  // namespace

void check_cancelled(const std::atomic<bool>& cancel) {
  if (cancel.load(std::memory_order_relaxed)) throw Error(code::kAborted, "the step was aborted");
}

Decoder::Decoder(std::shared_ptr<Device> device, ModelConfig config, std::unique_ptr<Weights> weights)
    : id_(next_id++), device_(std::move(device)), config_(std::move(config)), weights_(std::move(weights)) {
  check_config(config_);
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
  reserve_scratch(c * config_.hidden_size, c * 2 * std::max(config_.kv_size(), config_.intermediate_size));
  activations.in_use = true;
  return activations;
}

// ---- ops ------------------------------------------------------------------------------------------

void Decoder::rms_norm(const float* in, const float* weight, std::int64_t rows, std::int64_t cols, float* out) {
  device_->rms_norm({.x = in, .weight = weight, .eps = config_.rms_norm_eps, .rows = rows, .cols = cols, .out = out});
}

void Decoder::embed(const Rows& rows) {
  device_->embedding({.rows = rows.n, .table = layers_.embed, .scale = config_.embedding_scale, .out = x(rows)});
}

void Decoder::project_and_append(std::int64_t index, const Rows& rows) {
  const Layer& layer = layers_.layers[index];
  rms_norm(x(rows), layer.input_norm, rows.n, config_.hidden_size, normed_.as<float>());
  device_->matmul({.x = normed_.as<float>(),
                   .rows = rows.n,
                   .k = config_.hidden_size,
                   .n_outputs = 3,
                   .outputs = {{layer.q_proj, layer.q_bias, q(rows)},
                               {layer.k_proj, layer.k_bias, k()},
                               {layer.v_proj, layer.v_bias, v(rows.n)}}});
  if (layer.q_norm != nullptr) {
    rms_norm(q(rows), layer.q_norm, rows.n * config_.query_heads, config_.head_dim, q(rows));
  }
  if (layer.k_norm != nullptr) rms_norm(k(), layer.k_norm, rows.n * config_.kv_heads, config_.head_dim, k());
  device_->kv_append({.shape = rows.cache.shape(),
                      .layer = rows.cache.layer(index),
                      .first = 0,
                      .rows = rows.n,
                      .k = k(),
                      .v = v(rows.n)});
}

void Decoder::attend(std::int64_t index, const Rows& rows) {
  device_->attention({.shape = rows.cache.shape(),
                      .layer = rows.cache.layer(index),
                      .query_heads = config_.query_heads,
                      .scale = config_.attention_scale,
                      .q = q(rows),
                      .out = rows.activations.attended.as<float>()});
}

void Decoder::output_and_mlp(std::int64_t index, const Rows& rows) {
  const Layer& layer = layers_.layers[index];
  device_->matmul({.x = rows.activations.attended.as<float>(),
                   .rows = rows.n,
                   .k = config_.q_size(),
                   .n_outputs = 1,
                   .outputs = {{layer.o_proj, layer.o_bias, x(rows), true}}});
  rms_norm(x(rows), layer.post_attention_norm, rows.n, config_.hidden_size, normed_.as<float>());
  check_cancelled(rows.cancel);
  device_->matmul(
      {.x = normed_.as<float>(),
       .rows = rows.n,
       .k = config_.hidden_size,
       .n_outputs = 2,
       .outputs = {{layer.gate_proj, layer.gate_bias, gate()}, {layer.up_proj, layer.up_bias, up(rows.n)}}});
  device_->gated_activation({.gate = gate(),
                             .up = up(rows.n),
                             .n = rows.n * config_.intermediate_size,
                             .activation = config_.activation,
                             .out = gate()});
  check_cancelled(rows.cancel);
  device_->matmul({.x = gate(),
                   .rows = rows.n,
                   .k = config_.intermediate_size,
                   .n_outputs = 1,
                   .outputs = {{layer.down_proj, layer.down_bias, x(rows), true}}});
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
  return shared_.as<float>();
}

}  // namespace hogwild
