// A step of W workers with one new token each: a common block, and one of each worker, seen by all. What the tests
// of the CUDA device and its benchmark run.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "device/ops.h"

namespace hogwild {

struct WorkerStep {
  static constexpr std::int64_t kRopeRows = 16;

  std::int64_t workers, rotary_dim;
  std::vector<std::int64_t> pages, token_query_ranges, token_query_ranges_at;
  std::vector<PlanSegment> segments;  // the common block, then the workers'
  std::vector<QueryRange> query_ranges;
  std::vector<AppendSlot> slots;
  std::vector<std::int32_t> tokens;
  std::vector<float> cos, sin;  // [kRopeRows, rotary_dim / 2]
  mutable RopeTable rope;       // made by view(): it points into this object

  // `common` and `own`: tokens of the blocks, the new ones included. Pages are numbered from `first_page` on.
  WorkerStep(std::int64_t workers, std::int64_t common, std::int64_t own, std::int64_t first_page = 0,
             std::int64_t rotary_dim = 128)
      : workers(workers), rotary_dim(rotary_dim) {
    const auto add = [&](std::int64_t length) {
      const std::int64_t index = std::ssize(segments);
      segments.push_back({.first_page = std::ssize(pages),
                          .first_slot = 0,
                          .length = length,
                          .first_query_range = std::ssize(query_ranges),
                          .n_query_ranges = workers});
      for (std::int64_t at = 0; at < length; at += kPageSize) pages.push_back(first_page + std::ssize(pages));
      for (std::int64_t w = 0; w < workers; ++w) {
        query_ranges.push_back({.token = static_cast<std::int32_t>(w),
                                .rope_row = static_cast<std::int32_t>((w + index + 1) % kRopeRows),
                                .limit = length,
                                .distance = length,
                                .bias = w == 0 ? 0.25f : 0});
      }
    };
    add(common);
    for (std::int64_t w = 0; w < workers; ++w) {
      add(own);
      slots.push_back({.page = pages.back(), .slot = static_cast<std::int32_t>((own - 1) % kPageSize), .rope_row = 3});
      tokens.push_back(static_cast<std::int32_t>(w));
    }
    token_query_ranges_at.push_back(0);
    for (std::int64_t w = 0; w < workers; ++w) {
      for (std::int64_t s = 0; s < std::ssize(segments); ++s) token_query_ranges.push_back(s * workers + w);
      token_query_ranges_at.push_back(std::ssize(token_query_ranges));
    }
    for (std::int64_t i = 0; i < kRopeRows * rotary_dim / 2; ++i) {
      cos.push_back(std::cos(0.37f * static_cast<float>(i)));
      sin.push_back(std::sin(0.37f * static_cast<float>(i)));
    }
  }

  StepView view() const {
    rope = {.cos = cos.data(), .sin = sin.data(), .rotary_dim = rotary_dim};
    return {.plan = {workers, pages, segments, query_ranges, token_query_ranges, token_query_ranges_at},
            .ropes = {&rope, 1},
            .slots = slots,
            .tokens = tokens};
  }
};

}  // namespace hogwild
