// What the host prepares for kernels, in plain C++: the width of the cache's rows, and a step's attention plan
// in the form in which kernels read it.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "device/ops.h"

namespace hogwild::cuda {

// ---- rows of pages ----------------------------------------------------------------------------------

// KvShape::row_elements() of the caches that the kernels take.
using RowWidths = std::integer_sequence<int, 32, 64, 80, 96, 112, 128, 192, 256>;

// Row width in which the kernels keep a head of this size: the least that they have, or 0 where none fits.
constexpr std::int64_t kv_row_elements(std::int64_t head_dim) {
  if (head_dim < 1 || head_dim % 8 != 0) return 0;  // 16-byte accesses
  return [&]<int... kWidths>(std::integer_sequence<int, kWidths...>) {
    std::int64_t least = 0;
    static_cast<void>(((kWidths >= head_dim && (least = kWidths, true)) || ...));
    return least;
  }(RowWidths());
}

// Whether the kernels take a cache of this shape, its rows rotated by a table of this size.
constexpr bool is_supported(const KvShape& shape, std::int64_t rotary_dim) {
  constexpr std::int64_t kMaxHeads = 65535;  // a dimension of a grid
  const std::int64_t width = shape.head_dim + shape.padding;
  return 1 <= shape.kv_heads && shape.kv_heads <= kMaxHeads && kv_row_elements(shape.head_dim) != 0 &&
         shape.padding >= 0 && kv_row_elements(width) == width && 0 <= rotary_dim && rotary_dim <= shape.head_dim &&
         rotary_dim % 2 == 0;
}

// ---- the plan of a step -----------------------------------------------------------------------------

// A segment of storage (PlanSegment of device/ops.h).
struct alignas(16) Segment {
  std::int64_t first_page = 0;  // index into the plan's pages
  std::int32_t first_slot = 0;  // in [0, kPageSize)
  std::int32_t length = 0;      // tokens
};

// One token's look at one segment (QueryRange of device/ops.h).
struct alignas(16) DeviceQueryRange {
  std::int32_t rope_row = 0;  // row of the rope table
  std::int32_t limit = 0;     // it sees the first `limit` tokens; 0: none
  float bias = 0;             // added to its scores
  std::int32_t distance = 0;  // view positions from the segment's first token to it
};

// Where attention is deterministic, segments are cut into pieces of so many slots, counted from their first page.
inline constexpr std::int32_t kPieceSlots = 512;

// In device memory.
struct DevicePlan {
  const std::int32_t* counts = nullptr;            // [3]: tokens T, segments S, views V
  const Segment* segments = nullptr;               // [S]
  const DeviceQueryRange* query_ranges = nullptr;  // [S, T]
  const float* temperatures = nullptr;             // [S, T], or null where all are 1
  const std::int64_t* pages = nullptr;
  const std::int32_t* views = nullptr;  // [V + 1]: first token of each, which follow each other, and T
  // Deterministic attention, else null: what each token sees, in the order of its view. Those of token t are
  // view_segments[view_segments_at[t]] to view_segments[view_segments_at[t + 1] - 1].
  const std::int32_t* view_segments = nullptr;
  const std::int32_t* view_segments_at = nullptr;  // [T + 1]
  std::int32_t max_tokens = 0;                     // upper bounds of counts, which the host knows
  std::int32_t max_segments = 0;
  std::int32_t max_pieces = 0;  // of all segments; where attention is deterministic
};

// What StepView of device/ops.h holds, in device memory.
struct StepArrays {
  const std::int32_t* tokens = nullptr;  // [rows]
  const AppendSlot* slots = nullptr;     // [rows]; page < 0: the row is skipped
  RopeTable rope;
  DevicePlan plan;
};

// The arrays of a DevicePlan, to be copied to the device.
struct FlatPlan {
  std::vector<std::int32_t> counts;
  std::vector<Segment> segments;
  std::vector<DeviceQueryRange> query_ranges;
  std::vector<float> temperatures;  // empty where all are 1
  std::vector<std::int64_t> pages;
  std::vector<std::int32_t> views;
  std::vector<std::int32_t> view_segments, view_segments_at;
  std::int32_t pieces = 0;  // of all segments
};

// A segment that some token visits more than once (a block that occurs twice in its view) appears as
// often in the result: each (segment, token) has room for one query range. Throws kUnsupported where a segment
// is longer than kernels can count (2^31 - 1 slots).
FlatPlan flatten(const AttentionPlanView& plan);

}  // namespace hogwild::cuda
