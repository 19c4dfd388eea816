// Concurrent attention: the new tokens of all workers against a shared, paged KV cache.
//
//   plan     1 CTA, once per step: counts tiles and cuts the work into equal shares
//   main     a fixed grid, once per layer: each CTA walks its share of K and V tiles
//   combine  once per layer: joins the pieces of what was cut between CTAs
//
// Letters: T new tokens, S segments, Hq and Hkv heads, G = Hq / Hkv, D head dim, R rotary dim, E width of the
// cache's rows: D elements and padding, which is zero. Row r = t G + g of a kv head is query head g of its
// group at token t. Rows are taken in row tiles of 16, 32 or 64, so that one read of K and V serves all
// workers and all heads of the group.
//
// Order of the work: (kv head, row tile, segment, tile of keys). An *output* is one (kv head, row tile): a run
// of consecutive tiles. CTA i of n takes tiles [i N / n, (i + 1) N / n) of all N. It keeps its softmax state
// from segment to segment, where only the queries are rotated anew, and gives it away where the output
// changes: as the result if it has seen the whole run, else as a partial state. Only the first and the last output
// of a CTA can be cut, so each CTA has two slots for partial states.
#include "dispatch.cuh"
#include "kernels.h"
#include "page.cuh"
#include "rope.cuh"
#include "softmax_state.cuh"
#include "vector_load.cuh"

namespace hogwild::cuda {
namespace {

// What the kernels get: the launch, and its workspace taken apart.
struct Arguments {
  KvShape shape;
  KvLayer layer;
  DevicePlan plan;
  RopeTable rope;
  const void* q;  // [T, Hq, D]
  void* out;      // [T, Hq, D]
  float* lse;     // [T, Hq] or null
  Dtype q_dtype, out_dtype;
  int width;  // E
  int group;  // G
  int rows_per_tile;
  int max_ctas;
  int min_tiles;
  float scale_log2;  // scale * log2(e): scores are in units of log 2

  std::int32_t* tiles_before;  // [row tiles * S + 1]: tiles of the (row tile, segment) pairs before each
  int4* shares;                // [1 + CTAs]: {CTAs used, tiles per kv head}, then {kv head, pair, tile, tiles} each
  float* partial_out;          // [CTAs, 2, rows_per_tile, E]
  float2* partial_state;       // [CTAs, 2, rows_per_tile]: (max, sum)
};

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Keys per tile: a page, or half of one where the tile would fill shared memory.
SIMT_HOST_DEVICE constexpr int tile_keys(int width) { return width <= 128 ? 64 : 32; }

SIMT_DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }
SIMT_DEVICE long long share_begin(long long total, int cta, int ctas) { return total * cta / ctas; }

// Where a CTA, whose share begins at `begin`, leaves its part of the output whose run begins at `run_begin`.
SIMT_DEVICE std::size_t slot_of(int cta, long long begin, long long run_begin) {
  return 2 * static_cast<std::size_t>(cta) + (begin < run_begin ? 1 : 0);
}

// ---- plan -------------------------------------------------------------------------------------------

// A position in the order of the work. A *pair* is (row tile, segment): row_tile * S + segment.
struct WorkCursor {
  int kv_head, pair, tile, tiles;  // `tiles`: of this pair

  // All but `tiles`, of which the plan has no use.
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

// Tiles from the start of the segment's first page to the last key that a row of the row tile sees.
SIMT_DEVICE int count_tiles(const Arguments& p, int tokens, int row_tile, int segment, int keys_per_tile) {
  const int first = row_tile * p.rows_per_tile / p.group;
  const int end = min(tokens, ceil_div((row_tile + 1) * p.rows_per_tile, p.group));
  int limit = 0;
  for (int t = first; t < end; ++t) {
    limit = max(limit, p.plan.query_ranges[static_cast<std::size_t>(segment) * tokens + t].limit);
  }
  const Segment s = p.plan.segments[segment];
  limit = min(limit, s.length);
  if (limit == 0) return 0;
  // Whole tiles before the first slot are left out too: with half-page tiles there may be one.
  return ceil_div(s.first_slot + limit, keys_per_tile) - s.first_slot / keys_per_tile;
}

constexpr std::size_t kPlanSharedBytes = kThreads * sizeof(int);

__global__ void __launch_bounds__(kThreads) plan_attention(const __grid_constant__ Arguments p) {
  SIMT_SHARED_MEMORY(shared);
  int* scan = reinterpret_cast<int*>(shared);  // [kThreads]
  const int tid = static_cast<int>(threadIdx.x);
  const int tokens = p.plan.counts[0];
  const int segments = p.plan.counts[1];
  const int pairs = ceil_div(tokens * p.group, p.rows_per_tile) * segments;
  const int keys_per_tile = tile_keys(p.width);

  int before = 0;  // tiles of all earlier rounds
  for (int first = 0; first < pairs; first += kThreads) {
    const int pair = first + tid;
    const int tiles = pair < pairs ? count_tiles(p, tokens, pair / segments, pair % segments, keys_per_tile) : 0;
    scan[tid] = tiles;
    __syncthreads();
    for (int distance = 1; distance < kThreads; distance *= 2) {  // inclusive scan (Hillis and Steele 1986)
      const int lower = tid >= distance ? scan[tid - distance] : 0;
      __syncthreads();
      scan[tid] += lower;
      __syncthreads();
    }
    if (pair < pairs) p.tiles_before[pair] = before + scan[tid] - tiles;
    before += scan[kThreads - 1];
    __syncthreads();
  }
  if (tid == 0) p.tiles_before[pairs] = before;

  const long long total = before * static_cast<long long>(p.shape.kv_heads);
  const int ctas = static_cast<int>(max(1ll, min(total / p.min_tiles, static_cast<long long>(p.max_ctas))));
  if (tid == 0) p.shares[0] = make_int4(ctas, before, 0, 0);
  for (int cta = tid; cta < p.max_ctas; cta += kThreads) {
    int4 share = make_int4(0, 0, 0, 0);
    if (cta < ctas && total > 0) {
      const long long begin = share_begin(total, cta, ctas);
      WorkCursor cursor;
      cursor.seek(p.tiles_before, pairs, before, begin);
      share = make_int4(cursor.kv_head, cursor.pair, cursor.tile,
                        static_cast<int>(share_begin(total, cta + 1, ctas) - begin));
    }
    p.shares[1 + cta] = share;
  }
}

// ---- main -------------------------------------------------------------------------------------------

// How the four warps and shared memory are used, for a width of the cache's rows and a number of rows per row
// tile. The warps stand side by side along the rows, 16 each; along the columns of the output where all of
// them would be too many registers for one warp (both halves then compute the same scores); and along the
// keys of a tile.
template <int kRowWidth, int kRowsPerTile>
struct Tile {
  static constexpr int kWidth = kRowWidth;
  static constexpr int kRows = kRowsPerTile;
  static constexpr int kKeys = tile_keys(kWidth);
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
  // Three stages where they fit, else two. 99 KiB per CTA is what the smallest supported cards (8.6, 8.9,
  // 12.0) have.
  static constexpr int kSharedLimit = 99 * 1024;
  static constexpr int kStages = kQueryBytes + 3 * kStageBytes + kMergeBytes <= kSharedLimit ? 3 : 2;
  static constexpr int kSharedBytes = kQueryBytes + kStages * kStageBytes + kMergeBytes;
  static_assert(kSharedBytes <= kSharedLimit, "does not fit");
  // A stage is also where warps along the keys exchange their output: half of them, 16 rows of f32.
  static_assert(kKeyWarps == 1 || kWarps / 2 * 16 * kWidth * 4 <= kStageBytes, "the exchange must fit into a stage");
};

// Number of (row, kv head) among the T Hq rows of q, out and lse.
SIMT_DEVICE std::size_t row_index(const Arguments& p, int row, int kv_head) {
  const std::size_t token = static_cast<std::size_t>(row / p.group);
  const std::size_t head = static_cast<std::size_t>(kv_head) * p.group + row % p.group;
  return token * p.shape.kv_heads * p.group + head;
}

// Rotates and scales the queries of one row tile for one segment, into shared memory, rounded once.
template <typename T, typename Tile>
SIMT_DEVICE void rotate_queries(const Arguments& p, const DeviceQueryRange* query_ranges, int rows, int first_row,
                                int kv_head, uint4* queries) {
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
    queries[swizzled_chunk(Tile::kChunks, r, unit.chunk[0])] = pack8<T>(unit.first, p.scale_log2);
    queries[swizzled_chunk(Tile::kChunks, r, unit.chunk[1])] = pack8<T>(unit.second, p.scale_log2);
  }
}

// Copies a tile of keys and values of one (segment, kv head) to a stage. Slots of its pages that are not the
// segment's become zero: they may hold anything, and 0 * NaN is NaN.
template <typename Tile>
SIMT_DEVICE void load_tile(const Arguments& p, const WorkCursor& at, int segments, uint4* stage) {
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

// Where a thread of the main kernel stands in its CTA.
struct Place {
  int lane, row_warp, column_warp, key_warp;
};

// What a thread's two rows see of a segment, in slots counted from the segment's first page.
struct RowMask {
  int begin;   // first slot of the segment
  int end[2];  // first slot that row g, g + 8 does not see; 0 where it sees none
  float bias[2];
};

SIMT_DEVICE RowMask row_mask_of(const Arguments& p, const DeviceQueryRange* query_ranges, const Segment& segment,
                                int rows, int first_row, const Place& place) {
  RowMask row_mask;
  row_mask.begin = segment.first_slot;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = first_row + place.row_warp * 16 + place.lane / 4 + 8 * i;
    row_mask.end[i] = 0;
    row_mask.bias[i] = 0;
    if (row >= rows) continue;
    const DeviceQueryRange range = load_constant_16(query_ranges + row / p.group);
    if (range.limit == 0) continue;
    row_mask.end[i] = segment.first_slot + min(range.limit, segment.length);
    row_mask.bias[i] = range.bias * kLog2E;
  }
  return row_mask;
}

template <typename Tile>
SIMT_DEVICE void load_query_fragment(const uint4* queries, const Place& place, int step, std::uint32_t (&fragment)[4]) {
  const int row = place.row_warp * 16 + place.lane % 16;
  simt::ldmatrix_x4(fragment, queries + swizzled_chunk(Tile::kChunks, row, 2 * step, place.lane / 16));
}

// One tile for one warp: scores of its 16 rows and kWarpKeys keys, softmax, product with the values.
template <typename T, typename Tile>
SIMT_DEVICE void attend_tile(const uint4* stage, const std::uint32_t (&queries)[Tile::kWidth / 16][4],
                             const Place& place, const RowMask& row_mask, int first_slot, typename Tile::State& state) {
  constexpr int kWarpKeys = Tile::kWarpKeys;
  const uint4* keys = stage;
  const uint4* values = stage + Tile::kKeys * Tile::kChunks;
  const int lane = place.lane;
  const int first_key = place.key_warp * kWarpKeys;  // of this warp in the tile

  float scores[kWarpKeys / 8][4];
#pragma unroll
  for (int i = 0; i < kWarpKeys / 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) scores[i][j] = row_mask.bias[j / 2];
  }
#pragma unroll
  for (int step = 0; step < Tile::kWidth / 16; ++step) {
#pragma unroll
    for (int i = 0; i < kWarpKeys / 16; ++i) {
      // Keys are [key][dim], which is a column-major B: no transposition.
      const int key = first_key + lane / 16 * 8 + lane % 8;  // and 16 i rows on, where the swizzle is the same
      std::uint32_t fragment[4];
      simt::ldmatrix_x4(fragment,
                        keys + swizzled_chunk(Tile::kChunks, key, 2 * step, lane / 8 % 2) + 16 * i * Tile::kChunks);
      simt::mma_m16n8k16<T>(scores[2 * i], queries[step], fragment[0], fragment[1]);
      simt::mma_m16n8k16<T>(scores[2 * i + 1], queries[step], fragment[2], fragment[3]);
    }
  }

  const int slot = first_slot + first_key;
  if (slot < row_mask.begin || slot + kWarpKeys > min(row_mask.end[0], row_mask.end[1])) {
#pragma unroll
    for (int i = 0; i < kWarpKeys / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int at = slot + 8 * i + 2 * (lane % 4) + j % 2;
        if (at < row_mask.begin || at >= row_mask.end[j / 2]) scores[i][j] = -INFINITY;
      }
    }
  }

  // The scores' accumulator layout is that of A: probabilities go into the next product as they lie.
  std::uint32_t probabilities[kWarpKeys / 16][4];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float best = -INFINITY;
#pragma unroll
    for (int i = 0; i < kWarpKeys / 8; ++i) best = fmaxf(best, fmaxf(scores[i][2 * row], scores[i][2 * row + 1]));
    const float reference = state.raise_max(row, row_max(best));
#pragma unroll
    for (int i = 0; i < kWarpKeys / 8; ++i) {
      const float first = simt::exp2_approx(scores[i][2 * row] - reference);
      const float second = simt::exp2_approx(scores[i][2 * row + 1] - reference);
      state.sum[row] += first + second;
      probabilities[i / 2][2 * (i % 2) + row] = simt::pack2<T>(first, second);
    }
  }
#pragma unroll
  for (int i = 0; i < kWarpKeys / 16; ++i) {
#pragma unroll
    for (int column = 0; column < Tile::kWarpColumns / 16; ++column) {
      const int key = first_key + lane % 16;
      const int even_chunk = Tile::first_column(2 * column) / Tile::kChunkColumns;
      const int own_chunk = Tile::kColumnStep / Tile::kChunkColumns * place.column_warp + lane / 16;
      std::uint32_t fragment[4];
      simt::ldmatrix_x4_transposed(
          fragment, values + swizzled_chunk(Tile::kChunks, key, even_chunk, own_chunk) + 16 * i * Tile::kChunks);
      simt::mma_m16n8k16<T>(state.out[2 * column], probabilities[i], fragment[0], fragment[1]);
      simt::mma_m16n8k16<T>(state.out[2 * column + 1], probabilities[i], fragment[2], fragment[3]);
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

SIMT_DEVICE void write_lse(const Arguments& p, std::size_t row, float max, float sum) {
  if (p.lse == nullptr) return;
  p.lse[row] = sum == 0.f ? -INFINITY : (max + simt::log2_approx(sum)) * kLn2;
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
SIMT_DEVICE void write_rows(const Arguments& p, const Place& place, int kv_head, int rows, int first_row, bool whole,
                            std::size_t slot, const typename Tile::State& state) {
  const int own_column = Tile::kColumnStep * place.column_warp + 2 * (place.lane % 4);
  const bool is_first = own_column == 0;  // of the threads that hold a row
  const int head_dim = static_cast<int>(p.shape.head_dim);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = place.row_warp * 16 + place.lane / 4 + 8 * i;
    const float sum = row_sum(state.sum[i]);
    if (first_row + r >= rows) continue;
    if (whole) {
      const float inverse = sum == 0.f ? 0.f : 1.f / sum;
      const std::size_t at = row_index(p, first_row + r, kv_head);
      if (is_first) write_lse(p, at, state.max[i], sum);
      visit_array(p.out, p.out_dtype, [&](auto* out) {
        write_columns<Tile>(out + at * head_dim + own_column, head_dim - own_column, i, inverse, state);
      });
    } else {
      const std::size_t at = slot * Tile::kRows + r;
      if (is_first) p.partial_state[at] = make_float2(state.max[i], sum);
      write_columns<Tile>(p.partial_out + at * Tile::kWidth + own_column, Tile::kWidth, i, 1.f, state);
    }
  }
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(kThreads, 2) attend(const __grid_constant__ Arguments p) {
  SIMT_SHARED_MEMORY(shared);
  constexpr int kStageChunks = Tile::kStageBytes / static_cast<int>(sizeof(uint4));
  uint4* queries = reinterpret_cast<uint4*>(shared);                              // [kRows][kChunks]
  uint4* stages = queries + Tile::kQueryBytes / static_cast<int>(sizeof(uint4));  // [kStages][K, V][kKeys][kChunks]
  float4* row_exchange = reinterpret_cast<float4*>(stages + Tile::kStages * kStageChunks);

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const Place place = {static_cast<int>(threadIdx.x) % 32, warp % Tile::kRowWarps,
                       warp / Tile::kRowWarps % Tile::kColumnWarps, warp / Tile::kRowWarps / Tile::kColumnWarps};
  const int tokens = simt::load_constant(p.plan.counts);
  const int segments = simt::load_constant(p.plan.counts + 1);
  const int rows = tokens * p.group;
  const int row_tiles = ceil_div(rows, Tile::kRows);
  const int pairs = row_tiles * segments;
  const int4 all = simt::load_constant(p.shares);
  const int4 share = simt::load_constant(p.shares + 1 + blockIdx.x);
  const int tiles_per_head = all.y;
  const int n_tiles = share.w;
  if (n_tiles == 0) return;
  const long long first_position =
      share_begin(tiles_per_head * static_cast<long long>(p.shape.kv_heads), static_cast<int>(blockIdx.x), all.x);

  WorkCursor at = {share.x, share.y, share.z, p.tiles_before[share.y + 1] - p.tiles_before[share.y]};
  WorkCursor loading = at;  // the last tile whose copy was begun
  int begun = 0;
#pragma unroll
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) {
    if (begun < n_tiles) {
      if (begun > 0) loading.next(p.tiles_before, pairs);
      load_tile<Tile>(p, loading, segments, stages + stage * kStageChunks);
      ++begun;
    }
    simt::cp_async_commit();
  }

  typename Tile::State state;
  state.clear();
  std::uint32_t query_fragments[Tile::kWidth / 16][4];
  RowMask row_mask = {};
  int segment_start = 0;  // first slot of the segment's first tile
  bool new_pair = true;

  for (int i = 0; i < n_tiles; ++i) {
    uint4* stage = stages + i % Tile::kStages * kStageChunks;
    simt::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // this tile is there for all; all are done with the one before, and with `queries`
    if (begun < n_tiles) {
      loading.next(p.tiles_before, pairs);
      load_tile<Tile>(p, loading, segments, stages + begun % Tile::kStages * kStageChunks);
      ++begun;
    }
    simt::cp_async_commit();

    const int row_tile = at.pair / segments;
    const int first_row = row_tile * Tile::kRows;
    if (new_pair) {
      const int index = at.pair % segments;
      const DeviceQueryRange* query_ranges = p.plan.query_ranges + static_cast<std::size_t>(index) * tokens;
      const Segment segment = load_constant_16(p.plan.segments + index);
      rotate_queries<T, Tile>(p, query_ranges, rows, first_row, at.kv_head, queries);
      __syncthreads();
#pragma unroll
      for (int step = 0; step < Tile::kWidth / 16; ++step) {
        load_query_fragment<Tile>(queries, place, step, query_fragments[step]);
      }
      row_mask = row_mask_of(p, query_ranges, segment, rows, first_row, place);
      segment_start = segment.first_slot / Tile::kKeys * Tile::kKeys;
    }
    if (first_row + place.row_warp * 16 < rows) {  // else this warp's rows are padding
      attend_tile<T, Tile>(stage, query_fragments, place, row_mask, segment_start + at.tile * Tile::kKeys, state);
    }

    const WorkCursor done = at;
    const bool last = i + 1 == n_tiles;
    if (!last) at.next(p.tiles_before, pairs);
    new_pair = last || at.pair != done.pair || at.kv_head != done.kv_head;
    if (last || at.kv_head != done.kv_head || at.pair / segments != row_tile) {  // the output changes
      const long long head_position = done.kv_head * static_cast<long long>(tiles_per_head);
      const long long run_begin = head_position + p.tiles_before[row_tile * segments];
      const long long run_end = head_position + p.tiles_before[(row_tile + 1) * segments];
      const bool whole = first_position <= run_begin && run_end <= first_position + n_tiles;
      merge_key_warps<Tile>(place, reinterpret_cast<float4*>(stage), row_exchange, state);
      if (place.key_warp == 0) {
        write_rows<Tile>(p, place, done.kv_head, rows, first_row, whole,
                         slot_of(static_cast<int>(blockIdx.x), first_position, run_begin), state);
      }
      state.clear();
    }
  }
}

// ---- combine ----------------------------------------------------------------------------------------

// One warp per (row, kv head): joins the partial states of the CTAs that share its output, in the order of
// the work, so that the result does not depend on timing. Rows of outputs without tiles become 0.
__global__ void __launch_bounds__(kThreads) combine_attention(const __grid_constant__ Arguments p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int kv_head = static_cast<int>(blockIdx.y);
  const int segments = simt::load_constant(p.plan.counts + 1);
  const int rows = simt::load_constant(p.plan.counts) * p.group;
  if (row >= rows) return;
  const int row_tile = row / p.rows_per_tile;

  const int4 all = simt::load_constant(p.shares);
  const int ctas = all.x;
  const long long total = all.y * static_cast<long long>(p.shape.kv_heads);
  const long long head_position = kv_head * static_cast<long long>(all.y);
  const long long run_begin = head_position + simt::load_constant(p.tiles_before + row_tile * segments);
  const long long run_end = head_position + simt::load_constant(p.tiles_before + (row_tile + 1) * segments);
  int first_cta = 0;
  int last_cta = -1;
  if (run_end > run_begin) {  // the CTA of tile x is the last whose share begins at or before x
    first_cta = static_cast<int>(((run_begin + 1) * ctas - 1) / total);
    last_cta = static_cast<int>((run_end * ctas - 1) / total);
    if (first_cta == last_cta) return;  // it has written the result
  }

  // Only the first of them can have begun with another output.
  const std::size_t first_slot = slot_of(first_cta, share_begin(total, first_cta, ctas), run_begin);
  const auto row_of = [&](int cta) {
    const std::size_t slot = cta == first_cta ? first_slot : 2 * static_cast<std::size_t>(cta);
    return slot * p.rows_per_tile + row % p.rows_per_tile;
  };
  float max = -INFINITY;
  for (int cta = first_cta; cta <= last_cta; ++cta) max = fmaxf(max, p.partial_state[row_of(cta)].x);
  const float reference = max == -INFINITY ? 0.f : max;
  const int head_dim = static_cast<int>(p.shape.head_dim);
  const std::size_t out_row = row_index(p, row, kv_head);
  for (int column = 4 * lane; column < head_dim; column += 4 * 32) {
    float4 mean = make_float4(0, 0, 0, 0);
    float sum = 0;
    for (int cta = first_cta; cta <= last_cta; ++cta) {
      const std::size_t at = row_of(cta);
      const float2 state = p.partial_state[at];
      const float4 part = *reinterpret_cast<const float4*>(p.partial_out + at * p.width + column);
      const float factor = simt::exp2_approx(state.x - reference);
      sum += state.y * factor;
      mean.x += part.x * factor;
      mean.y += part.y * factor;
      mean.z += part.z * factor;
      mean.w += part.w * factor;
    }
    const float inverse = sum == 0.f ? 0.f : 1.f / sum;
    visit_array(p.out, p.out_dtype, [&](auto* out) {
      store2(out + out_row * head_dim + column, mean.x * inverse, mean.y * inverse);
      store2(out + out_row * head_dim + column + 2, mean.z * inverse, mean.w * inverse);
    });
    if (column == 0) write_lse(p, out_row, max, sum);
  }
}

}  // namespace

// ---- launchers --------------------------------------------------------------------------------------

namespace {

// Rows per row tile: as few as hold all rows of the step, at most four warps' worth of 16. Widths with tiles of
// half a page take two warps for the columns, hence two for the rows.
int rows_per_tile(std::int64_t rows, std::int64_t width) {
  if (width > 128) return 32;
  return rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
}

// Rows of a kv head, at most.
std::int64_t max_rows(const AttentionLaunch& launch) {
  return launch.step.plan.max_tokens * (launch.params.query_heads / launch.params.shape.kv_heads);
}

// The launch's bounds are sane, so that nothing below overflows.
bool is_valid(const AttentionLaunch& launch) {
  constexpr std::int64_t kMaxRows = std::int64_t{1} << 24;
  const AttentionParams& params = launch.params;
  const DevicePlan& plan = launch.step.plan;
  if (!is_supported(params.shape, launch.step.rope.rotary_dim)) return false;
  if (params.query_heads < 1 || params.query_heads % params.shape.kv_heads != 0) return false;
  if (plan.max_tokens < 1 || plan.max_segments < 0 || launch.max_ctas < 1 || launch.min_tiles < 1) return false;
  return params.query_heads <= kMaxRows && max_rows(launch) <= kMaxRows;
}

struct Workspace {
  std::size_t shares, partial_state, partial_out,
      bytes;  // offsets from tiles_before, and the size of all
};

Workspace lay_out(const AttentionLaunch& launch) {
  constexpr std::size_t kAlignment = 256;
  const std::int64_t rows = max_rows(launch);
  const std::int64_t width = launch.params.shape.row_elements();
  const std::size_t per_tile = static_cast<std::size_t>(rows_per_tile(rows, width));
  const std::size_t row_tiles = (static_cast<std::size_t>(rows) + per_tile - 1) / per_tile;
  const std::size_t slots = 2 * static_cast<std::size_t>(launch.max_ctas);
  std::size_t end = 0;
  const auto place = [&](std::size_t bytes) {
    const std::size_t at = end;
    end += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  };
  Workspace workspace;
  place((row_tiles * launch.step.plan.max_segments + 1) * sizeof(std::int32_t));
  workspace.shares = place((1 + static_cast<std::size_t>(launch.max_ctas)) * sizeof(int4));
  workspace.partial_state = place(slots * per_tile * sizeof(float2));
  workspace.partial_out = place(slots * per_tile * width * sizeof(float));
  workspace.bytes = end;
  return workspace;
}

Arguments arguments(const AttentionLaunch& launch) {
  const Workspace workspace = lay_out(launch);
  const AttentionParams& params = launch.params;
  unsigned char* memory = static_cast<unsigned char*>(launch.workspace);
  Arguments p;
  p.shape = params.shape;
  p.layer = params.layer;
  p.plan = launch.step.plan;
  p.rope = launch.step.rope;
  p.q = params.q;
  p.out = params.out;
  p.lse = params.lse;
  p.q_dtype = params.buffers.dtype;
  p.out_dtype = params.out_dtype;
  p.width = static_cast<int>(params.shape.row_elements());
  p.group = static_cast<int>(params.query_heads / params.shape.kv_heads);
  p.rows_per_tile = rows_per_tile(max_rows(launch), p.width);
  p.max_ctas = launch.max_ctas;
  p.min_tiles = launch.min_tiles;
  p.scale_log2 = params.scale * kLog2E;
  p.tiles_before = reinterpret_cast<std::int32_t*>(memory);
  p.shares = reinterpret_cast<int4*>(memory + workspace.shares);
  p.partial_state = reinterpret_cast<float2*>(memory + workspace.partial_state);
  p.partial_out = reinterpret_cast<float*>(memory + workspace.partial_out);
  return p;
}

// Calls `body.template operator()<T, Tile>()` with the type of the cache and the tile of the launch.
template <typename Body>
cudaError_t dispatch_tile(const AttentionLaunch& launch, Body&& body) {
  const std::int64_t rows = max_rows(launch);
  return dispatch_format(launch.params.shape, [&]<typename T>() {
    return dispatch_int(RowWidths(), static_cast<int>(launch.params.shape.row_elements()), [&]<int kWidth>() {
      return dispatch_int<16, 32, 64>(rows_per_tile(rows, kWidth), [&]<int kRows>() {
        if constexpr (kWidth > 128 && kRows != 32) {
          return cudaErrorInvalidValue;  // see rows_per_tile
        } else {
          return body.template operator()<T, Tile<kWidth, kRows>>();
        }
      });
    });
  });
}

}  // namespace

cudaError_t attention_ctas_per_multiprocessor(const AttentionLaunch& launch, int* ctas) {
  AttentionLaunch sizes = launch;
  sizes.max_ctas = sizes.min_tiles = 1;
  if (!is_valid(sizes)) return cudaErrorInvalidValue;
  return dispatch_tile(launch, [&]<typename T, typename Tile>() {
    return SIMT_OCCUPANCY((attend<T, Tile>), kThreads, Tile::kSharedBytes, ctas);
  });
}

std::size_t attention_workspace_bytes(const AttentionLaunch& launch) {
  return is_valid(launch) ? lay_out(launch).bytes : 0;
}

cudaError_t launch_attention_plan(const AttentionLaunch& launch, cudaStream_t stream) {
  if (!is_valid(launch)) return cudaErrorInvalidValue;
  const Arguments p = arguments(launch);
  return SIMT_LAUNCH(plan_attention, dim3(1), dim3(kThreads), kPlanSharedBytes, stream, p);
}

cudaError_t launch_attention(const AttentionLaunch& launch, cudaStream_t stream) {
  if (!is_valid(launch)) return cudaErrorInvalidValue;
  const Arguments p = arguments(launch);
  if (!are_aligned({p.layer.keys, p.layer.values, p.rope.cos, p.rope.sin, p.q, p.out})) return cudaErrorInvalidValue;
  const cudaError_t error = dispatch_tile(launch, [&]<typename T, typename Tile>() {
    return SIMT_LAUNCH((attend<T, Tile>), dim3(static_cast<unsigned>(p.max_ctas)), dim3(kThreads), Tile::kSharedBytes,
                       stream, p);
  });
  if (error != cudaSuccess) return error;
  const unsigned rows = static_cast<unsigned>(launch.step.plan.max_tokens * p.group);
  return SIMT_LAUNCH(combine_attention, dim3((rows + kWarps - 1) / kWarps, static_cast<unsigned>(p.shape.kv_heads)),
                     dim3(kThreads), 0, stream, p);
}

}  // namespace hogwild::cuda
