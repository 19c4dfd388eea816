// y_i = x W_i^T + b_i for up to three matrices that read the same x (MatmulParams of device/ops.h).
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
#include <algorithm>
#include <climits>

#include "core/format.h"
#include "dispatch.cuh"
#include "kernels.h"
#include "quotient.cuh"
#include "simt/simt.h"
#include "vector_load.cuh"

namespace hogwild::cuda {
namespace {

// What the kernel gets: the launch, and what the launcher worked out.
struct Arguments {
  MatmulParams params;
  int tiles_before[MatmulParams::kMaxOutputs + 1];  // tiles of the matrices before each
  Quotient by_row_tiles;
  Quotient by_chunks;
  int chunks;               // per tile
  Shares shares;            // of all chunks
  unsigned* tickets;        // [tiles]: CTAs that have finished a tile that is cut; 0 between launches
  volatile float* partial;  // [CTAs, 2, kOutputs, kRows]: of a CTA's first and last tile
};

// Tiles of one launch. The tickets lie at the start of the workspace, whatever the sizes of a launch, so that
// none ever finds another's partial sums in their place.
constexpr int kMaxTiles = 1 << 15;
constexpr std::size_t kTicketBytes = kMaxTiles * sizeof(unsigned);

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

  // Weights, then x: rows of kRowChunks times 16 bytes, permuted so that ldmatrix meets no bank twice: rows
  // that begin at the same bank differ in the low bits of their chunks.
  static constexpr int kRowChunks = kDepth / 8;
  SIMT_HOST_DEVICE static constexpr int chunk_at(int row, int chunk) {
    constexpr int kRowsPerLine = 8 / (kRowChunks < 8 ? kRowChunks : 8);  // rows in 128 bytes
    return row * kRowChunks + (chunk ^ (row / kRowsPerLine % (kRowChunks < 8 ? kRowChunks : 8)));
  }
  static constexpr int kStageBytes = (kOutputs + kRows) * kDepth * 2;
  // 99 KiB per CTA is what the smallest supported cards have; two CTAs per multiprocessor where that leaves
  // enough in flight.
  static constexpr int kStages = std::min(6, (kThreads > 128 ? 96 : 80) * 1024 / kStageBytes);
  static constexpr int kSharedBytes = kStages * kStageBytes + 16;
  static_assert(kStages >= 3, "a copy under way while another is awaited");
  static constexpr int kCtasPerMultiprocessor = kThreads > 128 ? 1 : 2;
};

// Position of a CTA in the order of the work.
struct Place {
  int tile, chunk;
};

// Which matrix, outputs and rows a tile is of.
struct TileAt {
  int matrix;
  std::int64_t first_output, first_row;
};

template <typename Tile>
SIMT_DEVICE TileAt locate(const Arguments& p, int tile) {
  int matrix = 0;
  while (matrix + 1 < p.params.n_outputs && tile >= p.tiles_before[matrix + 1]) ++matrix;
  const int within = tile - p.tiles_before[matrix];
  const int output_tile = p.by_row_tiles.of(within);
  const int row_tile = within - output_tile * p.by_row_tiles.divisor;
  return {matrix, static_cast<std::int64_t>(output_tile) * Tile::kOutputs,
          static_cast<std::int64_t>(row_tile) * Tile::kRows};
}

// Copies one chunk after another of weights and of x. Each thread copies the same places of every stage, so all that
// changes from chunk to chunk is one column; all else is worked out where a tile begins. What lies beyond a matrix
// becomes zero.
template <typename Tile>
struct Loader {
  static constexpr int kRowsApart = Tile::kThreads / Tile::kRowChunks;  // of a thread's copies
  static_assert(Tile::kThreads % Tile::kRowChunks == 0 && Tile::kOutputs % kRowsApart == 0);
  static_assert(kRowsApart % 8 == 0, "chunk_at of rows so far apart differs by whole rows only");

  int tile, chunk;               // the next to load
  const std::uint16_t* weights;  // of the tile: this thread's first row, column 0
  const std::uint16_t* x;
  int outputs, rows;  // of the matrices, from this thread's first row on
  int column;         // of this thread in `chunk`

  SIMT_DEVICE void seek(const Arguments& p, Place at) {
    tile = at.tile;
    chunk = at.chunk;
    const int tid = static_cast<int>(threadIdx.x);
    const TileAt where = locate<Tile>(p, at.tile);
    const Matrix& weight = p.params.outputs[where.matrix].weight;
    const std::int64_t output = where.first_output + tid / Tile::kRowChunks;
    const std::int64_t row = where.first_row + tid / Tile::kRowChunks;
    outputs = static_cast<int>(max(min(weight.rows - output, std::int64_t{Tile::kOutputs}), std::int64_t{0}));
    rows = static_cast<int>(max(min(p.params.rows - row, std::int64_t{Tile::kRows}), std::int64_t{0}));
    weights = static_cast<const std::uint16_t*>(weight.data) + (outputs > 0 ? output * p.params.k : 0);
    x = static_cast<const std::uint16_t*>(p.params.x) + (rows > 0 ? row * p.params.k : 0);
    column = at.chunk * Tile::kDepth + tid % Tile::kRowChunks * 8;
  }

  // Rows of one operand, `n` of them inside the matrix, from this thread's first one on.
  template <int kRows>
  SIMT_DEVICE void copy(uint4* to, const std::uint16_t* from, int n, int k) const {
    const int tid = static_cast<int>(threadIdx.x);
    const bool inside = column < k;
    from += inside ? column : 0;
    to += Tile::chunk_at(tid / Tile::kRowChunks, tid % Tile::kRowChunks);
#pragma unroll
    for (int i = 0; i < kRows; i += kRowsApart) {
      if (kRows % kRowsApart != 0 && tid / Tile::kRowChunks + i >= kRows) break;
      const bool valid = inside && i < n;
      simt::cp_async_16(to + i * Tile::kRowChunks, from + (valid ? static_cast<std::int64_t>(i) * k : 0), valid);
    }
  }

  // Begins the copy of the next chunk.
  SIMT_DEVICE void load(const Arguments& p, unsigned char* stage) {
    const int k = static_cast<int>(p.params.k);
    uint4* to = reinterpret_cast<uint4*>(stage);
    copy<Tile::kOutputs>(to, weights, outputs, k);
    copy<Tile::kRows>(to + Tile::kOutputs * Tile::kRowChunks, x, rows, k);
    column += Tile::kDepth;
    if (++chunk == p.chunks && tile + 1 < p.tiles_before[p.params.n_outputs]) seek(p, {tile + 1, 0});
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

template <typename T, typename Tile>
SIMT_DEVICE void multiply_chunk(const unsigned char* stage, Sums<Tile>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const uint4* weights = reinterpret_cast<const uint4*>(stage);
  const uint4* x = weights + Tile::kOutputs * Tile::kRowChunks;
  const int first_output = warp / Tile::kRowWarps * Tile::kWarpOutputs;
  const int first_row = warp % Tile::kRowWarps * Tile::kWarpRows;
  // Two steps of 16 at a time: one ldmatrix brings the x of eight rows for both.
#pragma unroll
  for (int step = 0; step < Tile::kDepth / 16; step += 2) {
    std::uint32_t fragments[2][Tile::kOutputTiles][4];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int o = 0; o < Tile::kOutputTiles; ++o) {
        simt::ldmatrix_x4(fragments[s][o],
                          weights + Tile::chunk_at(first_output + 16 * o + lane % 16, 2 * (step + s) + lane / 16));
      }
    }
#pragma unroll
    for (int r = 0; r < Tile::kRowTiles; ++r) {
      std::uint32_t rows[4];
      simt::ldmatrix_x4(rows, x + Tile::chunk_at(first_row + 8 * r + lane % 8, 2 * step + lane / 8));
#pragma unroll
      for (int s = 0; s < 2; ++s) {
#pragma unroll
        for (int o = 0; o < Tile::kOutputTiles; ++o) {
          simt::mma_m16n8k16<T>(sums.of[o][r], fragments[s][o], rows[2 * s], rows[2 * s + 1]);
        }
      }
    }
  }
}

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
    if (output >= n || row >= p.params.rows) return;
    float* y = to.y + row * n + output;
    float value = sum;
    if (to.bias != nullptr) value += simt::load_constant(to.bias + output);
    *y = to.accumulate ? *y + value : value;
  });
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kCtasPerMultiprocessor)
    multiply(const __grid_constant__ Arguments p) {
  SIMT_SHARED_MEMORY(shared);
  unsigned* ticket = reinterpret_cast<unsigned*>(shared + Tile::kStages * Tile::kStageBytes);
  const int cta = static_cast<int>(blockIdx.x);
  const int begin = p.shares.begin(cta);
  const int n = p.shares.begin(cta + 1) - begin;
  const int first_tile = p.by_chunks.of(begin);
  const Place first = {first_tile, begin - first_tile * p.chunks};
  const auto next = [&p](Place& at) {
    if (++at.chunk == p.chunks) at = {at.tile + 1, 0};
  };

  Loader<Tile> loader;
  loader.seek(p, first);
#pragma unroll 1
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) {
    if (stage < n) loader.load(p, shared + stage * Tile::kStageBytes);
    simt::cp_async_commit();
  }

  Sums<Tile> sums;
  sums.clear();
  int tile_chunks = 0;  // of the present tile, by this CTA
  Place at = first;
  for (int i = 0; i < n; ++i) {
    simt::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // this chunk is there for all; all are done with the one before
    if (i + Tile::kStages - 1 < n) {
      loader.load(p, shared + (i + Tile::kStages - 1) % Tile::kStages * Tile::kStageBytes);
    }
    simt::cp_async_commit();
    multiply_chunk<T, Tile>(shared + i % Tile::kStages * Tile::kStageBytes, sums);
    ++tile_chunks;

    const int tile = at.tile;
    next(at);
    if (at.tile == tile && i + 1 < n) continue;
    // The tile ends here, for this CTA.
    bool complete = tile_chunks == p.chunks;
    if (!complete) {
      volatile float* to = partial_of<Tile>(p, cta, tile == first.tile);
      sums.for_each([&](float& sum, int output, int row) { to[output * Tile::kRows + row] = sum; });
      __threadfence();
      __syncthreads();  // all of it is written
      const int tile_begin = tile * p.chunks;
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
    if (complete) write_tile<Tile>(p, tile, sums);
    sums.clear();
    tile_chunks = 0;
  }
}

}  // namespace

// ---- launchers --------------------------------------------------------------------------------------

namespace {

using LargeTile = Tile<128, 128, 2, 4, 32>;
constexpr std::int64_t kMaxSkinnyRows = 64;

// Fewest chunks that are worth a CTA of its own.
constexpr std::int64_t kMinChunks = 2;

// Calls `body.template operator()<Tile>()` with the tiling for so many rows.
template <typename Body>
auto dispatch_rows(std::int64_t rows, Body&& body) {
  if (rows <= 8) return body.template operator()<Tile<8, 64, 1, 4, 64>>();
  if (rows <= 16) return body.template operator()<Tile<16, 64, 1, 4, 64>>();
  if (rows <= 32) return body.template operator()<Tile<32, 64, 1, 4, 64>>();
  if (rows <= kMaxSkinnyRows) return body.template operator()<Tile<64, 64, 1, 4, 64>>();
  return body.template operator()<LargeTile>();
}

struct Layout {
  Arguments arguments;
  unsigned ctas;
  std::size_t bytes;  // of the workspace
};

bool is_supported(const MatmulLaunch& launch) {
  const MatmulParams& p = launch.params;
  if (p.rows < 1 || p.k < 8 || p.k % 8 != 0 || launch.multiprocessors < 1) return false;
  if (p.n_outputs < 1 || p.n_outputs > MatmulParams::kMaxOutputs) return false;
  return std::all_of(p.outputs, p.outputs + p.n_outputs, [&p](const MatmulParams::Output& output) {
    return output.weight.rows >= 1 && output.weight.cols == p.k && output.weight.format == p.outputs[0].weight.format &&
           (output.weight.format == Format::kBF16 || output.weight.format == Format::kF16);
  });
}

// `bytes` is 0 where there are more tiles than a launch takes.
template <typename Tile>
Layout lay_out(const MatmulLaunch& launch) {
  const MatmulParams& params = launch.params;
  Layout layout{};
  Arguments& p = layout.arguments;
  p.params = params;
  const std::int64_t row_tiles = (params.rows + Tile::kRows - 1) / Tile::kRows;
  const std::int64_t chunks = (params.k + Tile::kDepth - 1) / Tile::kDepth;
  std::int64_t tiles = 0;
  if (row_tiles > kMaxTiles || chunks > INT_MAX) return layout;
  for (int i = 0; i < params.n_outputs; ++i) {
    p.tiles_before[i] = static_cast<int>(tiles);
    tiles += (params.outputs[i].weight.rows + Tile::kOutputs - 1) / Tile::kOutputs * row_tiles;
    if (tiles > kMaxTiles) return layout;
  }
  p.tiles_before[params.n_outputs] = static_cast<int>(tiles);
  if (tiles * chunks > INT_MAX) return layout;
  p.by_row_tiles = Quotient(static_cast<int>(row_tiles));
  p.by_chunks = Quotient(static_cast<int>(chunks));
  p.chunks = static_cast<int>(chunks);
  const std::int64_t ctas = std::clamp(tiles * chunks / kMinChunks, std::int64_t{1},
                                       std::int64_t{launch.multiprocessors} * Tile::kCtasPerMultiprocessor);
  layout.ctas = static_cast<unsigned>(ctas);
  p.shares = Shares(static_cast<int>(tiles * chunks), static_cast<int>(ctas));
  layout.bytes = kTicketBytes + static_cast<std::size_t>(ctas) * 2 * Tile::kOutputs * Tile::kRows * sizeof(float);
  p.tickets = static_cast<unsigned*>(launch.workspace);
  p.partial = reinterpret_cast<float*>(static_cast<unsigned char*>(launch.workspace) + kTicketBytes);
  return layout;
}

}  // namespace

std::size_t matmul_workspace_bytes(const MatmulLaunch& launch) {
  if (!is_supported(launch)) return 0;
  return dispatch_rows(launch.params.rows, [&]<typename Tile>() { return lay_out<Tile>(launch).bytes; });
}

cudaError_t launch_matmul(const MatmulLaunch& launch, cudaStream_t stream) {
  if (!is_supported(launch) || !are_aligned({launch.params.x, launch.workspace})) return cudaErrorInvalidValue;
  if (launch.params.x_dtype != dtype_of(launch.params.outputs[0].weight.format)) return cudaErrorInvalidValue;
  for (int i = 0; i < launch.params.n_outputs; ++i) {
    if (!are_aligned({launch.params.outputs[i].weight.data})) return cudaErrorInvalidValue;
  }
  return dispatch_dtype(dtype_of(launch.params.outputs[0].weight.format), [&]<typename T>() {
    return dispatch_rows(launch.params.rows, [&]<typename Tile>() {
      const Layout layout = lay_out<Tile>(launch);
      if (layout.bytes == 0) return cudaErrorInvalidValue;
      return SIMT_LAUNCH((multiply<T, Tile>), dim3(layout.ctas), dim3(Tile::kThreads), Tile::kSharedBytes, stream,
                         layout.arguments);
    });
  });
}

}  // namespace hogwild::cuda
