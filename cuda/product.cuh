// The products of rows with matrices, whatever the weights are stored in: how the work is cut, brought and added up.
//
// Weights are the A operand of mma.sync (16 outputs), tokens the B operand (8 rows), so that few rows waste
// little. The work is cut into *tiles* of outputs x rows, a tile into *chunks* of kDepth along k. All chunks
// stand in one order - matrix, tile of outputs, tile of rows, chunk - and each of n CTAs takes the chunks
// of one of n equal shares (stream-K, Osama et al. 2023, arXiv 2301.03598). A tile that is cut
// between CTAs is added up by the last of them to arrive, in the order of the work: the result does not
// depend on timing.
//
// Up to 64 rows are one tile of rows: each weight is read once, and where the chunks are cut does not depend
// on the number of rows, so a row's result does not depend on its company, to the last bit. More rows take
// larger tiles, whose sums are cut elsewhere.
//
// What a gate and its up come to is worked out by the CTA that has written the second of two such tiles.
//
// Products of experts: an expert's rows are cut into runs of a tile's rows, which the card alone knows (routing.cu).
// The order is expert, matrix, tile of outputs, run; a CTA takes whole tiles, so that no sum depends on what else is
// in the step.
//
// A file that includes this says what weights are: a specialisation of Operand.
#pragma once

#include <algorithm>
#include <climits>

#include "core/format.h"
#include "dispatch.cuh"
#include "fragments.cuh"
#include "gated.cuh"
#include "kernels.h"
#include "quotient.cuh"
#include "simt/simt.h"
#include "vector_load.cuh"

namespace hogwild::cuda {

// What the kernel gets: the launch, and what the launcher worked out.
struct Arguments {
  MatmulParams params;
  ExpertProducts experts;
  GatedProducts gated;
  CodeArguments codes;                              // of quantised weights
  int tiles_before[MatmulParams::kMaxOutputs + 1];  // tiles of the matrices before each; of experts: in one run
  Quotient by_row_tiles;                            // of experts: 1
  Quotient by_chunks;
  Quotient by_run;          // tiles of a run; of experts
  int chunks;               // per tile
  Shares shares;            // of all chunks; not of experts
  unsigned* tickets;        // [tiles]: CTAs that have finished a tile that is cut; 0 between launches
  unsigned* gate_tickets;   // [tiles of the gate]: which of a tile of gate and its tile of up are written; likewise
  volatile float* partial;  // [CTAs, 2, kOutputs, kRows]: of a CTA's first and last tile
};

// Tiles of one launch. The tickets lie at the start of the workspace, whatever the sizes of a launch, so that
// none ever finds another's partial sums in their place.
inline constexpr int kMaxTiles = 1 << 15;
inline constexpr int kMaxTickets = 2 * kMaxTiles;
inline constexpr std::size_t kTicketBytes = kMaxTickets * sizeof(unsigned);

template <int kTileRows, int kTileOutputs, int kWarpsAlongRows, int kWarpsAlongOutputs, int kChunkDepth>
struct Tile {
  static constexpr int kRows = kTileRows;
  static constexpr int kOutputs = kTileOutputs;
  static constexpr int kRowWarps = kWarpsAlongRows;
  static constexpr int kThreads = 32 * kRowWarps * kWarpsAlongOutputs;
  static constexpr int kDepth = kChunkDepth;
  static constexpr int kWarpRows = kRows / kRowWarps;
  static constexpr int kWarpOutputs = kOutputs / kWarpsAlongOutputs;
  static constexpr int kRowTiles = kWarpRows / 8;  // of mma.sync
  static constexpr int kOutputTiles = kWarpOutputs / 16;
  static_assert(kWarpRows % 8 == 0 && kWarpOutputs % 16 == 0 && kDepth % 32 == 0);

  // Rows of kRowChunks times 16 bytes, permuted so that ldmatrix meets no bank twice: rows
  // that begin at the same bank differ in the low bits of their chunks.
  static constexpr int kRowChunks = kDepth / 8;
  SIMT_HOST_DEVICE static constexpr int chunk_at(int row, int chunk) {
    constexpr int kRowsPerLine = 8 / (kRowChunks < 8 ? kRowChunks : 8);  // rows in 128 bytes
    return row * kRowChunks + (chunk ^ (row / kRowsPerLine % (kRowChunks < 8 ? kRowChunks : 8)));
  }
};

// What weights of a tile are, to the kernel:
//   kWeightBytes                        of a chunk's weights in shared memory; x lies behind them
//   kStages
//   kMinChunks                          fewest that are worth a CTA of its own
//   kCtasPerMultiprocessor              that the work is cut for
//   kResidentCtas                       that have registers at once
//   Loader                              this thread's part of the copies: seek(p, at, chunk) where a tile begins,
//                                       load(p, chunk, to) and advance() for each chunk from there on
//   multiply(p, chunk, weights, x, sums)  adds the products of a chunk of its tile
template <typename Weights, typename Tile>
struct Operand;

template <typename Weights, typename Tile>
inline constexpr int kStageBytes = Operand<Weights, Tile>::kWeightBytes + Tile::kRows * Tile::kDepth * 2;
template <typename Weights, typename Tile>
inline constexpr int kSharedBytes = Operand<Weights, Tile>::kStages * kStageBytes<Weights, Tile> + 16;

// Which matrix, outputs and rows a tile is of, and where they lie.
struct TileAt {
  int matrix;
  int within;  // number among the matrix's tiles; of experts, of all their runs
  std::int64_t first_output, first_row, end_row;
  const void* weights;  // the whole matrix
  const float* bias;    // null: none
};

template <typename Tile>
SIMT_DEVICE TileAt locate(const Arguments& p, int tile) {
  const bool of_experts = p.experts.runs != nullptr;
  int within = tile;
  ExpertRun run = {};
  int run_number = 0;
  if (of_experts) {
    // The run of this number tells which expert has how many runs; those share each tile of outputs.
    run = p.experts.runs[p.by_run.of(tile)];
    within -= run.first_run * p.by_run.divisor;
    const int outputs = within / run.runs;
    run_number = run.first_run + (within - outputs * run.runs);
    if (run.runs > 1) run = p.experts.runs[run_number];
    within = outputs;
  }
  int matrix = 0;
  while (matrix + 1 < p.params.n_outputs && within >= p.tiles_before[matrix + 1]) ++matrix;
  within -= p.tiles_before[matrix];
  const int output_tile = p.by_row_tiles.of(within);
  const int row_tile = within - output_tile * p.by_row_tiles.divisor;
  TileAt at = {matrix,
               within,
               static_cast<std::int64_t>(output_tile) * Tile::kOutputs,
               static_cast<std::int64_t>(row_tile) * Tile::kRows,
               p.params.rows,
               p.params.outputs[matrix].weight.data,
               p.params.outputs[matrix].bias};
  if (of_experts) {
    const ExpertMatrix own =
        load_constant_32(p.experts.matrices + kExpertMatrices * run.expert + p.experts.first_matrix + matrix);
    at.weights = own.data;
    at.bias = own.bias;
    at.within += run_number * p.tiles_before[1];
    at.first_row = run.first;
    at.end_row = run.first + run.rows;
  }
  return at;
}

// Rows of 16 bits each element. Each thread copies the same places of every stage, so all that changes from chunk to
// chunk is its column; all else is worked out where a tile begins. What lies beyond a matrix becomes zero.
template <typename Tile, int kRows>
struct RowLoader {
  static constexpr int kRowsApart = Tile::kThreads / Tile::kRowChunks;  // of a thread's copies
  static_assert(Tile::kThreads % Tile::kRowChunks == 0 && kRowsApart % 8 == 0,
                "chunk_at of rows so far apart differs by whole rows only");

  const std::uint16_t* from;  // this thread's first row, at its column of the next chunk
  int rows;                   // from this thread's first row on

  SIMT_DEVICE void seek(const void* data, std::int64_t first_row, std::int64_t end_row, std::int64_t k, int chunk) {
    const int own_chunk = static_cast<int>(threadIdx.x) % Tile::kRowChunks;
    const std::int64_t row = first_row + static_cast<int>(threadIdx.x) / Tile::kRowChunks;
    rows = static_cast<int>(max(min(end_row - row, std::int64_t{kRows}), std::int64_t{0}));
    from = static_cast<const std::uint16_t*>(data) + (rows > 0 ? row * k : 0) + chunk * Tile::kDepth + 8 * own_chunk;
  }

  SIMT_DEVICE void load(uint4* stage, int chunk, int k) const {
    const int own_row = static_cast<int>(threadIdx.x) / Tile::kRowChunks;
    const int own_chunk = static_cast<int>(threadIdx.x) % Tile::kRowChunks;
    const bool inside = chunk * Tile::kDepth + 8 * own_chunk < k;
    stage += Tile::chunk_at(own_row, own_chunk);
#pragma unroll
    for (int i = 0; i < kRows; i += kRowsApart) {
      if (kRows % kRowsApart != 0 && own_row + i >= kRows) break;
      simt::cp_async_16(stage + i * Tile::kRowChunks, from + static_cast<std::int64_t>(i) * k, inside && i < rows);
    }
  }
  SIMT_DEVICE void advance() { from += Tile::kDepth; }
};

// Copies one chunk after another of weights and of x.
template <typename Weights, typename Tile>
struct Loader {
  int tile, chunk;  // the next
  typename Operand<Weights, Tile>::Loader weights;
  RowLoader<Tile, Tile::kRows> x;

  SIMT_DEVICE void seek(const Arguments& p, int to_tile, int to_chunk) {
    tile = to_tile;
    chunk = to_chunk;
    const TileAt where = locate<Tile>(p, tile);
    weights.seek(p, where, chunk);
    x.seek(p.params.x, where.first_row, where.end_row, p.params.k, chunk);
  }

  // Begin the copy of the next chunk.
  SIMT_DEVICE void load_weights(const Arguments& p, unsigned char* stage) const {
    weights.load(p, chunk, reinterpret_cast<uint4*>(stage));
  }
  SIMT_DEVICE void load_x(const Arguments& p, unsigned char* stage) const {
    x.load(reinterpret_cast<uint4*>(stage + Operand<Weights, Tile>::kWeightBytes), chunk, static_cast<int>(p.params.k));
  }
  // `more`: whether there is a next one.
  SIMT_DEVICE void advance(const Arguments& p, bool more) {
    weights.advance();
    x.advance();
    if (++chunk == p.chunks && more) seek(p, tile + 1, 0);
  }
};

template <typename Tile>
struct Sums {
  float of[Tile::kOutputTiles][Tile::kRowTiles][4];

  SIMT_DEVICE void clear() {
#pragma unroll
    for (int o = 0; o < Tile::kOutputTiles; ++o) {
#pragma unroll
      for (int r = 0; r < Tile::kRowTiles; ++r) of[o][r][0] = of[o][r][1] = of[o][r][2] = of[o][r][3] = 0.f;
    }
  }

  // Calls visit(sum, output, row) for each element of the tile that this thread holds.
  template <typename Visit>
  SIMT_DEVICE void for_each(Visit&& visit) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
    for (int o = 0; o < Tile::kOutputTiles; ++o) {
#pragma unroll
      for (int r = 0; r < Tile::kRowTiles; ++r) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          visit(of[o][r][i], warp / Tile::kRowWarps * Tile::kWarpOutputs + 16 * o + lane / 4 + 8 * (i / 2),
                warp % Tile::kRowWarps * Tile::kWarpRows + 8 * r + 2 * (lane % 4) + i % 2);
        }
      }
    }
  }
};

// Where a CTA leaves its part of a tile that is cut: its first tile's, or its last one's.
template <typename Tile>
SIMT_DEVICE volatile float* partial_of(const Arguments& p, int cta, bool is_first_tile) {
  constexpr std::size_t kTileSize = static_cast<std::size_t>(Tile::kOutputs) * Tile::kRows;
  return p.partial + (2 * static_cast<std::size_t>(cta) + (is_first_tile ? 0 : 1)) * kTileSize;
}

// Adds up what the CTAs [first, last] have of a tile whose chunks begin at `tile_begin`, in this order, instead of
// the own part alone.
template <typename Tile>
SIMT_DEVICE void add_partials(const Arguments& p, int first, int last, int tile_begin, Sums<Tile>& sums) {
  sums.clear();
  for (int cta = first; cta <= last; ++cta) {
    // Only the first of them can have begun with another tile.
    const volatile float* from = partial_of<Tile>(p, cta, cta != first || p.shares.begin(cta) >= tile_begin);
    sums.for_each([&](float& sum, int output, int row) { sum += from[output * Tile::kRows + row]; });
  }
}

template <typename Tile>
SIMT_DEVICE void write_tile(const Arguments& p, int tile, Sums<Tile>& sums) {
  const TileAt at = locate<Tile>(p, tile);
  const MatmulParams::Output& to = p.params.outputs[at.matrix];
  const std::int64_t n = to.weight.rows;
  sums.for_each([&](float& sum, int o, int r) {
    const std::int64_t output = at.first_output + o;
    const std::int64_t row = at.first_row + r;
    if (output >= n || row >= at.end_row) return;
    float* y = to.y + row * n + output;
    float value = sum;
    if (at.bias != nullptr) value += simt::load_constant(at.bias + output);
    *y = to.accumulate ? *y + value : value;
  });
}

// After a tile of gate or up: the activation of both, if the other one is written. `ticket`: shared memory that no
// thread reads before the next barrier.
template <typename Tile>
SIMT_DEVICE void gate_tile(const Arguments& p, int tile, unsigned* ticket) {
  __threadfence();
  __syncthreads();  // all of it is written
  const TileAt at = locate<Tile>(p, tile);
  unsigned* arrived = p.gate_tickets + at.within;
  if (threadIdx.x == 0) *ticket = atomicAdd(arrived, 1u);
  __syncthreads();
  if (*ticket == 0) return;
  __threadfence();  // the other tile, not what was there before
  if (threadIdx.x == 0) *arrived = 0;
  const volatile float* gates = p.params.outputs[0].y;
  const volatile float* ups = p.params.outputs[1].y;
  const std::int64_t n = p.params.outputs[0].weight.rows;
  const std::int64_t output = at.first_output + static_cast<int>(threadIdx.x) % Tile::kOutputs;
  if (output >= n) return;
  static_assert(Tile::kThreads % Tile::kOutputs == 0);
  const std::int64_t end = min(at.end_row, at.first_row + Tile::kRows);
#pragma unroll 1
  for (std::int64_t row = at.first_row + static_cast<int>(threadIdx.x) / Tile::kOutputs; row < end;
       row += Tile::kThreads / Tile::kOutputs) {
    const std::int64_t i = row * n + output;
    const float value = gated(p.gated.activation, gates[i], ups[i]);
    visit_array(p.gated.out, p.gated.out_dtype, [&](auto* out) { store_operand(out + i, value); });
  }
}

template <typename Weights, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, (Operand<Weights, Tile>::kResidentCtas))
    multiply(const __grid_constant__ Arguments p) {
  using Own = Operand<Weights, Tile>;
  constexpr int kBytes = kStageBytes<Weights, Tile>;
  SIMT_SHARED_MEMORY(shared);
  unsigned* ticket = reinterpret_cast<unsigned*>(shared + Own::kStages * kBytes);
  const int cta = static_cast<int>(blockIdx.x);
  Loader<Weights, Tile> loader;
  int begin, n;  // chunks
  simt::launch_dependents();
  if (p.experts.runs != nullptr) {
    simt::wait_for_preceding();  // which weights it takes is decided in the step
    const std::int64_t tiles = std::int64_t{*p.experts.n_runs} * p.by_run.divisor;
    const int first_tile = static_cast<int>(tiles * cta / gridDim.x);
    const int end_tile = static_cast<int>(tiles * (cta + 1) / gridDim.x);
    begin = first_tile * p.chunks;
    n = (end_tile - first_tile) * p.chunks;
    if (n == 0) return;
  } else {
    begin = p.shares.begin(cta);
    n = p.shares.begin(cta + 1) - begin;
  }
  const int first_tile = p.by_chunks.of(begin);
  const int first_chunk = begin - first_tile * p.chunks;

  loader.seek(p, first_tile, first_chunk);
  // No kernel of a step writes weights: they are under way while the kernel that writes x still runs.
  const int first_stages = min(n, Own::kStages - 1);
  Loader<Weights, Tile> ahead = loader;
#pragma unroll 1
  for (int stage = 0; stage < first_stages; ++stage) {
    ahead.load_weights(p, shared + stage * kBytes);
    ahead.advance(p, stage + 1 < n);
  }
  simt::wait_for_preceding();
#pragma unroll 1
  for (int stage = 0; stage < Own::kStages - 1; ++stage) {
    if (stage < first_stages) {
      loader.load_x(p, shared + stage * kBytes);
      loader.advance(p, stage + 1 < n);
    }
    simt::cp_async_commit();
  }

  Sums<Tile> sums;
  sums.clear();
  int stage = 0;  // where the next chunk is, in bytes
  int tile = first_tile, chunk = first_chunk;
  for (int left = n; left > 0; --left) {
    simt::cp_async_wait<Own::kStages - 2>();
    __syncthreads();  // this chunk is there for all; all are done with the one before
    if (left >= Own::kStages) {
      const int free = stage == 0 ? (Own::kStages - 1) * kBytes : stage - kBytes;
      loader.load_weights(p, shared + free);
      loader.load_x(p, shared + free);
      loader.advance(p, left > Own::kStages);
    }
    simt::cp_async_commit();
    Own::multiply(p, chunk, shared + stage, reinterpret_cast<const uint4*>(shared + stage + Own::kWeightBytes), sums);
    stage = stage == (Own::kStages - 1) * kBytes ? 0 : stage + kBytes;
    if (++chunk < p.chunks && left > 1) continue;

    // The tile ends here, for this CTA.
    const int tile_begin = tile * p.chunks;
    const int share_begin = p.shares.begin(cta);
    // (tiles of experts are never cut)
    bool complete = p.experts.runs != nullptr || (chunk == p.chunks && share_begin <= tile_begin);
    if (!complete) {
      volatile float* to = partial_of<Tile>(p, cta, share_begin >= tile_begin);
      sums.for_each([&](float& sum, int output, int row) { to[output * Tile::kRows + row] = sum; });
      __threadfence();
      __syncthreads();  // all of it is written
      const int first_cta = p.shares.owner(tile_begin);
      const int last_cta = p.shares.owner(tile_begin + p.chunks - 1);
      if (threadIdx.x == 0) *ticket = atomicAdd(&p.tickets[tile], 1u);
      __syncthreads();
      complete = *ticket == static_cast<unsigned>(last_cta - first_cta);
      if (complete) {
        __threadfence();  // the others' parts, not what was there before
        add_partials<Tile>(p, first_cta, last_cta, tile_begin, sums);
        if (threadIdx.x == 0) p.tickets[tile] = 0;
      }
    }
    if (complete) {
      write_tile<Tile>(p, tile, sums);
      if (p.gated.out != nullptr) gate_tile<Tile>(p, tile, ticket);
    }
    sums.clear();
    ++tile;
    chunk = 0;
  }
}

// ---- launchers --------------------------------------------------------------------------------------

inline constexpr std::int64_t kMaxSkinnyRows = 64;
static_assert(kMaxInvariantRows <= kMaxSkinnyRows);

struct Layout {
  Arguments arguments;
  unsigned ctas;
  std::size_t bytes;  // of the workspace
};

// Sizes and formats; pointers are not looked at.
inline bool is_supported(const MatmulLaunch& launch) {
  const MatmulParams& p = launch.params;
  if (p.rows < 1 || p.k < 8 || p.k % 8 != 0 || p.k > INT_MAX - 64 || launch.multiprocessors < 1) return false;
  if (p.n_outputs < 1 || p.n_outputs > MatmulParams::kMaxOutputs) return false;
  if (launch.gated.out != nullptr) {
    if (p.n_outputs != 2 || p.outputs[0].weight.rows != p.outputs[1].weight.rows) return false;
    if (p.outputs[0].accumulate || p.outputs[1].accumulate) return false;
  }
  if (launch.experts.runs != nullptr && (p.rows > kMaxSkinnyRows || launch.experts.max_runs < 1)) return false;
  return std::all_of(p.outputs, p.outputs + p.n_outputs, [&p](const MatmulParams::Output& output) {
    const Matrix& weight = output.weight;
    return weight.rows >= 1 && weight.cols == p.k && weight.format == p.outputs[0].weight.format &&
           weight.order == p.outputs[0].weight.order;
  });
}

inline bool has_aligned_pointers(const MatmulLaunch& launch) {
  if (!are_aligned({launch.params.x, launch.workspace})) return false;
  return std::all_of(launch.params.outputs, launch.params.outputs + launch.params.n_outputs,
                     [](const MatmulParams::Output& output) { return are_aligned({output.weight.data}); });
}

// `bytes` is 0 where there are more tiles than a launch takes.
template <typename Weights, typename Tile>
Layout lay_out(const MatmulLaunch& launch, const CodeArguments& codes = {}) {
  const MatmulParams& params = launch.params;
  const bool of_experts = launch.experts.runs != nullptr;
  Layout layout{};
  Arguments& p = layout.arguments;
  p.params = params;
  p.experts = launch.experts;
  p.gated = launch.gated;
  p.codes = codes;
  const std::int64_t row_tiles = of_experts ? 1 : (params.rows + Tile::kRows - 1) / Tile::kRows;
  const std::int64_t chunks = (params.k + Tile::kDepth - 1) / Tile::kDepth;
  std::int64_t tiles = 0;
  if (row_tiles > kMaxTiles || chunks > INT_MAX) return layout;
  for (int i = 0; i < params.n_outputs; ++i) {
    p.tiles_before[i] = static_cast<int>(tiles);
    tiles += (params.outputs[i].weight.rows + Tile::kOutputs - 1) / Tile::kOutputs * row_tiles;
    if (tiles > kMaxTiles) return layout;
  }
  p.tiles_before[params.n_outputs] = static_cast<int>(tiles);
  const std::int64_t most_ctas = std::int64_t{launch.multiprocessors} * Operand<Weights, Tile>::kCtasPerMultiprocessor;
  p.by_row_tiles = Quotient(static_cast<int>(row_tiles));
  p.by_chunks = Quotient(static_cast<int>(chunks));
  p.chunks = static_cast<int>(chunks);
  p.tickets = p.gate_tickets = static_cast<unsigned*>(launch.workspace);
  if (of_experts) {
    if (p.gated.out != nullptr && p.tiles_before[1] > kMaxTickets / launch.experts.max_runs) return layout;
    p.by_run = Quotient(static_cast<int>(tiles));
    tiles *= launch.experts.max_runs;
    if (tiles > INT_MAX / chunks) return layout;
    layout.ctas = static_cast<unsigned>(std::min(tiles, most_ctas));
    layout.bytes = kTicketBytes;
    return layout;
  }
  if (tiles * chunks > INT_MAX) return layout;
  const std::int64_t ctas = std::clamp(tiles * chunks / Operand<Weights, Tile>::kMinChunks, std::int64_t{1}, most_ctas);
  layout.ctas = static_cast<unsigned>(ctas);
  p.shares = Shares(static_cast<int>(tiles * chunks), static_cast<int>(ctas));
  layout.bytes = kTicketBytes + static_cast<std::size_t>(ctas) * 2 * Tile::kOutputs * Tile::kRows * sizeof(float);
  p.gate_tickets += tiles;
  p.partial = reinterpret_cast<float*>(static_cast<unsigned char*>(launch.workspace) + kTicketBytes);
  return layout;
}

template <typename Weights, typename Tile>
cudaError_t launch_tiles(const MatmulLaunch& launch, KernelStream stream, const CodeArguments& codes = {}) {
  const Layout layout = lay_out<Weights, Tile>(launch, codes);
  if (layout.bytes == 0) return cudaErrorInvalidValue;
  return SIMT_LAUNCH((multiply<Weights, Tile>), dim3(layout.ctas), dim3(Tile::kThreads), (kSharedBytes<Weights, Tile>),
                     stream, layout.arguments);
}

}  // namespace hogwild::cuda
