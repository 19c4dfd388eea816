// A run of tokens in storage, and the arithmetic of lists of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "device/ops.h"

namespace hogwild {

// Tokens that lie one after the other in pages. pages[0] holds the first token at `first_slot`; the
// i-th key is stored as rotated to position rotated_at + i.
struct Segment {
  std::vector<std::int64_t> pages;
  std::int32_t first_slot = 0;
  std::int64_t length = 0;
  std::int64_t rotated_at = 0;

  // Slots from the start of pages[0] to the end of the last token.
  std::int64_t end_slot() const { return first_slot + length; }
};

constexpr std::int64_t pages_for(std::int64_t slots) { return slots / kPageSize + (slots % kPageSize != 0); }

std::int64_t total_length(std::span<const Segment> segments);

// Tokens [begin, end) of `segment`, 0 <= begin < end <= length.
Segment slice(const Segment& segment, std::int64_t begin, std::int64_t end);

// Puts `segment` behind `list`: merged into its last segment where pages and rotation are contiguous.
void push_joined(std::vector<Segment>& list, Segment segment);

// Puts tokens [begin, end) of `source` behind `list`, 0 <= begin <= end <= total_length(source).
void push_range(std::vector<Segment>& list, std::span<const Segment> source, std::int64_t begin, std::int64_t end);

// Calls visit(page, slot, count, index) for tokens [begin, end) of `segment`, page after page: `count`
// tokens from `slot` on, the first of which is the segment's token `index`.
template <typename Visit>
void for_each_run(const Segment& segment, std::int64_t begin, std::int64_t end, Visit visit) {
  for (std::int64_t index = begin; index < end;) {
    const std::int64_t slot = segment.first_slot + index;
    const std::int64_t count = std::min(end - index, kPageSize - slot % kPageSize);
    visit(segment.pages[slot / kPageSize], static_cast<std::int32_t>(slot % kPageSize), count, index);
    index += count;
  }
}

}  // namespace hogwild
