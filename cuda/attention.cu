// Concurrent attention: the plan, the plain main kernel, the combination, and the launchers (attention.cuh explains).
#include <climits>

#include "attention.cuh"
#include "kernels.h"

namespace hogwild::cuda {
namespace {

// ---- plan -------------------------------------------------------------------------------------------

// Tiles [begin, end) from the first to the last key that some rows see of a segment, counted from its first page.
struct TileRange {
  int begin, end;
};

// What some tokens see of a segment: from the first key to the last.
struct Sight {
  int begin = INT_MAX, end = 0;

  SIMT_DEVICE void add(const AttentionArguments& p, int segment, int tokens, int token) {
    const DeviceQueryRange range = p.plan.query_ranges[static_cast<std::size_t>(segment) * tokens + token];
    const int from = first_seen(range, p.window);
    if (from >= range.limit) return;
    begin = min(begin, from);
    end = max(end, range.limit);
  }
  SIMT_DEVICE TileRange tiles(const Segment& of, int keys_per_tile) const {
    const int last = min(end, of.length);
    if (begin >= last) return {0, 0};
    return {(of.first_slot + begin) / keys_per_tile, ceil_div(of.first_slot + last, keys_per_tile)};
  }
};
SIMT_DEVICE TileRange tiles_seen(const AttentionArguments& p, int tokens, RowRange rows, int segment) {
  Sight sight;
  for (int t = rows.first / p.group; t < ceil_div(rows.end, p.group); ++t) sight.add(p, segment, tokens, t);
  return sight.tiles(p.plan.segments[segment], tile_keys(p.width));
}

SIMT_DEVICE int warp_sum(int value) {
#pragma unroll
  for (int distance = 16; distance >= 1; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

constexpr std::size_t kCutSharedBytes = sizeof(int);

// Cuts rows into row tiles. By one CTA.
__global__ void __launch_bounds__(kThreads) cut_rows(const __grid_constant__ AttentionArguments p) {
  simt::follow_preceding();
  SIMT_SHARED_MEMORY(shared);
  int* packed = reinterpret_cast<int*>(shared);  // tiles where rows fill one row tile after the other
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int tokens = p.plan.counts[0];
  const int segments = p.plan.counts[1];
  const int views = p.plan.counts[2];
  const int rows = end_row_of(p, tokens);
  const int most = max(p.rows_per_tile / p.group, 1);  // views in a row tile
  const auto first_row = [&](int view) { return p.plan.views[view] * p.group; };
  // Tiles of rows that fill one row tile after the other.
  const auto packed_cost = [&](RowRange range) {
    int cost = 0;
    for (int first = range.first; first < range.end; first += p.rows_per_tile) {
      for (int segment = lane; segment < segments; segment += 32) {
        const TileRange seen = tiles_seen(p, tokens, {first, min(first + p.rows_per_tile, range.end)}, segment);
        cost += seen.end - seen.begin;
      }
    }
    return warp_sum(cost);
  };

  if (threadIdx.x == 0) *packed = 0;
  __syncthreads();
  for (int first = warp * p.rows_per_tile; first < rows; first += kWarps * p.rows_per_tile) {
    const int cost = packed_cost({first, min(first + p.rows_per_tile, rows)});
    if (lane == 0) atomicAdd(packed, cost);
  }
  for (int view = warp; view < views; view += kWarps) {
    int* costs = p.view_costs + static_cast<std::size_t>(view) * most;
    if (first_row(view + 1) - first_row(view) > p.rows_per_tile) {
      const int cost = packed_cost({first_row(view), first_row(view + 1)});
      if (lane == 0) costs[0] = cost;
      continue;
    }
    for (int first = 0; first == 0 || first < segments; first += 32) {
      const int segment = first + lane;
      Sight sight;
      for (int n = 0; n < most && view + n < views; ++n) {
        if (first_row(view + n + 1) - first_row(view) > p.rows_per_tile) break;
        int cost = 0;
        if (segment < segments) {
          for (int t = p.plan.views[view + n]; t < p.plan.views[view + n + 1]; ++t) sight.add(p, segment, tokens, t);
          const TileRange seen = sight.tiles(p.plan.segments[segment], tile_keys(p.width));
          cost = seen.end - seen.begin;
        }
        cost = warp_sum(cost);
        if (lane == 0) costs[n] = first == 0 ? cost : costs[n] + cost;
      }
    }
  }
  __syncthreads();
  if (threadIdx.x != 0) return;

  // The fewest tiles of the first views, from those of fewer. Of equals the one with most views in its last row tile.
  p.best_cuts[0] = make_int2(0, 0);
  for (int end = 1; end <= views; ++end) {
    int2 best = make_int2(INT_MAX, 0);
    for (int n = min(most, end); n >= 1; --n) {
      if (n > 1 && first_row(end) - first_row(end - n) > p.rows_per_tile) continue;
      const int cost = p.best_cuts[end - n].x + p.view_costs[static_cast<std::size_t>(end - n) * most + n - 1];
      if (cost < best.x) best = make_int2(cost, n);
    }
    p.best_cuts[end] = best;
  }
  int n_tiles = 0;
  // Calls use(first row) for each row tile, the last one first.
  const auto for_each_row_tile = [&](auto&& use) {
    if (*packed <= p.best_cuts[views].x) {
      for (int tile = ceil_div(rows, p.rows_per_tile) - 1; tile >= 0; --tile) use(tile * p.rows_per_tile);
      return;
    }
    for (int end = views; end > 0; end -= p.best_cuts[end].y) {
      const int first = first_row(end - p.best_cuts[end].y);
      for (int tile = ceil_div(first_row(end) - first, p.rows_per_tile) - 1; tile >= 0; --tile) {
        use(first + tile * p.rows_per_tile);
      }
    }
  };
  for_each_row_tile([&](int) { ++n_tiles; });
  p.row_tiles[0] = n_tiles;
  p.row_tiles[1 + n_tiles] = rows;
  for_each_row_tile([&](int first) { p.row_tiles[n_tiles--] = first; });
}

// Tiles and pieces that lie in [begin, end), or before a place in the order.
struct WorkCount {
  int tiles, pieces;
};

// The share of a CTA among so many: it begins at this tile.
SIMT_DEVICE long long share_begin(const AttentionArguments& p, int pairs, long long total, int cta, int ctas) {
  const long long begin = total * cta / ctas;
  if (p.pieces_before == nullptr || begin == total) return begin;
  // The next piece begins there, or behind.
  const int piece_tiles = kPieceSlots / tile_keys(p.width);
  WorkCursor cursor;
  cursor.seek(p.tiles_before, pairs, p.tiles_before[pairs], begin);
  if (cursor.tile == 0) return begin;
  const int first_tile = p.first_tiles[cursor.pair];
  const int next = ceil_div(first_tile + cursor.tile, piece_tiles) * piece_tiles - first_tile;
  const int tiles = p.tiles_before[cursor.pair + 1] - p.tiles_before[cursor.pair];
  return begin + min(next, tiles) - cursor.tile;
}

constexpr std::size_t kPlanSharedBytes = kThreads * sizeof(WorkCount);

__global__ void __launch_bounds__(kThreads) plan_attention(const __grid_constant__ AttentionArguments p) {
  simt::follow_preceding();
  SIMT_SHARED_MEMORY(shared);
  WorkCount* scan = reinterpret_cast<WorkCount*>(shared);  // [kThreads]
  const int tid = static_cast<int>(threadIdx.x);
  const int tokens = p.plan.counts[0];
  const int segments = p.plan.counts[1];
  const int row_tiles = row_tiles_of(p, tokens);
  const int pairs = row_tiles * segments;
  const int piece_tiles = kPieceSlots / tile_keys(p.width);

  WorkCount before = {0, 0};  // of all earlier rounds
  for (int first = 0; first < pairs; first += kThreads) {
    const int pair = first + tid;
    TileRange seen = {0, 0};
    if (pair < pairs) seen = tiles_seen(p, tokens, rows_of_tile(p, tokens, pair / segments), pair % segments);
    const WorkCount own = {seen.end - seen.begin, ceil_div(seen.end, piece_tiles) - seen.begin / piece_tiles};
    scan[tid] = own;
    __syncthreads();
    for (int distance = 1; distance < kThreads; distance *= 2) {  // inclusive scan (Hillis and Steele 1986)
      const WorkCount lower = tid >= distance ? scan[tid - distance] : WorkCount{0, 0};
      __syncthreads();
      scan[tid].tiles += lower.tiles;
      scan[tid].pieces += lower.pieces;
      __syncthreads();
    }
    if (pair < pairs) {
      p.tiles_before[pair] = before.tiles + scan[tid].tiles - own.tiles;
      p.first_tiles[pair] = seen.begin;
      if (p.pieces_before != nullptr) p.pieces_before[pair] = before.pieces + scan[tid].pieces - own.pieces;
    }
    before.tiles += scan[kThreads - 1].tiles;
    before.pieces += scan[kThreads - 1].pieces;
    __syncthreads();
  }
  if (tid == 0) {
    p.tiles_before[pairs] = before.tiles;
    if (p.pieces_before != nullptr) p.pieces_before[pairs] = before.pieces;
  }
  __syncthreads();

  const long long total = before.tiles * static_cast<long long>(p.shape.kv_heads);
  const long long worth = max(total / p.min_tiles, min(total, static_cast<long long>(p.multiprocessors)));
  const int ctas = static_cast<int>(max(min(worth, static_cast<long long>(p.max_ctas)), 1LL));
  for (int cta = tid; cta < p.max_ctas; cta += kThreads) {
    int4 share = make_int4(0, 0, 0, 0);
    if (cta < ctas && total > 0) {
      const long long begin = share_begin(p, pairs, total, cta, ctas);
      const int tiles = static_cast<int>(share_begin(p, pairs, total, cta + 1, ctas) - begin);
      if (tiles > 0) {
        WorkCursor cursor;
        cursor.seek(p.tiles_before, pairs, before.tiles, begin);
        share = make_int4(cursor.kv_head, cursor.pair, cursor.tile, tiles);
      }
    }
    p.shares[cta] = share;
  }
  if (p.pieces_before != nullptr) return;
  for (int output = tid; output < static_cast<int>(p.shape.kv_heads) * row_tiles; output += kThreads) {
    const int row_tile = output % row_tiles;
    const long long head_begin = output / row_tiles * static_cast<long long>(before.tiles);
    const long long begin = head_begin + p.tiles_before[row_tile * segments];
    const long long end = head_begin + p.tiles_before[(row_tile + 1) * segments];
    int2 parts = make_int2(0, 0);
    if (end > begin) {  // the CTA of tile x is the last whose share begins at or before x
      const int first_cta = static_cast<int>(((begin + 1) * ctas - 1) / total);
      const int last_cta = static_cast<int>((end * ctas - 1) / total);
      const bool is_its_second = total * first_cta / ctas < begin;
      parts = make_int2(2 * first_cta + (is_its_second ? 1 : 0), last_cta - first_cta + 1);
    }
    p.outputs[output] = parts;
  }
}

// ---- main: the plain kernel -------------------------------------------------------------------------

// Copies a tile of keys and values of one (segment, kv head) to a stage. Slots of its pages that are not the
// segment's become zero: they may hold anything, and 0 * NaN is NaN.
template <typename Tile>
SIMT_DEVICE void load_tile(const AttentionArguments& p, const WorkCursor& at, int segments, uint4* stage) {
  const Segment segment = load_constant_16(p.plan.segments + at.pair % segments);
  const int first_slot = (segment.first_slot / Tile::kKeys + at.tile) * Tile::kKeys;  // from the first page on
  const std::int64_t page = simt::load_constant(p.plan.pages + segment.first_page + first_slot / kPageSize);
  const std::size_t offset = page_offset(page, at.kv_head, p.shape.kv_heads, Tile::kChunks) +
                             static_cast<std::size_t>(first_slot % kPageSize) * Tile::kChunks;
  const uint4* keys = static_cast<const uint4*>(p.layer.keys) + offset;
  const uint4* values = static_cast<const uint4*>(p.layer.values) + offset;
  constexpr unsigned kTileChunks = Tile::kKeys * Tile::kChunks;
  static_assert(kTileChunks % kThreads == 0, "each thread copies the same number of chunks");
#pragma unroll
  for (unsigned i = 0; i < kTileChunks / kThreads; ++i) {
    const unsigned chunk = threadIdx.x + i * kThreads;
    // One comparison: slots before the segment's first wrap round.
    const unsigned token = static_cast<unsigned>(first_slot - segment.first_slot) + chunk / Tile::kChunks;
    const bool valid = token < static_cast<unsigned>(segment.length);
    simt::cp_async_16(stage + chunk, keys + chunk, valid);
    simt::cp_async_16(stage + kTileChunks + chunk, values + chunk, valid);
  }
}

// What a thread's two rows see of a segment, in slots counted from the segment's first page.
struct RowMask {
  int begin;   // first slot of the segment
  int end[2];  // first slot that row g, g + 8 does not see; 0 where it sees none
  float inverse_temperature[2];
  float bias[2];  // times the temperature
};

SIMT_DEVICE RowMask row_mask_of(const AttentionArguments& p, std::size_t first_range, const Segment& segment, int rows,
                                int first_row, const Place& place) {
  RowMask row_mask;
  row_mask.begin = segment.first_slot;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = first_row + place.row_warp * 16 + place.lane / 4 + 8 * i;
    row_mask.end[i] = 0;
    row_mask.inverse_temperature[i] = 1;
    row_mask.bias[i] = 0;
    if (row >= rows) continue;
    const std::size_t at = first_range + row / p.group;
    const DeviceQueryRange range = load_constant_16(p.plan.query_ranges + at);
    if (range.limit == 0) continue;
    row_mask.end[i] = segment.first_slot + min(range.limit, segment.length);
    row_mask.bias[i] = range.bias * kLog2E;
    if (p.plan.temperatures != nullptr) {
      const float temperature = simt::load_constant(p.plan.temperatures + at);
      row_mask.inverse_temperature[i] = simt::reciprocal_approx(temperature);
      row_mask.bias[i] *= temperature;
    }
  }
  return row_mask;
}

// Keys and values of the 16-bit type T, scores with a temperature and a bias.
template <typename T, typename TileSizes>
struct PlainAttention {
  using Tile = TileSizes;

  std::uint32_t query_fragments[Tile::kWidth / 16][4];
  RowMask row_mask = {};
  int segment_start = 0;  // first slot of the segment's first tile

  SIMT_DEVICE explicit PlainAttention(unsigned char*) {}

  SIMT_DEVICE void load(const AttentionArguments& p, const WorkCursor& at, int segments, uint4* stage) const {
    load_tile<Tile>(p, at, segments, stage);
  }

  SIMT_DEVICE void open(const AttentionArguments& p, const WorkCursor& at, int tokens, int segments, int rows,
                        int first_row, uint4* queries, const Place& place) {
    const int index = at.pair % segments;
    const std::size_t first_range = static_cast<std::size_t>(index) * tokens;
    const Segment segment = load_constant_16(p.plan.segments + index);
    rotate_queries<Tile>(p, p.plan.query_ranges + first_range, rows, first_row, at.kv_head, queries,
                         [](const float (&x)[8], float factor) { return pack8<T>(x, factor); });
    __syncthreads();
    load_query_fragments<Tile>(queries, place, query_fragments);
    row_mask = row_mask_of(p, first_range, segment, rows, first_row, place);
    segment_start = segment.first_slot / Tile::kKeys * Tile::kKeys;
  }

  // One tile for one warp: scores of its 16 rows and kWarpKeys keys, softmax, product with the values.
  SIMT_DEVICE void attend(const AttentionArguments& p, const uint4* stage, const Place& place, int tile,
                          typename Tile::State& state) const {
    constexpr int kWarpKeys = Tile::kWarpKeys;
    const uint4* keys = stage;
    const uint4* values = stage + Tile::kKeys * Tile::kChunks;
    float scores[kWarpKeys / 8][4];
#pragma unroll
    for (int i = 0; i < kWarpKeys / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[i][j] = row_mask.bias[j / 2];
    }
    add_scores<T, Tile>(keys, query_fragments, place, scores);
    if (p.plan.temperatures != nullptr) {  // where all are 1, no bit would change
#pragma unroll
      for (int i = 0; i < kWarpKeys / 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) scores[i][j] *= row_mask.inverse_temperature[j / 2];
      }
    }

    const int slot = segment_start + tile * Tile::kKeys + place.key_warp * kWarpKeys;
    if (slot < row_mask.begin || slot + kWarpKeys > min(row_mask.end[0], row_mask.end[1])) {
      hide_scores<Tile>(place, slot, scores,
                        [&](int at, int row) { return at < row_mask.begin || at >= row_mask.end[row]; });
    }
    std::uint32_t weights[kWarpKeys / 16][4];
    weigh_scores<Tile>(scores, state, [&](int i, int row, float first, float second) {
      weights[i / 2][2 * (i % 2) + row] = simt::pack2<T>(first, second);
    });
    add_values<T, Tile>(values, weights, place, state);
  }
};

template <typename T, typename Tile>
__global__ void __launch_bounds__(kThreads, 2) attend(const __grid_constant__ AttentionArguments p) {
  simt::follow_preceding();
  SIMT_SHARED_MEMORY(shared);
  walk_share<PlainAttention<T, Tile>>(p, shared);
}

// ---- combine ----------------------------------------------------------------------------------------

// Calls visit(slot, n) for the partial states of a row, 32 at a time and in the order in which they are joined: n of
// them. That of this lane lies in `slot`; lanes beyond them get the slot of the last. By all lanes of a warp.
template <typename Visit>
SIMT_DEVICE void visit_parts(int2 output, int lane, Visit&& visit) {
  for (int first = 0; first < output.y; first += 32) {
    const int part = first + lane;
    visit(slot_of_part(output.x, min(part, output.y - 1)), min(32, output.y - first));
  }
}

// The pieces that a token sees, segment after segment in the order of its view.
template <typename Visit>
SIMT_DEVICE void visit_pieces(const AttentionArguments& p, int token, int row_tile, int kv_head, int pairs,
                              int segments, int lane, Visit&& visit) {
  const int head_slots = p.pieces_before[pairs];
  const int end = simt::load_constant(p.plan.view_segments_at + token + 1);
  for (int first = simt::load_constant(p.plan.view_segments_at + token); first < end; first += 32) {
    // This lane's segment: its first piece, and how many.
    const int pair = row_tile * segments + simt::load_constant(p.plan.view_segments + min(first + lane, end - 1));
    const int slot = p.pieces_before[pair];
    const int n = first + lane < end ? p.pieces_before[pair + 1] - slot : 0;
    int up_to = n;  // pieces of the lanes up to this one
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int lower = __shfl_up_sync(kAllLanes, up_to, distance);
      up_to += lane >= distance ? lower : 0;
    }
    const int total = __shfl_sync(kAllLanes, up_to, 31);
    const int skipped = kv_head * head_slots + slot - (up_to - n);  // slot of a piece, less its number among these
    for (int done = 0; done < total; done += 32) {
      const int piece = min(done + lane, total - 1);
      int owner = 0;  // the lane whose segment it is of: the first up to which there are more pieces
#pragma unroll
      for (int step = 16; step >= 1; step /= 2) {
        if (__shfl_sync(kAllLanes, up_to, owner + step - 1) <= piece) owner += step;
      }
      const int its_slot = __shfl_sync(kAllLanes, skipped, owner) + piece;
      visit(its_slot, min(32, total - done));
    }
  }
}

// Whose loads are under way together.
constexpr int kPartsAtOnce = 8;

// One warp, a CTA of its own, per (row, kv head): joins its partial states, of parts or of pieces, in an order that
// does not depend on timing. Rows that see nothing become 0.
template <bool kPieces>
__global__ void __launch_bounds__(32) combine_attention(const __grid_constant__ AttentionArguments p) {
  simt::follow_preceding();
  const int lane = static_cast<int>(threadIdx.x);
  const int row = p.first_row + static_cast<int>(blockIdx.x);
  const int kv_head = static_cast<int>(blockIdx.y);
  const int tokens = simt::load_constant(p.plan.counts);
  const int segments = simt::load_constant(p.plan.counts + 1);
  if (row >= end_row_of(p, tokens)) return;
  const int row_tiles = row_tiles_of(p, tokens);
  int row_tile = (row - p.first_row) / p.rows_per_tile;
  if (p.row_tiles != nullptr) {  // the last one that begins at the row or before it
    row_tile = -1;
    for (int first = 0; first < row_tiles; first += 32) {
      const bool begins = first + lane < row_tiles && p.row_tiles[1 + first + lane] <= row;
      row_tile += warp_sum(begins ? 1 : 0);
    }
  }
  const int row_of_tile = row - rows_of_tile(p, tokens, row_tile).first;
  int2 output = make_int2(0, 0);
  if (!kPieces) output = p.outputs[kv_head * row_tiles + row_tile];
  if (output.y == 1) return;  // its CTA has written the result
  const auto visit_states = [&](auto&& visit) {
    if constexpr (kPieces) {
      visit_pieces(p, row / p.group, row_tile, kv_head, row_tiles * segments, segments, lane, visit);
    } else {
      visit_parts(output, lane, visit);
    }
  };
  const auto row_of = [&](int slot) { return static_cast<std::size_t>(slot) * p.rows_per_tile + row_of_tile; };

  float max = -INFINITY;
  visit_states([&](int slot, int) { max = fmaxf(max, p.partial_state[row_of(slot)].x); });
#pragma unroll
  for (int distance = 16; distance >= 1; distance /= 2) {
    max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, distance));
  }
  const float reference = max == -INFINITY ? 0.f : max;
  const int head_dim = static_cast<int>(p.shape.head_dim);
  const std::size_t out_row = row_index(p, row, kv_head);
  // A lane has four columns of each 128.
  constexpr int kColumns = 4 * 32;
  constexpr int kMaxColumnGroups = 2;
  const auto column_of = [&](int group) {
    const int column = kColumns * group + 4 * lane;
    return column < head_dim ? column : 0;
  };
  float4 mean[kMaxColumnGroups] = {};
  float sum = 0;
  visit_states([&](int slot, int n) {
    const float2 state = p.partial_state[row_of(slot)];
    const float own_factor = lane < n ? simt::exp2_approx(state.x - reference) : 0.f;
    const float own_sum = lane < n ? state.y * own_factor : 0.f;
    for (int first = 0; first < n; first += kPartsAtOnce) {
#pragma unroll
      for (int i = first; i < first + kPartsAtOnce; ++i) {
        const float* const part_out = p.partial_out + row_of(__shfl_sync(kAllLanes, slot, i)) * p.width;
        const float factor = __shfl_sync(kAllLanes, own_factor, i);
        sum += __shfl_sync(kAllLanes, own_sum, i);
#pragma unroll
        for (int group = 0; group < kMaxColumnGroups; ++group) {
          if (kColumns * group >= head_dim) break;
          const float4 part = *reinterpret_cast<const float4*>(part_out + column_of(group));
          mean[group].x += part.x * factor;
          mean[group].y += part.y * factor;
          mean[group].z += part.z * factor;
          mean[group].w += part.w * factor;
        }
      }
    }
  });
  const float factor = finish_row(p, out_row, query_head(p, row, kv_head), max, sum, lane == 0);
#pragma unroll
  for (int group = 0; group < kMaxColumnGroups; ++group) {
    const int column = kColumns * group + 4 * lane;
    if (column >= head_dim) break;
    const float4 own = mean[group];
    visit_array(p.out, p.out_dtype, [&](auto* out) {
      store2(out + out_row * head_dim + column, own.x * factor, own.y * factor);
      store2(out + out_row * head_dim + column + 2, own.z * factor, own.w * factor);
    });
  }
}

// ---- mass -------------------------------------------------------------------------------------------

// One warp per query range.
__global__ void __launch_bounds__(kThreads)
    add_attention_mass(const __grid_constant__ AttentionMassParams p, const AttentionMassParams::Range* ranges, int n) {
  simt::follow_preceding();
  const int i = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (i >= n) return;
  const AttentionMassParams::Range range = ranges[i];
  const int heads = static_cast<int>(p.query_heads);
  const float* range_lse = p.range_lse + static_cast<std::size_t>(i) * heads;
  const float* lse = p.lse + static_cast<std::size_t>(range.token) * heads;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float sum = 0;
  for (int head = lane; head < heads; head += 32) {
    sum += simt::exp2_approx((range_lse[head] - lse[head]) * kLog2E);
  }
#pragma unroll
  for (int distance = 16; distance >= 1; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  if (lane == 0) p.sums[range.sum] += sum;
}

}  // namespace

// ---- launchers --------------------------------------------------------------------------------------

namespace {

bool is_deterministic(const AttentionLaunch& launch) { return launch.step.plan.view_segments != nullptr; }

// Rows per row tile: as few as hold all rows of the step, at most four warps' worth of 16. Widths with tiles of
// half a page take two warps for the columns, hence two for the rows.
int rows_per_tile(const AttentionLaunch& launch, std::int64_t rows) {
  if (launch.params.shape.row_elements() > 128) return 32;
  if (is_deterministic(launch)) return 64;
  return rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
}

// Rows of a kv head, at most.
std::int64_t max_rows(const AttentionLaunch& launch) {
  return launch.step.plan.max_tokens * (launch.params.query_heads / launch.params.shape.kv_heads);
}

constexpr std::int64_t kMaxRows = std::int64_t{1} << 24;

// The launch's bounds are sane, so that nothing below overflows.
bool is_valid(const AttentionLaunch& launch) {
  const AttentionParams& params = launch.params;
  const DevicePlan& plan = launch.step.plan;
  if (!is_supported(params.shape, launch.step.rope.rotary_dim)) return false;
  if (params.query_heads < 1 || params.query_heads % params.shape.kv_heads != 0) return false;
  if (plan.max_tokens < 1 || plan.max_segments < 0 || launch.max_ctas < 1 || launch.min_tiles < 1) return false;
  if (plan.max_pieces < 0 || launch.multiprocessors < 0) return false;
  if (params.window < 0 || !(params.softcap >= 0)) return false;
  return params.query_heads <= kMaxRows && max_rows(launch) <= kMaxRows;
}

// Queries of wider rows do not fit the registers of the plain kernel, which holds all of them there.
constexpr int kMaxPlainWidth = 192;

// Whether the plain kernel does not suffice.
bool is_general(const AttentionLaunch& launch) {
  const KvShape& shape = launch.params.shape;
  const bool is_plain_format = shape.key_format == KvFormat::kBF16 || shape.key_format == KvFormat::kF16;
  return launch.params.window != 0 || launch.params.softcap != 0 || shape.key_format != shape.value_format ||
         !is_plain_format || shape.row_elements() > kMaxPlainWidth;
}

// Arrays one behind the other.
class Layout {
 public:
  std::size_t place(std::size_t bytes) {
    constexpr std::size_t kAlignment = 256;
    const std::size_t at = bytes_;
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
};

// A launch is done in one go, or in several (AttentionLaunch::max_partial_bytes). Of one of them; offsets from
// launch.shares, behind the shares of those before, and from launch.workspace.
struct Workspace {
  std::int64_t rows, n_goes;
  bool cuts_rows;  // where more than one way to cut rows into row tiles may matter
  std::size_t row_tiles, view_costs, best_cuts;
  std::size_t tiles_before, first_tiles, pieces_before, shares, outputs, shares_bytes;
  std::size_t partial_state, partial_out, bytes;
};

Workspace lay_out(const AttentionLaunch& launch) {
  const std::int64_t rows = max_rows(launch);
  const auto width = static_cast<std::size_t>(launch.params.shape.row_elements());
  const auto per_tile = static_cast<std::size_t>(rows_per_tile(launch, rows));
  const auto kv_heads = static_cast<std::size_t>(launch.params.shape.kv_heads);
  const auto max_ctas = static_cast<std::size_t>(launch.max_ctas);
  std::size_t row_tiles = (static_cast<std::size_t>(rows) + per_tile - 1) / per_tile;
  Workspace workspace;
  workspace.n_goes = 1;
  // Rows of one row tile see from the first key on, but for a window.
  workspace.cuts_rows =
      !is_deterministic(launch) && launch.step.plan.max_tokens > 1 && (row_tiles > 1 || launch.params.window != 0);
  std::size_t slots = 2 * max_ctas;
  if (is_deterministic(launch)) {
    const std::size_t tile_slots = kv_heads * static_cast<std::size_t>(launch.step.plan.max_pieces);
    const std::size_t tile_bytes = tile_slots * per_tile * (width * sizeof(float) + sizeof(float2));
    const std::size_t all = row_tiles;
    row_tiles = std::clamp<std::size_t>(launch.max_partial_bytes / std::max<std::size_t>(tile_bytes, 1), 1, all);
    workspace.n_goes = static_cast<std::int64_t>((all + row_tiles - 1) / row_tiles);
    slots = row_tiles * tile_slots;
  }
  workspace.rows = static_cast<std::int64_t>(row_tiles * per_tile);
  // At most each view begins one.
  if (workspace.cuts_rows) row_tiles += static_cast<std::size_t>(launch.step.plan.max_tokens);
  const std::size_t pairs = row_tiles * static_cast<std::size_t>(launch.step.plan.max_segments);
  Layout shares, partial;
  const auto tokens = workspace.cuts_rows ? static_cast<std::size_t>(launch.step.plan.max_tokens) : 0;
  const std::size_t group = static_cast<std::size_t>(launch.params.query_heads) / kv_heads;
  workspace.row_tiles = shares.place(workspace.cuts_rows ? (row_tiles + 2) * sizeof(std::int32_t) : 0);
  workspace.view_costs = shares.place(tokens * std::max<std::size_t>(per_tile / group, 1) * sizeof(int));
  workspace.best_cuts = shares.place(workspace.cuts_rows ? (tokens + 1) * sizeof(int2) : 0);
  workspace.tiles_before = shares.place((pairs + 1) * sizeof(std::int32_t));
  workspace.first_tiles = shares.place(pairs * sizeof(std::int32_t));
  workspace.pieces_before = shares.place(is_deterministic(launch) ? (pairs + 1) * sizeof(std::int32_t) : 0);
  workspace.shares = shares.place(max_ctas * sizeof(int4));
  workspace.outputs = shares.place(is_deterministic(launch) ? 0 : kv_heads * row_tiles * sizeof(int2));
  workspace.shares_bytes = shares.bytes();
  workspace.partial_state = partial.place(slots * per_tile * sizeof(float2));
  workspace.partial_out = partial.place(slots * per_tile * width * sizeof(float));
  workspace.bytes = partial.bytes();
  return workspace;
}

AttentionArguments arguments(const AttentionLaunch& launch, const Workspace& workspace, std::int64_t go) {
  const AttentionParams& params = launch.params;
  unsigned char* shares =
      static_cast<unsigned char*>(launch.shares) + static_cast<std::size_t>(go) * workspace.shares_bytes;
  unsigned char* partial = static_cast<unsigned char*>(launch.workspace);
  AttentionArguments p;
  p.shape = params.shape;
  p.layer = params.layer;
  p.plan = launch.step.plan;
  p.rope = launch.step.rope;
  p.q = params.q;
  p.out = params.out;
  p.lse = params.lse;
  p.sinks = params.sinks;
  p.q_dtype = params.buffers.dtype;
  p.out_dtype = params.out_dtype;
  p.width = static_cast<int>(params.shape.row_elements());
  p.group = static_cast<int>(params.query_heads / params.shape.kv_heads);
  p.rows_per_tile = rows_per_tile(launch, max_rows(launch));
  p.first_row = static_cast<int>(go * workspace.rows);
  p.end_row = static_cast<int>(std::min((go + 1) * workspace.rows, max_rows(launch)));
  p.max_ctas = launch.max_ctas;
  p.min_tiles = launch.min_tiles;
  p.multiprocessors = launch.multiprocessors;
  p.scale_log2 = params.scale * kLog2E;
  p.softcap = params.softcap;
  p.window = params.window > INT_MAX ? 0 : static_cast<int>(params.window);  // no view is as long
  p.row_tiles = workspace.cuts_rows ? reinterpret_cast<std::int32_t*>(shares + workspace.row_tiles) : nullptr;
  p.view_costs = reinterpret_cast<int*>(shares + workspace.view_costs);
  p.best_cuts = reinterpret_cast<int2*>(shares + workspace.best_cuts);
  p.tiles_before = reinterpret_cast<std::int32_t*>(shares + workspace.tiles_before);
  p.first_tiles = reinterpret_cast<std::int32_t*>(shares + workspace.first_tiles);
  p.pieces_before =
      is_deterministic(launch) ? reinterpret_cast<std::int32_t*>(shares + workspace.pieces_before) : nullptr;
  p.shares = reinterpret_cast<int4*>(shares + workspace.shares);
  p.outputs = reinterpret_cast<int2*>(shares + workspace.outputs);
  p.partial_state = reinterpret_cast<float2*>(partial + workspace.partial_state);
  p.partial_out = reinterpret_cast<float*>(partial + workspace.partial_out);
  return p;
}

// Calls body(arguments) for each go, as long as it succeeds.
template <typename Body>
cudaError_t in_goes(const AttentionLaunch& launch, Body&& body) {
  const Workspace workspace = lay_out(launch);
  cudaError_t error = cudaSuccess;
  for (std::int64_t go = 0; go < workspace.n_goes && error == cudaSuccess; ++go) {
    error = body(arguments(launch, workspace, go));
  }
  return error;
}

// Calls `body.template operator()<T, Tile>()` with the type of the cache and the tile of the launch.
template <typename Body>
cudaError_t dispatch_plain(const AttentionArguments& p, Body&& body) {
  const auto with_tile = [&]<typename T>() {
    return dispatch_tile(p.width, p.rows_per_tile, [&]<int kWidth, int kRows>() -> cudaError_t {
      if constexpr (kWidth > kMaxPlainWidth) {
        return cudaErrorInvalidValue;
      } else {
        return body.template operator()<T, Tile<kWidth, kRows>>();
      }
    });
  };
  if (p.shape.key_format == KvFormat::kBF16) return with_tile.template operator()<simt::bf16>();
  return with_tile.template operator()<simt::f16>();
}

}  // namespace

cudaError_t attention_ctas_per_multiprocessor(const AttentionLaunch& launch, int* ctas) {
  AttentionLaunch sizes = launch;
  sizes.max_ctas = sizes.min_tiles = 1;
  if (!is_valid(sizes)) return cudaErrorInvalidValue;
  const AttentionArguments p = arguments(sizes, lay_out(sizes), 0);
  if (is_general(sizes)) return general_ctas_per_multiprocessor(p, ctas);
  return dispatch_plain(p, [&]<typename T, typename Tile>() {
    return SIMT_OCCUPANCY((attend<T, Tile>), kThreads, Tile::kSharedBytes, ctas);
  });
}

std::size_t attention_workspace_bytes(const AttentionLaunch& launch) {
  return is_valid(launch) ? lay_out(launch).bytes : 0;
}

std::size_t attention_shares_bytes(const AttentionLaunch& launch) {
  if (!is_valid(launch)) return 0;
  const Workspace workspace = lay_out(launch);
  return workspace.shares_bytes * static_cast<std::size_t>(workspace.n_goes);
}

cudaError_t launch_attention_plan(const AttentionLaunch& launch, KernelStream stream) {
  if (!is_valid(launch)) return cudaErrorInvalidValue;
  return in_goes(launch, [&](const AttentionArguments& p) -> cudaError_t {
    if (p.row_tiles != nullptr) {
      if (p.plan.views == nullptr) return cudaErrorInvalidValue;
      const cudaError_t error = SIMT_LAUNCH(cut_rows, dim3(1), dim3(kThreads), kCutSharedBytes, stream, p);
      if (error != cudaSuccess) return error;
    }
    return SIMT_LAUNCH(plan_attention, dim3(1), dim3(kThreads), kPlanSharedBytes, stream, p);
  });
}

cudaError_t launch_attention(const AttentionLaunch& launch, KernelStream stream) {
  if (!is_valid(launch)) return cudaErrorInvalidValue;
  if (!are_aligned({launch.params.layer.keys, launch.params.layer.values, launch.step.rope.cos, launch.step.rope.sin,
                    launch.params.q, launch.params.out})) {
    return cudaErrorInvalidValue;
  }
  return in_goes(launch, [&](const AttentionArguments& p) {
    const auto launch_plain = [&]<typename T, typename Tile>() {
      return SIMT_LAUNCH((attend<T, Tile>), dim3(static_cast<unsigned>(p.max_ctas)), dim3(kThreads), Tile::kSharedBytes,
                         stream, p);
    };
    const cudaError_t error = is_general(launch) ? launch_general(p, stream) : dispatch_plain(p, launch_plain);
    if (error != cudaSuccess) return error;
    const auto rows = static_cast<unsigned>(p.end_row - p.first_row);
    const dim3 grid(rows, static_cast<unsigned>(p.shape.kv_heads));
    if (p.pieces_before != nullptr) return SIMT_LAUNCH(combine_attention<true>, grid, dim3(32), 0, stream, p);
    return SIMT_LAUNCH(combine_attention<false>, grid, dim3(32), 0, stream, p);
  });
}

cudaError_t launch_attention_mass(const AttentionMassParams& params, KernelStream stream) {
  const std::int64_t n = std::ssize(params.ranges);
  if (n > INT_MAX - kWarps || params.query_heads < 1 || params.query_heads > kMaxRows) return cudaErrorInvalidValue;
  if (n == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((n + kWarps - 1) / kWarps));
  return SIMT_LAUNCH(add_attention_mass, grid, dim3(kThreads), 0, stream, params, params.ranges.data(),
                     static_cast<int>(n));
}

}  // namespace hogwild::cuda
