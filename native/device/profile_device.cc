#include "device/profile_device.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <utility>

#include "core/fragments.h"
#include "device/experts.h"

namespace hogwild {
namespace {

std::int64_t copied_bytes(const KvCopyParams& p) {
  std::int64_t tokens = 0;
  for (const KvCopyParams::Page& page : p.pages) tokens += std::popcount(page.slots);
  return tokens * p.shape.token_bytes();
}

}  // namespace

// Tokens of a segment that somebody sees through the window.
std::int64_t ProfileDevice::tokens_seen(const AttentionPlanView& plan, const PlanSegment& segment,
                                        std::int64_t window) {
  if (window == 0) return segment.length;
  seen_.clear();
  for (const QueryRange& range : plan.query_ranges.subspan(segment.first_query_range, segment.n_query_ranges)) {
    seen_.emplace_back(range.first_seen(window), range.limit);
  }
  std::sort(seen_.begin(), seen_.end());
  std::int64_t tokens = 0, counted_to = 0;
  for (const auto& [begin, end] : seen_) {
    tokens += std::max(end - std::max(begin, counted_to), std::int64_t{0});
    counted_to = std::max(counted_to, end);
  }
  return tokens;
}

template <typename Op>
void ProfileDevice::measure(const Key& key, std::int64_t bytes, Op&& op) {
  const auto begin = std::chrono::steady_clock::now();
  op();
  device_->synchronize();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  OpProfile& profile = profiles_[key];
  profile.calls++;
  profile.seconds += elapsed.count();
  profile.bytes += static_cast<double>(bytes);
}

std::vector<OpProfile> ProfileDevice::take_profile() {
  std::vector<OpProfile> taken;
  taken.reserve(profiles_.size());
  for (auto& [key, profile] : profiles_) {
    const auto& [op, k, outputs] = key;
    profile.op = op;
    if (k > 0) profile.op.append(" ").append(std::to_string(k)).append(" x ").append(std::to_string(outputs));
  }
  // From here on nothing can fail: a profile is taken or kept.
  for (auto& [key, profile] : profiles_) taken.push_back(std::move(profile));
  profiles_.clear();
  std::sort(taken.begin(), taken.end(), [](const OpProfile& a, const OpProfile& b) { return a.seconds > b.seconds; });
  return taken;
}

void ProfileDevice::embedding(const DeviceStep& step, const EmbeddingParams& p) {
  const std::int64_t bytes = p.rows * (matrix_bytes(p.table) / p.table.rows);
  measure({"embedding", 0, 0}, bytes, [&] { device_->embedding(step, p); });
}

void ProfileDevice::rms_norm(const RmsNormParams& p) {
  measure({"rms_norm", 0, 0}, 0, [&] { device_->rms_norm(p); });
}

void ProfileDevice::matmul(const MatmulParams& p) {
  std::int64_t outputs = 0;
  std::int64_t bytes = 0;
  for (int i = 0; i < p.n_outputs; i++) {
    const Matrix& weight = p.outputs[i].weight;
    outputs += weight.rows;
    bytes += matrix_bytes(weight);
  }
  measure({"matmul", p.k, outputs}, bytes, [&] { device_->matmul(p); });
}

void ProfileDevice::gated_activation(const GatedActivationParams& p) {
  measure({"gated_activation", 0, 0}, 0, [&] { device_->gated_activation(p); });
}

void ProfileDevice::add(const AddParams& p) {
  measure({"add", 0, 0}, 0, [&] { device_->add(p); });
}

void ProfileDevice::softcap(const SoftcapParams& p) {
  measure({"softcap", 0, 0}, 0, [&] { device_->softcap(p); });
}

void ProfileDevice::experts(const ExpertsParams& p) {
  const std::size_t n_experts = p.experts.size();
  std::vector<float> logits(static_cast<std::size_t>(p.rows) * n_experts);
  device_->download(logits.data(), p.router_logits, logits.size() * sizeof(float));
  std::vector<std::int32_t> chosen(static_cast<std::size_t>(p.used));
  std::vector<bool> active(n_experts);
  for (std::size_t at = 0; at < logits.size(); at += n_experts) {
    select_experts(std::span(logits).subspan(at, n_experts), chosen);
    for (const std::int32_t expert : chosen) active[static_cast<std::size_t>(expert)] = true;
  }
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < n_experts; ++i) {
    if (!active[i]) continue;
    const FeedForward& expert = p.experts[i];
    for (const Matrix& weight : {expert.gate_proj, expert.up_proj, expert.down_proj}) bytes += matrix_bytes(weight);
  }
  measure({"experts", p.hidden, p.intermediate}, bytes, [&] { device_->experts(p); });
}

void ProfileDevice::kv_append(const DeviceStep& step, const KvAppendParams& p) {
  measure({"kv_append", 0, 0}, p.rows * p.shape.token_bytes(), [&] { device_->kv_append(step, p); });
}

void ProfileDevice::attention(const DeviceStep& step, const AttentionParams& p) {
  std::int64_t tokens = 0;
  const AttentionPlanView& plan = step.view().plan;
  for (const PlanSegment& segment : plan.segments) tokens += tokens_seen(plan, segment, p.window);
  measure({"attention", 0, 0}, tokens * p.shape.token_bytes(), [&] { device_->attention(step, p); });
}

void ProfileDevice::attention_mass(const AttentionMassParams& p) {
  measure({"attention_mass", 0, 0}, 0, [&] { device_->attention_mass(p); });
}

void ProfileDevice::kv_move(const KvMoveParams& p) {
  std::int64_t tokens = 0;
  for (const KvMoveParams::Move& move : p.moves) tokens += move.length;
  measure({"kv_move", 0, 0}, 2 * tokens * p.shape.token_bytes(), [&] { device_->kv_move(p); });
}

void ProfileDevice::kv_read(const KvReadParams& p) {
  measure({"kv_read", 0, 0}, std::ssize(p.slots) * p.shape.token_bytes(), [&] { device_->kv_read(p); });
}

void ProfileDevice::kv_save(const KvCopyParams& p) {
  measure({"kv_save", 0, 0}, copied_bytes(p), [&] { device_->kv_save(p); });
}

void ProfileDevice::kv_load(const KvCopyParams& p) {
  measure({"kv_load", 0, 0}, copied_bytes(p), [&] { device_->kv_load(p); });
}

void ProfileDevice::sample(const SampleParams& p) {
  const std::int64_t bytes = std::ssize(p.rows) * p.vocab * static_cast<std::int64_t>(sizeof(float));
  measure({"sample", 0, 0}, bytes, [&] { device_->sample(p); });
}

}  // namespace hogwild
