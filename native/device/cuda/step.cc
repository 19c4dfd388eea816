#include "device/cuda/step.h"

#include <algorithm>
#include <bit>
#include <span>

namespace hogwild::cuda {
namespace {

// Free buffers that are kept: of one step after another, and of a pass whose steps come between.
constexpr std::ptrdiff_t kMaxFreeBuffers = 2;

std::int64_t round_up_to_power(std::int64_t n, std::int64_t least) {
  return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(std::max(n, least))));
}

}  // namespace

std::int64_t bucket_rows(std::int64_t rows) {
  for (const std::int64_t bucket : kBucketRows) {
    if (rows <= bucket) return bucket;
  }
  return rows;
}

std::shared_ptr<Buffer> StepMemory::take(std::size_t bytes) {
  const auto is_free = [](const std::shared_ptr<Buffer>& buffer) { return buffer.use_count() == 1; };
  std::ptrdiff_t free = 0;
  std::erase_if(buffers_, [&](const auto& buffer) { return is_free(buffer) && ++free > kMaxFreeBuffers; });
  auto found = std::find_if(buffers_.begin(), buffers_.end(), is_free);
  if (found == buffers_.end()) found = buffers_.insert(found, std::make_shared<Buffer>());
  memory_.reserve(**found, bytes, "a step's plan");
  return *found;
}

std::unique_ptr<CudaStep> StepMemory::upload(const StepView& step) {
  const FlatPlan flat = flatten(step.plan);
  const std::int64_t rows = std::max({step.plan.n_tokens, static_cast<std::int64_t>(step.slots.size()),
                                      static_cast<std::int64_t>(step.tokens.size())});
  std::int64_t rope_rows = 0;
  for (const QueryRange& range : step.plan.query_ranges) {
    rope_rows = std::max<std::int64_t>(rope_rows, range.rope_row + 1);
  }
  for (const AppendSlot& slot : step.slots) rope_rows = std::max<std::int64_t>(rope_rows, slot.rope_row + 1);

  std::int64_t rope_pairs = 0;
  for (const RopeTable& rope : step.ropes) rope_pairs += rope.rotary_dim / 2;
  StepLayout layout{.rows = bucket_rows(rows),
                    .segments = std::ssize(flat.segments),
                    .pages = std::ssize(flat.pages),
                    .rope_rows = rope_rows,
                    .rope_pairs = rope_pairs,
                    .has_temperatures = !flat.temperatures.empty(),
                    .pieces = deterministic_ ? flat.pieces : 0};
  if (rows <= kMaxGraphRows) {
    layout.segments = round_up_to_power(layout.segments, 16);
    layout.pages = round_up_to_power(layout.pages, 64);
    layout.rope_rows = round_up_to_power(layout.rope_rows, 64);
    if (deterministic_) layout.pieces = round_up_to_power(layout.pieces, 16);
  }
  const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  ArrayLayout arrays;
  const std::size_t counts = arrays.place<std::int32_t>(3);
  const std::size_t tokens = arrays.place<std::int32_t>(size(layout.rows));
  const std::size_t slots = arrays.place<AppendSlot>(size(layout.rows));
  const std::size_t segments = arrays.place<Segment>(size(layout.segments));
  const std::size_t query_ranges = arrays.place<DeviceQueryRange>(size(layout.segments * layout.rows));
  const std::size_t temperatures =
      arrays.place<float>(layout.has_temperatures ? size(layout.segments * layout.rows) : 0);
  const std::size_t pages = arrays.place<std::int64_t>(size(layout.pages));
  const std::size_t views = arrays.place<std::int32_t>(size(layout.rows + 1));
  const std::size_t view_segments =
      arrays.place<std::int32_t>(deterministic_ ? size(layout.segments * layout.rows) : 0);
  const std::size_t view_segments_at = arrays.place<std::int32_t>(deterministic_ ? size(layout.rows + 1) : 0);
  struct RopeAt {
    std::size_t cos, sin;
  };
  std::vector<RopeAt> ropes_at;
  for (const RopeTable& rope : step.ropes) {
    const std::size_t values = size(layout.rope_rows * (rope.rotary_dim / 2));
    ropes_at.push_back({.cos = arrays.place<float>(values), .sin = arrays.place<float>(values)});
  }
  auto result = std::make_unique<CudaStep>(step);
  const std::shared_ptr<Buffer> buffer = take(arrays.bytes());
  staged_.open(arrays.bytes());
  staged_.put(counts, std::span<const std::int32_t>(flat.counts));
  staged_.put(tokens, step.tokens);
  staged_.put(slots, step.slots);
  // Rows beyond the step's: any token, and no slot.
  std::fill(staged_.host<std::int32_t>(tokens) + step.tokens.size(), staged_.host<std::int32_t>(tokens) + layout.rows,
            0);
  std::fill(staged_.host<AppendSlot>(slots) + step.slots.size(), staged_.host<AppendSlot>(slots) + layout.rows,
            AppendSlot{.page = -1, .slot = 0, .rope_row = 0});
  staged_.put(segments, std::span<const Segment>(flat.segments));
  staged_.put(query_ranges, std::span<const DeviceQueryRange>(flat.query_ranges));
  staged_.put(temperatures, std::span<const float>(flat.temperatures));
  staged_.put(pages, std::span<const std::int64_t>(flat.pages));
  staged_.put(views, std::span<const std::int32_t>(flat.views));
  if (deterministic_) {
    staged_.put(view_segments, std::span<const std::int32_t>(flat.view_segments));
    staged_.put(view_segments_at, std::span<const std::int32_t>(flat.view_segments_at));
  }
  std::byte* memory = buffer->as<std::byte>();
  for (std::size_t i = 0; i < step.ropes.size(); ++i) {
    const RopeTable& rope = step.ropes[i];
    const std::size_t values = size(rope_rows * (rope.rotary_dim / 2));
    staged_.put(ropes_at[i].cos, std::span(rope.cos, values));
    staged_.put(ropes_at[i].sin, std::span(rope.sin, values));
    result->ropes.push_back({.cos = reinterpret_cast<const float*>(memory + ropes_at[i].cos),
                             .sin = reinterpret_cast<const float*>(memory + ropes_at[i].sin),
                             .rotary_dim = rope.rotary_dim});
  }
  staged_.copy_to(memory);

  result->id = ++last_id_;
  result->layout = layout;
  result->arrays = {
      .tokens = reinterpret_cast<const std::int32_t*>(memory + tokens),
      .slots = reinterpret_cast<const AppendSlot*>(memory + slots),
      .rope = {},
      .plan = {
          .counts = reinterpret_cast<const std::int32_t*>(memory + counts),
          .segments = reinterpret_cast<const Segment*>(memory + segments),
          .query_ranges = reinterpret_cast<const DeviceQueryRange*>(memory + query_ranges),
          .temperatures = layout.has_temperatures ? reinterpret_cast<const float*>(memory + temperatures) : nullptr,
          .pages = reinterpret_cast<const std::int64_t*>(memory + pages),
          .views = reinterpret_cast<const std::int32_t*>(memory + views),
          .view_segments = deterministic_ ? reinterpret_cast<const std::int32_t*>(memory + view_segments) : nullptr,
          .view_segments_at =
              deterministic_ ? reinterpret_cast<const std::int32_t*>(memory + view_segments_at) : nullptr,
          .max_tokens = static_cast<std::int32_t>(layout.rows),
          .max_segments = static_cast<std::int32_t>(layout.segments),
          .max_pieces = static_cast<std::int32_t>(layout.pieces)}};
  result->memory = buffer;
  return result;
}

}  // namespace hogwild::cuda
