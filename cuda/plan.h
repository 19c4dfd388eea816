// A step's attention plan in the form in which kernels read it. Plain C++: the host makes it.
#pragma once

#include <cstdint>
#include <vector>

#include "device/ops.h"

namespace hogwild::cuda {

// A segment of storage (PlanSegment of device/ops.h).
struct alignas(16) Segment {
  std::int64_t first_page = 0;  // index into the plan's pages
  std::int32_t first_slot = 0;  // in [0, kPageSize)
  std::int32_t length = 0;      // tokens
};

// One token's look at one segment (PlanVisit of device/ops.h).
struct alignas(16) Visit {
  std::int32_t angle = 0;  // row of the rope table
  std::int32_t limit = 0;  // it sees the first `limit` tokens; 0: none
  float bias = 0;          // added to its scores
  std::int32_t unused = 0;
};

struct DevicePlan {
  const std::int32_t* counts = nullptr;  // [2]: tokens T, segments S
  const Segment* segments = nullptr;     // [S]
  const Visit* visits = nullptr;         // [S, T]
  const std::int64_t* pages = nullptr;
};

// The arrays of a DevicePlan, to be copied to the device.
struct FlatPlan {
  std::vector<std::int32_t> counts;
  std::vector<Segment> segments;
  std::vector<Visit> visits;
  std::vector<std::int64_t> pages;
};

// A segment that some token visits more than once (a block that occurs twice in its view) appears as
// often in the result: each (segment, token) has room for one visit. Throws kUnsupported where a segment
// is longer than kernels can count (2^31 - 1 slots).
FlatPlan flatten(const AttentionPlanView& plan);

}  // namespace hogwild::cuda
