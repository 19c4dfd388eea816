#include "cache/attention_plan.h"

#include <algorithm>
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

std::string entry_of(const std::string& worker, std::size_t entry) {
  return "entry " + std::to_string(entry) + " of the view of " + worker;
}

void check_entry(const ViewEntry& entry, KvCache& cache, const std::string& worker, std::size_t index) {
  const auto refuse_entry = [&](const std::string& reason) { refuse(entry_of(worker, index) + " " + reason); };
  if (!entry.block) refuse_entry("has no block");
  if (&entry.block->cache() != &cache) refuse_entry("holds a block of another cache");
  if (entry.at && (*entry.at < 0 || *entry.at > kMaxViewPosition)) {
    refuse_entry("must start in [0, " + std::to_string(kMaxViewPosition) + "] (at), received " +
                 std::to_string(*entry.at));
  }
  if (!(entry.temperature >= kMinTemperature && entry.temperature <= kMaxTemperature)) {
    refuse_entry("must have a temperature in [1e-6, 1e6], received " + std::to_string(entry.temperature));
  }
  if (std::isnan(entry.bias) || entry.bias == std::numeric_limits<float>::infinity()) {
    refuse_entry("must have a bias that is finite or -Infinity, received " + std::to_string(entry.bias));
  }
}

void check_worker(const WorkerView& worker, KvCache& cache, const std::string& name) {
  if (worker.tokens.empty()) refuse(name + " has no new tokens");
  if (!worker.target) refuse(name + " has no block to write to");
  for (std::size_t i = 0; i < worker.entries.size(); ++i) check_entry(worker.entries[i], cache, name, i);
  if (worker.write_entry() == worker.entries.size()) {
    refuse("the block that " + name + " writes to is not in its view");
  }
  if (worker.drafts < 0 || worker.drafts >= std::ssize(worker.tokens)) {
    refuse(name + " has " + std::to_string(worker.drafts) + " drafts: expected fewer than its " +
           std::to_string(worker.tokens.size()) + " tokens");
  }
}

std::string name_of_worker(std::size_t index) { return "worker " + std::to_string(index); }

void check_workers(std::span<const WorkerView> workers, KvCache& cache) {
  if (workers.empty()) refuse("a step needs at least one worker");
  std::unordered_set<const CacheBlock*> targets;
  std::size_t n_tokens = 0;
  for (std::size_t w = 0; w < workers.size(); ++w) {
    const std::string name = name_of_worker(w);
    check_worker(workers[w], cache, name);
    if (!targets.insert(workers[w].target.get()).second) {
      throw Error(code::kWriteConflict, name + " writes to the block of another worker of the same step");
    }
    n_tokens += workers[w].tokens.size();
  }
  if (n_tokens > std::numeric_limits<std::int32_t>::max()) refuse("a step takes at most 2^31 - 1 new tokens");
}

// Pairs of a token and a segment that a plan, or all plans that are kept together, should not exceed.
constexpr std::int64_t kMaxPairs = std::int64_t{1} << 20;
constexpr std::int64_t kMinPlanRows = 64;  // a device captures steps up to this size as a whole
constexpr std::int64_t kMaxPlanRows = 512;

// The segments that the views of a step see, each run of storage once: blocks that share pages from
// the same first slot on (forks, mostly) share the longest of these segments.
class SegmentTable {
 public:
  // One segment of a block as it will be after the step's appends.
  struct Piece {
    std::int64_t segment = 0;  // index into segments()
    std::int64_t start = 0;    // local position of its first token
    std::int64_t length = 0;
    std::int64_t rotated_at = 0;
  };

  explicit SegmentTable(std::unordered_map<const CacheBlock*, const PageReservation::ReservedRange*> grown)
      : grown_(std::move(grown)) {}

  std::span<const Piece> pieces(const CacheBlock& block) {
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
    return found->second.pieces;
  }

  // They point into the blocks and the reservation.
  std::span<const Segment* const> segments() const { return segments_; }

 private:
  struct Block {
    std::vector<Piece> pieces;
    std::int64_t length = 0;
  };
  struct Hash {
    std::size_t operator()(const std::pair<std::int64_t, std::int32_t>& slot) const {
      return std::hash<std::int64_t>()(slot.first * kPageSize + slot.second);
    }
  };

  void add(Block& block, const Segment& segment) {
    block.pieces.push_back({.segment = find_or_add(segment),
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

// Where an entry of a view stands, and how many tokens of its block it shows.
struct Place {
  std::int64_t start = 0;  // view position of the first
  std::int64_t shown = 0;

  bool operator==(const Place&) const = default;
};

// One segment in one worker's view.
struct SegmentInView {
  std::int64_t segment = 0;  // in SegmentTable
  std::int64_t start = 0;    // view position of its first token
  std::int64_t length = 0;   // tokens that the worker's entry shows: maybe fewer than its block has
  std::int64_t turn = 0;     // a query at view position p is rotated to p + turn
  float temperature = 1;
  float bias = 0;
  std::int32_t entry = 0;   // of the view
  bool is_written = false;  // of the write entry: a query sees it up to its own place, all others as a whole

  // Of the queries from view position `begin` on, the first that sees it.
  std::int64_t first_query(std::int64_t begin) const { return is_written ? std::max(begin, start) : begin; }
  // Tokens that a query at view position `position` sees; it sees one at least.
  std::int64_t limit(std::int64_t position) const {
    return is_written ? std::min(position - start + 1, length) : length;
  }
};

}  // namespace

std::size_t WorkerView::write_entry() const {
  const auto is_target = [this](const ViewEntry& entry) { return entry.block == target; };
  return static_cast<std::size_t>(std::find_if(entries.begin(), entries.end(), is_target) - entries.begin());
}

struct StepReservation::State {
  // New tokens of a worker, one behind the other, that see the same of others: all of them, unless drafts see more.
  struct Stretch {
    std::int64_t first_token = 0;
    std::int64_t n_tokens = 0;
    std::int64_t first_position = 0;      // view position of its first token
    std::vector<Place> places;            // of the entries up to the written one: nothing behind it is seen
    std::vector<SegmentInView> segments;  // in view order, so those of the write entry come last, by ascending `start`
  };

  // What a worker sees, and where its new tokens stand.
  struct Worker {
    WorkerView view;  // keeps the blocks alive
    std::int64_t first_row = 0;
    std::vector<Stretch> stretches;

    std::int64_t n_tokens() const { return static_cast<std::int64_t>(view.tokens.size()); }
    std::int64_t n_tokens(std::int64_t stage) const { return tokens_at_stage(n_tokens(), view.drafts, stage); }
  };

  State(KvCache& shared_cache, std::vector<WorkerView> views) : cache(shared_cache), lease(shared_cache) {
    for (WorkerView& view : views) workers.emplace_back().view = std::move(view);
  }

  void place();
  void reserve();
  void look();
  void look(const WorkerView& view, Stretch& stretch);

  KvCache& cache;
  std::vector<Worker> workers;
  KvCache::Lease lease;
  std::optional<PageReservation> reservation;  // ranges()[w] is worker w's
  std::optional<SegmentTable> table;
  std::int64_t n_tokens = 0;
  std::int64_t most_segments = 0;  // that one worker sees
  bool committed = false;
};

// Finds where each entry stands. Lengths are those after the appends of the step, or of a later one that drafts stand
// for, but for entries that lag.
void StepReservation::State::place() {
  std::unordered_map<const CacheBlock*, const Worker*> writers;
  for (const Worker& worker : workers) writers.emplace(worker.view.target.get(), &worker);
  const auto places_of = [&](std::size_t w, std::size_t written, std::int64_t stage) {
    std::vector<Place> places;
    std::int64_t end = 0;
    for (std::size_t i = 0; i <= written; ++i) {
      const ViewEntry& entry = workers[w].view.entries[i];
      Place place{.start = entry.at.value_or(end), .shown = entry.block->length()};
      if (const auto writer = writers.find(entry.block.get()); writer != writers.end()) {
        place.shown += writer->second->n_tokens(entry.lag && i != written ? stage - 1 : stage);
      }
      end = place.start + place.shown;
      if (place.shown > 0 && end - 1 > kMaxViewPosition) {
        refuse(entry_of(name_of_worker(w), i) + " shows a token at view position " + std::to_string(end - 1) +
               ": positions go up to " + std::to_string(kMaxViewPosition));
      }
      places.push_back(place);
    }
    return places;
  };
  for (std::size_t w = 0; w < workers.size(); ++w) {
    Worker& worker = workers[w];
    const std::size_t written = worker.view.write_entry();
    for (std::int64_t stage = 0; stage <= worker.view.drafts; ++stage) {
      std::vector<Place> places = places_of(w, written, stage);
      const std::int64_t first_token = worker.n_tokens(stage - 1);
      const std::int64_t n = worker.n_tokens(stage) - first_token;
      if (stage > 0) {
        Stretch& last = worker.stretches.back();
        if (std::equal(places.begin(), places.end() - 1, last.places.begin(), last.places.end() - 1)) {
          last.n_tokens += n;
          last.places = std::move(places);
          continue;
        }
      }
      worker.stretches.push_back({.first_token = first_token,
                                  .n_tokens = n,
                                  .first_position = places.back().start + places.back().shown - n,
                                  .places = std::move(places),
                                  .segments = {}});
    }
  }
}

void StepReservation::State::reserve() {
  PagePool& pool = cache.pool_;
  std::vector<PageReservation::Request> requests;
  for (Worker& worker : workers) {
    CacheBlock& target = *worker.view.target;
    worker.first_row = n_tokens;
    n_tokens += worker.n_tokens();
    requests.push_back({.last = target.segments_.empty() ? nullptr : &target.segments_.back(),
                        .position = target.length(),
                        .writer = target.id_,
                        .budget = target.budget_,
                        .tokens = worker.n_tokens()});
  }
  reservation.emplace(pool, requests);
  for (std::size_t w = 0; w < workers.size(); ++w) {
    // So that commit cannot fail.
    if (reservation->ranges()[w].replaces) continue;
    const std::scoped_lock lock(pool.mutex);
    std::vector<Segment>& list = workers[w].view.target->segments_;
    if (list.size() == list.capacity()) list.reserve(2 * list.size() + 1);
  }
}

// Finds the segments that each worker sees.
void StepReservation::State::look() {
  std::unordered_map<const CacheBlock*, const PageReservation::ReservedRange*> grown;
  for (std::size_t w = 0; w < workers.size(); ++w) {
    grown.emplace(workers[w].view.target.get(), &reservation->ranges()[w]);
  }
  table.emplace(std::move(grown));
  for (Worker& worker : workers) {
    for (Stretch& stretch : worker.stretches) {
      look(worker.view, stretch);
      most_segments = std::max(most_segments, static_cast<std::int64_t>(stretch.segments.size()));
    }
  }
}

void StepReservation::State::look(const WorkerView& view, Stretch& stretch) {
  for (std::size_t i = 0; i < stretch.places.size(); ++i) {
    const ViewEntry& entry = view.entries[i];
    const Place& place = stretch.places[i];
    if (entry.bias == -std::numeric_limits<float>::infinity()) continue;
    for (const SegmentTable::Piece& piece : table->pieces(*entry.block)) {
      if (piece.start >= place.shown) break;
      const std::int64_t start = place.start + piece.start;
      stretch.segments.push_back({.segment = piece.segment,
                                  .start = start,
                                  .length = std::min(piece.length, place.shown - piece.start),
                                  .turn = piece.rotated_at - start,
                                  .temperature = entry.temperature,
                                  .bias = entry.bias,
                                  .entry = static_cast<std::int32_t>(i),
                                  .is_written = i + 1 == stretch.places.size()});
    }
  }
}

StepReservation::StepReservation(KvCache& cache, std::vector<WorkerView> workers) {
  check_workers(workers, cache);
  state_ = std::make_unique<State>(cache, std::move(workers));
  state_->place();
  state_->reserve();
  state_->look();
}

StepReservation::~StepReservation() = default;

std::int64_t StepReservation::n_tokens() const { return state_->n_tokens; }

std::int64_t StepReservation::most_segments() const { return state_->most_segments; }

std::vector<std::int32_t> StepReservation::entries_of_last_token(std::size_t worker) const {
  std::vector<std::int32_t> entries;  // of all segments that it sees: the last token sees each of them
  for (const SegmentInView& seen : state_->workers[worker].stretches.back().segments) entries.push_back(seen.entry);
  return entries;
}

AttentionPlan StepReservation::plan(std::int64_t first, std::int64_t n) const {
  // A stretch's rows of the plan: view positions [begin, end).
  struct Part {
    const PageReservation::ReservedRange* reserved = nullptr;  // its worker's
    const State::Stretch* stretch = nullptr;
    std::int64_t begin = 0;
    std::int64_t end = 0;
    std::size_t first_sight = 0;  // of `sights`: its own are those up to the next part's
  };
  // A segment that they see. The row of the rope tables for view position p is row + p.
  struct Sight {
    const SegmentInView* seen = nullptr;
    std::int64_t segment = 0;  // of the plan
    std::int64_t row = 0;
  };
  const State& state = *state_;
  AttentionPlan plan;
  plan.n_tokens_ = n;

  std::vector<Part> parts;
  std::vector<Sight> sights;  // part after part
  std::vector<RopeAngles::Range> ranges;
  std::vector<std::int64_t> plan_index(state.table->segments().size(), -1);
  const auto add = [&](const PageReservation::ReservedRange& reserved, std::int64_t first_row,
                       const State::Stretch& stretch) {
    const std::int64_t skipped = std::max(first - first_row, std::int64_t{0});
    const std::int64_t stop = std::min(first + n - first_row, stretch.n_tokens);
    if (skipped >= stop) return;
    const Part& part = parts.emplace_back(Part{.reserved = &reserved,
                                               .stretch = &stretch,
                                               .begin = stretch.first_position + skipped,
                                               .end = stretch.first_position + stop,
                                               .first_sight = sights.size()});
    for (const SegmentInView& seen : stretch.segments) {
      const std::int64_t begin = seen.first_query(part.begin);
      if (begin >= part.end) break;
      std::int64_t& index = plan_index[seen.segment];
      if (index < 0) {
        const Segment& segment = *state.table->segments()[seen.segment];
        index = static_cast<std::int64_t>(plan.segments_.size());
        plan.segments_.push_back(
            {.first_page = static_cast<std::int64_t>(plan.pages_.size()), .first_slot = segment.first_slot});
        plan.pages_.insert(plan.pages_.end(), segment.pages.begin(), segment.pages.end());
      }
      plan.segments_[index].n_query_ranges += part.end - begin;
      ranges.push_back({.begin = begin + seen.turn, .end = part.end + seen.turn});
      sights.push_back({.seen = &seen, .segment = index});
    }
    const std::int64_t first_key = reserved.segment.rotated_at + reserved.first + stretch.first_token;
    ranges.push_back({.begin = first_key + skipped, .end = first_key + stop});
  };
  for (std::size_t w = 0; w < state.workers.size(); ++w) {
    const State::Worker& worker = state.workers[w];
    for (const State::Stretch& stretch : worker.stretches) {
      add(state.reservation->ranges()[w], worker.first_row + stretch.first_token, stretch);
    }
  }
  const KvCache& cache = state.cache;
  plan.rope_ = RopeRows(cache.angles_, true, std::move(ranges));

  // Where the keys go.
  plan.slots_.reserve(n);
  for (const Part& part : parts) {
    const PageReservation::ReservedRange& reserved = *part.reserved;
    const std::int64_t begin = reserved.first + part.stretch->first_token + part.begin - part.stretch->first_position;
    std::int32_t rope_row = plan.rope_.row(reserved.segment.rotated_at + begin);
    for_each_run(reserved.segment, begin, begin + part.end - part.begin,
                 [&](std::int64_t page, std::int32_t slot, std::int64_t count, std::int64_t) {
                   for (std::int32_t i = 0; i < count; ++i) {
                     plan.slots_.push_back({.page = page, .slot = slot + i, .rope_row = rope_row++});
                   }
                 });
  }

  // Where each token looks. Token after token, each in view order: so a segment's query ranges come in
  // ascending token order.
  std::int64_t n_query_ranges = 0;
  std::vector<std::int64_t> next_query_range;  // of each segment
  for (PlanSegment& segment : plan.segments_) {
    segment.first_query_range = n_query_ranges;
    next_query_range.push_back(n_query_ranges);
    n_query_ranges += segment.n_query_ranges;
  }
  plan.query_ranges_.resize(n_query_ranges);
  plan.token_query_ranges_.reserve(n_query_ranges);
  plan.token_query_ranges_at_.reserve(n + 1);
  plan.token_query_ranges_at_.push_back(0);
  std::int32_t token = 0;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const Part& part = parts[p];
    const std::size_t end_sight = p + 1 < parts.size() ? parts[p + 1].first_sight : sights.size();
    const std::span of_part(sights.begin() + static_cast<std::ptrdiff_t>(part.first_sight),
                            sights.begin() + static_cast<std::ptrdiff_t>(end_sight));
    for (Sight& sight : of_part) {
      const std::int64_t begin = sight.seen->first_query(part.begin);
      sight.row = plan.rope_.row(begin + sight.seen->turn) - begin;
    }
    for (std::int64_t position = part.begin; position < part.end; ++position, ++token) {
      for (const Sight& sight : of_part) {
        const SegmentInView& seen = *sight.seen;
        if (seen.first_query(position) > position) break;
        const std::int64_t limit = seen.limit(position);
        const std::int64_t range = next_query_range[sight.segment]++;
        plan.query_ranges_[range] = {.token = token,
                                     .rope_row = static_cast<std::int32_t>(sight.row + position),
                                     .limit = limit,
                                     .distance = position - seen.start,
                                     .temperature = seen.temperature,
                                     .bias = seen.bias};
        plan.token_query_ranges_.push_back(range);
        PlanSegment& segment = plan.segments_[sight.segment];
        segment.length = std::max(segment.length, limit);
      }
      plan.token_query_ranges_at_.push_back(static_cast<std::int64_t>(plan.token_query_ranges_.size()));
    }
  }
  return plan;
}

void StepReservation::commit() {
  std::vector<std::int64_t> all;
  for (const State::Worker& worker : state_->workers) all.push_back(worker.n_tokens());
  commit(all);
}

void StepReservation::commit(std::span<const std::int64_t> kept) {
  State& state = *state_;
  if (state.committed) return;
  require(kept.size() == state.workers.size(), "kept: expected one number for each worker");
  for (std::size_t w = 0; w < kept.size(); ++w) {
    const std::int64_t n = state.workers[w].n_tokens();
    if (kept[w] >= 0 && kept[w] <= n) continue;
    refuse(name_of_worker(w) + " keeps " + std::to_string(kept[w]) + " of its tokens: expected 0 to " +
           std::to_string(n));
  }
  PagePool& pool = state.cache.pool_;
  const std::scoped_lock lock(pool.mutex);
  state.reservation->commit(kept);
  for (std::size_t w = 0; w < state.workers.size(); ++w) {
    const WorkerView& view = state.workers[w].view;
    CacheBlock& target = *view.target;
    PageReservation::ReservedRange& reserved = state.reservation->ranges()[w];
    auto token = view.tokens.begin();
    for_each_run(reserved.segment, reserved.first, reserved.segment.length,
                 [&](std::int64_t page, std::int32_t slot, std::int64_t count, std::int64_t) {
                   std::copy_n(token, count, pool.tokens(page).begin() + slot);
                   token += count;
                 });
    if (reserved.replaces) {
      std::swap(target.segments_.back(), reserved.segment);
    } else if (reserved.segment.length > 0) {
      target.segments_.push_back(std::move(reserved.segment));
    }
    target.length_.store(target.length() + kept[w], std::memory_order_release);
  }
  state.committed = true;
}

StepView AttentionPlan::view(std::span<const std::int32_t> tokens) const {
  return {.plan = {.n_tokens = n_tokens_,
                   .pages = pages_,
                   .segments = segments_,
                   .query_ranges = query_ranges_,
                   .token_query_ranges = token_query_ranges_,
                   .token_query_ranges_at = token_query_ranges_at_},
          .ropes = rope_.tables(),
          .slots = slots_,
          .tokens = tokens};
}

std::int64_t ChunkedPlan::chunk_rows(const StepReservation& step) {
  return std::clamp(kMaxPairs / std::max(step.most_segments(), std::int64_t{1}), kMinPlanRows, kMaxPlanRows);
}

ChunkedPlan::ChunkedPlan(const StepReservation& step, Device& device, std::span<const std::int32_t> tokens,
                         std::int64_t first, std::int64_t n)
    : step_(step),
      device_(device),
      tokens_(tokens),
      keeps_all_(n <= kMaxPairs / std::max(step.most_segments(), std::int64_t{1})) {
  const std::int64_t rows = chunk_rows(step);
  for (std::int64_t row = first; row < first + n; row += rows) {
    chunks_.push_back({.first = row, .n = std::min(rows, first + n - row)});
  }
  made_.resize(chunks_.size());
}

const DeviceStep& ChunkedPlan::on_device(std::size_t chunk) {
  std::unique_ptr<Made>& kept = made_[chunk];
  if (!kept) {
    if (!keeps_all_) {
      for (std::unique_ptr<Made>& other : made_) other.reset();
    }
    const auto [first, n] = chunks_[chunk];
    auto made = std::make_unique<Made>(step_.plan(first, n));
    const auto tokens =
        tokens_.empty() ? tokens_ : tokens_.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(n));
    made->on_device = device_.upload(made->plan.view(tokens));
    kept = std::move(made);
  }
  return *kept->on_device;
}

}  // namespace hogwild
