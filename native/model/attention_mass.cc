#include "model/attention_mass.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <unordered_map>

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

void AttentionMass::add(Device& device, const DeviceStep& step, const AttentionParams& attention,
                        std::span<const Listener> listeners) {
  const Plan plan(step.view(), listeners);
  const std::int64_t n = plan.view.plan.n_tokens, heads = attention.query_heads;
  const std::int64_t size = heads * attention.shape.head_dim;

  queries_.resize(static_cast<std::size_t>(n * size));
  float* to = queries_.data();
  for (const Listener& listener : listeners) {
    const float* query = to;
    for (std::size_t i = 0; i < listener.entries.size(); ++i, to += size) {
      if (i == 0) {
        device.download(to, static_cast<const float*>(attention.q) + listener.token * size,
                        static_cast<std::size_t>(size) * sizeof(float));
      } else {
        std::copy_n(query, size, to);
      }
    }
  }
  AttentionParams each = attention;
  each.sinks = nullptr;
  each.q = reserve(device, q_, n * size);
  each.out = reserve(device, out_, n * size);
  each.lse = reserve(device, lse_, n * heads);
  each.out_dtype = Dtype::kF32;
  device.upload(q_.data(), queries_.data(), queries_.size() * sizeof(float));
  const std::unique_ptr<DeviceStep> on_device = device.upload(plan.view);
  device.attention(*on_device, each);
  range_lse_.resize(static_cast<std::size_t>(n * heads));
  device.download(range_lse_.data(), lse_.data(), range_lse_.size() * sizeof(float));

  token_lse_.resize(static_cast<std::size_t>(heads));
  const float* range_lse = range_lse_.data();
  for (const Listener& listener : listeners) {
    device.download(token_lse_.data(), attention.lse + listener.token * heads, token_lse_.size() * sizeof(float));
    for (const std::int32_t entry : listener.entries) {
      for (std::int64_t head = 0; head < heads; ++head) {
        listener.mass[entry] += std::exp(*range_lse++ - token_lse_[static_cast<std::size_t>(head)]);
      }
    }
  }
}

}  // namespace hogwild
