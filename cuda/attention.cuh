// Concurrent attention: the new tokens of all workers against a shared, paged KV cache.
//
//   cut      1 CTA, once per step and window: cuts the rows into row tiles, where they are more than one
//   plan     1 CTA, once per step and window: counts tiles and cuts the work into equal shares
//   main     a fixed grid, once per layer: each CTA walks its share of K and V tiles
//   combine  once per layer: joins the parts of what was cut between CTAs
//
// The main kernel comes in two kinds, which share all but what they do with a tile. The plain one (attention.cu) takes
// keys and values of one 16-bit type, and scores with a temperature and a bias. The general one (attention_general.cu)
// decides at run time, the same for all threads: windows, a soft cap, and a format of their own for keys and for values
// too. Which one a layer takes does not depend on the step.
//
// Letters: T new tokens, S segments, Hq and Hkv heads, G = Hq / Hkv, D head dim, R rotary dim, E width of the
// cache's rows: D elements and padding, which is zero. Row r = t G + g of a kv head is query head g of its
// group at token t. Rows are taken in row tiles of 16, 32 or 64, so that one read of K and V serves all
// workers and all heads of the group.
//
// The keys that some row of a row tile sees are read once for it. Where the rows of a step are more than a row tile's,
// those that see the same should share one. A *view* is a run of tokens, each of which sees what the one before does
// and itself. Of all ways to cut the rows, in their order, so that no row tile holds a part of a view beside another
// view, and of the one that fills one row tile after the other, the one with the fewest tiles of keys is taken: what
// workers share never takes more reading than each alone would.
//
// Order of the work: (kv head, row tile, segment, tile of keys). An *output* is one (kv head, row tile): a run
// of consecutive tiles. CTA i of n takes tiles [i N / n, (i + 1) N / n) of all N. It keeps its softmax state
// from segment to segment, where only the queries are rotated anew, and gives it away where the output
// changes: as the result if it has seen the whole run, else as a partial state. Only the first and the last output
// of a CTA can be cut, so each CTA has two slots for partial states.
//
// So where sums are cut depends on all the work of the step. Deterministic attention gives them away where nothing but
// the segment counts: a *piece* is what lies in one of its runs of kPieceSlots. CTAs take whole pieces, each leaves a
// partial state, and the states of a row are joined in the order of its view. A piece that shows a row nothing adds
// exact zeros, so what others see does not matter either. Row tiles have one size then, whatever the number of rows,
// since it says which keys a warp sums up.
#pragma once

#include "dispatch.cuh"
#include "kernels.h"
#include "page.cuh"
#include "rope.cuh"
#include "softmax_state.cuh"
#include "vector_load.cuh"

namespace hogwild::cuda {

// What the kernels get: the launch, and its workspace taken apart.
struct AttentionArguments {
  KvShape shape;
  KvLayer layer;
  DevicePlan plan;
  RopeTable rope;
  const void* q;       // [T, Hq, D]
  void* out;           // [T, Hq, D]
  float* lse;          // [T, Hq] or null
  const float* sinks;  // [Hq] or null
  Dtype q_dtype, out_dtype;
  int width;  // E
  int group;  // G
  int rows_per_tile;
  int first_row, end_row;  // the rows that are taken, of all T G
  int max_ctas;
  int min_tiles;
  int multiprocessors;
  float scale_log2;  // scale * log2(e): scores are in units of log 2
  float softcap;     // 0: off
  int window;        // 0: off

  std::int32_t* row_tiles;      // {how many}, then [row tiles + 1] first rows; null: rows fill one after the other
  int* view_costs;              // [V, views per row tile]: tiles of so many views from each on, in one row tile
  int2* best_cuts;              // [V + 1]: tiles of the views before each, and how many of them the last row tile has
  std::int32_t* tiles_before;   // [row tiles * S + 1]: tiles of the (row tile, segment) pairs before each
  std::int32_t* first_tiles;    // [row tiles * S]: the first of them, counted from the segment's first page
  std::int32_t* pieces_before;  // deterministic: [row tiles * S + 1], as tiles_before; else null
  int4* shares;                 // [CTAs]: {kv head, pair, tile, tiles} each
  int2* outputs;                // not deterministic: [Hkv, row tiles]: {slot of its first part, parts}
  float* partial_out;           // [slots, rows_per_tile, E]
  float2* partial_state;        // [slots, rows_per_tile]: (max, sum)
};

inline constexpr int kThreads = 128;
inline constexpr int kWarps = kThreads / 32;
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

// Keys per tile: a page, or half of one where the tile would fill shared memory.
SIMT_HOST_DEVICE constexpr int tile_keys(int width) { return width <= 128 ? 64 : 32; }

// QueryRange::first_seen
SIMT_DEVICE int first_seen(const DeviceQueryRange& range, int window) {
  return window == 0 || range.distance < window ? 0 : range.distance - window + 1;
}

SIMT_DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }

SIMT_DEVICE int end_row_of(const AttentionArguments& p, int tokens) { return min(tokens * p.group, p.end_row); }

// Row tiles of a step of so many tokens.
SIMT_DEVICE int row_tiles_of(const AttentionArguments& p, int tokens) {
  if (p.row_tiles != nullptr) return p.row_tiles[0];
  return ceil_div(max(end_row_of(p, tokens) - p.first_row, 0), p.rows_per_tile);
}

// Rows [first, end).
struct RowRange {
  int first, end;
};
SIMT_DEVICE RowRange rows_of_tile(const AttentionArguments& p, int tokens, int row_tile) {
  if (p.row_tiles != nullptr) return {p.row_tiles[1 + row_tile], p.row_tiles[2 + row_tile]};
  const int first = p.first_row + row_tile * p.rows_per_tile;
  return {first, min(first + p.rows_per_tile, end_row_of(p, tokens))};
}

// Parts of an output that was cut, by CTA: the first of them may have begun with another output, and so leaves its part
// in its second slot.
SIMT_DEVICE int slot_of_part(int first_slot, int part) { return part == 0 ? first_slot : (first_slot / 2 + part) * 2; }

// A position in the order of the work. A *pair* is (row tile, segment): row_tile * S + segment.
struct WorkCursor {
  int kv_head, pair, tile, tiles;  // `tiles`: of this pair

  // All but `tiles`.
  SIMT_DEVICE void seek(const std::int32_t* tiles_before, int pairs, int tiles_per_head, long long position) {
    kv_head = static_cast<int>(position / tiles_per_head);
    const int within = static_cast<int>(position - static_cast<long long>(kv_head) * tiles_per_head);
    int low = 0;  // the last pair that begins at or before `within`, hence one that has tiles
    int high = pairs - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (tiles_before[middle] <= within) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    pair = low;
    tile = within - tiles_before[low];
  }

  // There must be another tile.
  SIMT_DEVICE void next(const std::int32_t* tiles_before, int pairs) {
    if (++tile < tiles) return;
    tile = 0;
    do {
      if (++pair == pairs) {
        pair = 0;
        ++kv_head;
      }
      tiles = tiles_before[pair + 1] - tiles_before[pair];
    } while (tiles == 0);
  }
};

// ---- main -------------------------------------------------------------------------------------------

// 99 KiB per CTA is what the smallest supported cards (8.6, 8.9, 12.0) have: three stages where they fit, else two.
inline constexpr int kSharedLimit = 99 * 1024;
constexpr int stages_that_fit(int other_bytes, int stage_bytes) {
  return other_bytes + 3 * stage_bytes <= kSharedLimit ? 3 : 2;
}

// How the four warps and shared memory are used, for a width of the cache's rows and a number of rows per row
// tile. The warps stand side by side along the rows, 16 each; along the columns of the output where all of
// them would be too many registers for one warp (both halves then compute the same scores); and along the
// keys of a tile.
template <int kRowWidth, int kRowsPerTile>
struct Tile {
  static constexpr int kWidth = kRowWidth;
  static constexpr int kRows = kRowsPerTile;
  static constexpr int kKeys = tile_keys(kWidth);
  static constexpr int kPieceTiles = kPieceSlots / kKeys;
  static constexpr int kRowWarps = kRows / 16;
  static constexpr int kColumnWarps = kWidth <= 128 ? 1 : 2;
  static constexpr int kKeyWarps = kWarps / kRowWarps / kColumnWarps;
  static constexpr int kWarpKeys = kKeys / kKeyWarps;
  static constexpr int kWarpColumns = kWidth / kColumnWarps;
  static_assert(kWarpKeys % 16 == 0, "one ldmatrix.x4 brings 16 keys");
  static_assert(kColumnWarps == 1 || kKeyWarps == 1, "merge_key_warps knows no columns");
  static constexpr int kElementBytes = 2;  // what mma.sync multiplies: queries, keys and values alike
  static constexpr int kChunkColumns = kChunkBytes / kElementBytes;
  static constexpr int kChunks = kWidth / kChunkColumns;  // per row
  static_assert(kWidth % 16 == 0, "mma.sync takes 16 columns at a time");
  using State = SoftmaxState<kWarpColumns>;

  // Two column warps take turns at kColumnStep columns: so the part of a chunk's number that is a warp's own
  // is a bit of its own, as swizzled_chunk wants it. First column of an 8-column tile of the first of them:
  static constexpr int kColumnStep = 32;
  SIMT_HOST_DEVICE static constexpr int first_column(int tile) {
    constexpr int kTilesPerStep = kColumnStep / 8;
    return kColumnWarps == 1 ? 8 * tile : tile / kTilesPerStep * (2 * kColumnStep) + tile % kTilesPerStep * 8;
  }
  static_assert(kColumnWarps == 1 || kWarpColumns % kColumnStep == 0, "whole steps");

  static constexpr int kQueryBytes = kRows * kWidth * kElementBytes;
  static constexpr int kStageBytes = 2 * kKeys * kWidth * kElementBytes;  // K and V
  // (max, sum) of the rows of the warps that give their state to others: at most half of them.
  static constexpr int kMergeBytes = kWarps / 2 * 32 * static_cast<int>(sizeof(float4));
  static constexpr int kStages = stages_that_fit(kQueryBytes + kMergeBytes, kStageBytes);
  static constexpr int kSharedBytes = kQueryBytes + kStages * kStageBytes + kMergeBytes;
  static_assert(kSharedBytes <= kSharedLimit, "does not fit");
  // A stage is also where warps along the keys exchange their output: half of them, 16 rows of f32.
  static_assert(kKeyWarps == 1 || kWarps / 2 * 16 * kWidth * 4 <= kStageBytes, "the exchange must fit into a stage");
};

SIMT_DEVICE int query_head(const AttentionArguments& p, int row, int kv_head) {
  return kv_head * p.group + row % p.group;
}

// Number of (row, kv head) among the T Hq rows of q, out and lse.
SIMT_DEVICE std::size_t row_index(const AttentionArguments& p, int row, int kv_head) {
  const std::size_t token = static_cast<std::size_t>(row / p.group);
  return token * p.shape.kv_heads * p.group + query_head(p, row, kv_head);
}

// Rotates and scales the queries of one row tile for one segment, into shared memory, rounded once by
// pack(elements, factor).
template <typename Tile, typename Pack>
SIMT_DEVICE void rotate_queries(const AttentionArguments& p, const DeviceQueryRange* query_ranges, int rows,
                                int first_row, int kv_head, uint4* queries, Pack&& pack) {
  constexpr int kUnits = Tile::kChunks / 2;  // of a row
  const int head_dim = static_cast<int>(p.shape.head_dim);
#pragma unroll 1  // the softmax state fills the registers
  for (int i = static_cast<int>(threadIdx.x); i < Tile::kRows * kUnits; i += kThreads) {
    const int r = i / kUnits;
    const int row = first_row + r;
    DeviceQueryRange range;
    if (row < rows) range = load_constant_16(query_ranges + row / p.group);
    if (range.limit == 0) {  // then all of the row is hidden, wherever its chunks lie
      queries[r * Tile::kChunks + 2 * (i % kUnits)] = make_uint4(0, 0, 0, 0);
      queries[r * Tile::kChunks + 2 * (i % kUnits) + 1] = make_uint4(0, 0, 0, 0);
      continue;
    }
    const ActivationRow q = {p.q, p.q_dtype, row_index(p, row, kv_head) * head_dim};
    const RotatedUnit unit = load_rotated_unit(q, head_dim, p.rope, range.rope_row, i % kUnits);
    queries[swizzled_chunk(Tile::kChunks, r, unit.chunk[0])] = pack(unit.first, p.scale_log2);
    queries[swizzled_chunk(Tile::kChunks, r, unit.chunk[1])] = pack(unit.second, p.scale_log2);
  }
}

// Where a thread of the main kernel stands in its CTA.
struct Place {
  int lane, row_warp, column_warp, key_warp;
};

template <typename Tile>
SIMT_DEVICE void load_query_fragments(const uint4* queries, const Place& place,
                                      std::uint32_t (&fragments)[Tile::kWidth / 16][4]) {
  const int row = place.row_warp * 16 + place.lane % 16;
#pragma unroll
  for (int step = 0; step < Tile::kWidth / 16; ++step) {
    simt::ldmatrix_x4(fragments[step], queries + swizzled_chunk(Tile::kChunks, row, 2 * step, place.lane / 16));
  }
}

// Adds the products of the warp's queries and its keys of a tile to the scores.
template <typename T, typename Tile>
SIMT_DEVICE void add_scores(const uint4* keys, const std::uint32_t (&queries)[Tile::kWidth / 16][4], const Place& place,
                            float (&scores)[Tile::kWarpKeys / 8][4]) {
  const int lane = place.lane;
#pragma unroll
  for (int step = 0; step < Tile::kWidth / 16; ++step) {
#pragma unroll
    for (int i = 0; i < Tile::kWarpKeys / 16; ++i) {
      // Keys are [key][dim], which is a column-major B: no transposition.
      const int key = place.key_warp * Tile::kWarpKeys + lane / 16 * 8 + lane % 8;  // and 16 i rows on: same swizzle
      std::uint32_t fragment[4];
      simt::ldmatrix_x4(fragment,
                        keys + swizzled_chunk(Tile::kChunks, key, 2 * step, lane / 8 % 2) + 16 * i * Tile::kChunks);
      simt::mma_m16n8k16<T>(scores[2 * i], queries[step], fragment[0], fragment[1]);
      simt::mma_m16n8k16<T>(scores[2 * i + 1], queries[step], fragment[2], fragment[3]);
    }
  }
}

// Hides the scores that `is_hidden(slot, row)` says: -inf. `slot`: of the warp's first key.
template <typename Tile, typename Hidden>
SIMT_DEVICE void hide_scores(const Place& place, int slot, float (&scores)[Tile::kWarpKeys / 8][4],
                             Hidden&& is_hidden) {
#pragma unroll
  for (int i = 0; i < Tile::kWarpKeys / 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (is_hidden(slot + 8 * i + 2 * (place.lane % 4) + j % 2, j / 2)) scores[i][j] = -INFINITY;
    }
  }
}

// Brings the state to the maximum of new scores, adds their weights 2^(score - maximum) to its sums, and calls
// use(i, row, first, second) with those of columns 8 i + 2 (lane % 4) and the next.
template <typename Tile, typename Use>
SIMT_DEVICE void weigh_scores(const float (&scores)[Tile::kWarpKeys / 8][4], typename Tile::State& state, Use&& use) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float best = -INFINITY;
#pragma unroll
    for (int i = 0; i < Tile::kWarpKeys / 8; ++i) {
      best = fmaxf(best, fmaxf(scores[i][2 * row], scores[i][2 * row + 1]));
    }
    const float reference = state.raise_max(row, row_max(best));
#pragma unroll
    for (int i = 0; i < Tile::kWarpKeys / 8; ++i) {
      const float first = simt::exp2_approx(scores[i][2 * row] - reference);
      const float second = simt::exp2_approx(scores[i][2 * row + 1] - reference);
      state.sum[row] += first + second;
      use(i, row, first, second);
    }
  }
}

// Adds the values of the warp's keys of a tile to the state, each by its weight. The scores' accumulator layout is that
// of A: weights go into the product as they lie, packed in pairs.
template <typename T, typename Tile>
SIMT_DEVICE void add_values(const uint4* values, const std::uint32_t (&weights)[Tile::kWarpKeys / 16][4],
                            const Place& place, typename Tile::State& state) {
  const int lane = place.lane;
#pragma unroll
  for (int i = 0; i < Tile::kWarpKeys / 16; ++i) {
#pragma unroll
    for (int column = 0; column < Tile::kWarpColumns / 16; ++column) {
      const int key = place.key_warp * Tile::kWarpKeys + lane % 16;
      const int even_chunk = Tile::first_column(2 * column) / Tile::kChunkColumns;
      const int own_chunk = Tile::kColumnStep / Tile::kChunkColumns * place.column_warp + lane / 16;
      std::uint32_t fragment[4];
      simt::ldmatrix_x4_transposed(
          fragment, values + swizzled_chunk(Tile::kChunks, key, even_chunk, own_chunk) + 16 * i * Tile::kChunks);
      simt::mma_m16n8k16<T>(state.out[2 * column], weights[i], fragment[0], fragment[1]);
      simt::mma_m16n8k16<T>(state.out[2 * column + 1], weights[i], fragment[2], fragment[3]);
    }
  }
}

// Joins the states of the warps along the keys in those of key warp 0, pairwise through shared memory. All
// threads; `exchange` may still be read as a tile by others when it is called.
template <typename Tile>
SIMT_DEVICE void merge_key_warps(const Place& place, float4* exchange, float4* row_exchange,
                                 typename Tile::State& state) {
  constexpr int kTiles = Tile::State::kTiles;
#pragma unroll
  for (int half = Tile::kKeyWarps / 2; half >= 1; half /= 2) {
    const bool gives = place.key_warp >= half && place.key_warp < 2 * half;
    const int slot = place.key_warp % half * Tile::kRowWarps + place.row_warp;
    float4* tiles = exchange + slot * kTiles * 32 + place.lane;  // lane beside lane: no bank conflict
    __syncthreads();
    if (gives) {
      row_exchange[slot * 32 + place.lane] = make_float4(state.max[0], state.sum[0], state.max[1], state.sum[1]);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        tiles[i * 32] = make_float4(state.out[i][0], state.out[i][1], state.out[i][2], state.out[i][3]);
      }
    }
    __syncthreads();
    if (place.key_warp < half) {
      const float4 rows = row_exchange[slot * 32 + place.lane];
      const float factor0 = state.merge_row(0, rows.x, rows.y);
      const float factor1 = state.merge_row(1, rows.z, rows.w);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) state.merge_tile(i, tiles[i * 32], factor0, factor1);
    }
  }
}

// What is left to do with the sums of a row: writes its lse, and returns the factor of its output. `at`: row_index. A
// sink is one more score, without a value.
SIMT_DEVICE float finish_row(const AttentionArguments& p, std::size_t at, int head, float max, float sum,
                             bool writes_lse) {
  float kept = 1;  // of the sum, beside the sink
  if (p.sinks != nullptr) {
    const float sink = simt::load_constant(p.sinks + head) * kLog2E;
    const float raised = fmaxf(max, sink);
    const float reference = raised == -INFINITY ? 0.f : raised;
    kept = simt::exp2_approx(max - reference);
    sum = sum * kept + simt::exp2_approx(sink - reference);
    max = raised;
  }
  if (writes_lse && p.lse != nullptr) p.lse[at] = (max + simt::log2_approx(sum)) * kLn2;  // without keys -inf
  return sum == 0.f ? 0.f : kept / sum;
}

// A thread's columns of one of its two rows, times `factor`. `to` and `columns` count from its first column.
template <typename Tile, typename Element>
SIMT_DEVICE void write_columns(Element* to, int columns, int row, float factor, const typename Tile::State& state) {
#pragma unroll
  for (int tile = 0; tile < Tile::State::kTiles; ++tile) {
    const int column = Tile::first_column(tile);
    if (column < columns) {  // else padding
      store2(to + column, state.out[tile][2 * row] * factor, state.out[tile][2 * row + 1] * factor);
    }
  }
}

// The rows of one warp: the result if this CTA saw all of the output's tiles, else a partial state.
template <typename Tile>
SIMT_DEVICE void write_rows(const AttentionArguments& p, const Place& place, int kv_head, int rows, int first_row,
                            bool whole, std::size_t slot, const typename Tile::State& state) {
  const int own_column = Tile::kColumnStep * place.column_warp + 2 * (place.lane % 4);
  const bool is_first = own_column == 0;  // of the threads that hold a row
  const int head_dim = static_cast<int>(p.shape.head_dim);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = place.row_warp * 16 + place.lane / 4 + 8 * i;
    const float sum = row_sum(state.sum[i]);
    if (first_row + r >= rows) continue;
    if (whole) {
      const std::size_t at = row_index(p, first_row + r, kv_head);
      const float factor = finish_row(p, at, query_head(p, first_row + r, kv_head), state.max[i], sum, is_first);
      visit_array(p.out, p.out_dtype, [&](auto* out) {
        write_columns<Tile>(out + at * head_dim + own_column, head_dim - own_column, i, factor, state);
      });
    } else {
      const std::size_t at = slot * Tile::kRows + r;
      if (is_first) p.partial_state[at] = make_float2(state.max[i], sum);
      write_columns<Tile>(p.partial_out + at * Tile::kWidth + own_column, Tile::kWidth, i, 1.f, state);
    }
  }
}

// The main kernel but for what is done with a tile, which an Attention does:
//   Tile                                   sizes, and the arrangement of shared memory
//   Attention(shared)                      all of the CTA's shared memory
//   load(p, at, segments, stage)           begins to copy a tile: called for each, in order
//   open(p, at, ...)                       before the first tile of a (row tile, segment): turns its queries; all of
//   the
//                                          CTA's threads meet at a barrier in it
//   attend(p, stage, place, tile, state)   a tile that has arrived, for one warp
template <typename Attention>
SIMT_DEVICE void walk_share(const AttentionArguments& p, unsigned char* shared) {
  using Tile = typename Attention::Tile;
  constexpr int kStageChunks = Tile::kStageBytes / static_cast<int>(sizeof(uint4));
  uint4* queries = reinterpret_cast<uint4*>(shared);                              // [kRows][kChunks]
  uint4* stages = queries + Tile::kQueryBytes / static_cast<int>(sizeof(uint4));  // [kStages][K, V][kKeys][kChunks]
  float4* row_exchange = reinterpret_cast<float4*>(stages + Tile::kStages * kStageChunks);

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const Place place = {static_cast<int>(threadIdx.x) % 32, warp % Tile::kRowWarps,
                       warp / Tile::kRowWarps % Tile::kColumnWarps, warp / Tile::kRowWarps / Tile::kColumnWarps};
  const int tokens = simt::load_constant(p.plan.counts);
  const int segments = simt::load_constant(p.plan.counts + 1);
  const int row_tiles = row_tiles_of(p, tokens);
  const int pairs = row_tiles * segments;
  const int4 share = p.shares[blockIdx.x];
  const int n_tiles = share.w;
  if (n_tiles == 0) return;

  WorkCursor at = {share.x, share.y, share.z, p.tiles_before[share.y + 1] - p.tiles_before[share.y]};
  WorkCursor loading = at;  // the last tile whose copy was begun
  int begun = 0;
  Attention attention(shared);
#pragma unroll
  for (int stage = 0; stage < Tile::kStages; ++stage) {
    if (begun < n_tiles) {
      if (begun > 0) loading.next(p.tiles_before, pairs);
      attention.load(p, loading, segments, stages + stage * kStageChunks);
      ++begun;
    }
    simt::cp_async_commit();
  }

  typename Tile::State state;
  state.clear();
  bool new_pair = true;
  int row_tile = 0;
  RowRange rows = {0, 0};  // of the row tile
  int left_of_piece = 0;   // tiles; without pieces it never comes down to 0

  for (int i = 0;; ++i) {
    uint4* stage = stages + i % Tile::kStages * kStageChunks;
    if (new_pair) {
      row_tile = at.pair / segments;
      rows = rows_of_tile(p, tokens, row_tile);
      if (p.pieces_before != nullptr) {
        const int begun_of_piece = (p.first_tiles[at.pair] + at.tile) % Tile::kPieceTiles;
        left_of_piece = min(Tile::kPieceTiles - begun_of_piece, at.tiles - at.tile);
      }
      attention.open(p, at, tokens, segments, rows.end, rows.first, queries, place);
    }
    if (i == 0) {  // its copy was under way while the queries were turned
      simt::cp_async_wait<Tile::kStages - 1>();
      __syncthreads();  // it is there for all
    }
    if (rows.first + place.row_warp * 16 < rows.end) {  // else this warp's rows are padding
      attention.attend(p, stage, place, at.tile, state);
    }

    const WorkCursor done = at;
    const bool last = i + 1 == n_tiles;
    if (!last) at.next(p.tiles_before, pairs);
    new_pair = at.pair != done.pair || at.kv_head != done.kv_head;
    --left_of_piece;
    const bool output_changes = at.kv_head != done.kv_head || at.pair >= (row_tile + 1) * segments;
    if (last || output_changes || left_of_piece == 0) {
      bool whole = false;
      int slot;
      if (p.pieces_before != nullptr) {
        left_of_piece = min(Tile::kPieceTiles, at.tiles - at.tile);
        const int first_tile = p.first_tiles[done.pair];
        slot = done.kv_head * p.pieces_before[pairs] + p.pieces_before[done.pair] +
               (first_tile + done.tile) / Tile::kPieceTiles - first_tile / Tile::kPieceTiles;
      } else {
        const int2 output = p.outputs[done.kv_head * row_tiles + row_tile];
        whole = output.y == 1;
        slot = slot_of_part(output.x, static_cast<int>(blockIdx.x) - output.x / 2);
      }
      merge_key_warps<Tile>(place, reinterpret_cast<float4*>(stage), row_exchange, state);
      if (place.key_warp == 0) {
        write_rows<Tile>(p, place, done.kv_head, rows.end, rows.first, whole, static_cast<std::size_t>(slot), state);
      }
      state.clear();
    }
    if (last) return;
    simt::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // the next tile is there for all; all are done with this one, and with `queries`
    if (begun < n_tiles) {
      loading.next(p.tiles_before, pairs);
      attention.load(p, loading, segments, stage);
      ++begun;
    }
    simt::cp_async_commit();
  }
}

// ---- the general kernel (attention_general.cu) ------------------------------------------------------

// Launches it on p.max_ctas CTAs; and SIMT_OCCUPANCY of it.
cudaError_t launch_general(const AttentionArguments& p, KernelStream stream);
cudaError_t general_ctas_per_multiprocessor(const AttentionArguments& p, int* ctas);

// Calls `body.template operator()<kWidth, kRows>()` with the width of the cache's rows and the rows per row tile.
template <typename Body>
cudaError_t dispatch_tile(int width, int rows_per_tile, Body&& body) {
  return dispatch_int(RowWidths(), width, [&]<int kWidth>() {
    return dispatch_int<16, 32, 64>(rows_per_tile, [&]<int kRows>() {
      if constexpr (kWidth > 128 && kRows != 32) {
        return cudaErrorInvalidValue;  // see rows_per_tile
      } else {
        return body.template operator()<kWidth, kRows>();
      }
    });
  });
}

}  // namespace hogwild::cuda
