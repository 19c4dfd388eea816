#include "cache/segment.h"

#include <utility>

namespace hogwild {

std::int64_t total_length(std::span<const Segment> segments) {
  std::int64_t length = 0;
  for (const Segment& segment : segments) length += segment.length;
  return length;
}

Segment slice(const Segment& segment, std::int64_t begin, std::int64_t end) {
  const std::int64_t first = segment.first_slot + begin;
  const std::int64_t last = segment.first_slot + end;
  Segment part;
  part.pages.assign(segment.pages.begin() + first / kPageSize, segment.pages.begin() + pages_for(last));
  part.first_slot = static_cast<std::int32_t>(first % kPageSize);
  part.length = end - begin;
  part.rotated_at = segment.rotated_at + begin;
  return part;
}

void push_joined(std::vector<Segment>& list, Segment segment) {
  if (!list.empty() && list.back().rotated_at + list.back().length == segment.rotated_at) {
    Segment& last = list.back();
    const std::int64_t end = last.end_slot() % kPageSize;
    const bool same_page = end != 0 && segment.first_slot == end && segment.pages.front() == last.pages.back();
    const bool next_page = end == 0 && segment.first_slot == 0;
    if (same_page || next_page) {
      last.pages.insert(last.pages.end(), segment.pages.begin() + same_page, segment.pages.end());
      last.length += segment.length;
      return;
    }
  }
  list.push_back(std::move(segment));
}

void push_range(std::vector<Segment>& list, std::span<const Segment> source, std::int64_t begin, std::int64_t end) {
  std::int64_t start = 0;
  for (const Segment& segment : source) {
    const std::int64_t from = std::max(begin - start, std::int64_t{0});
    const std::int64_t to = std::min(end - start, segment.length);
    if (from < to) push_joined(list, slice(segment, from, to));
    start += segment.length;
  }
}

}  // namespace hogwild
