#include "plan.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/error.h"

namespace hogwild::cuda {
namespace {

// Whether token t is the next one of the view of the token before: it sees the same, one place on, and perhaps more.
bool continues_view(const AttentionPlanView& plan, const std::vector<std::int32_t>& view_segments, std::int64_t t) {
  if (t == 0) return false;
  const std::int64_t before = plan.token_query_ranges_at[t - 1], own = plan.token_query_ranges_at[t];
  const std::int64_t n = own - before;
  if (plan.token_query_ranges_at[t + 1] - own < n) return false;
  for (std::int64_t i = 0; i < n; ++i) {
    if (view_segments[own + i] != view_segments[before + i]) return false;
    const auto distance = [&](std::int64_t at) { return plan.query_ranges[plan.token_query_ranges[at]].distance; };
    if (distance(own + i) != distance(before + i) + 1) return false;
  }
  return true;
}

}  // namespace

FlatPlan flatten(const AttentionPlanView& plan) {
  const auto tokens = static_cast<std::size_t>(plan.n_tokens);
  FlatPlan flat;
  std::vector<std::int32_t> segment_of(plan.query_ranges.size());
  flat.pages.assign(plan.pages.begin(), plan.pages.end());
  const bool warm = std::any_of(plan.query_ranges.begin(), plan.query_ranges.end(),
                                [](const QueryRange& range) { return range.temperature != 1; });
  for (const PlanSegment& segment : plan.segments) {
    if (segment.length > std::numeric_limits<std::int32_t>::max() - kPageSize) {
      throw Error(code::kUnsupported, "a segment of " + std::to_string(segment.length) +
                                          " tokens: the CUDA device supports less than 2^31 - 64");
    }
    const std::size_t first = flat.segments.size();
    for (std::int64_t i = segment.first_query_range; i < segment.first_query_range + segment.n_query_ranges; ++i) {
      const QueryRange& range = plan.query_ranges[i];
      std::size_t copy = first;  // the first copy of the segment that this token does not range yet
      while (copy < flat.segments.size() && flat.query_ranges[copy * tokens + range.token].limit > 0) ++copy;
      if (copy == flat.segments.size()) {
        flat.segments.push_back({.first_page = segment.first_page,
                                 .first_slot = segment.first_slot,
                                 .length = static_cast<std::int32_t>(segment.length)});
        flat.query_ranges.resize(flat.query_ranges.size() + tokens);
        if (warm) flat.temperatures.resize(flat.query_ranges.size(), 1);
      }
      const std::size_t at = copy * tokens + range.token;
      flat.query_ranges[at] = {.rope_row = range.rope_row,
                               .limit = static_cast<std::int32_t>(range.limit),
                               .bias = range.bias,
                               .distance = static_cast<std::int32_t>(range.distance)};
      if (warm) flat.temperatures[at] = range.temperature;
      segment_of[i] = static_cast<std::int32_t>(copy);
    }
  }
  for (const Segment& segment : flat.segments) {
    flat.pieces += (segment.first_slot + segment.length + kPieceSlots - 1) / kPieceSlots;
  }
  flat.view_segments.reserve(plan.token_query_ranges.size());
  for (const std::int64_t range : plan.token_query_ranges) flat.view_segments.push_back(segment_of[range]);
  flat.view_segments_at.assign(plan.token_query_ranges_at.begin(), plan.token_query_ranges_at.end());
  for (std::int64_t t = 0; t < plan.n_tokens; ++t) {
    if (!continues_view(plan, flat.view_segments, t)) flat.views.push_back(static_cast<std::int32_t>(t));
  }
  flat.counts = {static_cast<std::int32_t>(tokens), static_cast<std::int32_t>(flat.segments.size()),
                 static_cast<std::int32_t>(flat.views.size())};
  flat.views.push_back(static_cast<std::int32_t>(tokens));
  return flat;
}

}  // namespace hogwild::cuda
