#include "model/attention_mass.h"

#include <algorithm>
#include <memory>
#include <unordered_map>
#include <utility>

namespace hogwild {

struct AttentionMass::Plan {
  std::vector<PlanSegment> segments;
  std::vector<QueryRange> query_ranges;
  std::vector<std::int64_t> token_query_ranges;     // one for each token
  std::vector<std::int64_t> token_query_ranges_at;  // 0, 1, 2, ...
  StepView view;

  Plan(const StepView& step, std::span<const Listener> listeners) {
    const AttentionPlanView& plan = step.plan;
    std::unordered_map<std::int64_t, std::int32_t> token_of;  // by query range of the step
    for (const Listener& listener : listeners) {
      for (std::int64_t i = plan.token_query_ranges_at[listener.token];
           i < plan.token_query_ranges_at[listener.token + 1]; ++i) {
        token_of.emplace(plan.token_query_ranges[i], static_cast<std::int32_t>(token_of.size()));
      }
    }
    token_query_ranges.resize(token_of.size());
    for (const PlanSegment& segment : plan.segments) {
      const auto first = static_cast<std::int64_t>(query_ranges.size());
      for (std::int64_t range = segment.first_query_range; range < segment.first_query_range + segment.n_query_ranges;
           ++range) {
        const auto found = token_of.find(range);
        if (found == token_of.end()) continue;
        token_query_ranges[found->second] = static_cast<std::int64_t>(query_ranges.size());
        query_ranges.push_back(plan.query_ranges[range]);
        query_ranges.back().token = found->second;
      }
      const auto n = static_cast<std::int64_t>(query_ranges.size()) - first;
      if (n == 0) continue;
      segments.push_back(segment);
      segments.back().first_query_range = first;
      segments.back().n_query_ranges = n;
    }
    for (std::size_t at = 0; at <= token_of.size(); ++at) {
      token_query_ranges_at.push_back(static_cast<std::int64_t>(at));
    }
    view = {.plan = {.n_tokens = static_cast<std::int64_t>(token_of.size()),
                     .pages = plan.pages,
                     .segments = segments,
                     .query_ranges = query_ranges,
                     .token_query_ranges = token_query_ranges,
                     .token_query_ranges_at = token_query_ranges_at},
            .ropes = step.ropes,
            .slots = {},
            .tokens = {}};
  }
};

float* AttentionMass::reserve(Device& device, Buffer& buffer, std::int64_t floats) {
  const std::size_t bytes = static_cast<std::size_t>(floats) * sizeof(float);
  if (buffer.bytes() < bytes) {
    buffer = Buffer();
    buffer = device.allocate(bytes, "attention mass");
  }
  return buffer.as<float>();
}

AttentionMass::AttentionMass(std::vector<std::vector<std::int32_t>> entries) : entries_(std::move(entries)) {
  for (const std::vector<std::int32_t>& of_listener : entries_) {
    first_sum_.push_back(n_sums_);
    n_sums_ += static_cast<std::int32_t>(of_listener.size());
  }
}

void AttentionMass::add(Device& device, const DeviceStep& step, const AttentionParams& attention,
                        std::span<const Listener> listeners) {
  const Plan plan(step.view(), listeners);
  const std::int64_t n = plan.view.plan.n_tokens, heads = attention.query_heads;
  const std::int64_t size = heads * attention.shape.head_dim;
  if (sums_.bytes() == 0) reserve(device, sums_, n_sums_);  // zeros
  AttentionParams each = attention;
  each.sinks = nullptr;
  float* queries = reserve(device, q_, n * size);
  each.q = queries;
  each.out = reserve(device, out_, n * size);
  each.lse = reserve(device, lse_, n * heads);
  each.out_dtype = Dtype::kF32;
  std::vector<AttentionMassParams::Range> ranges;
  for (const auto& [token, listener] : listeners) {
    for (std::size_t i = 0; i < entries_[listener].size(); ++i, queries += size) {
      device.copy(queries, static_cast<const float*>(attention.q) + token * size,
                  static_cast<std::size_t>(size) * sizeof(float));
      ranges.push_back(
          {.token = static_cast<std::int32_t>(token), .sum = first_sum_[listener] + static_cast<std::int32_t>(i)});
    }
  }
  const std::unique_ptr<DeviceStep> on_device = device.upload(plan.view);
  device.attention(*on_device, each);
  device.attention_mass(
      {.query_heads = heads, .ranges = ranges, .range_lse = each.lse, .lse = attention.lse, .sums = sums_.as<float>()});
}

void AttentionMass::add_to(Device& device, std::size_t listener, std::span<float> mass) const {
  const std::vector<std::int32_t>& entries = entries_[listener];
  std::vector<float> sums(entries.size());
  if (sums.empty() || sums_.bytes() == 0) return;
  device.download(sums.data(), sums_.as<float>() + first_sum_[listener], sums.size() * sizeof(float));
  for (std::size_t i = 0; i < sums.size(); ++i) mass[static_cast<std::size_t>(entries[i])] += sums[i];
}

}  // namespace hogwild
