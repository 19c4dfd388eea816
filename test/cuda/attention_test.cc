// The attention kernels against float64, on random plans: any number of tokens, heads and segments,
// pages full and partial, hidden and half seen segments, biases, heads narrower than the rows of their pages,
// any rotary dim and dtype; windows, soft caps, sinks, temperatures, and any format of keys and of values. Under g++
// each case also runs under three schedules, which must agree bit for bit, and the bytes read are counted.
//
// Also compiles for a GPU (nvcc -x cu).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "../native/check.h"
#include "behind_kernel.h"
#include "device_array.h"
#include "kernels.h"
#include "kv_shape.h"
#include "pages.h"
#include "plan.h"
#include "simt/simt.h"

namespace hogwild::cuda {
namespace {

using Rng = std::mt19937_64;
constexpr double kLog2E = 1.4426950408889634;

// ---- a random step ----------------------------------------------------------------------------------

struct Limits {
  int min_tokens = 1;
  int max_tokens = 16;
  int max_group = 16;
  int max_kv_heads = 3;
  int max_segments = 8;
  int max_length = 300;
  bool general = false;  // one or more of: window, soft cap, temperatures, any format
};

struct Case {
  std::string name;
  KvShape shape;
  std::int64_t group = 0;
  std::int64_t tokens = 0;
  std::int64_t rotary_dim = 0;
  Dtype dtype = Dtype::kF32;  // of q and out
  std::int32_t ctas = 0;
  std::int32_t min_tiles = 0, multiprocessors = 0;
  bool deterministic = false;
  std::size_t max_partial_bytes = std::size_t{1} << 30;
  std::int32_t more_tokens = 0, more_segments = 0;  // by which the launch's bounds exceed the plan's counts

  std::vector<std::int64_t> pages;
  std::vector<PlanSegment> segments;
  std::vector<QueryRange> query_ranges;
  std::vector<std::int64_t> token_query_ranges, token_query_ranges_at;
  std::vector<float> cos, sin;
  Pool keys, values;
  std::vector<float> q;  // as `dtype` holds it
  std::int64_t window = 0;
  float softcap = 0;
  std::vector<float> sinks;  // none: without

  std::int64_t query_heads() const { return shape.kv_heads * group; }
  AttentionPlanView plan() const {
    AttentionPlanView view;
    view.n_tokens = tokens;
    view.pages = pages;
    view.segments = segments;
    view.query_ranges = query_ranges;
    view.token_query_ranges = token_query_ranges;
    view.token_query_ranges_at = token_query_ranges_at;
    return view;
  }
  // Page and slot of a token.
  std::pair<std::int64_t, std::int64_t> place(const PlanSegment& segment, std::int64_t token) const {
    const std::int64_t slot = segment.first_slot + token;
    return {pages[segment.first_page + slot / kPageSize], slot % kPageSize};
  }
  float value_of(const Pool& pool, const PlanSegment& segment, std::int64_t token, std::int64_t kv_head,
                 std::int64_t dim) const {
    const auto [page, slot] = place(segment, token);
    return pool.number(pool.at(page, kv_head, slot, dim));
  }
  double scale_of(const Pool& pool, const PlanSegment& segment, std::int64_t token, std::int64_t kv_head) const {
    const auto [page, slot] = place(segment, token);
    return pool.scale(page, kv_head, slot);
  }
};

// A token as a cache of this format holds it.
void fill_row(Pool& pool, std::int64_t page, std::int64_t kv_head, std::int64_t slot, Rng& rng) {
  std::normal_distribution<float> normal;
  if (pool.has_scales()) pool.set_scale(page, kv_head, slot, 0.004f + 0.01f * std::abs(normal(rng)));
  for (std::int64_t d = 0; d < pool.shape.row_elements(); ++d) {
    const float x = pool.has_scales() ? static_cast<float>(static_cast<int>(rng() % 255) - 127) : normal(rng);
    pool.set_number(pool.at(page, kv_head, slot, d), d < pool.shape.head_dim ? x : 0);
  }
}

Case random_case(std::uint64_t seed, std::int64_t width, KvFormat format, const Limits& limits) {
  Rng rng(seed * 1000 + width);
  const auto random = [&](std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(high - low + 1));
  };
  std::normal_distribution<float> normal;
  Case c;
  const std::int64_t head_dim = random(0, 2) > 0 ? width : 8 * random(1, width / 8);
  c.shape = {.layers = 1,
             .kv_heads = random(1, limits.max_kv_heads),
             .head_dim = head_dim,
             .key_format = format,
             .value_format = format,
             .padding = width - head_dim};
  bool has_temperatures = false;
  if (limits.general) {
    constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kF16, KvFormat::kBF16, KvFormat::kInt8};
    if (random(0, 2) > 0) c.shape.key_format = kFormats[random(0, 3)];
    if (random(0, 2) > 0) c.shape.value_format = kFormats[random(0, 3)];
    if (random(0, 1) > 0) c.window = random(1, random(0, 1) > 0 ? 40 : 300);
    if (random(0, 3) == 0) c.softcap = random(0, 1) > 0 ? 1.5f : 30.f;
    has_temperatures = random(0, 2) == 0;
  }
  c.group = random(1, limits.max_group);
  c.tokens = random(limits.min_tokens, limits.max_tokens);
  c.rotary_dim = random(0, 2) > 0 ? head_dim : 2 * random(0, head_dim / 2);
  c.dtype = std::vector<Dtype>{Dtype::kF32, Dtype::kBF16, Dtype::kF16}[random(0, 2)];
  c.ctas = static_cast<std::int32_t>(std::vector<int>{1, 2, 3, 5, 8, 13, 40}[random(0, 6)]);
  c.min_tiles = static_cast<std::int32_t>(random(1, 3));
  c.multiprocessors = static_cast<std::int32_t>(random(0, c.ctas));
  c.deterministic = random(0, 2) == 0;
  if (random(0, 1) == 0) c.max_partial_bytes = 1;  // a row tile at a time
  c.more_tokens = static_cast<std::int32_t>(random(0, 1) * random(0, 20));
  c.more_segments = static_cast<std::int32_t>(random(0, 1) * random(0, 20));
  c.name = "seed " + std::to_string(seed) + ", head dim " + std::to_string(head_dim) + " of " + std::to_string(width) +
           ", rotary dim " + std::to_string(c.rotary_dim) + ", " + dtype_name(c.dtype) + " on " +
           kv_format_name(c.shape.key_format) + " and " + kv_format_name(c.shape.value_format) + ", window " +
           std::to_string(c.window) + ", soft cap " + std::to_string(c.softcap) + ", " + std::to_string(c.tokens) +
           " tokens, " + std::to_string(c.shape.kv_heads) + " kv heads of " + std::to_string(c.group) + ", " +
           std::to_string(c.ctas) + " CTAs" + (c.deterministic ? ", deterministic" : "");

  const std::int64_t angles = random(1, 40);
  for (std::int64_t i = 0; i < angles; ++i) {
    const double position = static_cast<double>(random(0, 100'000));
    for (std::int64_t u = 0; u < c.rotary_dim / 2; ++u) {
      const double angle = position * std::pow(1e6, -2.0 * static_cast<double>(u) / static_cast<double>(c.rotary_dim));
      c.cos.push_back(static_cast<float>(std::cos(angle)));
      c.sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }

  std::int64_t used_pages = 0;
  const std::int64_t segments = random(0, limits.max_segments);
  std::vector<std::vector<std::int64_t>> ranges_of(c.tokens);
  for (std::int64_t s = 0; s < segments; ++s) {
    PlanSegment segment;
    segment.first_page = static_cast<std::int64_t>(c.pages.size());
    segment.first_slot = static_cast<std::int32_t>(random(0, 1) * random(0, kPageSize - 1));
    segment.length = random(0, 4) > 0 ? random(0, limits.max_length) : kPageSize * random(1, 2) - segment.first_slot;
    segment.first_query_range = static_cast<std::int64_t>(c.query_ranges.size());
    for (std::int64_t t = 0; t < c.tokens && segment.length > 0; ++t) {
      // Hidden, seen once, or, with the block twice in the view, seen twice.
      for (std::int64_t n = random(0, 9) < 2 ? 0 : random(0, 9) < 1 ? 2 : 1; n > 0; --n) {
        ranges_of[t].push_back(static_cast<std::int64_t>(c.query_ranges.size()));
        c.query_ranges.push_back(
            {.token = static_cast<std::int32_t>(t),
             .rope_row = static_cast<std::int32_t>(random(0, angles - 1)),
             .limit = random(0, 2) > 0 ? segment.length : random(1, segment.length),
             .distance = random(-20, segment.length + 60),
             .temperature = has_temperatures && random(0, 3) > 0 ? 0.5f + std::abs(normal(rng)) : 1,
             .bias = random(0, 2) > 0 ? 0 : normal(rng)});
      }
    }
    segment.n_query_ranges = static_cast<std::int64_t>(c.query_ranges.size()) - segment.first_query_range;
    for (std::int64_t slot = 0; slot < segment.first_slot + segment.length; slot += kPageSize) {
      c.pages.push_back(used_pages++);
    }
    c.segments.push_back(segment);
  }
  c.token_query_ranges_at.push_back(0);
  for (std::vector<std::int64_t>& query_ranges : ranges_of) {
    std::shuffle(query_ranges.begin(), query_ranges.end(), rng);  // views differ in their order
    c.token_query_ranges.insert(c.token_query_ranges.end(), query_ranges.begin(), query_ranges.end());
    c.token_query_ranges_at.push_back(static_cast<std::int64_t>(c.token_query_ranges.size()));
  }

  // Pages in any order in the pool, and NaN, or the greatest codes, wherever there is no token. A token's padding is
  // zero.
  std::vector<std::int64_t> order(used_pages + 2);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), rng);
  for (std::int64_t& page : c.pages) page = order[page];
  c.keys = Pool(c.shape, c.shape.key_format, std::ssize(order), 0x7f);
  c.values = Pool(c.shape, c.shape.value_format, std::ssize(order), 0x7f);
  for (Pool* pool : {&c.keys, &c.values}) {
    if (pool->size() == 1) {  // their scales NaN
      for (std::size_t page = 0; page < order.size(); ++page) {
        for (std::int64_t h = 0; h < c.shape.kv_heads; ++h) {
          for (std::int64_t slot = 0; slot < kPageSize; ++slot) {
            pool->set_scale(static_cast<std::int64_t>(page), h, slot, std::numeric_limits<float>::quiet_NaN());
          }
        }
      }
    } else {
      for (std::size_t i = 0; i < pool->bytes.size(); i += static_cast<std::size_t>(pool->size())) {
        pool->set_bits(static_cast<std::int64_t>(i), pool->size() == 2 ? 0x7fff : 0x7fffffff);
      }
    }
    for (const PlanSegment& segment : c.segments) {
      for (std::int64_t t = 0; t < segment.length; ++t) {
        const auto [page, slot] = c.place(segment, t);
        for (std::int64_t h = 0; h < c.shape.kv_heads; ++h) fill_row(*pool, page, h, slot, rng);
      }
    }
  }
  if (random(0, 3) == 0) {
    for (std::int64_t h = 0; h < c.query_heads(); ++h) {
      c.sinks.push_back(random(0, 3) > 0 ? 2 * normal(rng) : -std::numeric_limits<float>::infinity());
    }
  }
  c.q.resize(c.tokens * c.query_heads() * head_dim);
  for (float& x : c.q) x = rounded(c.dtype, 1.5f * normal(rng));
  return c;
}

// ---- a step by hand ---------------------------------------------------------------------------------

// A step that has no segments yet, with one kv head.
Case empty_step(std::uint64_t seed, std::int64_t width, std::int64_t tokens, std::int64_t group) {
  Case c = random_case(seed, width, KvFormat::kBF16, {.max_kv_heads = 1, .max_segments = 0});
  c.group = group;
  c.tokens = tokens;
  c.deterministic = false;
  c.more_tokens = 0;
  c.sinks.clear();
  Rng rng(seed);
  std::normal_distribution<float> normal;
  c.q.resize(static_cast<std::size_t>(c.tokens * c.query_heads() * c.shape.head_dim));
  for (float& x : c.q) x = rounded(c.dtype, 1.5f * normal(rng));
  return c;
}

// One more segment, and who sees it: in ascending token order.
void add_segment(Case& c, std::int32_t first_slot, std::int64_t length, const std::vector<QueryRange>& query_ranges) {
  c.segments.push_back({.first_page = std::ssize(c.pages),
                        .first_slot = first_slot,
                        .length = length,
                        .first_query_range = std::ssize(c.query_ranges),
                        .n_query_ranges = std::ssize(query_ranges)});
  c.query_ranges.insert(c.query_ranges.end(), query_ranges.begin(), query_ranges.end());
  for (std::int64_t slot = 0; slot < first_slot + length; slot += kPageSize) c.pages.push_back(std::ssize(c.pages));
}

// When all segments are there: views, in the order of the plan, and keys and values that are zero.
void add_views_and_pools(Case& c) {
  std::vector<std::vector<std::int64_t>> ranges_of(static_cast<std::size_t>(c.tokens));
  for (std::size_t i = 0; i < c.query_ranges.size(); ++i) {
    ranges_of[c.query_ranges[i].token].push_back(static_cast<std::int64_t>(i));
  }
  c.token_query_ranges_at = {0};
  for (const std::vector<std::int64_t>& ranges : ranges_of) {
    c.token_query_ranges.insert(c.token_query_ranges.end(), ranges.begin(), ranges.end());
    c.token_query_ranges_at.push_back(std::ssize(c.token_query_ranges));
  }
  c.keys = c.values = Pool(c.shape, KvFormat::kBF16, std::ssize(c.pages), 0);
}

// The same with pages in another order, random keys and values, and NaN wherever there is no token.
void add_views_and_tokens(Case& c, std::uint64_t seed) {
  add_views_and_pools(c);
  std::reverse(c.pages.begin(), c.pages.end());
  Rng rng(seed);
  for (Pool* pool : {&c.keys, &c.values}) {
    std::fill(pool->bytes.begin(), pool->bytes.end(), std::uint8_t{0xff});
    for (const PlanSegment& segment : c.segments) {
      for (std::int64_t t = 0; t < segment.length; ++t) {
        const auto [page, slot] = c.place(segment, t);
        fill_row(*pool, page, 0, slot, rng);
      }
    }
  }
}

// ---- the definition ---------------------------------------------------------------------------------

struct Expected {
  std::vector<double> out, tolerance;  // [T, Hq, D]
  std::vector<double> lse;             // [T, Hq]
};

float scale_log2(const Case& c) {
  return static_cast<float>(1 / std::sqrt(static_cast<double>(c.shape.head_dim))) * static_cast<float>(kLog2E);
}

// As products take it: what is not 16 bits is multiplied in bf16, where codes are exact.
float operand(KvFormat format, float x) { return format == KvFormat::kF32 ? rounded(Dtype::kBF16, x) : x; }

// In float64, but for the one rounding of the rotated queries, and of keys and values of f32, which is part of what is
// computed.
Expected expect(const Case& c) {
  const std::int64_t d = c.shape.head_dim;
  const std::int64_t half = c.rotary_dim / 2;
  // Probabilities are rounded to the 16-bit type, and the result to its own; a query's element may fall to the
  // other side of a tie.
  const Dtype key_dtype = c.shape.key_format == KvFormat::kF16 ? Dtype::kF16 : Dtype::kBF16;
  const double probability_error = rounding_error(c.shape.value_format == KvFormat::kF16 ? Dtype::kF16 : Dtype::kBF16);
  const double out_error = rounding_error(c.dtype);
  Expected expected;
  for (std::int64_t t = 0; t < c.tokens; ++t) {
    for (std::int64_t head = 0; head < c.query_heads(); ++head) {
      const float* q = c.q.data() + (t * c.query_heads() + head) * d;
      std::vector<double> scores;
      std::vector<std::pair<const PlanSegment*, std::int64_t>> at;
      for (const PlanSegment& segment : c.segments) {
        for (std::int64_t v = segment.first_query_range; v < segment.first_query_range + segment.n_query_ranges; ++v) {
          const QueryRange& range = c.query_ranges[v];
          if (range.token != t) continue;
          std::vector<float> rotated(q, q + d);
          for (std::int64_t u = 0; u < half; ++u) {
            const float cos = c.cos[range.rope_row * half + u], sin = c.sin[range.rope_row * half + u];
            rotated[u] = q[u] * cos - q[u + half] * sin;
            rotated[u + half] = q[u + half] * cos + q[u] * sin;
          }
          for (float& x : rotated) x = rounded(key_dtype, x * scale_log2(c));
          for (std::int64_t j = range.first_seen(c.window); j < range.limit; ++j) {
            double score = 0;
            for (std::int64_t i = 0; i < d; ++i) {
              score += static_cast<double>(rotated[i]) *
                       operand(c.shape.key_format, c.value_of(c.keys, segment, j, head / c.group, i));
            }
            score *= c.scale_of(c.keys, segment, j, head / c.group);
            if (c.softcap != 0) score = c.softcap * kLog2E * std::tanh(score / kLog2E / c.softcap);
            score = score / range.temperature + range.bias * kLog2E;
            scores.push_back(score);
            at.emplace_back(&segment, j);
          }
        }
      }
      const double infinity = std::numeric_limits<double>::infinity();
      const double sink = c.sinks.empty() ? -infinity : c.sinks[static_cast<std::size_t>(head)] * kLog2E;
      double greatest = scores.empty() ? 0 : *std::max_element(scores.begin(), scores.end());
      if (sink > -infinity) greatest = std::max(greatest, sink);
      double total = sink > -infinity ? std::exp2(sink - greatest) : 0;
      std::vector<double> mean(d), magnitude(d);
      for (std::size_t i = 0; i < scores.size(); ++i) {
        const double weight = std::exp2(scores[i] - greatest);
        total += weight;
        for (std::int64_t j = 0; j < d; ++j) {
          const double value =
              operand(c.shape.value_format, c.value_of(c.values, *at[i].first, at[i].second, head / c.group, j)) *
              c.scale_of(c.values, *at[i].first, at[i].second, head / c.group);
          mean[j] += weight * value;
          magnitude[j] += weight * std::abs(value);
        }
      }
      expected.lse.push_back(total == 0 ? -infinity : (greatest + std::log2(total)) / kLog2E);
      for (std::int64_t j = 0; j < d; ++j) {
        const double out = scores.empty() ? 0 : mean[j] / total;
        expected.out.push_back(out);
        expected.tolerance.push_back((scores.empty() ? 0 : magnitude[j] / total) * 1.2 * probability_error +
                                     std::abs(out) * 1.01 * out_error + 1e-6);
      }
    }
  }
  return expected;
}

// What rows [first, end) read, as a row tile, for one kv head: every tile of keys from the first to the last that one
// of them sees, and of it the tokens of the segment.
struct Reads {
  std::int64_t tiles = 0, tokens = 0;
};
Reads reads_of(const Case& c, const FlatPlan& flat, std::int64_t first, std::int64_t end) {
  const std::int64_t tile_keys = c.shape.row_elements() <= 128 ? 64 : 32;
  Reads reads;
  for (std::size_t s = 0; s < flat.segments.size(); ++s) {
    std::int64_t limit = 0, seen = flat.segments[s].length;
    for (std::int64_t t = first / c.group; t * c.group < end; ++t) {
      const DeviceQueryRange& range = flat.query_ranges[s * c.tokens + t];
      const std::int64_t from = QueryRange{.distance = range.distance}.first_seen(c.window);
      if (from >= range.limit) continue;
      limit = std::max<std::int64_t>(limit, range.limit);
      seen = std::min(seen, from);
    }
    if (limit == 0) continue;
    const std::int64_t begin = flat.segments[s].first_slot;
    const std::int64_t first_tile = (begin + seen) / tile_keys, end_tile = (begin + limit + tile_keys - 1) / tile_keys;
    reads.tiles += end_tile - first_tile;
    reads.tokens += std::min<std::int64_t>(end_tile * tile_keys, begin + flat.segments[s].length) -
                    std::max(begin, first_tile * tile_keys);
  }
  return reads;
}

// Keys and values that the row tiles read, once per kv head, and nothing else.
[[maybe_unused]] std::uint64_t expected_bytes(const Case& c) {
  const FlatPlan flat = flatten(c.plan());
  const std::int64_t rows = c.tokens * c.group;
  const std::int64_t max_rows = rows + c.more_tokens * c.group;
  const std::int64_t tile_rows = c.shape.row_elements() > 128       ? 32
                                 : c.deterministic || max_rows > 32 ? 64
                                 : max_rows > 16                    ? 32
                                                                    : 16;
  const auto packed = [&](std::int64_t first, std::int64_t end) {
    Reads reads;
    for (; first < end; first += tile_rows) {
      const Reads more = reads_of(c, flat, first, std::min(first + tile_rows, end));
      reads.tiles += more.tiles;
      reads.tokens += more.tokens;
    }
    return reads;
  };
  // The cheapest way that keeps views together; of equals the one with the longest last row tile.
  std::vector<Reads> best = {{}};
  for (std::size_t end = 1; end < flat.views.size(); ++end) {
    best.push_back({.tiles = std::numeric_limits<std::int64_t>::max()});
    for (std::size_t begin = 0; begin < end; ++begin) {
      const std::int64_t first_row = flat.views[begin] * c.group, end_row = flat.views[end] * c.group;
      if (end - begin > 1 && end_row - first_row > tile_rows) continue;
      const Reads last = packed(first_row, end_row);
      if (best[begin].tiles + last.tiles >= best[end].tiles) continue;
      best[end] = {best[begin].tiles + last.tiles, best[begin].tokens + last.tokens};
    }
  }
  Reads reads = packed(0, rows);
  if (!c.deterministic && best.back().tiles < reads.tiles) reads = best.back();
  const std::int64_t token_bytes =
      c.shape.row_elements() * (kv_element_bytes(c.shape.key_format) + kv_element_bytes(c.shape.value_format));
  return static_cast<std::uint64_t>(reads.tokens * c.shape.kv_heads * token_bytes);
}

// ---- running ----------------------------------------------------------------------------------------

struct Result {
  std::vector<float> out, lse;
};

Result run(const Case& c) {
  const FlatPlan flat = flatten(c.plan());
  const simt::DeviceArray<std::int32_t> counts(flat.counts);
  const simt::DeviceArray<Segment> segments(flat.segments);
  const simt::DeviceArray<DeviceQueryRange> query_ranges(flat.query_ranges);
  const simt::DeviceArray<float> temperatures(flat.temperatures), sinks(c.sinks);
  const simt::DeviceArray<std::int64_t> pages(flat.pages);
  const simt::DeviceArray<std::int32_t> views(flat.views);
  const simt::DeviceArray<std::int32_t> view_segments(flat.view_segments), view_segments_at(flat.view_segments_at);
  const simt::DeviceArray<float> cos(c.cos), sin(c.sin);
  const simt::DeviceArray<std::uint8_t> q(to_bytes(c.dtype, c.q));
  const simt::DeviceArray<std::uint8_t> keys(c.keys.bytes), values(c.values.bytes);
  const float nan = std::numeric_limits<float>::quiet_NaN();  // whatever is read must have been written
  const simt::DeviceArray<std::uint8_t> out(to_bytes(c.dtype, std::vector<float>(c.q.size(), nan)));
  const simt::DeviceArray<float> lse(std::vector<float>(c.tokens * c.query_heads(), nan));

  AttentionLaunch launch;
  launch.params = {.shape = c.shape,
                   .layer = {.keys = keys.data(), .values = values.data()},
                   .query_heads = c.query_heads(),
                   .scale = static_cast<float>(1 / std::sqrt(static_cast<double>(c.shape.head_dim))),
                   .softcap = c.softcap,
                   .window = c.window,
                   .sinks = c.sinks.empty() ? nullptr : sinks.data(),
                   .q = q.data(),
                   .out = out.data(),
                   .lse = lse.data(),
                   .buffers = {.dtype = c.dtype},
                   .out_dtype = c.dtype};
  launch.step.rope = {.cos = cos.data(), .sin = sin.data(), .rotary_dim = c.rotary_dim};
  launch.step.plan = {.counts = counts.data(),
                      .segments = segments.data(),
                      .query_ranges = query_ranges.data(),
                      .temperatures = flat.temperatures.empty() ? nullptr : temperatures.data(),
                      .pages = pages.data(),
                      .views = views.data(),
                      .view_segments_at = c.deterministic ? view_segments_at.data() : nullptr,
                      .max_tokens = flat.counts[0] + c.more_tokens,
                      .max_segments = flat.counts[1] + c.more_segments,
                      .max_pieces = flat.pieces};
  // Also where no token sees anything.
  if (c.deterministic)
    launch.step.plan.view_segments = flat.view_segments.empty() ? view_segments_at.data() : view_segments.data();
  launch.max_ctas = c.ctas;
  launch.min_tiles = c.min_tiles;
  launch.multiprocessors = c.multiprocessors;
  launch.max_partial_bytes = c.max_partial_bytes;
  const simt::DeviceArray<std::uint8_t> shares(std::vector<std::uint8_t>(attention_shares_bytes(launch), 0xff));
  const simt::DeviceArray<std::uint8_t> workspace(std::vector<std::uint8_t>(attention_workspace_bytes(launch), 0xff));
  launch.shares = shares.data();
  launch.workspace = workspace.data();
  simt::BehindKernel(q, keys, values, out, lse, shares, workspace).run([&](KernelStream stream) {
    const cudaError_t error = launch_attention_plan(launch, stream);
    return error == cudaSuccess ? launch_attention(launch, stream) : error;
  });
  return {from_bytes(c.dtype, out.to_host()), lse.to_host()};
}

bool same_bits(const Result& a, const Result& b) {
  return a.out.size() == b.out.size() && std::memcmp(a.out.data(), b.out.data(), a.out.size() * sizeof(float)) == 0 &&
         std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * sizeof(float)) == 0;
}

void check_case(const Case& c) {
#if SIMT_HOST
  simt::options = {.order = simt::Order::kForward, .copies = simt::CopyTiming::kLazy};
  simt::stats = {};
#endif
  const Result result = run(c);
#if SIMT_HOST
  CHECK_MESSAGE(simt::stats.bytes_copied + simt::stats.bytes_loaded == expected_bytes(c), c.name);
  CHECK_MESSAGE(simt::stats.ldmatrix_conflicts == 0, c.name);
  const simt::Options schedules[] = {
      {.order = simt::Order::kReverse, .copies = simt::CopyTiming::kEager, .overlap = false},
      {.order = simt::Order::kRandom, .copies = simt::CopyTiming::kLazy, .seed = 5}};
  for (const simt::Options& schedule : schedules) {
    simt::options = schedule;
    CHECK_MESSAGE(same_bits(run(c), result), c.name);
  }
#else
  CHECK_MESSAGE(same_bits(run(c), result), c.name);
#endif
  const Expected expected = expect(c);
  double worst = 0;
  for (std::size_t i = 0; i < expected.out.size(); ++i) {
    const double error = std::abs(result.out[i] - expected.out[i]) / expected.tolerance[i];
    worst = std::max(worst, std::isnan(error) ? 1e9 : error);
  }
  CHECK_MESSAGE(worst <= 1, c.name + ": error / tolerance " + std::to_string(worst));
  double worst_lse = 0;
  for (std::size_t i = 0; i < expected.lse.size(); ++i) {
    if (result.lse[i] == expected.lse[i]) continue;  // -inf
    const double error = std::abs(result.lse[i] - expected.lse[i]);
    worst_lse = std::max(worst_lse, std::isnan(error) ? 1e9 : error);
  }
  CHECK_MESSAGE(worst_lse < 1e-4 * static_cast<double>(std::sqrt(c.shape.head_dim)),
                c.name + ": lse " + std::to_string(worst_lse));
}

// HOGWILD_TEST_CASES: random cases per row width and type (default 3).
int cases_per_shape() {
  const char* text = std::getenv("HOGWILD_TEST_CASES");
  return text != nullptr ? std::atoi(text) : 3;
}

// HOGWILD_TEST_ROW_WIDTHS: those to test, separated by commas (default all).
std::vector<std::int64_t> tested_widths() {
  const char* text = std::getenv("HOGWILD_TEST_ROW_WIDTHS");
  if (text == nullptr) return row_widths();
  std::stringstream list(text);
  std::vector<std::int64_t> widths;
  for (std::string width; std::getline(list, width, ',');) widths.push_back(std::stoll(width));
  return widths;
}

void check_random(const Limits& limits, std::uint64_t first_seed,
                  const std::vector<KvFormat>& formats = {KvFormat::kBF16, KvFormat::kF16}) {
  for (const std::int64_t width : tested_widths()) {
    for (const KvFormat format : formats) {
      for (int i = 0; i < cases_per_shape(); ++i) check_case(random_case(first_seed + i, width, format, limits));
    }
  }
}

TEST(random_steps_equal_the_definition) { check_random({}, 1); }

// All rows in one tile of 16 or 32.
TEST(single_tokens_equal_the_definition) {
  check_random({.max_tokens = 3, .max_group = 5, .max_kv_heads = 2, .max_segments = 12, .max_length = 150}, 100);
}

// One block that all see, or not: kv heads follow each other without a change of segment, and tokens that see
// nothing share a row tile with others.
TEST(single_segments_equal_the_definition) {
  check_random({.max_tokens = 6, .max_group = 4, .max_kv_heads = 4, .max_segments = 1}, 400);
}

// Short segments, as headers and fresh steps are.
TEST(many_short_segments_equal_the_definition) {
  check_random({.max_tokens = 5, .max_group = 3, .max_kv_heads = 2, .max_segments = 40, .max_length = 20}, 200);
}

// More (row tile, segment) pairs than the plan counts in one round.
TEST(plans_of_several_rounds_equal_the_definition) {
  const Limits limits = {
      .min_tokens = 40, .max_tokens = 60, .max_group = 8, .max_kv_heads = 1, .max_segments = 40, .max_length = 20};
  int several = 0;
  for (std::uint64_t seed = 300; several < 3; ++seed) {
    const Case c = random_case(seed, tested_widths().front(), KvFormat::kBF16, limits);
    const std::int64_t row_tiles = (c.tokens * c.group + 63) / 64;
    if (row_tiles * flatten(c.plan()).counts[1] <= 128) continue;
    check_case(c);
    ++several;
  }
}

TEST(general_steps_equal_the_definition) { check_random({.max_length = 200, .general = true}, 600); }

TEST(general_single_tokens_equal_the_definition) {
  check_random({.max_tokens = 3, .max_group = 5, .max_kv_heads = 2, .max_segments = 6, .general = true}, 700);
}

// What becomes 16 bits on its way, in keys and values alike.
TEST(other_formats_equal_the_definition) {
  check_random({.max_tokens = 3, .max_group = 5, .max_kv_heads = 2, .max_segments = 6, .max_length = 150}, 900,
               {KvFormat::kF32, KvFormat::kInt8});
}

// Each feature alone, so that none hides behind another.
TEST(each_feature_alone_equals_the_definition) {
  const auto check = [](std::uint64_t seed, const auto& change) {
    Case c = random_case(seed, tested_widths().front(), KvFormat::kBF16, {.max_tokens = 6, .max_length = 150});
    c.sinks.clear();
    change(c);
    check_case(c);
  };
  for (std::uint64_t seed = 800; seed < 803; ++seed) {
    check(seed, [](Case& c) { c.window = 25; });
    check(seed, [](Case& c) { c.window = std::int64_t{1} << 40; });
    check(seed, [](Case& c) { c.softcap = 2; });
    check(seed, [](Case& c) { c.softcap = 1e6f; });
    for (const float sink : {1.f, 9.f}) {  // 9: above all scores
      check(seed, [=](Case& c) { c.sinks.assign(static_cast<std::size_t>(c.query_heads()), sink); });
    }
    for (const float softcap : {0.f, 2.f}) {  // which comes before temperatures
      check(seed, [=](Case& c) {
        c.softcap = softcap;
        for (QueryRange& range : c.query_ranges) range.temperature = 0.25f * static_cast<float>(1 + range.token);
      });
    }
  }
}

// More parts, and more pieces, than a warp has lanes.
TEST(outputs_in_many_parts_equal_the_definition) {
  Case c =
      random_case(950, tested_widths().front(), KvFormat::kBF16, {.max_tokens = 1, .max_group = 2, .max_segments = 0});
  const std::int64_t length = 33 * kPieceSlots + 100, pages = length / kPageSize + 1;
  c.shape.kv_heads = 1;
  c.group = c.tokens = 1;
  c.q.resize(static_cast<std::size_t>(c.shape.head_dim));
  c.sinks.clear();
  c.ctas = 40;
  c.segments = {{.first_page = 0, .first_slot = 5, .length = length, .first_query_range = 0, .n_query_ranges = 1}};
  c.query_ranges = {{.token = 0, .rope_row = 0, .limit = length, .distance = length}};
  c.token_query_ranges = {0};
  c.token_query_ranges_at = {0, 1};
  c.pages.resize(static_cast<std::size_t>(pages + 1));
  std::iota(c.pages.rbegin(), c.pages.rend(), 0);
  c.keys = c.values = Pool(c.shape, KvFormat::kBF16, pages + 1, 0);
  Rng rng(950);
  for (Pool* pool : {&c.keys, &c.values}) {
    for (std::int64_t t = 0; t < length; ++t) {
      const auto [page, slot] = c.place(c.segments[0], t);
      fill_row(*pool, page, 0, slot, rng);
    }
  }
  for (const bool deterministic : {false, true}) {
    c.deterministic = deterministic;
    check_case(c);
  }
}

// ---- deterministic ----------------------------------------------------------------------------------

// Windows that begin within a piece: the second one of a segment, and the first one of another. Pieces end where they
// would end for all, and their slots are counted from the first one that is seen.
TEST(windows_that_begin_within_pieces_equal_the_definition) {
  for (const std::int64_t width : tested_widths()) {
    Case c = empty_step(1200, width, 2, 3);
    c.deterministic = true;
    c.window = 700;
    for (const std::int64_t length : {1500, 880}) {
      add_segment(
          c, 40, length,
          {{.token = 0, .limit = length, .distance = length}, {.token = 1, .limit = length, .distance = length + 60}});
    }
    add_segment(c, 0, 30, {{.token = 0, .limit = 30, .distance = 30}, {.token = 1, .limit = 30, .distance = 31}});
    add_views_and_tokens(c, 1200);
    c.name = "windows within pieces, rows of " + std::to_string(width);
    check_case(c);
  }
}

// Without a window that is so where a tile is half a page, and the segment begins in the second half of one.
TEST(segments_that_begin_within_pieces_equal_the_definition) {
  for (const std::int64_t width : tested_widths()) {
    if (width <= 128) continue;
    Case c = empty_step(1210, width, 1, 2);
    c.deterministic = true;
    add_segment(c, 40, 600, {{.token = 0, .limit = 600, .distance = 600}});
    add_views_and_tokens(c, 1210);
    c.name = "a segment within a piece, rows of " + std::to_string(width);
    check_case(c);
  }
}

// Row tiles that see other pieces than each other, taken one by one or at once. Each has rows of two tokens, and the
// second token, of which both have some, sees nothing of the first segment.
TEST(row_tiles_with_pieces_of_their_own_equal_the_definition) {
  Case c = empty_step(1220, tested_widths().front(), 3, 33);
  c.deterministic = true;
  c.window = 100;
  add_segment(c, 7, 1300,
              {{.token = 0, .limit = 1300, .distance = 700},
               {.token = 1, .limit = 640, .distance = 760},
               {.token = 2, .limit = 1300, .distance = 1300}});
  add_segment(c, 0, 600,
              {{.token = 0, .limit = 100, .distance = 100},
               {.token = 1, .limit = 560, .distance = 560},
               {.token = 2, .limit = 600, .distance = 650}});
  add_views_and_tokens(c, 1220);
  for (const std::size_t max_partial_bytes : {std::size_t{1}, std::size_t{1} << 30}) {
    c.max_partial_bytes = max_partial_bytes;
    c.name = "row tiles with pieces of their own, partial results of " + std::to_string(max_partial_bytes) + " bytes";
    check_case(c);
  }
}

// Views of more segments than a warp has lanes, which takes them in two rounds, or three. At the ends of rounds are
// segments of two pieces.
TEST(views_of_many_segments_equal_the_definition) {
  Case c = empty_step(1230, tested_widths().front(), 2, 2);
  c.deterministic = true;
  for (std::int32_t s = 0; s < 70; ++s) {
    const std::int64_t length = s == 31 || s == 32 || s == 64 ? kPieceSlots + 10 : 3;
    std::vector<QueryRange> query_ranges = {{.token = 0, .limit = length, .distance = length}};
    if (s % 2 == 0) query_ranges.push_back({.token = 1, .limit = length, .distance = length});
    add_segment(c, s % 5, length, query_ranges);
  }
  add_views_and_tokens(c, 1230);
  c.name = "views of 70 and 35 segments";
  check_case(c);
}

// The same step with some of its tokens, in this order: the plan has the segments that they see, in the order in which
// they come across them.
Case some_tokens(const Case& c, const std::vector<std::int64_t>& tokens) {
  Case some = c;
  some.tokens = std::ssize(tokens);
  some.q.clear();
  some.pages.clear();
  some.segments.clear();
  some.query_ranges.clear();
  some.token_query_ranges.clear();
  some.token_query_ranges_at = {0};
  const std::int64_t row = c.query_heads() * c.shape.head_dim;
  struct Seen {
    std::size_t segment;                                           // of c
    std::vector<std::pair<QueryRange, std::size_t>> query_ranges;  // and their places among token_query_ranges
  };
  std::vector<Seen> seen;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const std::int64_t token = tokens[t];
    some.q.insert(some.q.end(), c.q.begin() + token * row, c.q.begin() + (token + 1) * row);
    for (std::int64_t i = c.token_query_ranges_at[token]; i < c.token_query_ranges_at[token + 1]; ++i) {
      const std::int64_t range = c.token_query_ranges[i];
      std::size_t segment = 0;
      while (range >= c.segments[segment].first_query_range + c.segments[segment].n_query_ranges) ++segment;
      auto found = std::find_if(seen.begin(), seen.end(), [&](const Seen& one) { return one.segment == segment; });
      if (found == seen.end()) found = seen.insert(found, Seen{segment, {}});
      QueryRange copy = c.query_ranges[range];
      copy.token = static_cast<std::int32_t>(t);
      found->query_ranges.emplace_back(copy, some.token_query_ranges.size());
      some.token_query_ranges.push_back(-1);
    }
    some.token_query_ranges_at.push_back(std::ssize(some.token_query_ranges));
  }
  for (const Seen& one : seen) {
    PlanSegment segment = c.segments[one.segment];
    const auto first_page = c.pages.begin() + segment.first_page;
    const std::int64_t pages = (segment.first_slot + segment.length + kPageSize - 1) / kPageSize;
    segment.first_page = std::ssize(some.pages);
    some.pages.insert(some.pages.end(), first_page, first_page + pages);
    segment.first_query_range = std::ssize(some.query_ranges);
    segment.n_query_ranges = std::ssize(one.query_ranges);
    segment.length = 0;
    for (const auto& [range, place] : one.query_ranges) {
      segment.length = std::max(segment.length, range.limit);
      some.token_query_ranges[place] = std::ssize(some.query_ranges);
      some.query_ranges.push_back(range);
    }
    some.segments.push_back(segment);
  }
  return some;
}

// Token `at` of one result against token `other_at` of another.
bool same_token(const Case& c, const Result& result, std::int64_t at, const Result& other, std::int64_t other_at) {
  const std::int64_t heads = c.query_heads(), row = heads * c.shape.head_dim;
  return std::equal(result.out.begin() + at * row, result.out.begin() + (at + 1) * row,
                    other.out.begin() + other_at * row,
                    [](float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }) &&
         std::memcmp(result.lse.data() + at * heads, other.lse.data() + other_at * heads, heads * sizeof(float)) == 0;
}

// A token alone, with some of the others, and with all of them: in any order, on any number of CTAs, in one go or
// several.
void check_company(Case c) {
  c.deterministic = true;
  const Result all = run(c);
  Rng rng(static_cast<std::uint64_t>(c.tokens));
  const auto check = [&](std::vector<std::int64_t> tokens, std::int32_t ctas) {
    Case some = some_tokens(c, tokens);
    some.ctas = ctas;
    some.min_tiles = 1 + ctas % 3;
    some.max_partial_bytes = ctas % 2 == 0 ? 1 : some.max_partial_bytes;
    const Result result = run(some);
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      CHECK_MESSAGE(same_token(c, all, tokens[t], result, static_cast<std::int64_t>(t)),
                    c.name + ": token " + std::to_string(tokens[t]) + " among " + std::to_string(tokens.size()) +
                        " on " + std::to_string(ctas) + " CTAs");
    }
  };
  std::vector<std::int64_t> tokens(c.tokens);
  std::iota(tokens.begin(), tokens.end(), 0);
  check({c.tokens - 1}, 7);
  check({0}, 2);
  std::shuffle(tokens.begin(), tokens.end(), rng);
  check(tokens, 4);
  tokens.resize((tokens.size() + 1) / 2);
  check(tokens, 13);
}

TEST(company_does_not_change_a_bit) {
  for (const std::int64_t width : tested_widths()) {
    for (std::uint64_t seed = 1000; seed < 1002; ++seed) {
      check_company(random_case(seed, width, seed % 2 == 0 ? KvFormat::kBF16 : KvFormat::kF16,
                                {.min_tokens = 2, .max_tokens = 5, .max_group = 6, .max_kv_heads = 2}));
    }
    // Segments of several pieces, and the rows of one more tile than in a step of its own.
    check_company(random_case(1010, width, KvFormat::kBF16,
                              {.min_tokens = 12,
                               .max_tokens = 20,
                               .max_group = 8,
                               .max_kv_heads = 1,
                               .max_segments = 3,
                               .max_length = 1800}));
  }
}

// Windows begin elsewhere for each, and some have temperatures.
TEST(company_does_not_change_a_bit_of_general_steps) {
  for (const std::int64_t width : tested_widths()) {
    for (std::uint64_t seed = 1020; seed < 1022; ++seed) {
      Case c = random_case(
          seed, width, KvFormat::kBF16,
          {.min_tokens = 3, .max_tokens = 9, .max_group = 9, .max_kv_heads = 1, .max_segments = 4, .general = true});
      check_company(c);
      c.window = 70;
      c.softcap = 0;
      check_company(c);
    }
  }
}

// Whether a token beside it has a temperature, which a bias must not be mixed up with.
TEST(temperatures_of_others_do_not_change_a_bit) {
  Case c = random_case(1030, tested_widths().front(), KvFormat::kBF16, {.min_tokens = 4, .max_tokens = 6});
  c.deterministic = true;
  for (QueryRange& range : c.query_ranges) range.bias = 0.37f * static_cast<float>(range.token + 1);
  const Result cold = run(c);
  for (QueryRange& range : c.query_ranges) range.temperature = range.token == 0 ? 0.7f : 1;
  const Result warm = run(c);
  CHECK(!same_token(c, cold, 0, warm, 0));
  for (std::int64_t t = 1; t < c.tokens; ++t) CHECK(same_token(c, cold, t, warm, t));
}

#if SIMT_HOST
// Its cost: the same tiles are read and multiplied, and a partial state of each piece is kept.
TEST(deterministic_attention_reads_and_multiplies_no_more) {
  Case c = random_case(1040, tested_widths().front(), KvFormat::kBF16,
                       {.min_tokens = 4, .max_tokens = 4, .max_group = 4, .max_segments = 3, .max_length = 1300});
  simt::options = {};
  simt::Stats counted[2];
  for (const bool deterministic : {false, true}) {
    c.deterministic = deterministic;
    simt::stats = {};
    run(c);
    counted[deterministic] = simt::stats;
  }
  CHECK(counted[0].bytes_copied == counted[1].bytes_copied);
  CHECK(counted[0].mma == counted[1].mma);
}
#endif

// ---- sharing ----------------------------------------------------------------------------------------

// Workers with some new tokens each, in teams. All of a team see its common block and each other's own.
struct Teams {
  std::int64_t teams, workers, tokens, group;  // workers of a team, new tokens of a worker
  std::int64_t common, own, window;
  std::string name() const {
    return std::to_string(teams) + " teams of " + std::to_string(workers) + " workers with " + std::to_string(tokens) +
           " tokens, group " + std::to_string(group) + ", window " + std::to_string(window);
  }
};

Case step_of(const Teams& teams) {
  const std::int64_t team_tokens = teams.workers * teams.tokens;
  Case c = empty_step(1100, tested_widths().front(), teams.teams * team_tokens, teams.group);
  c.window = teams.window;
  const auto add = [&](std::int64_t team, std::int64_t owner, std::int64_t length) {
    std::vector<QueryRange> query_ranges;
    for (std::int64_t i = 0; i < team_tokens; ++i) {
      const std::int64_t worker = i / teams.tokens, left = teams.tokens - 1 - i % teams.tokens;
      query_ranges.push_back({.token = static_cast<std::int32_t>(team * team_tokens + i),
                              .limit = worker == owner ? length - left : length,
                              .distance = length + teams.own * worker - left});
    }
    add_segment(c, 0, length, query_ranges);
  };
  for (std::int64_t team = 0; team < teams.teams; ++team) {
    add(team, -1, teams.common);
    for (std::int64_t worker = 0; worker < teams.workers; ++worker) add(team, worker, teams.own);
  }
  add_views_and_pools(c);
  return c;
}

std::vector<std::int64_t> tokens_from(std::int64_t first, std::int64_t n) {
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// What tokens read where they do not share: so many of them at a time, in a step of their own.
std::uint64_t bytes_apart(const Case& c, std::int64_t tokens) {
  std::uint64_t bytes = 0;
  for (std::int64_t first = 0; first < c.tokens; first += tokens) {
    bytes += expected_bytes(some_tokens(c, tokens_from(first, tokens)));
  }
  return bytes;
}

TEST(views_are_found) {
  const Case c = step_of({.teams = 2, .workers = 2, .tokens = 3, .group = 1, .common = 70, .own = 20, .window = 0});
  CHECK(flatten(c.plan()).views == (std::vector<std::int32_t>{0, 3, 6, 9, 12}));
}

// Row tiles that are filled read the common block twice, one for each view three times; and three times beside four
// where a view has more rows than one.
TEST(views_are_cut_where_that_reads_less) {
  check_case(step_of({.teams = 1, .workers = 3, .tokens = 7, .group = 5, .common = 200, .own = 70, .window = 0}));
  check_case(step_of({.teams = 1, .workers = 2, .tokens = 14, .group = 5, .common = 200, .own = 70, .window = 0}));
}

// Windows on parts of a block between which lies a tile that nobody sees: a row tile each though one would hold all,
// and more of them than a warp has lanes. On as many CTAs each takes a row tile, which it then must not go beyond: in
// one of the schedules the CTA of the next one has written its own before. On fewer CTAs row tiles are in parts, which
// are looked for behind the first 32 too.
TEST(many_row_tiles_equal_the_definition) {
  constexpr std::int64_t kTokens = 40, kWindow = 130;
  constexpr std::int64_t kApart = 4 * kPageSize;  // of which the window touches three pages
  Case c = empty_step(1110, tested_widths().front(), kTokens, 1);
  c.window = kWindow;
  c.min_tiles = 1;
  std::vector<QueryRange> common;
  for (std::int32_t t = 0; t < kTokens; ++t) {
    common.push_back({.token = t, .limit = kApart * (t + 1), .distance = kApart * (t + 1)});
  }
  add_segment(c, 0, kApart * kTokens, common);
  for (std::int32_t t = 0; t < kTokens; ++t) add_segment(c, 0, 1, {{.token = t, .limit = 1, .distance = 1}});
  add_views_and_tokens(c, 1110);
  CHECK(expected_bytes(c) == bytes_apart(c, 1));
  for (const std::int32_t ctas : {13, 40}) {
    c.ctas = ctas;
    c.name = std::to_string(kTokens) + " row tiles on " + std::to_string(ctas) + " CTAs";
    check_case(c);
  }
}

// Costs are added up over all segments, 32 in a round. Two tokens see distant parts of one segment, which costs more
// than a row tile for both saves on three others, of which they see the same. Of those there is one in each of three
// rounds: whichever round has the distant parts, without it a row tile for both would seem to be cheaper. What else
// there is one of them sees.
TEST(row_tiles_are_chosen_by_all_segments) {
  for (const int distant : {5, 40, 69}) {
    Case c = empty_step(1120, tested_widths().front(), 2, 1);
    c.window = 40;
    for (std::int32_t s = 0; s < 70; ++s) {
      constexpr std::int64_t kLength = 9 * kPageSize, kShort = 20;
      if (s == distant) {
        add_segment(c, 0, kLength,
                    {{.token = 0, .limit = kPageSize, .distance = kPageSize},
                     {.token = 1, .limit = kLength, .distance = kLength}});
      } else if (s == 20 || s == 50 || s == 66) {
        add_segment(
            c, 0, kShort,
            {{.token = 0, .limit = kShort, .distance = kShort}, {.token = 1, .limit = kShort, .distance = kShort}});
      } else {
        add_segment(c, 0, kShort, {{.token = s % 2, .limit = kShort, .distance = kShort}});
      }
    }
    add_views_and_tokens(c, 1120);
    c.name = "distant parts of segment " + std::to_string(distant);
    CHECK_MESSAGE(expected_bytes(c) == bytes_apart(c, 1), c.name);
    check_case(c);
  }
}

#if SIMT_HOST
// A step takes no more reading than each worker alone, and teams that fit a row tile each no more than each team alone.
TEST(sharing_never_reads_more) {
  for (const std::int64_t n_teams : {1, 2, 3}) {
    for (const std::int64_t workers : {1, 3, 5, 9}) {
      for (const std::int64_t tokens : {1, 4}) {
        for (const std::int64_t group : {1, 5, 8}) {
          for (const std::int64_t window : {0, 40}) {
            const Teams teams = {n_teams, workers, tokens, group, 200, 70, window};
            const Case c = step_of(teams);
            const std::int64_t team_tokens = workers * tokens;
            simt::options = {};
            simt::stats = {};
            run(c);
            const std::uint64_t shared = simt::stats.bytes_copied;
            CHECK_MESSAGE(shared == expected_bytes(c), teams.name());
            const std::uint64_t alone = bytes_apart(c, tokens);
            CHECK_MESSAGE(shared <= alone,
                          teams.name() + ": " + std::to_string(shared) + " > " + std::to_string(alone));
            if (team_tokens * group > 64) continue;
            const std::uint64_t by_team = bytes_apart(c, team_tokens);
            CHECK_MESSAGE(shared <= by_team,
                          teams.name() + ": " + std::to_string(shared) + " > " + std::to_string(by_team));
          }
        }
      }
    }
  }
}
#endif

TEST(mass_is_what_ranges_have_of_their_tokens) {
  Rng rng(5);
  std::normal_distribution<float> normal;
  for (const std::int64_t heads : {1, 7, 32, 70}) {
    constexpr std::int64_t kTokens = 5;
    std::vector<AttentionMassParams::Range> ranges;
    for (std::int32_t i = 0; i < 11; ++i) ranges.push_back({.token = i * 3 % 5, .sum = 12 - i});
    std::vector<float> range_lse(ranges.size() * heads), lse(kTokens * heads), sums(14);
    for (float& x : range_lse) x = normal(rng);
    for (float& x : lse) x = 3 + normal(rng);
    range_lse[0] = -std::numeric_limits<float>::infinity();
    for (float& x : sums) x = normal(rng);
    const simt::DeviceArray<AttentionMassParams::Range> device_ranges(ranges);
    const simt::DeviceArray<float> device_range_lse(range_lse), device_lse(lse), device_sums(sums);
    simt::BehindKernel(device_range_lse, device_lse, device_sums).run([&](KernelStream stream) {
      return launch_attention_mass({.query_heads = heads,
                                    .ranges = {device_ranges.data(), ranges.size()},
                                    .range_lse = device_range_lse.data(),
                                    .lse = device_lse.data(),
                                    .sums = device_sums.data()},
                                   stream);
    });
    std::vector<double> expected(sums.begin(), sums.end());
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      for (std::int64_t h = 0; h < heads; ++h) {
        const double share = range_lse[i * heads + h] - static_cast<double>(lse[ranges[i].token * heads + h]);
        expected[ranges[i].sum] += std::exp(share);
      }
    }
    const std::vector<float> got = device_sums.to_host();
    for (std::size_t i = 0; i < sums.size(); ++i) {
      CHECK(std::abs(got[i] - expected[i]) < 1e-5 * (1 + std::abs(expected[i])));
    }
  }
}

// What goes wrong in one worker is not hidden, and does not reach others.
TEST(a_query_that_is_not_a_number_stays_alone) {
  for (std::uint64_t seed = 500; seed < 504; ++seed) {
    Case c = random_case(seed, tested_widths().front(), KvFormat::kF16, {.min_tokens = 2, .max_length = 100});
    c.sinks.clear();  // so that lse tells what sees nothing
    const Result before = run(c);
    const std::int64_t row = c.query_heads() * c.shape.head_dim;
    const std::int64_t token = static_cast<std::int64_t>(seed) % c.tokens;
    for (std::int64_t i = 0; i < row; i += 3) c.q[token * row + i] = std::numeric_limits<float>::quiet_NaN();
    const Result after = run(c);
    std::int64_t wrong = 0;
    for (std::int64_t i = 0; i < c.tokens * row; ++i) {
      const bool spoilt = i / row == token && before.lse[i / c.shape.head_dim] != -INFINITY;
      wrong += spoilt ? !std::isnan(after.out[i]) : after.out[i] != before.out[i];
    }
    for (std::int64_t i = 0; i < c.tokens * c.query_heads(); ++i) {
      const bool spoilt = i / c.query_heads() == token && before.lse[i] != -INFINITY;
      wrong += spoilt ? !std::isnan(after.lse[i]) : after.lse[i] != before.lse[i];
    }
    CHECK_MESSAGE(wrong == 0, c.name);
  }
}

TEST(what_is_not_supported_is_refused) {
  AttentionLaunch launch;
  launch.params.shape = bf16_shape(1, 2, 128);
  launch.params.query_heads = 8;
  launch.step.rope.rotary_dim = 128;
  launch.step.plan.max_tokens = launch.step.plan.max_segments = launch.max_ctas = 4;
  CHECK(attention_workspace_bytes(launch) > 0);
  const auto refused = [&](const auto& change) {
    AttentionLaunch changed = launch;
    change(changed);
    std::vector<std::uint8_t> memory(1 << 20);
    changed.shares = changed.workspace = memory.data();
    CHECK(launch_attention(changed, nullptr) == cudaErrorInvalidValue);
  };
  refused([](AttentionLaunch& l) { l.params.window = -1; });
  refused([](AttentionLaunch& l) { l.params.softcap = -1; });
  refused([](AttentionLaunch& l) { l.params.shape.padding = 16; });
  refused([](AttentionLaunch& l) { l.params.shape.padding = -16; });
  refused([](AttentionLaunch& l) {
    l.params.shape.head_dim = 124;
    l.params.shape.padding = 4;
    l.step.rope.rotary_dim = 64;
  });
  refused([](AttentionLaunch& l) { l.step.rope.rotary_dim = 63; });
  refused([](AttentionLaunch& l) { l.step.rope.rotary_dim = 130; });
  refused([](AttentionLaunch& l) { l.params.q = reinterpret_cast<const void*>(8); });
  refused([](AttentionLaunch& l) { l.params.query_heads = 7; });
  refused([](AttentionLaunch& l) { l.max_ctas = 0; });
  refused([](AttentionLaunch& l) { l.step.plan.max_tokens = 1 << 30; });
}

}  // namespace
}  // namespace hogwild::cuda

HOGWILD_TEST_MAIN
