// The cache against its definition: blocks against lists of tokens, plans against what docs/semantics.md says
// each token sees. On a plain device of its own and on the CPU device.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "cache/attention_plan.h"
#include "cache/kv_cache.h"
#include "check.h"
#include "core/error.h"
#include "entries.h"
#include "plain_device.h"

// ---- memory that runs out on request --------------------------------------------------------------

namespace {
thread_local std::int64_t allocations_until_failure = -1;  // -1: never
}

void* operator new(std::size_t bytes) {
  if (allocations_until_failure == 0) throw std::bad_alloc();
  if (allocations_until_failure > 0) --allocations_until_failure;
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace hogwild {
namespace {

using BlockPtr = std::shared_ptr<CacheBlock>;
using Rng = std::mt19937_64;

std::int64_t random_int(Rng& rng, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}

// ---- the oracle: what a token's key and value are -------------------------------------------------

// Partial rotary (6 of 8 dimensions) with an attention factor. The slowest pair turns by less than half
// a circle over all positions that occur, so a row of a rope table tells its position.
constexpr double kSlowest = 1e-4;
const RopeSpec kRope{.inverse_frequencies = {1.0, 0.05, kSlowest}, .attention_factor = 1.25};
const KvShape kShape{.layers = 2, .kv_heads = 2, .head_dim = 8};
constexpr std::int64_t kRow = 16;  // Hkv * D

// Key (before RoPE) or value of a token: kRow numbers in [-1, 1), different for every token and layer.
std::vector<float> original(std::int32_t token, std::int64_t layer, bool is_key) {
  std::vector<float> row(kRow);
  std::uint64_t state = (static_cast<std::uint64_t>(token) << 8) + 2 * layer + is_key;
  for (float& x : row) {
    state += 0x9e3779b97f4a7c15;
    std::uint64_t z = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    x = static_cast<float>(static_cast<double>(z >> 11) / (std::int64_t{1} << 52) - 1);
  }
  return row;
}

std::vector<double> rotated(std::span<const float> x, std::int64_t position, double factor) {
  std::vector<double> y(x.begin(), x.end());
  const std::size_t half = kRope.inverse_frequencies.size();
  for (std::size_t u = 0; u < half; ++u) {
    const double angle = static_cast<double>(position) * kRope.inverse_frequencies[u];
    const double c = factor * std::cos(angle), s = factor * std::sin(angle);
    y[u] = x[u] * c - x[half + u] * s;
    y[half + u] = x[half + u] * c + x[u] * s;
  }
  return y;
}

std::int64_t position_of_row(const RopeTable& rope, std::int64_t row) {
  const std::int64_t half = rope.rotary_dim / 2;
  const std::int64_t last = row * half + half - 1;
  return std::llround(std::atan2(rope.sin[last], rope.cos[last]) / kSlowest);
}

// ---- invariants -----------------------------------------------------------------------------------

// `blocks` are all blocks of the cache.
void check_invariants(const KvCache& cache, std::span<const BlockPtr> blocks) {
  const PagePool& pool = cache.pool();
  std::map<std::int64_t, std::int64_t> references;
  std::map<std::int64_t, std::int64_t> rotation;  // of a page: position of slot 0
  bool good = true;
  for (const BlockPtr& block : blocks) {
    good &= block->length() == total_length(block->segments());
    const Segment* previous = nullptr;
    for (const Segment& segment : block->segments()) {
      good &= segment.length > 0 && segment.rotated_at >= 0;
      good &= segment.first_slot >= 0 && segment.first_slot < kPageSize;
      good &= static_cast<std::int64_t>(segment.pages.size()) == (segment.end_slot() + kPageSize - 1) / kPageSize;
      for (const std::int64_t page : segment.pages) ++references[page];
      for_each_run(segment, 0, segment.length,
                   [&](std::int64_t page, std::int32_t slot, std::int64_t count, std::int64_t index) {
                     const std::int64_t base = segment.rotated_at + index - slot;
                     good &= rotation.try_emplace(page, base).first->second == base;
                     good &= pool.page(page).used >= slot + count && pool.page(page).used <= kPageSize;
                   });
      if (previous != nullptr) {
        std::vector<Segment> two{*previous};
        push_joined(two, segment);
        good &= two.size() == 2;  // neighbours that go on in storage are one segment
      }
      previous = &segment;
    }
  }
  for (const auto& [page, count] : references) good &= pool.page(page).references == count;
  CHECK(good);
  const KvCache::Stats stats = cache.stats();
  CHECK(stats.pages - stats.free_pages == static_cast<std::int64_t>(references.size()));
  CHECK(stats.peak_pages >= stats.pages - stats.free_pages);
}

// ---- a cache and its oracle -----------------------------------------------------------------------

struct World {
  std::shared_ptr<KvCache> cache;
  std::vector<BlockPtr> blocks;
  std::vector<std::vector<std::int32_t>> lists;  // what `blocks` hold
  std::int32_t next_token = 0;

  World(std::shared_ptr<Device> device, std::int64_t capacity)
      : cache(KvCache::create(std::move(device), kShape, kRope, capacity)) {}

  std::size_t create() {
    blocks.push_back(cache->create_block());
    lists.emplace_back();
    return blocks.size() - 1;
  }

  std::vector<std::int32_t> new_tokens(std::int64_t count) {
    std::vector<std::int32_t> tokens(count);
    std::iota(tokens.begin(), tokens.end(), next_token);
    next_token += static_cast<std::int32_t>(count);
    return tokens;
  }

  // What every layer does with the new tokens' keys and values.
  void write(const StepReservation& step, std::span<const std::int32_t> tokens) {
    std::vector<float> k, v;
    const AttentionPlan plan = step.plan(0, step.n_tokens());
    const auto on_device = cache->device().upload(plan.view());
    for (std::int64_t layer = 0; layer < kShape.layers; ++layer) {
      k.clear();
      v.clear();
      for (const std::int32_t token : tokens) {
        const std::vector<float> key = original(token, layer, true), value = original(token, layer, false);
        k.insert(k.end(), key.begin(), key.end());
        v.insert(v.end(), value.begin(), value.end());
      }
      cache->device().kv_append(*on_device, {.shape = kShape,
                                             .layer = cache->layer(layer),
                                             .first = 0,
                                             .rows = step.n_tokens(),
                                             .k = k.data(),
                                             .v = v.data()});
    }
  }

  void append(std::size_t block, std::int64_t count) {
    const std::vector<std::int32_t> tokens = new_tokens(count);
    StepReservation step(*cache, {{.entries = entries_of({blocks[block]}), .target = blocks[block], .tokens = tokens}});
    write(step, tokens);
    step.commit();
    lists[block].insert(lists[block].end(), tokens.begin(), tokens.end());
  }

  void check_lists() const {
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      CHECK(blocks[b]->length() == static_cast<std::int64_t>(lists[b].size()));
      CHECK(blocks[b]->tokens() == lists[b]);
    }
  }

  void check_tokens() const {
    check_lists();
    check_invariants(*cache, blocks);
  }

  // Every stored key is the token's own, turned to where it says; every value the token's own.
  void check_contents() const {
    check_tokens();
    bool good = true;
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      const std::size_t n = lists[b].size();
      std::vector<float> k(n * kRow), v(n * kRow);
      std::vector<std::int64_t> rotated_at(n);
      for (std::int64_t layer = 0; layer < kShape.layers; ++layer) {
        blocks[b]->read(layer, k.data(), v.data(), rotated_at.data());
        for (std::size_t t = 0; t < n; ++t) {
          const std::vector<float> key = original(lists[b][t], layer, true);
          for (std::int64_t head = 0; head < kRow; head += kShape.head_dim) {
            const std::vector<double> expected =
                rotated({&key[head], static_cast<std::size_t>(kShape.head_dim)}, rotated_at[t], kRope.attention_factor);
            for (std::int64_t d = 0; d < kShape.head_dim; ++d) {
              // One rounding at the append, one more for each compaction.
              good &= std::abs(k[t * kRow + head + d] - expected[d]) < 3e-6;
            }
          }
          good &= std::equal(&v[t * kRow], &v[t * kRow] + kRow, original(lists[b][t], layer, false).begin());
        }
      }
    }
    CHECK(good);
  }

  // All that anybody can see of the cache, byte for byte.
  std::string dump() const {
    std::string bytes;
    const auto put = [&](const auto* data, std::size_t count) {
      bytes.append(reinterpret_cast<const char*>(data), count * sizeof(*data));
    };
    const KvCache::Stats stats = cache->stats();
    put(&stats, 1);
    for (const BlockPtr& block : blocks) {
      const std::int64_t n = block->length();
      put(&n, 1);
      const std::vector<std::int32_t> tokens = block->tokens();
      put(tokens.data(), tokens.size());
      for (const Segment& segment : block->segments()) {
        put(segment.pages.data(), segment.pages.size());
        put(&segment.first_slot, 1);
        put(&segment.length, 1);
        put(&segment.rotated_at, 1);
        for (const std::int64_t page : segment.pages) put(&cache->pool().page(page), 1);
      }
      std::vector<float> k(n * kRow), v(n * kRow);
      std::vector<std::int64_t> rotated_at(n);
      for (std::int64_t layer = 0; layer < kShape.layers; ++layer) {
        block->read(layer, k.data(), v.data(), rotated_at.data());
        put(k.data(), k.size());
        put(v.data(), v.size());
        put(rotated_at.data(), rotated_at.size());
      }
    }
    return bytes;
  }

  // `call` throws an Error with this code and leaves the cache as it was.
  void rejects(const char* code, const std::function<void()>& call) {
    const std::string before = dump();
    CHECK_CODE(code, call());
    CHECK(dump() == before);
  }
};

bool is_out_of_pages(const Error& error) { return std::string(error.code()) == code::kOutOfPages; }

std::int64_t pages_of(std::int64_t tokens) { return (tokens + kPageSize - 1) / kPageSize; }

// ---- steps ----------------------------------------------------------------------------------------

// One worker's part of a random step, in indices of World::blocks.
struct Turn {
  struct Entry {
    std::size_t block = 0;
    std::optional<std::int64_t> at = {};
    bool lag = false;
    float temperature = 1;
    float bias = 0;
  };
  std::vector<Entry> view;
  std::size_t target = 0;
  std::vector<std::int32_t> tokens;
  std::int64_t drafts = 0;  // the last of them
  std::int64_t kept = 0;    // that stay, the first ones
};

std::vector<WorkerView> views_of(const World& world, const std::vector<Turn>& turns) {
  std::vector<WorkerView> views;
  for (const Turn& turn : turns) {
    WorkerView view{.entries = {}, .target = world.blocks[turn.target], .tokens = turn.tokens, .drafts = turn.drafts};
    for (const Turn::Entry& entry : turn.view) {
      view.entries.push_back({.block = world.blocks[entry.block],
                              .at = entry.at,
                              .lag = entry.lag,
                              .temperature = entry.temperature,
                              .bias = entry.bias});
    }
    views.push_back(std::move(view));
  }
  return views;
}

// Blocks in any order, some twice, the target anywhere; in half of the views some stand anywhere, are late, hidden or
// weighted. In half of the steps there are drafts, some of which stay, and in some of these fewer tokens still.
std::vector<Turn> random_turns(World& world, Rng& rng) {
  const bool drafts = random_int(rng, 0, 1) == 0, keeps_any = random_int(rng, 0, 3) == 0;
  std::vector<std::size_t> targets(world.blocks.size());
  std::iota(targets.begin(), targets.end(), 0);
  std::shuffle(targets.begin(), targets.end(), rng);
  targets.resize(random_int(rng, 1, std::min<std::int64_t>(4, targets.size())));
  std::vector<Turn> turns;
  for (const std::size_t target : targets) {
    Turn turn;
    turn.target = target;
    for (std::int64_t i = random_int(rng, 0, 4); i > 0; --i) {
      turn.view.push_back({.block = static_cast<std::size_t>(random_int(rng, 0, world.blocks.size() - 1))});
    }
    turn.view.insert(turn.view.begin() + random_int(rng, 0, turn.view.size()), {.block = target});
    if (random_int(rng, 0, 1) == 0) {
      for (Turn::Entry& entry : turn.view) {
        if (random_int(rng, 0, 2) == 0) entry.at = random_int(rng, 0, 2000);
        entry.lag = random_int(rng, 0, 2) == 0;
        if (random_int(rng, 0, 2) == 0) entry.temperature = static_cast<float>(random_int(rng, 1, 6)) / 2;
        entry.bias = random_int(rng, 0, 3) == 0 ? -std::numeric_limits<float>::infinity()
                                                : static_cast<float>(random_int(rng, -3, 3)) / 2;
      }
    }
    turn.tokens = world.new_tokens(random_int(rng, 0, 5) == 0 ? random_int(rng, 1, 150) : random_int(rng, 1, 4));
    const std::int64_t n = std::ssize(turn.tokens);
    if (drafts) turn.drafts = random_int(rng, 0, std::min<std::int64_t>(n - 1, 6));
    turn.kept = random_int(rng, drafts && keeps_any ? 0 : n - turn.drafts, n);
    turns.push_back(std::move(turn));
  }
  return turns;
}

// One key that a new token sees: whose, from how far away, with what temperature and bias.
struct Seen {
  std::int32_t token = 0;
  std::int64_t distance = 0;
  float temperature = 1;
  float bias = 0;
  bool operator==(const Seen&) const = default;
};

// The lists once `stage` steps behind this one are over, each with one draft of those who have so many; -1: before it.
std::vector<std::vector<std::int32_t>> lists_at(const World& world, const std::vector<Turn>& turns,
                                                std::int64_t stage) {
  std::vector<std::vector<std::int32_t>> lists = world.lists;
  for (const Turn& turn : turns) {
    std::int64_t n = 0;
    if (stage >= 0) n = std::min(std::ssize(turn.tokens) - turn.drafts + stage, std::ssize(turn.tokens));
    std::vector<std::int32_t>& list = lists[turn.target];
    list.insert(list.end(), turn.tokens.begin(), turn.tokens.begin() + n);
  }
  return lists;
}

// By the definition: [new token of the step][in view order].
std::vector<std::vector<Seen>> expected_sight(const World& world, const std::vector<Turn>& turns) {
  std::vector<std::vector<std::vector<std::int32_t>>> stages{world.lists};  // from the one before on
  for (std::int64_t stage = 0; stage <= 6; ++stage) stages.push_back(lists_at(world, turns, stage));
  std::vector<std::vector<Seen>> sight;
  for (const Turn& turn : turns) {
    for (std::size_t stage = 0; stage <= static_cast<std::size_t>(turn.drafts); ++stage) {
      // All that the entries up to the written one show, hidden ones included, with view positions for distances.
      std::vector<Seen> shown;
      std::int64_t end = 0;
      for (const Turn::Entry& entry : turn.view) {
        const bool written = entry.block == turn.target;
        const auto& lists = entry.lag && !written ? stages[stage] : stages[stage + 1];
        end = entry.at.value_or(end);
        for (const std::int32_t token : lists[entry.block]) {
          shown.push_back({.token = token, .distance = end++, .temperature = entry.temperature, .bias = entry.bias});
        }
        if (written) break;
      }
      const std::size_t n = stage == 0 ? turn.tokens.size() - static_cast<std::size_t>(turn.drafts) : 1;
      for (std::size_t own = shown.size() - n; own < shown.size(); ++own) {
        std::vector<Seen>& of_token = sight.emplace_back();
        for (std::size_t j = 0; j <= own; ++j) {
          if (std::isinf(shown[j].bias)) continue;
          of_token.push_back(shown[j]);
          of_token.back().distance = shown[own].distance - shown[j].distance;
        }
      }
    }
  }
  return sight;
}

// The key that lies in a slot, as the books and the reservation have it.
struct StoredKey {
  std::int32_t token = 0;
  std::int64_t rotated_at = 0;
};

// The plan of rows [first, first + n).
void check_plan(const World& world, const std::vector<Turn>& turns, const StepReservation& step, std::int64_t first,
                std::int64_t n) {
  const AttentionPlan made = step.plan(first, n);
  const StepView view = made.view();
  const AttentionPlanView& plan = view.plan;
  const RopeTable rope = view.ropes[0];
  bool good = view.slots.size() == static_cast<std::size_t>(n) && plan.n_tokens == n;
  const AttentionPlan whole = step.plan(0, step.n_tokens());  // new keys that other rows write are seen, too
  const StepView whole_view = whole.view();
  std::map<std::pair<std::int64_t, std::int64_t>, StoredKey> stored;
  for (const BlockPtr& block : world.blocks) {
    for (const Segment& segment : block->segments()) {
      for_each_run(segment, 0, segment.length,
                   [&](std::int64_t page, std::int32_t slot, std::int64_t count, std::int64_t index) {
                     for (std::int64_t i = 0; i < count; ++i) {
                       stored[{page, slot + i}] = {.token = world.cache->pool().tokens(page)[slot + i],
                                                   .rotated_at = segment.rotated_at + index + i};
                     }
                   });
    }
  }
  std::int64_t row = 0;
  for (std::size_t w = 0; w < turns.size(); ++w) {
    for (const std::int32_t token : turns[w].tokens) {
      const AppendSlot& slot = whole_view.slots[row];
      const std::int64_t rotated_at = position_of_row(whole_view.ropes[0], slot.rope_row);
      good &= stored.try_emplace({slot.page, slot.slot}, StoredKey{.token = token, .rotated_at = rotated_at}).second;
      if (row >= first && row < first + n) {
        const AppendSlot& same = view.slots[row - first];
        good &= same.page == slot.page && same.slot == slot.slot && position_of_row(rope, same.rope_row) == rotated_at;
      }
      ++row;
    }
  }
  CHECK(step.n_tokens() == row);

  // The lists are in order and complete.
  std::vector<const PlanSegment*> segment_of(plan.query_ranges.size());
  std::int64_t next_query_range = 0;
  for (const PlanSegment& segment : plan.segments) {
    good &= segment.first_query_range == next_query_range && segment.n_query_ranges > 0;
    next_query_range += segment.n_query_ranges;
    for (std::int64_t v = segment.first_query_range; v < next_query_range; ++v) {
      good &= plan.query_ranges[v].limit >= 1 && plan.query_ranges[v].limit <= segment.length;
      good &= v == segment.first_query_range || plan.query_ranges[v].token >= plan.query_ranges[v - 1].token;
      segment_of[v] = &segment;
    }
  }
  CHECK(good);
  CHECK(next_query_range == static_cast<std::int64_t>(plan.query_ranges.size()));
  CHECK(plan.token_query_ranges.size() == plan.query_ranges.size());
  CHECK(plan.token_query_ranges_at.size() == static_cast<std::size_t>(n + 1) && plan.token_query_ranges_at[0] == 0);
  CHECK(plan.token_query_ranges_at[n] == next_query_range);

  const std::vector<std::vector<Seen>> expected = expected_sight(world, turns);
  for (std::int64_t token = 0; token < n; ++token) {
    std::vector<Seen> seen;
    for (std::int64_t i = plan.token_query_ranges_at[token]; i < plan.token_query_ranges_at[token + 1]; ++i) {
      const QueryRange& range = plan.query_ranges[plan.token_query_ranges[i]];
      good &= range.token == token;
      const PlanSegment& segment = *segment_of[plan.token_query_ranges[i]];
      const std::int64_t query_at = position_of_row(rope, range.rope_row);
      for (std::int64_t slot = segment.first_slot; slot < segment.first_slot + range.limit; ++slot) {
        const StoredKey& key = stored.at({plan.pages[segment.first_page + slot / kPageSize], slot % kPageSize});
        seen.push_back({.token = key.token,
                        .distance = query_at - key.rotated_at,
                        .temperature = range.temperature,
                        .bias = range.bias});
        good &= slot - segment.first_slot + seen.back().distance == range.distance;
      }
    }
    good &= seen == expected[first + token];
  }
  CHECK(good);
}

void check_plans(const World& world, const std::vector<Turn>& turns, const StepReservation& step, Rng& rng) {
  const std::int64_t total = step.n_tokens();
  check_plan(world, turns, step, 0, total);
  const auto first = static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(total));
  check_plan(world, turns, step, first,
             1 + static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(total - first)));
}

// Attention over the plan against softmax over the definition, in double precision.
void check_attention(World& world, const std::vector<Turn>& turns, const StepReservation& step) {
  constexpr std::int64_t kQueryHeads = 4;
  const std::int64_t dim = kShape.head_dim;
  const float scale = 1 / std::sqrt(static_cast<float>(dim));
  const std::int64_t n = step.n_tokens();
  std::vector<float> q(n * kQueryHeads * dim), out(q.size()), lse(n * kQueryHeads);
  for (std::size_t i = 0; i < q.size(); i += dim) {
    const std::vector<float> row = original(static_cast<std::int32_t>(1'000'000 + i), 0, true);
    std::copy_n(row.begin(), dim, q.begin() + i);
  }
  const AttentionPlan plan = step.plan(0, n);
  world.cache->device().attention(*world.cache->device().upload(plan.view()), {.shape = kShape,
                                                                               .layer = world.cache->layer(1),
                                                                               .query_heads = kQueryHeads,
                                                                               .scale = scale,
                                                                               .q = q.data(),
                                                                               .out = out.data(),
                                                                               .lse = lse.data()});
  world.cache->device().synchronize();
  const std::vector<std::vector<Seen>> sight = expected_sight(world, turns);
  double worst = 0;
  for (std::int64_t t = 0; t < n; ++t) {
    for (std::int64_t h = 0; h < kQueryHeads; ++h) {
      const std::int64_t kv_head = h * kShape.kv_heads / kQueryHeads;
      double sum = 0;
      std::vector<double> expected(dim);
      for (const Seen& seen : sight[t]) {
        const std::vector<double> query = rotated({&q[(t * kQueryHeads + h) * dim], static_cast<std::size_t>(dim)},
                                                  seen.distance, kRope.attention_factor * kRope.attention_factor);
        const std::vector<float> key = original(seen.token, 1, true), value = original(seen.token, 1, false);
        double score = 0;
        for (std::int64_t d = 0; d < dim; ++d) score += query[d] * key[kv_head * dim + d];
        const double weight = std::exp(scale * score / seen.temperature + seen.bias);
        sum += weight;
        for (std::int64_t d = 0; d < dim; ++d) expected[d] += weight * value[kv_head * dim + d];
      }
      for (std::int64_t d = 0; d < dim; ++d) {
        const double exact = sum == 0 ? 0 : expected[d] / sum;
        worst = std::max(worst, std::abs(out[(t * kQueryHeads + h) * dim + d] - exact));
      }
      const double exact = std::log(sum), found = lse[t * kQueryHeads + h];
      if (exact != found) worst = std::max(worst, std::abs(found - exact));  // -inf where nothing is seen
    }
  }
  CHECK(worst < 2e-5);
}

// ---- random sequences -----------------------------------------------------------------------------

constexpr std::int64_t kMaxLength = 700;  // of a block in the random tests: self-appends double it

void random_step(World& world, Rng& rng, bool thorough) {
  const std::vector<Turn> turns = random_turns(world, rng);
  std::vector<std::int32_t> tokens;
  std::int64_t most_pages = 0;
  for (const Turn& turn : turns) {
    tokens.insert(tokens.end(), turn.tokens.begin(), turn.tokens.end());
    most_pages += pages_of(static_cast<std::int64_t>(turn.tokens.size()));
    if (static_cast<std::int64_t>(world.lists[turn.target].size() + turn.tokens.size()) > kMaxLength) return;
  }
  const std::int64_t free_pages = world.cache->stats().free_pages;
  const bool aborts = random_int(rng, 0, 4) == 0;
  const std::string before = aborts || most_pages > free_pages ? world.dump() : "";
  try {
    StepReservation step(*world.cache, views_of(world, turns));
    if (thorough) check_plans(world, turns, step, rng);
    world.write(step, tokens);
    if (thorough && tokens.size() <= 8) check_attention(world, turns, step);  // slow, in plain loops
    world.check_lists();                                                      // nobody sees the new tokens yet
    std::vector<std::int64_t> kept;
    for (const Turn& turn : turns) kept.push_back(turn.kept);
    if (!aborts) step.commit(kept);
  } catch (const Error& error) {
    CHECK(is_out_of_pages(error) && most_pages > free_pages);
    CHECK(world.dump() == before);
    return;
  }
  if (aborts) {
    CHECK(world.dump() == before);
    return;
  }
  for (const Turn& turn : turns) {
    std::vector<std::int32_t>& list = world.lists[turn.target];
    list.insert(list.end(), turn.tokens.begin(), turn.tokens.begin() + turn.kept);
  }
}

void random_operation(World& world, Rng& rng, bool thorough, bool may_compact) {
  const std::size_t a = random_int(rng, 0, world.blocks.size() - 1);
  const std::size_t b = random_int(rng, 0, world.blocks.size() - 1);
  CacheBlock& target = *world.blocks[a];
  const CacheBlock& source = *world.blocks[b];
  std::vector<std::int32_t>& list = world.lists[a];
  const std::vector<std::int32_t> other = world.lists[b];  // a copy: a may be b
  const auto length = static_cast<std::int64_t>(list.size());
  const bool fits = list.size() + other.size() <= static_cast<std::size_t>(kMaxLength);
  switch (random_int(rng, 0, 14)) {
    case 0:
      if (world.blocks.size() < 7) world.create();
      break;
    case 1:
      if (!fits) break;
      target.append_from(source);
      list.insert(list.end(), other.begin(), other.end());
      break;
    case 2: {
      if (!fits) break;
      const std::int64_t at = random_int(rng, 0, length);
      target.insert(at, source);
      list.insert(list.begin() + at, other.begin(), other.end());
      break;
    }
    case 3: {
      const std::int64_t end = random_int(rng, 0, length), begin = random_int(rng, 0, end);
      target.forget(begin, end);
      list.erase(list.begin() + begin, list.begin() + end);
      break;
    }
    case 4: {
      const std::int64_t keep = random_int(rng, length / 2, length);
      target.truncate(keep);
      list.resize(keep);
      break;
    }
    case 5:
      if (random_int(rng, 0, 2) != 0) break;
      target.clear();
      list.clear();
      break;
    case 6:
      if (world.blocks.size() >= 7) break;
      if (random_int(rng, 0, 1) == 0) {
        world.blocks.push_back(target.fork());
        world.lists.push_back(std::vector<std::int32_t>(list));
      } else {
        const std::int64_t end = random_int(rng, 0, length), begin = random_int(rng, 0, end);
        world.blocks.push_back(target.fork(begin, end));
        world.lists.push_back(std::vector<std::int32_t>(list.begin() + begin, list.begin() + end));
      }
      break;
    case 7:
      if (world.blocks.size() < 3) break;
      world.blocks.erase(world.blocks.begin() + a);
      world.lists.erase(world.lists.begin() + a);
      break;
    case 8: {
      if (!may_compact) break;
      const std::int64_t free_pages = world.cache->stats().free_pages;
      const std::int64_t moved_before = world.cache->stats().key_bytes_moved;
      const std::string before = pages_of(length) > free_pages ? world.dump() : "";
      try {
        const CacheBlock::CompactResult result = target.compact();
        CHECK(result.segments_after == std::min(result.segments_before, std::int64_t{1}));
        CHECK(static_cast<std::int64_t>(target.segments().size()) == result.segments_after);
        CHECK(world.cache->stats().key_bytes_moved - moved_before == result.tokens_moved * kShape.layers * kRow * 4);
      } catch (const Error& error) {
        CHECK(is_out_of_pages(error) && pages_of(length) > free_pages);
        CHECK(world.dump() == before);
      }
      break;
    }
    default:
      random_step(world, rng, thorough);
  }
}

void random_sequences(const std::function<std::shared_ptr<Device>()>& make_device, int sequences) {
  for (int seed = 0; seed < sequences; ++seed) {
    Rng rng(seed);
    World world(make_device(), random_int(rng, 3, 40) * kPageSize);
    world.create();
    const bool may_compact = seed % 2 == 0;
    const bool thorough = seed % 16 < 2;
    for (int i = 0; i < 50; ++i) {
      random_operation(world, rng, thorough, may_compact);
      world.check_tokens();
    }
    world.check_contents();
    if (!may_compact) CHECK(world.cache->stats().key_bytes_moved == 0);
    world.blocks.clear();
    CHECK(world.cache->stats().free_pages == world.cache->stats().pages);
  }
}

TEST(random_sequences_on_a_plain_device) {
  random_sequences([] { return std::make_shared<PlainDevice>(); }, 1500);
}

TEST(random_sequences_on_the_cpu) {
  const std::shared_ptr<Device> device = create_cpu_device({.threads = 2, .simd = ""});
  random_sequences([&] { return device; }, 150);
}

// ---- single properties ----------------------------------------------------------------------------

std::shared_ptr<PlainDevice> plain_device() { return std::make_shared<PlainDevice>(); }

WorkerView alone(const BlockPtr& block, std::span<const std::int32_t> tokens) {
  return {.entries = entries_of({block}), .target = block, .tokens = tokens};
}

const std::vector<std::int32_t> kThree{7, 8, 9};

TEST(shapes) {
  const auto create = [](KvShape shape, RopeSpec rope, std::int64_t capacity) {
    return [=] { KvCache::create(plain_device(), shape, rope, capacity); };
  };
  const auto with = [](auto change) {
    KvShape shape = kShape;
    change(shape);
    return shape;
  };
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  CHECK_CODE(code::kInvalidArgument, create(kShape, kRope, 0)());
  CHECK_CODE(code::kInvalidArgument, create(kShape, kRope, -1)());
  CHECK_CODE(code::kOutOfMemory, create(kShape, kRope, kHuge)());
  CHECK_CODE(code::kOutOfMemory, create(kShape, kRope, kHuge / 1024)());
  CHECK_CODE(code::kOutOfMemory, create(with([](KvShape& s) { s.layers = kHuge; }), kRope, 64)());
  CHECK_CODE(code::kOutOfMemory, create(with([](KvShape& s) { s.kv_heads = kHuge; }), kRope, 64)());
  CHECK_CODE(code::kInvalidArgument, create(with([](KvShape& s) { s.layers = 0; }), kRope, 64)());
  CHECK_CODE(code::kInvalidArgument, create(with([](KvShape& s) { s.kv_heads = -3; }), kRope, 64)());
  for (const std::int64_t head_dim : {-8, 0, 4, 12, 264}) {
    CHECK_CODE(code::kInvalidArgument, create(with([&](KvShape& s) { s.head_dim = head_dim; }), kRope, 64)());
  }
  for (const RopeSpec& rope :
       {RopeSpec{}, RopeSpec{.inverse_frequencies = {1, 1, 1, 1, 1}}, RopeSpec{.inverse_frequencies = {std::nan("")}},
        RopeSpec{.inverse_frequencies = {1}, .attention_factor = 0},
        RopeSpec{.inverse_frequencies = {1}, .attention_factor = std::nan("")}}) {
    CHECK_CODE(code::kInvalidArgument, create(kShape, rope, 64)());
  }
  using Layers = std::vector<std::int32_t>;
  for (const Layers& layers : {Layers{0}, Layers{0, 0, 0}, Layers{0, 2}, Layers{-2, 0}}) {
    CHECK_CODE(code::kInvalidArgument, KvCache::create(plain_device(), kShape, LayerRopes({kRope, kRope}, layers), 64));
  }
  const LayerRopes differ({kRope, kRope}, {1, -1});
  CHECK(KvCache::create(plain_device(), kShape, differ, 64)->layer(1).rope == -1);

  const auto cache = KvCache::create(plain_device(), kShape, kRope, 65);
  CHECK(cache->stats().pages == 2 && cache->stats().free_pages == 2 && cache->stats().peak_pages == 0);
  CHECK(cache->stats().bytes_per_page == 2 * 2 * 64 * kRow * 4);
  CHECK_CODE(code::kInvalidArgument, cache->layer(2));
  CHECK_CODE(code::kInvalidArgument, cache->layer(-1));
}

TEST(refused_calls) {
  World world(plain_device(), 4 * kPageSize);
  const World stranger(plain_device(), 64);
  for (int i = 0; i < 3; ++i) world.create();
  world.append(0, 100);
  world.append(1, 30);
  const BlockPtr a = world.blocks[0], b = world.blocks[1], empty = world.blocks[2];
  const BlockPtr foreign = stranger.cache->create_block();

  world.rejects(code::kInvalidArgument, [&] { a->truncate(-1); });
  world.rejects(code::kInvalidArgument, [&] { a->truncate(101); });
  world.rejects(code::kInvalidArgument, [&] { a->forget(-1, 4); });
  world.rejects(code::kInvalidArgument, [&] { a->forget(5, 4); });
  world.rejects(code::kInvalidArgument, [&] { a->forget(0, 101); });
  world.rejects(code::kInvalidArgument, [&] { a->insert(-1, *b); });
  world.rejects(code::kInvalidArgument, [&] { a->insert(101, *b); });
  world.rejects(code::kInvalidArgument, [&] { a->insert(0, *foreign); });
  world.rejects(code::kInvalidArgument, [&] { a->append_from(*foreign); });
  world.rejects(code::kInvalidArgument, [&] { a->read(2, nullptr, nullptr, nullptr); });

  const auto rejects_step = [&](const char* code, std::vector<WorkerView> workers) {
    world.rejects(code, [&] { StepReservation step(*world.cache, std::move(workers)); });
  };
  const std::vector<std::int32_t> many(400, 1);
  const float inf = std::numeric_limits<float>::infinity();
  const WorkerView good = alone(b, kThree);
  rejects_step(code::kInvalidArgument, {});
  rejects_step(code::kInvalidArgument, {good, alone(a, {})});
  for (const std::int64_t drafts : {-1, 3}) {
    WorkerView drafting = good;
    drafting.drafts = drafts;
    rejects_step(code::kInvalidArgument, {drafting});
  }
  for (const std::vector<std::int64_t>& kept : {std::vector<std::int64_t>{4}, {-1}, {}, {3, 3}}) {
    world.rejects(code::kInvalidArgument, [&] { StepReservation(*world.cache, {good}).commit(kept); });
  }
  const auto viewing = [&](std::vector<ViewEntry> entries, const BlockPtr& target) {
    return WorkerView{.entries = std::move(entries), .target = target, .tokens = kThree};
  };
  rejects_step(code::kInvalidArgument, {good, viewing(entries_of({b}), a)});
  rejects_step(code::kInvalidArgument, {good, viewing(entries_of({a}), nullptr)});
  rejects_step(code::kInvalidArgument, {good, viewing(entries_of({a, nullptr}), a)});
  rejects_step(code::kInvalidArgument, {good, viewing(entries_of({a, foreign}), a)});
  const float nan = std::nanf("");
  for (const ViewEntry& entry : std::vector<ViewEntry>{{.block = b, .at = -1},
                                                       {.block = b, .at = kMaxViewPosition + 1},
                                                       {.block = b, .temperature = 0},
                                                       {.block = b, .temperature = -1},
                                                       {.block = b, .temperature = 9e-7f},
                                                       {.block = b, .temperature = 1.1e6f},
                                                       {.block = b, .temperature = inf},
                                                       {.block = b, .temperature = nan},
                                                       {.block = b, .bias = inf},
                                                       {.block = b, .bias = nan}}) {
    // Behind the write target too.
    rejects_step(code::kInvalidArgument, {viewing({entry, {.block = a}}, a)});
    rejects_step(code::kInvalidArgument, {viewing({{.block = a}, entry}, a)});
  }
  // a holds 100 tokens and gets 3, b holds 30: the last of each may stand at kMaxViewPosition.
  const auto begins = [&](std::vector<ViewEntry> entries) {
    const StepReservation step(*world.cache, {viewing(std::move(entries), a)});
  };
  const std::int64_t of_a = kMaxViewPosition - 102, of_b = kMaxViewPosition - 29;
  begins({{.block = b, .at = of_b}, {.block = a, .at = 0}});
  begins({{.block = b, .at = of_b}, {.block = empty}, {.block = a, .at = of_a}, {.block = b, .at = kMaxViewPosition}});
  rejects_step(code::kInvalidArgument, {viewing({{.block = b, .at = of_b + 1}, {.block = a, .at = 0}}, a)});
  rejects_step(code::kInvalidArgument,
               {viewing({{.block = b, .at = of_b + 1, .bias = -inf}, {.block = a, .at = 0}}, a)});
  rejects_step(code::kInvalidArgument, {viewing({{.block = a, .at = of_a + 1}}, a)});
  rejects_step(code::kInvalidArgument, {viewing({{.block = b, .at = of_b}, {.block = a}}, a)});
  rejects_step(code::kWriteConflict, {good, alone(a, kThree), good});
  // One free page: the first of the two could have it.
  rejects_step(code::kOutOfPages, {alone(empty, kThree), alone(a, std::span(many).first(64))});
  rejects_step(code::kOutOfPages, {good, alone(a, many)});
  CHECK(world.cache->stats().peak_pages == 3);

  // While a step is under way nothing else may change a block; leaving it undoes it.
  world.rejects(code::kBusy, [&] {
    StepReservation step(*world.cache, {good, alone(empty, kThree)});
    world.write(step, std::vector<std::int32_t>(6, 5));
    world.check_lists();
    for (const std::function<void()>& call : std::vector<std::function<void()>>{
             [&] { a->append_from(*b); }, [&] { a->insert(0, *b); }, [&] { a->forget(0, 1); }, [&] { b->truncate(1); },
             [&] { a->clear(); }, [&] { a->compact(); }}) {
      CHECK_CODE(code::kBusy, call());
    }
    StepReservation second(*world.cache, {alone(a, kThree)});
  });
  world.check_contents();
  world.append(2, 64);
  world.check_contents();
}

TEST(segments) {
  World world(plain_device(), 20 * kPageSize);
  world.create();
  const BlockPtr a = world.blocks[0];
  for (int i = 0; i < 100; ++i) world.append(0, 1);
  CHECK(a->segments().size() == 1 && a->segments()[0].pages.size() == 2 && a->segments()[0].rotated_at == 0);

  // A range taken out and put back where it was leaves one segment.
  BlockPtr middle = a->fork(20, 70);
  CHECK(middle->segments().size() == 1 && middle->segments()[0].first_slot == 20);
  CHECK(middle->segments()[0].rotated_at == 20);
  world.rejects(code::kInvalidArgument, [&] { a->fork(0, 101); });
  world.rejects(code::kInvalidArgument, [&] { a->fork(5, 4); });
  a->forget(20, 70);
  CHECK(a->segments().size() == 2);
  a->insert(20, *middle);
  CHECK(a->segments().size() == 1);
  middle.reset();
  world.check_contents();

  // The block goes on in its page although a fork refers to it; the fork starts a page of its own.
  const BlockPtr fork = a->fork();
  world.append(0, 5);
  CHECK(a->segments().size() == 1);
  world.blocks.push_back(fork);
  world.lists.push_back(std::vector<std::int32_t>(world.lists[0].begin(), world.lists[0].end() - 5));
  world.append(1, 3);
  CHECK(fork->segments().size() == 2 && fork->segments()[1].rotated_at == 100);
  world.check_contents();

  // Shortened below what the fork sees, it must not write there.
  a->truncate(90);
  world.lists[0].resize(90);
  world.append(0, 2);
  CHECK(a->segments().size() == 2 && a->segments()[1].rotated_at == 90);
  world.check_contents();

  // What nobody else ever saw is written over.
  a->truncate(91);
  world.lists[0].resize(91);
  world.append(0, 4);
  CHECK(a->segments().size() == 2 && a->segments()[1].length == 5);
  world.check_contents();

  // Also alone, the fork writes in pages of its own only.
  fork->truncate(80);
  world.lists[1].resize(80);
  CHECK(fork->segments().size() == 1);
  a->clear();
  world.lists[0].clear();
  world.append(1, 4);
  CHECK(fork->segments().size() == 2);
  world.check_contents();
}

// Slots and rotations, without the pages' numbers.
using Shape = std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t>>;
Shape shape_of(const CacheBlock& block) {
  Shape shape;
  for (const Segment& s : block.segments()) shape.emplace_back(s.first_slot, s.length, s.rotated_at);
  return shape;
}

// A collector may drop any block that is no longer used, at any time or never: how the others lie in
// storage does not depend on it.
TEST(blocks_that_die_leave_storage_alone) {
  const auto run = [](std::uint64_t seed, bool keep) {
    World world(plain_device(), 400 * kPageSize);
    for (int i = 0; i < 3; ++i) world.create();
    std::vector<BlockPtr> kept;
    std::mt19937_64 rng(seed);
    const auto random = [&](std::int64_t end) {
      return static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(end));
    };
    std::vector<Shape> shapes;
    for (int i = 0; i < 60; ++i) {
      const auto at = static_cast<std::size_t>(random(3));
      BlockPtr& block = world.blocks[at];
      std::vector<std::int32_t>& list = world.lists[at];
      const auto other = static_cast<std::size_t>(random(3));
      switch (random(7)) {
        case 0: {  // the fork goes on, the original is dropped
          kept.push_back(std::exchange(block, block->fork()));
          break;
        }
        case 1: {  // a fork that does nothing
          kept.push_back(block->fork());
          break;
        }
        case 2: {
          const std::int64_t length = block->length() - random(std::min<std::int64_t>(block->length(), 20) + 1);
          block->truncate(length);
          list.resize(length);
          break;
        }
        case 3: {
          if (list.size() + world.lists[other].size() > 2000) break;
          const std::vector<std::int32_t> source = world.lists[other];
          block->append_from(*world.blocks[other]);
          list.insert(list.end(), source.begin(), source.end());
          break;
        }
        case 4: {
          const std::int64_t begin = random(block->length() + 1);
          const std::int64_t end = begin + random(block->length() - begin + 1);
          kept.push_back(block->fork());
          kept.back()->forget(begin, end);
          break;
        }
        default:
          world.append(at, 1 + random(40));
      }
      if (!keep) kept.clear();
      for (const BlockPtr& each : world.blocks) shapes.push_back(shape_of(*each));
    }
    const std::vector<BlockPtr> ours = world.blocks;
    world.blocks.insert(world.blocks.end(), kept.begin(), kept.end());
    for (const BlockPtr& each : kept) world.lists.push_back(each->tokens());
    world.check_contents();
    for (const BlockPtr& each : ours) {
      each->compact();
      shapes.push_back(shape_of(*each));
    }
    return shapes;
  };
  for (std::uint64_t seed = 0; seed < 20; ++seed) CHECK(run(seed, true) == run(seed, false));
}

TEST(company_leaves_storage_alone) {
  // Forks of one block take a step together or each alone, in any order: their slots look the same.
  const auto shapes = [](const std::vector<int>& order, bool together) {
    World world(plain_device(), 20 * kPageSize);
    world.create();
    world.append(0, 70);
    for (int i = 1; i < 4; ++i) world.blocks.push_back(world.blocks[0]->fork());
    for (int repeat = 0; repeat < 2; ++repeat) {
      std::vector<WorkerView> views;
      for (const int i : order) views.push_back(alone(world.blocks[i], kThree));
      if (together) {
        StepReservation(*world.cache, views).commit();
      } else {
        for (const WorkerView& view : views) StepReservation(*world.cache, {view}).commit();
      }
    }
    std::vector<std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t>>> found;
    for (const BlockPtr& block : world.blocks) {
      found.emplace_back();
      for (const Segment& s : block->segments()) found.back().emplace_back(s.first_slot, s.length, s.rotated_at);
    }
    return found;
  };
  const auto expected = shapes({0, 1, 2, 3}, true);
  CHECK(expected[0].size() == 1 && expected[1].size() == 2);
  CHECK(shapes({3, 1, 0, 2}, true) == expected);
  CHECK(shapes({2, 0, 3, 1}, false) == expected);
}

TEST(shared_storage_is_read_once) {
  World world(plain_device(), 40 * kPageSize);
  world.create();
  world.append(0, 200);
  std::vector<WorkerView> views;
  for (int i = 0; i < 5; ++i) {
    const BlockPtr fork = world.blocks[0]->fork();
    views.push_back(
        {.entries = entries_of({world.blocks[0], fork, world.blocks[0]}), .target = fork, .tokens = kThree});
  }
  const StepReservation step(*world.cache, views);
  // The prompt once, and each fork's new page.
  const AttentionPlan made = step.plan(0, step.n_tokens());
  const AttentionPlanView plan = made.view().plan;
  CHECK(plan.segments.size() == 6);
  CHECK(plan.segments[0].length == 200 && plan.segments[0].n_query_ranges == 5 * 3 * 2);
  CHECK(plan.pages.size() == 4 + 5);
}

// The example of docs/semantics.md: two branches that see each other, and one that is a step behind.
TEST(entries_of_branches) {
  World world(plain_device(), 20 * kPageSize);
  for (int i = 0; i < 3; ++i) world.create();
  world.append(0, 6);
  world.append(1, 2);
  world.append(2, 3);
  const BlockPtr prompt = world.blocks[0], a = world.blocks[1], b = world.blocks[2];
  const std::vector<std::int32_t> one{100}, two{200, 201};
  // (limit, distance from the segment's first token, position to which the query is turned) of each range of a token.
  using Range = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
  const auto ranges = [&](std::vector<ViewEntry> of_a, std::vector<ViewEntry> of_b) {
    const StepReservation step(*world.cache, {{.entries = std::move(of_a), .target = a, .tokens = one},
                                              {.entries = std::move(of_b), .target = b, .tokens = two}});
    const AttentionPlan made = step.plan(0, 3);
    const StepView view = made.view();
    const AttentionPlanView& plan = view.plan;
    std::vector<std::vector<Range>> found(3);
    for (std::size_t token = 0; token < 3; ++token) {
      for (std::int64_t i = plan.token_query_ranges_at[token]; i < plan.token_query_ranges_at[token + 1]; ++i) {
        const QueryRange& range = plan.query_ranges[plan.token_query_ranges[i]];
        found[token].emplace_back(range.limit, range.distance, position_of_row(view.ropes[0], range.rope_row));
      }
    }
    return found;
  };
  using Found = std::vector<std::vector<Range>>;
  CHECK(
      (ranges({{.block = prompt}, {.block = b, .at = 6}, {.block = a, .at = 6}},
              {{.block = prompt}, {.block = a, .at = 6}, {.block = b, .at = 6}}) ==
       Found{
           {{6, 8, 8}, {5, 2, 2}, {3, 2, 2}}, {{6, 9, 9}, {3, 3, 3}, {4, 3, 3}}, {{6, 10, 10}, {3, 4, 4}, {5, 4, 4}}}));
  // A at 6, B at 106: turned back by 98 to meet B's first key.
  CHECK((ranges({{.block = prompt}, {.block = b, .at = 106}, {.block = a, .at = 6}},
                {{.block = prompt}, {.block = a, .at = 6}, {.block = b, .at = 106}}) ==
         Found{{{6, 8, 8}, {5, -98, -98}, {3, 2, 2}},
               {{6, 109, 109}, {3, 103, 103}, {4, 3, 3}},
               {{6, 110, 110}, {3, 104, 104}, {5, 4, 4}}}));
  // A is a step behind: of B's five tokens it sees three, and stands as if there were no more.
  CHECK((ranges({{.block = prompt}, {.block = b, .lag = true}, {.block = a, .lag = true}},
                entries_of({prompt, a, b})) == Found{{{6, 11, 11}, {3, 5, 5}, {3, 2, 2}},
                                                     {{6, 12, 12}, {3, 6, 6}, {4, 3, 3}},
                                                     {{6, 13, 13}, {3, 7, 7}, {5, 4, 4}}}));
}

TEST(compact) {
  const auto device = plain_device();
  World world(device, 20 * kPageSize);
  for (int i = 0; i < 3; ++i) world.create();
  world.append(0, 150);
  world.append(1, 40);
  const BlockPtr a = world.blocks[0], b = world.blocks[1];
  CHECK(a->compact().segments_after == 1 && world.blocks[2]->compact().segments_after == 0);
  for (int i = 0; i < 4; ++i) {
    a->append_from(*b);
    world.lists[0].insert(world.lists[0].end(), world.lists[1].begin(), world.lists[1].end());
  }
  CHECK(a->segments().size() == 5);
  const std::vector<std::int64_t> pages = a->segments()[0].pages;

  device->rebases_until_failure = 1;  // the second layer fails
  world.rejects(code::kInternal, [&] { a->compact(); });
  device->rebases_until_failure = -1;
  {
    const BlockPtr rest = world.cache->create_block();
    const std::vector<std::int32_t> filler(world.cache->stats().free_pages * kPageSize, 0);
    StepReservation(*world.cache, {alone(rest, filler)}).commit();
    world.rejects(code::kOutOfPages, [&] { a->compact(); });
  }
  CHECK(world.cache->stats().key_bytes_moved == 0);

  // The block's own last page has room: the first segment stays as a whole.
  const CacheBlock::CompactResult result = a->compact();
  CHECK(result.segments_before == 5 && result.segments_after == 1 && result.tokens_moved == 160);
  CHECK(std::equal(pages.begin(), pages.end(), a->segments()[0].pages.begin()));
  CHECK(world.cache->stats().key_bytes_moved == 160 * kShape.layers * kRow * 4);
  world.check_contents();

  // A fork may not write there: full pages stay, the rest of the first segment is copied bit for bit.
  world.blocks.push_back(a->fork());
  world.lists.push_back(std::vector<std::int32_t>(world.lists[0]));
  const BlockPtr fork = world.blocks.back();
  fork->append_from(*b);
  world.lists.back().insert(world.lists.back().end(), world.lists[1].begin(), world.lists[1].end());
  CHECK(fork->compact().tokens_moved == 310 % kPageSize + 40);
  CHECK(
      std::equal(a->segments()[0].pages.begin(), a->segments()[0].pages.end() - 1, fork->segments()[0].pages.begin()));
  world.check_contents();

  // From the middle of a page on.
  fork->forget(0, 70);
  world.lists.back().erase(world.lists.back().begin(), world.lists.back().begin() + 70);
  fork->insert(100, *b);
  world.lists.back().insert(world.lists.back().begin() + 100, world.lists[1].begin(), world.lists[1].end());
  CHECK(fork->compact().segments_after == 1 && fork->segments()[0].first_slot == 6);
  world.check_contents();
  world.append(3, 100);
  CHECK(fork->segments().size() == 1);
  world.check_contents();
}

// A fork of whole pages goes on in pages of its own, in one segment; what it leaves out stays its block's alone.
TEST(fork_of_a_range) {
  World world(plain_device(), 10 * kPageSize);
  world.create();
  const BlockPtr a = world.blocks[0];
  world.append(0, kPageSize + 36);
  const BlockPtr fork = a->fork(0, kPageSize);
  world.blocks.push_back(fork);
  world.lists.push_back(std::vector<std::int32_t>(world.lists[0].begin(), world.lists[0].begin() + kPageSize));
  a->truncate(kPageSize + 20);
  world.lists[0].resize(kPageSize + 20);
  world.append(0, 2);
  CHECK(a->segments().size() == 1 && a->segments()[0].pages.size() == 2);
  world.append(1, 3);
  CHECK(fork->segments().size() == 1 && fork->segments()[0].pages.size() == 2);
  CHECK(fork->segments()[0].pages[0] == a->segments()[0].pages[0]);
  CHECK(fork->segments()[0].pages[1] != a->segments()[0].pages[1]);
  world.check_contents();
}

// Blocks of one budget together take no more pages than it has, whatever is free beside it; pages count for whoever
// took them until they are free.
TEST(budgets) {
  World world(plain_device(), 10 * kPageSize);
  KvCache& cache = *world.cache;
  const std::int64_t budget = cache.open_budget(3);
  const auto create = [&] {
    world.blocks.push_back(cache.create_block(budget));
    world.lists.emplace_back();
    return world.blocks.size() - 1;
  };
  const std::size_t a = create(), b = create(), free = world.create();
  const auto used = [&] { return cache.budget(budget).in_use; };
  world.append(a, kPageSize);
  world.append(b, kPageSize + 1);
  CHECK(used() == 3);
  const std::vector<std::int32_t> many(kPageSize, 1), one(1, 1);
  const auto append = [&](std::size_t block, std::span<const std::int32_t> tokens) {
    return [&world, block, tokens] { StepReservation(*world.cache, {alone(world.blocks[block], tokens)}); };
  };
  world.rejects(code::kOutOfPages, append(a, one));
  world.rejects(code::kOutOfPages, append(b, many));
  world.append(b, kPageSize - 1);  // the rest of its last page
  world.append(free, 4 * kPageSize);
  CHECK(used() == 3 && cache.budget(budget).peak == 3);

  // A step that is given up leaves nothing behind.
  world.blocks[b]->truncate(0);
  world.lists[b].clear();
  CHECK(used() == 1);
  append(b, many)();
  CHECK(used() == 1 && cache.budget(budget).peak == 3);

  // A fork has the budget of its block; whoever shares a page does not pay for it.
  world.blocks.push_back(world.blocks[a]->fork());
  world.lists.push_back(world.lists[a]);
  const std::size_t fork = world.blocks.size() - 1;
  world.blocks[free]->append_from(*world.blocks[a]);
  world.lists[free].insert(world.lists[free].end(), world.lists[a].begin(), world.lists[a].end());
  CHECK(used() == 1);
  world.append(fork, 2 * kPageSize);
  CHECK(used() == 3);
  world.rejects(code::kOutOfPages, append(fork, one));
  world.check_contents();

  // Pages that others have taken may be charged to it; then they are as if it had taken them, until it is closed.
  world.blocks[fork]->truncate(kPageSize);
  world.lists[fork].resize(kPageSize);
  CHECK(used() == 1);
  world.rejects(code::kOutOfPages, [&] { cache.charge_budget(budget, 3); });
  cache.charge_budget(budget, 1);
  CHECK(used() == 2 && cache.budget(budget).peak == 3);
  world.rejects(code::kOutOfPages, append(fork, std::vector<std::int32_t>(2 * kPageSize, 1)));
  world.append(fork, kPageSize);
  CHECK(used() == 3);
  world.rejects(code::kInvalidArgument, [&] { cache.charge_budget(77, 1); });

  // Closed: no new blocks; what has been taken is still counted, and given back.
  cache.close_budget(budget);
  cache.close_budget(budget);
  world.rejects(code::kInvalidArgument, [&] { cache.create_block(budget); });
  world.rejects(code::kInvalidArgument, [&] { cache.budget(budget); });
  world.rejects(code::kInvalidArgument, [&] { cache.charge_budget(budget, 1); });
  world.rejects(code::kInvalidArgument, [&] { cache.create_block(77); });
  world.rejects(code::kInvalidArgument, [&] { cache.open_budget(0); });
  world.blocks.clear();
  world.lists.clear();
  CHECK(cache.stats().free_pages == 10);
}

// The pool is what it is, however large the budgets.
TEST(budgets_beyond_the_pool) {
  World world(plain_device(), 2 * kPageSize);
  const BlockPtr block = world.cache->create_block(world.cache->open_budget(100));
  world.blocks.push_back(block);
  world.lists.emplace_back();
  world.append(0, 2 * kPageSize);
  world.rejects(code::kOutOfPages, [&] { StepReservation(*world.cache, {alone(block, kThree)}); });
  world.check_contents();
}

// Whichever allocation fails, the operation has not taken place at all.
TEST(memory_runs_out) {
  World world(plain_device(), 40 * kPageSize);
  for (int i = 0; i < 3; ++i) world.create();
  world.append(0, 150);
  world.append(1, 40);
  world.blocks[0]->insert(70, *world.blocks[1]);
  world.blocks[1]->append_from(*world.blocks[0]);
  const BlockPtr a = world.blocks[0], b = world.blocks[1], c = world.blocks[2];
  const std::vector<WorkerView> views{
      {.entries = {{.block = b, .at = 70, .lag = true}, {.block = a, .bias = 1}, {.block = c}},
       .target = a,
       .tokens = kThree},
      {.entries = entries_of({a, a, b}), .target = b, .tokens = kThree},
      alone(c, kThree),
  };
  const std::vector<std::function<void()>> calls{
      [&] { a->append_from(*b); }, [&] { a->insert(50, *a); },
      [&] { a->forget(30, 90); },  [&] { b->truncate(100); },
      [&] { a->fork(); },          [&] { world.cache->create_block(); },
      [&] { a->compact(); },       [&] { StepReservation(*world.cache, std::vector<WorkerView>(views)); },
  };
  for (const std::function<void()>& call : calls) {
    int failures = 0;
    for (bool done = false; !done; ++failures) {
      const std::string before = world.dump();
      allocations_until_failure = failures;
      try {
        call();
        done = true;
      } catch (const std::bad_alloc&) {
      }
      allocations_until_failure = -1;
      if (!done) CHECK(world.dump() == before);
    }
    CHECK(failures > 1);
    check_invariants(*world.cache, world.blocks);
  }
}

TEST(blocks_die_on_other_threads) {
  World world(plain_device(), 200 * kPageSize);
  world.create();
  world.append(0, 1000);
  std::atomic<bool> stop = false;
  std::atomic<bool> good = true;
  std::thread reader([&] {
    const BlockPtr block = world.blocks[0];
    while (!stop) {
      const std::int64_t length = block->length();
      if (static_cast<std::int64_t>(block->tokens().size()) < length) good = false;  // it only grows here
      if (world.cache->stats().free_pages < 0) good = false;
    }
  });
  for (int round = 0; round < 50; ++round) {
    std::vector<BlockPtr> forks;
    for (int i = 0; i < 20; ++i) forks.push_back(world.blocks[0]->fork());
    std::thread killer([dying = std::move(forks)]() mutable { dying.clear(); });
    world.append(0, 10);
    killer.join();
  }
  stop = true;
  reader.join();
  CHECK(good);
  world.check_contents();
}

// The reservation may outlive its caller's views, and a block its cache.
TEST(lifetimes) {
  BlockPtr block;
  {
    World world(plain_device(), 4 * kPageSize);
    world.create();
    world.append(0, 10);
    block = world.blocks[0];
  }
  CHECK(block->length() == 10 && block->cache().stats().free_pages == 3);
  auto step = std::make_unique<StepReservation>(block->cache(), std::vector<WorkerView>{alone(block, kThree)});
  const CacheBlock* last = block.get();
  block.reset();
  step->commit();
  CHECK(last->length() == 13);
  step->commit();  // once is enough
  CHECK(last->length() == 13);
}

TEST(rope_rows) {
  const RopeSpec rope{.inverse_frequencies = {1.0, 0.3, 0.001234}, .attention_factor = 1.5};
  const RopeSpec second{.inverse_frequencies = {0.7, 0.02}, .attention_factor = 0.5};
  const RopeAngles angles[] = {RopeAngles(rope), RopeAngles(second)};
  Rng rng(1);
  for (const std::int64_t scale : {300, 100'000, 5'000'000}) {
    std::vector<RopeAngles::Range> ranges;
    for (int i = 0; i < 30; ++i) {
      const std::int64_t begin = random_int(rng, -scale, scale);
      ranges.push_back({.begin = begin, .end = begin + random_int(rng, 1, 400)});
    }
    const RopeRows rows(angles, true, ranges);
    const RopeRows plain(angles, false, ranges);
    std::map<std::int32_t, std::int64_t> position_of;
    bool good = true;
    for (const RopeAngles::Range& range : ranges) {
      for (std::int64_t position = range.begin; position < range.end; ++position) {
        const std::int32_t row = rows.row(position);
        good &= row == rows.row(range.begin) + (position - range.begin);
        good &= position_of.try_emplace(row, position).first->second == position;
        for (std::size_t u = 0; u < 3; ++u) {
          const double angle = static_cast<double>(position) * rope.inverse_frequencies[u];
          // Half a unit in the last place of a float, and what the product of frequency and position loses.
          const double tolerance = 0x1p-24 + 0x1p-52 * (1 + std::abs(angle));
          good &= std::abs(rows.tables()[0].cos[row * 3 + u] - 1.5 * std::cos(angle)) <= 2 * tolerance;
          good &= std::abs(rows.tables()[0].sin[row * 3 + u] - 1.5 * std::sin(angle)) <= 2 * tolerance;
          good &= std::abs(plain.tables()[0].cos[row * 3 + u] - std::cos(angle)) <= 2 * tolerance;
        }
        const double angle = static_cast<double>(position) * second.inverse_frequencies[1];
        good &= std::abs(rows.tables()[1].sin[row * 2 + 1] - 0.5 * std::sin(angle)) <= 0x1p-24;
      }
    }
    CHECK(good);
  }
}

// ---- timings, printed only ------------------------------------------------------------------------

double best_microseconds(const std::function<void()>& call) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 20; ++i) {
    const auto start = std::chrono::steady_clock::now();
    call();
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
    best = std::min(best, time.count());
  }
  return best;
}

TEST(timings) {
  RopeSpec rope;
  for (int u = 0; u < 64; ++u) rope.inverse_frequencies.push_back(std::pow(500000.0, -u / 64.0));
  const KvShape shape{
      .layers = 1, .kv_heads = 1, .head_dim = 128, .key_format = KvFormat::kBF16, .value_format = KvFormat::kBF16};
  const auto cache = KvCache::create(plain_device(), shape, rope, 64 * 1024);
  const auto filled = [&](std::int64_t length) {
    const BlockPtr block = cache->create_block();
    const std::vector<std::int32_t> tokens(length, 1);
    StepReservation(*cache, {alone(block, tokens)}).commit();
    return block;
  };
  const BlockPtr prompt = filled(16384);
  std::printf("  fork of 16384 tokens: %.1f us\n", best_microseconds([&] { prompt->fork(); }));

  std::vector<BlockPtr> blocks;
  for (int i = 0; i < 100; ++i) blocks.push_back(filled(50));
  const std::vector<std::int32_t> prefill(512, 1);
  std::printf("  plan, 512 new tokens over 100 segments: %.0f us\n", best_microseconds([&] {
                StepReservation(*cache, {{.entries = entries_of(blocks), .target = blocks.back(), .tokens = prefill}});
              }));
  std::vector<WorkerView> workers;
  for (int w = 0; w < 64; ++w) {
    workers.push_back({.entries = entries_of(blocks), .target = blocks[w], .tokens = std::span(prefill).first(1)});
    std::swap(workers.back().entries[w], workers.back().entries.back());
  }
  std::printf("  plan, 64 workers over 100 blocks: %.0f us\n",
              best_microseconds([&] { StepReservation(*cache, std::vector<WorkerView>(workers)); }));
  workers.resize(4);
  for (WorkerView& worker : workers) worker.entries.insert(worker.entries.begin(), {.block = prompt});
  std::printf("  plan, 4 workers over a prompt of 16384 tokens and 100 blocks: %.0f us\n",
              best_microseconds([&] { StepReservation(*cache, std::vector<WorkerView>(workers)); }));
}

}  // namespace
}  // namespace hogwild

HOGWILD_TEST_MAIN
