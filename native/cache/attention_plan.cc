#include "cache/attention_plan.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "core/error.h"

namespace hogwild {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(code::kInvalidArgument, message); }

void check_worker(const WorkerView& worker, const KvCache& cache, const std::string& name) {
  if (worker.tokens.empty()) refuse(name + " has no new tokens");
  if (!worker.target) refuse(name + " has no block to write to");
  for (const std::shared_ptr<CacheBlock>& block : worker.blocks) {
    if (!block) refuse("the view of " + name + " holds a null block");
    if (&block->cache() != &cache) refuse("the view of " + name + " holds a block of another cache");
  }
  if (std::find(worker.blocks.begin(), worker.blocks.end(), worker.target) == worker.blocks.end()) {
    refuse("the block that " + name + " writes to is not in its view");
  }
  if (!worker.bias.empty() && worker.bias.size() != worker.blocks.size()) {
    refuse("bias of " + name + " must have one entry per block of its view: " + std::to_string(worker.blocks.size()) +
           ", received " + std::to_string(worker.bias.size()));
  }
  for (const float bias : worker.bias) {
    if (std::isnan(bias) || bias == std::numeric_limits<float>::infinity()) {
      refuse("bias of " + name + " must be finite or -Infinity, received " + std::to_string(bias));
    }
  }
}

void check_workers(std::span<const WorkerView> workers, const KvCache& cache) {
  if (workers.empty()) refuse("a step needs at least one worker");
  std::unordered_set<const CacheBlock*> targets;
  std::size_t n_tokens = 0;
  for (std::size_t w = 0; w < workers.size(); ++w) {
    const std::string name = "worker " + std::to_string(w);
    check_worker(workers[w], cache, name);
    if (!targets.insert(workers[w].target.get()).second) {
      throw Error(code::kWriteConflict, name + " writes to the block of another worker of the same step");
    }
    n_tokens += workers[w].tokens.size();
  }
  if (n_tokens > std::numeric_limits<std::int32_t>::max()) refuse("a step takes at most 2^31 - 1 new tokens");
}

// The segments that the views of a step see, each run of storage once: blocks that share pages from
// the same first slot on (forks, mostly) share the longest of these segments.
class SegmentTable {
 public:
  // One segment of a block as it will be after the step's appends.
  struct Entry {
    std::int64_t plan_segment = 0;
    std::int64_t start = 0;  // local position of its first token
    std::int64_t length = 0;
    std::int64_t rotated_at = 0;
  };
  struct Block {
    std::vector<Entry> entries;
    std::int64_t length = 0;
  };

  explicit SegmentTable(std::unordered_map<const CacheBlock*, const PageReservation::ReservedRange*> grown)
      : grown_(std::move(grown)) {}

  const Block& block(const CacheBlock& block) {
    const auto [found, is_new] = blocks_.try_emplace(&block);
    if (is_new) {
      const auto found_reserved = grown_.find(&block);
      std::span<const Segment> segments = block.segments();
      if (found_reserved == grown_.end()) {
        for (const Segment& segment : segments) add(found->second, segment);
      } else {
        if (found_reserved->second->replaces) segments = segments.first(segments.size() - 1);
        for (const Segment& segment : segments) add(found->second, segment);
        add(found->second, found_reserved->second->segment);
      }
    }
    return found->second;
  }

  // [i] is plan segment i. They point into the blocks and the reservation.
  std::span<const Segment* const> segments() const { return segments_; }

 private:
  struct Hash {
    std::size_t operator()(const std::pair<std::int64_t, std::int32_t>& slot) const {
      return std::hash<std::int64_t>()(slot.first * kPageSize + slot.second);
    }
  };

  void add(Block& block, const Segment& segment) {
    block.entries.push_back({.plan_segment = find_or_add(segment),
                             .start = block.length,
                             .length = segment.length,
                             .rotated_at = segment.rotated_at});
    block.length += segment.length;
  }

  std::int64_t find_or_add(const Segment& segment) {
    const auto [begin, end] = by_first_slot_.equal_range({segment.pages.front(), segment.first_slot});
    for (auto it = begin; it != end; ++it) {
      const Segment*& known = segments_[it->second];
      const bool longer = segment.length > known->length;
      const Segment& part = longer ? *known : segment;
      const Segment& whole = longer ? segment : *known;
      if (std::equal(part.pages.begin(), part.pages.end(), whole.pages.begin())) {
        known = &whole;
        return it->second;
      }
    }
    const auto index = static_cast<std::int64_t>(segments_.size());
    by_first_slot_.emplace(std::pair(segment.pages.front(), segment.first_slot), index);
    segments_.push_back(&segment);
    return index;
  }

  std::unordered_map<const CacheBlock*, const PageReservation::ReservedRange*> grown_;
  std::unordered_map<const CacheBlock*, Block> blocks_;
  std::unordered_multimap<std::pair<std::int64_t, std::int32_t>, std::int64_t, Hash> by_first_slot_;
  std::vector<const Segment*> segments_;
};

// One segment in one worker's view.
struct SegmentInView {
  std::int64_t segment = 0;  // in SegmentTable, later in the plan
  std::int64_t start = 0;    // view position of its first token
  std::int64_t length = 0;   // as the worker's block has it
  std::int64_t turn = 0;     // a query at view position p is rotated to p + turn
  std::int64_t row = 0;      // of the rope table for view position p: row + p
  float bias = 0;
};

}  // namespace

struct StepReservation::State {
  State(KvCache& cache, std::vector<WorkerView> views) : workers(std::move(views)), lease(cache) {}

  static inline std::atomic<std::uint64_t> next_id = 1;

  const std::uint64_t id = next_id++;

  void reserve(PagePool& pool);
  void build_plan(const KvCache& cache);
  void add_query_ranges(std::vector<std::vector<SegmentInView>>& in_view);

  std::vector<WorkerView> workers;  // keeps the blocks alive
  KvCache::Lease lease;
  std::optional<PageReservation> reservation;  // ranges()[w] is worker w's
  bool committed = false;

  std::int64_t n_tokens = 0;
  std::vector<std::int32_t> tokens;          // [T]
  std::vector<std::int64_t> first_rows;      // [W]
  std::vector<std::int64_t> view_positions;  // [T]
  std::vector<AppendSlot> slots;             // [T]
  RopeRows rope;
  std::vector<std::int64_t> pages;
  std::vector<PlanSegment> segments;
  std::vector<QueryRange> query_ranges;
  std::vector<std::int64_t> token_query_ranges;
  std::vector<std::int64_t> token_query_ranges_at;
};

void StepReservation::State::reserve(PagePool& pool) {
  std::vector<PageReservation::Request> requests;
  for (const WorkerView& worker : workers) {
    CacheBlock& target = *worker.target;
    first_rows.push_back(n_tokens);
    n_tokens += static_cast<std::int64_t>(worker.tokens.size());
    requests.push_back({.last = target.segments_.empty() ? nullptr : &target.segments_.back(),
                        .position = target.length(),
                        .writer = target.id_,
                        .tokens = static_cast<std::int64_t>(worker.tokens.size())});
  }
  reservation.emplace(pool, requests);
  for (std::size_t w = 0; w < workers.size(); ++w) {
    tokens.insert(tokens.end(), workers[w].tokens.begin(), workers[w].tokens.end());
    // So that commit cannot fail.
    if (reservation->ranges()[w].replaces) continue;
    const std::scoped_lock lock(pool.mutex);
    std::vector<Segment>& list = workers[w].target->segments_;
    if (list.size() == list.capacity()) list.reserve(2 * list.size() + 1);
  }
}

void StepReservation::State::build_plan(const KvCache& cache) {
  std::unordered_map<const CacheBlock*, const PageReservation::ReservedRange*> grown;
  for (std::size_t w = 0; w < workers.size(); ++w) grown.emplace(workers[w].target.get(), &reservation->ranges()[w]);
  SegmentTable table(std::move(grown));

  // What each worker sees, and where its new tokens stand.
  std::vector<std::vector<SegmentInView>> in_view(workers.size());
  std::vector<RopeAngles::Range> ranges;
  view_positions.reserve(n_tokens);
  for (std::size_t w = 0; w < workers.size(); ++w) {
    const WorkerView& worker = workers[w];
    const auto n_new = static_cast<std::int64_t>(worker.tokens.size());
    std::int64_t offset = 0;
    std::int64_t first_position = -1;  // of the worker's first new token
    for (std::size_t b = 0; b < worker.blocks.size(); ++b) {
      const SegmentTable::Block& block = table.block(*worker.blocks[b]);
      if (worker.blocks[b] == worker.target && first_position < 0) first_position = offset + block.length - n_new;
      const float bias = worker.bias.empty() ? 0 : worker.bias[b];
      if (bias != -std::numeric_limits<float>::infinity()) {
        for (const SegmentTable::Entry& entry : block.entries) {
          const std::int64_t start = offset + entry.start;
          in_view[w].push_back({.segment = entry.plan_segment,
                                .start = start,
                                .length = entry.length,
                                .turn = entry.rotated_at - start,
                                .bias = bias});
        }
      }
      offset += block.length;
    }
    for (std::int64_t i = 0; i < n_new; ++i) view_positions.push_back(first_position + i);

    const std::int64_t end_position = first_position + n_new;
    std::erase_if(in_view[w], [&](const SegmentInView& seen) { return seen.start >= end_position; });
    for (const SegmentInView& seen : in_view[w]) {
      const std::int64_t begin = std::max(first_position, seen.start);
      ranges.push_back({.begin = begin + seen.turn, .end = end_position + seen.turn});
    }
    const PageReservation::ReservedRange& reserved = reservation->ranges()[w];
    const std::int64_t first_key = reserved.segment.rotated_at + reserved.first;
    ranges.push_back({.begin = first_key, .end = first_key + n_new});
  }
  rope = RopeRows(cache.angles_, cache.rope_, cache.rope_.attention_factor, std::move(ranges));

  slots.reserve(n_tokens);
  for (const PageReservation::ReservedRange& reserved : reservation->ranges()) {
    std::int32_t rope_row = rope.row(reserved.segment.rotated_at + reserved.first);
    for_each_run(reserved.segment, reserved.first, reserved.segment.length,
                 [&](std::int64_t page, std::int32_t slot, std::int64_t count, std::int64_t) {
                   for (std::int32_t i = 0; i < count; ++i) {
                     slots.push_back({.page = page, .slot = slot + i, .rope_row = rope_row++});
                   }
                 });
  }

  // Segments that are seen get their place in the plan.
  std::vector<std::int64_t> plan_index(table.segments().size(), -1);
  for (std::vector<SegmentInView>& of_worker : in_view) {
    for (SegmentInView& seen : of_worker) {
      const Segment& segment = *table.segments()[seen.segment];
      std::int64_t& index = plan_index[seen.segment];
      if (index < 0) {
        index = static_cast<std::int64_t>(segments.size());
        segments.push_back({.first_page = static_cast<std::int64_t>(pages.size()),
                            .first_slot = segment.first_slot,
                            .length = segment.length});
        pages.insert(pages.end(), segment.pages.begin(), segment.pages.end());
      }
      seen.segment = index;
    }
  }
  add_query_ranges(in_view);
}

void StepReservation::State::add_query_ranges(std::vector<std::vector<SegmentInView>>& in_view) {
  for (std::size_t w = 0; w < workers.size(); ++w) {
    const std::int64_t begin = view_positions[first_rows[w]];
    const std::int64_t end = begin + static_cast<std::int64_t>(workers[w].tokens.size());
    for (SegmentInView& seen : in_view[w]) {
      const std::int64_t first_seen = std::max(begin, seen.start);
      seen.row = rope.row(first_seen + seen.turn) - first_seen;
      segments[seen.segment].n_query_ranges += end - first_seen;
    }
  }
  std::int64_t n_query_ranges = 0;
  std::vector<std::int64_t> next_query_range;  // of each segment
  for (PlanSegment& segment : segments) {
    segment.first_query_range = n_query_ranges;
    next_query_range.push_back(n_query_ranges);
    n_query_ranges += segment.n_query_ranges;
  }
  // Token after token, each in view order: so a segment's query ranges come in ascending token order.
  query_ranges.resize(n_query_ranges);
  token_query_ranges.reserve(n_query_ranges);
  token_query_ranges_at.reserve(n_tokens + 1);
  token_query_ranges_at.push_back(0);
  for (std::size_t w = 0; w < workers.size(); ++w) {
    const auto n_new = static_cast<std::int64_t>(workers[w].tokens.size());
    for (std::int64_t token = first_rows[w]; token < first_rows[w] + n_new; ++token) {
      const std::int64_t position = view_positions[token];
      std::int32_t order = 0;
      for (const SegmentInView& seen : in_view[w]) {
        if (seen.start > position) break;
        const std::int64_t range = next_query_range[seen.segment]++;
        query_ranges[range] = {.token = static_cast<std::int32_t>(token),
                               .rope_row = static_cast<std::int32_t>(seen.row + position),
                               .limit = std::min(position - seen.start + 1, seen.length),
                               .bias = seen.bias,
                               .order = order++};
        token_query_ranges.push_back(range);
      }
      token_query_ranges_at.push_back(static_cast<std::int64_t>(token_query_ranges.size()));
    }
  }
}

StepReservation::StepReservation(KvCache& cache, std::vector<WorkerView> workers) {
  check_workers(workers, cache);
  state_ = std::make_unique<State>(cache, std::move(workers));
  state_->reserve(cache.pool_);
  state_->build_plan(cache);
}

StepReservation::~StepReservation() = default;

void StepReservation::commit() {
  State& state = *state_;
  if (state.committed) return;
  PagePool& pool = state.workers.front().target->cache().pool_;
  const std::scoped_lock lock(pool.mutex);
  state.reservation->commit();
  for (std::size_t row = 0; row < state.slots.size(); ++row) {
    pool.tokens(state.slots[row].page)[state.slots[row].slot] = state.tokens[row];
  }
  for (std::size_t w = 0; w < state.workers.size(); ++w) {
    CacheBlock& target = *state.workers[w].target;
    PageReservation::ReservedRange& reserved = state.reservation->ranges()[w];
    if (reserved.replaces) {
      std::swap(target.segments_.back(), reserved.segment);
    } else {
      target.segments_.push_back(std::move(reserved.segment));
    }
    target.length_.store(target.length() + static_cast<std::int64_t>(state.workers[w].tokens.size()),
                         std::memory_order_release);
  }
  state.committed = true;
}

std::uint64_t StepReservation::id() const { return state_->id; }

std::int64_t StepReservation::n_tokens() const { return state_->n_tokens; }

std::int64_t StepReservation::first_row(std::size_t worker) const { return state_->first_rows[worker]; }

AttentionPlanView StepReservation::plan() const {
  return {.n_tokens = state_->n_tokens,
          .pages = state_->pages,
          .segments = state_->segments,
          .query_ranges = state_->query_ranges,
          .token_query_ranges = state_->token_query_ranges,
          .token_query_ranges_at = state_->token_query_ranges_at};
}

RopeTable StepReservation::rope() const { return state_->rope.table(); }

std::span<const AppendSlot> StepReservation::slots() const { return state_->slots; }

std::int64_t StepReservation::view_position(std::int64_t row) const { return state_->view_positions[row]; }

}  // namespace hogwild
