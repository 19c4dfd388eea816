// Concurrent attention: the plan, the plain main kernel, the combination, and the launchers (attention.cuh explains).
#include <climits>

#include "attention.cuh"
#include "kernels.h"

namespace hogwild::cuda {
namespace {

// ---- plan -------------------------------------------------------------------------------------------

// Tiles [begin, end) from the first to the last key that a row of the row tile sees, counted from the segment's first
// page.
struct TileRange {
  int begin, end;
};
SIMT_DEVICE TileRange tiles_seen(const AttentionArguments& p, int tokens, int row_tile, int segment,
                                 int keys_per_tile) {
  const int first = row_tile * p.rows_per_tile / p.group;
  const int end = min(tokens, ceil_div((row_tile + 1) * p.rows_per_tile, p.group));
  const Segment s = p.plan.segments[segment];
  int seen = s.length, limit = 0;
  for (int t = first; t < end; ++t) {
    const DeviceQueryRange range = p.plan.query_ranges[static_cast<std::size_t>(segment) * tokens + t];
    const int from = first_seen(range, p.window);
    if (from >= range.limit) continue;
    seen = min(seen, from);
    limit = max(limit, range.limit);
  }
  limit = min(limit, s.length);
  if (seen >= limit) return {0, 0};
  return {(s.first_slot + seen) / keys_per_tile, ceil_div(s.first_slot + limit, keys_per_tile)};
}

constexpr std::size_t kPlanSharedBytes = kThreads * sizeof(int);

__global__ void __launch_bounds__(kThreads) plan_attention(const __grid_constant__ AttentionArguments p) {
  simt::follow_preceding();
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
    TileRange seen = {0, 0};
    if (pair < pairs) seen = tiles_seen(p, tokens, pair / segments, pair % segments, keys_per_tile);
    const int tiles = seen.end - seen.begin;
    scan[tid] = tiles;
    __syncthreads();
    for (int distance = 1; distance < kThreads; distance *= 2) {  // inclusive scan (Hillis and Steele 1986)
      const int lower = tid >= distance ? scan[tid - distance] : 0;
      __syncthreads();
      scan[tid] += lower;
      __syncthreads();
    }
    if (pair < pairs) {
      p.tiles_before[pair] = before + scan[tid] - tiles;
      p.first_tiles[pair] = seen.begin;
    }
    before += scan[kThreads - 1];
    __syncthreads();
  }
  if (tid == 0) p.tiles_before[pairs] = before;

  const long long total = before * static_cast<long long>(p.shape.kv_heads);
  const long long enough = p.min_tiles * static_cast<long long>(p.max_ctas);
  const int ctas = total >= enough ? p.max_ctas : max(1, static_cast<int>(total) / p.min_tiles);
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
  float bias[2];
};

SIMT_DEVICE RowMask row_mask_of(const AttentionArguments& p, const DeviceQueryRange* query_ranges,
                                const Segment& segment, int rows, int first_row, const Place& place) {
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

// Keys and values of the 16-bit type T, scores with a bias.
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
    const DeviceQueryRange* query_ranges = p.plan.query_ranges + static_cast<std::size_t>(index) * tokens;
    const Segment segment = load_constant_16(p.plan.segments + index);
    rotate_queries<Tile>(p, query_ranges, rows, first_row, at.kv_head, queries,
                         [](const float (&x)[8], float factor) { return pack8<T>(x, factor); });
    __syncthreads();
    load_query_fragments<Tile>(queries, place, query_fragments);
    row_mask = row_mask_of(p, query_ranges, segment, rows, first_row, place);
    segment_start = segment.first_slot / Tile::kKeys * Tile::kKeys;
  }

  // One tile for one warp: scores of its 16 rows and kWarpKeys keys, softmax, product with the values.
  SIMT_DEVICE void attend(const AttentionArguments&, const uint4* stage, const Place& place, int tile,
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

// One warp per (row, kv head): joins the partial states of the CTAs that share its output, in the order of
// the work, so that the result does not depend on timing. Rows of outputs without tiles become 0.
__global__ void __launch_bounds__(kThreads) combine_attention(const __grid_constant__ AttentionArguments p) {
  simt::follow_preceding();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int kv_head = static_cast<int>(blockIdx.y);
  const int segments = simt::load_constant(p.plan.counts + 1);
  const int rows = simt::load_constant(p.plan.counts) * p.group;
  if (row >= rows) return;
  const int row_tile = row / p.rows_per_tile;

  const int4 all = p.shares[0];
  const int ctas = all.x;
  const long long total = all.y * static_cast<long long>(p.shape.kv_heads);
  const long long head_position = kv_head * static_cast<long long>(all.y);
  const long long run_begin = head_position + p.tiles_before[row_tile * segments];
  const long long run_end = head_position + p.tiles_before[(row_tile + 1) * segments];
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
    const float factor = finish_row(p, out_row, query_head(p, row, kv_head), max, sum, column == 0);
    visit_array(p.out, p.out_dtype, [&](auto* out) {
      store2(out + out_row * head_dim + column, mean.x * factor, mean.y * factor);
      store2(out + out_row * head_dim + column + 2, mean.z * factor, mean.w * factor);
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

constexpr std::int64_t kMaxRows = std::int64_t{1} << 24;

// The launch's bounds are sane, so that nothing below overflows.
bool is_valid(const AttentionLaunch& launch) {
  const AttentionParams& params = launch.params;
  const DevicePlan& plan = launch.step.plan;
  if (!is_supported(params.shape, launch.step.rope.rotary_dim)) return false;
  if (params.query_heads < 1 || params.query_heads % params.shape.kv_heads != 0) return false;
  if (plan.max_tokens < 1 || plan.max_segments < 0 || launch.max_ctas < 1 || launch.min_tiles < 1) return false;
  if (params.window < 0 || !(params.softcap >= 0)) return false;
  return params.query_heads <= kMaxRows && max_rows(launch) <= kMaxRows;
}

// Whether the plain kernel does not suffice.
bool is_general(const AttentionLaunch& launch) {
  const KvShape& shape = launch.params.shape;
  const bool is_plain_format = shape.key_format == KvFormat::kBF16 || shape.key_format == KvFormat::kF16;
  return launch.params.window != 0 || launch.params.softcap != 0 || launch.step.plan.temperatures != nullptr ||
         shape.key_format != shape.value_format || !is_plain_format;
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

// Offsets from launch.shares, and from launch.workspace.
struct Workspace {
  std::size_t tiles_before, first_tiles, shares, shares_bytes;
  std::size_t partial_state, partial_out, bytes;
};

Workspace lay_out(const AttentionLaunch& launch) {
  const std::int64_t rows = max_rows(launch);
  const std::int64_t width = launch.params.shape.row_elements();
  const std::size_t per_tile = static_cast<std::size_t>(rows_per_tile(rows, width));
  const std::size_t row_tiles = (static_cast<std::size_t>(rows) + per_tile - 1) / per_tile;
  const std::size_t pairs = row_tiles * launch.step.plan.max_segments;
  const std::size_t slots = 2 * static_cast<std::size_t>(launch.max_ctas);
  Workspace workspace;
  Layout shares, partial;
  workspace.tiles_before = shares.place((pairs + 1) * sizeof(std::int32_t));
  workspace.first_tiles = shares.place(pairs * sizeof(std::int32_t));
  workspace.shares = shares.place((1 + static_cast<std::size_t>(launch.max_ctas)) * sizeof(int4));
  workspace.shares_bytes = shares.bytes();
  workspace.partial_state = partial.place(slots * per_tile * sizeof(float2));
  workspace.partial_out = partial.place(slots * per_tile * width * sizeof(float));
  workspace.bytes = partial.bytes();
  return workspace;
}

AttentionArguments arguments(const AttentionLaunch& launch) {
  const Workspace workspace = lay_out(launch);
  const AttentionParams& params = launch.params;
  unsigned char* shares = static_cast<unsigned char*>(launch.shares);
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
  p.rows_per_tile = rows_per_tile(max_rows(launch), p.width);
  p.max_ctas = launch.max_ctas;
  p.min_tiles = launch.min_tiles;
  p.scale_log2 = params.scale * kLog2E;
  p.softcap = params.softcap;
  p.window = params.window > INT_MAX ? 0 : static_cast<int>(params.window);  // no view is as long
  p.tiles_before = reinterpret_cast<std::int32_t*>(shares + workspace.tiles_before);
  p.first_tiles = reinterpret_cast<std::int32_t*>(shares + workspace.first_tiles);
  p.shares = reinterpret_cast<int4*>(shares + workspace.shares);
  p.partial_state = reinterpret_cast<float2*>(partial + workspace.partial_state);
  p.partial_out = reinterpret_cast<float*>(partial + workspace.partial_out);
  return p;
}

// Calls `body.template operator()<T, Tile>()` with the type of the cache and the tile of the launch.
template <typename Body>
cudaError_t dispatch_plain(const AttentionArguments& p, Body&& body) {
  const auto with_tile = [&]<typename T>() {
    return dispatch_tile(p.width, p.rows_per_tile,
                         [&]<int kWidth, int kRows>() { return body.template operator()<T, Tile<kWidth, kRows>>(); });
  };
  if (p.shape.key_format == KvFormat::kBF16) return with_tile.template operator()<simt::bf16>();
  return with_tile.template operator()<simt::f16>();
}

}  // namespace

cudaError_t attention_ctas_per_multiprocessor(const AttentionLaunch& launch, int* ctas) {
  AttentionLaunch sizes = launch;
  sizes.max_ctas = sizes.min_tiles = 1;
  if (!is_valid(sizes)) return cudaErrorInvalidValue;
  const AttentionArguments p = arguments(sizes);
  if (is_general(sizes)) return general_ctas_per_multiprocessor(p, ctas);
  return dispatch_plain(p, [&]<typename T, typename Tile>() {
    return SIMT_OCCUPANCY((attend<T, Tile>), kThreads, Tile::kSharedBytes, ctas);
  });
}

std::size_t attention_workspace_bytes(const AttentionLaunch& launch) {
  return is_valid(launch) ? lay_out(launch).bytes : 0;
}

std::size_t attention_shares_bytes(const AttentionLaunch& launch) {
  return is_valid(launch) ? lay_out(launch).shares_bytes : 0;
}

cudaError_t launch_attention_plan(const AttentionLaunch& launch, KernelStream stream) {
  if (!is_valid(launch)) return cudaErrorInvalidValue;
  const AttentionArguments p = arguments(launch);
  return SIMT_LAUNCH(plan_attention, dim3(1), dim3(kThreads), kPlanSharedBytes, stream, p);
}

cudaError_t launch_attention(const AttentionLaunch& launch, KernelStream stream) {
  if (!is_valid(launch)) return cudaErrorInvalidValue;
  const AttentionArguments p = arguments(launch);
  if (!are_aligned({p.layer.keys, p.layer.values, p.rope.cos, p.rope.sin, p.q, p.out})) return cudaErrorInvalidValue;
  const auto launch_plain = [&]<typename T, typename Tile>() {
    return SIMT_LAUNCH((attend<T, Tile>), dim3(static_cast<unsigned>(p.max_ctas)), dim3(kThreads), Tile::kSharedBytes,
                       stream, p);
  };
  const cudaError_t error = is_general(launch) ? launch_general(p, stream) : dispatch_plain(p, launch_plain);
  if (error != cudaSuccess) return error;
  const unsigned rows = static_cast<unsigned>(launch.step.plan.max_tokens * p.group);
  return SIMT_LAUNCH(combine_attention, dim3((rows + kWarps - 1) / kWarps, static_cast<unsigned>(p.shape.kv_heads)),
                     dim3(kThreads), 0, stream, p);
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
