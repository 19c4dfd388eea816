#include "model/decoder.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "core/fragments.h"

namespace hogwild {
namespace {

std::atomic<std::uint64_t> next_id = 1;

// In whole cache lines: devices read what lies behind them in wide words.
std::int64_t router_logits_floats(std::int64_t rows, const ExpertsSpec& experts) {
  constexpr std::int64_t kLine = 16;
  return (rows * experts.count + kLine - 1) / kLine * kLine;
}

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
  std::int64_t bytes = weights_->bytes() - (weights_->has("lm_head") ? matrix_bytes(embed) : 0);
  for (std::size_t i = 0; i < layers_.layers.size(); ++i) {
    const ExpertsSpec& experts = config_.layers[i].experts;
    if (experts.count == 0) continue;
    std::int64_t all = 0;
    for (const FeedForward& expert : layers_.layers[i].experts) {
      all += matrix_bytes(expert.gate_proj) + matrix_bytes(expert.up_proj) + matrix_bytes(expert.down_proj);
    }
    bytes -= all / experts.count * (experts.count - experts.used);
  }
  return bytes;
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
  reserve_scratch(c * config_.hidden_size, std::max(c * 2 * config_.kv_size(), mlp_scratch_floats(c)));
  activations.in_use = true;
  return activations;
}

// ---- ops ------------------------------------------------------------------------------------------

std::int64_t Decoder::mlp_scratch_floats(std::int64_t rows) const {
  std::int64_t floats = 0;
  for (const LayerSpec& layer : config_.layers) {
    const ExpertsSpec& experts = layer.experts;
    // The activated gate: over the gate itself, or in 16 bits behind gate and up.
    floats = std::max(floats, experts.count == 0 ? rows * ((5 * layer.intermediate_size + 1) / 2)
                                                 : router_logits_floats(rows, experts) +
                                                       experts_scratch_floats(rows, experts.used, config_.hidden_size,
                                                                              layer.intermediate_size));
  }
  return floats;
}

void Decoder::rms_norm(const float* in, const float* weight, std::int64_t rows, std::int64_t cols, void* out,
                       Dtype out_dtype) {
  device_->rms_norm({.x = in,
                     .weight = weight,
                     .eps = config_.rms_norm_eps,
                     .rows = rows,
                     .cols = cols,
                     .out = out,
                     .out_dtype = out_dtype});
}

// f32 where they differ.
Dtype Decoder::input_of(std::initializer_list<const Matrix*> weights) const {
  const Dtype first = device_->product_input(**weights.begin());
  const bool same = std::all_of(weights.begin(), weights.end(),
                                [&](const Matrix* weight) { return device_->product_input(*weight) == first; });
  return same ? first : Dtype::kF32;
}

void Decoder::embed(const Rows& rows) {
  device_->embedding(rows.step,
                     {.rows = rows.n, .table = layers_.embed, .scale = config_.embedding_scale, .out = x(rows)});
}

void Decoder::put_embeddings(const Activations& activations, std::int64_t first, std::span<const float> values) {
  device_->upload(activations.x.as<float>() + first * config_.hidden_size, values.data(), values.size_bytes());
}

void Decoder::project_and_append(std::int64_t index, const Rows& rows) {
  const Layer& layer = layers_.layers[index];
  const Input in = normed(layer.input_norm, input_of({&layer.q_proj, &layer.k_proj, &layer.v_proj}), rows);
  device_->matmul({.x = in.data,
                   .x_dtype = in.dtype,
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

AttentionParams Decoder::attention(std::int64_t index, const Rows& rows, float* lse) const {
  return {.shape = rows.cache.shape(),
          .layer = rows.cache.layer(index),
          .query_heads = config_.query_heads,
          .scale = config_.attention_scale,
          .softcap = config_.layers[index].softcap,
          .window = config_.layers[index].window,
          .sinks = layers_.layers[index].sinks,
          .q = q(rows),
          .out = rows.activations.attended.data(),
          .lse = lse,
          .out_dtype = input_of({&layers_.layers[index].o_proj})};
}

void Decoder::attend(std::int64_t index, const Rows& rows, float* lse) {
  device_->attention(rows.step, attention(index, rows, lse));
}

void Decoder::output_and_mlp(std::int64_t index, const Rows& rows) {
  const Layer& layer = layers_.layers[index];
  add_to_residual({rows.activations.attended.data(), input_of({&layer.o_proj})}, layer.o_proj, layer.o_bias,
                  layer.attention_output_norm, rows);
  check_cancelled(rows.cancel);
  if (layer.experts.empty()) {
    mlp(index, rows);
  } else {
    experts(index, rows);
  }
}

void Decoder::mlp(std::int64_t index, const Rows& rows) {
  const Layer& layer = layers_.layers[index];
  const FeedForward& mlp = layer.mlp;
  const Input in = normed(layer.mlp_norm, input_of({&mlp.gate_proj, &mlp.up_proj}), rows);
  const std::int64_t intermediate = config_.layers[index].intermediate_size;
  float* gate = shared_.as<float>();         // [n, intermediate]
  float* up = gate + rows.n * intermediate;  // [n, intermediate]
  const Dtype dtype = input_of({&mlp.down_proj});
  float* activated = dtype == Dtype::kF32 ? gate : up + rows.n * intermediate;
  device_->gated_matmul({.x = in.data,
                         .x_dtype = in.dtype,
                         .rows = rows.n,
                         .k = config_.hidden_size,
                         .n_outputs = 2,
                         .outputs = {{mlp.gate_proj, mlp.gate_bias, gate}, {mlp.up_proj, mlp.up_bias, up}}},
                        {.gate = gate,
                         .up = up,
                         .n = rows.n * intermediate,
                         .activation = config_.activation,
                         .out = activated,
                         .out_dtype = dtype});
  check_cancelled(rows.cancel);
  add_to_residual({activated, dtype}, mlp.down_proj, mlp.down_bias, layer.mlp_output_norm, rows);
}

void Decoder::experts(std::int64_t index, const Rows& rows) {
  const Layer& layer = layers_.layers[index];
  const LayerSpec& spec = config_.layers[index];
  const float* in = static_cast<const float*>(normed(layer.mlp_norm, Dtype::kF32, rows).data);
  float* router_logits = shared_.as<float>();  // [n, E]
  device_->matmul({.x = in,
                   .rows = rows.n,
                   .k = config_.hidden_size,
                   .n_outputs = 1,
                   .outputs = {{layer.router, layer.router_bias, router_logits}}});
  check_cancelled(rows.cancel);
  device_->experts({.x = in,
                    .router_logits = router_logits,
                    .rows = rows.n,
                    .hidden = config_.hidden_size,
                    .intermediate = spec.intermediate_size,
                    .experts = layer.experts,
                    .device_experts = layer.device_experts.data(),
                    .step = &rows.step,
                    .used = spec.experts.used,
                    .normalized = spec.experts.normalized,
                    .activation = config_.activation,
                    .scratch = router_logits + router_logits_floats(rows.n, spec.experts),
                    .out = x(rows)});
}

Decoder::Input Decoder::normed(const float* norm, Dtype dtype, const Rows& rows) {
  if (norm == nullptr) return {x(rows), Dtype::kF32};
  rms_norm(x(rows), norm, rows.n, config_.hidden_size, normed_.data(), dtype);
  return {normed_.data(), dtype};
}

void Decoder::add_to_residual(const Input& in, const Matrix& weight, const float* bias, const float* norm,
                              const Rows& rows) {
  const bool at_once = norm == nullptr && config_.residual_scale == 1;
  float* out = at_once ? x(rows) : normed_.as<float>();
  device_->matmul({.x = in.data,
                   .x_dtype = in.dtype,
                   .rows = rows.n,
                   .k = weight.cols,
                   .n_outputs = 1,
                   .outputs = {{weight, bias, out, at_once}}});
  if (at_once) return;
  if (norm != nullptr) rms_norm(out, norm, rows.n, config_.hidden_size, out);
  device_->add({.x = x(rows), .y = out, .n = rows.n * config_.hidden_size, .scale = config_.residual_scale});
}

const float* Decoder::logits(const Activations& activations, std::span<const LogitsRow> rows, std::int64_t first_row) {
  const auto n = static_cast<std::int64_t>(rows.size());
  const std::int64_t hidden = config_.hidden_size;
  reserve_scratch(n * hidden, n * config_.vocab_size);
  const Dtype dtype = input_of({&layers_.lm_head});
  for (std::int64_t i = 0, run = 0; i < n; i += run) {  // neighbours together
    for (run = 1; i + run < n && rows[i + run].row == rows[i].row + run; ++run) {
    }
    rms_norm(activations.x.as<float>() + (rows[i].row - first_row) * hidden, layers_.norm, run, hidden,
             normed_.as<std::byte>() + i * hidden * static_cast<std::int64_t>(dtype_size(dtype)), dtype);
  }
  device_->matmul({.x = normed_.data(),
                   .x_dtype = dtype,
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

const float* Decoder::put_logits(std::span<const EditedLogits* const> rows) {
  const std::int64_t vocab = config_.vocab_size;
  reserve_scratch(0, std::ssize(rows) * vocab);
  float* to = shared_.as<float>();
  for (const EditedLogits* row : rows) {
    device_->upload(to, row->logits.data(), row->logits.size() * sizeof(float));
    to += vocab;
  }
  return shared_.as<float>();
}

const float* Decoder::hidden(const Activations& activations, std::int64_t row) {
  const std::int64_t hidden = config_.hidden_size;
  reserve_scratch(hidden, 0);
  rms_norm(activations.x.as<float>() + row * hidden, layers_.norm, 1, hidden, normed_.data());
  return normed_.as<float>();
}

}  // namespace hogwild
