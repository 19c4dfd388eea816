// Products with weights in bf16 or f16 (product.cuh).
#include "product.cuh"

namespace hogwild::cuda {

// Rows of weights are copied as rows of x are.
template <typename T, typename Tile>
struct PlainOperand {
  using Element = T;
  static constexpr int kWeightBytes = Tile::kOutputs * Tile::kDepth * 2;
  static constexpr int kBytes = kWeightBytes + Tile::kRows * Tile::kDepth * 2;
  // 99 KiB per CTA is what the smallest supported cards have; two CTAs per multiprocessor where that leaves
  // enough in flight.
  static constexpr int kStages = std::min(6, (Tile::kThreads > 128 ? 96 : 80) * 1024 / kBytes);
  static constexpr int kMinChunks = 2;
  static constexpr int kCtasPerMultiprocessor = Tile::kThreads > 128 ? 1 : 2;
  static constexpr int kResidentCtas = kCtasPerMultiprocessor;
  static_assert(kStages >= 3, "a copy under way while another is awaited");

  struct Loader {
    RowLoader<Tile, Tile::kOutputs> rows;

    SIMT_DEVICE void seek(const Arguments& p, const TileAt& at, int chunk) {
      rows.seek(at.weights, at.first_output, p.params.outputs[at.matrix].weight.rows, p.params.k, chunk);
    }
    SIMT_DEVICE void load(const Arguments& p, int chunk, uint4* stage) const {
      rows.load(stage, chunk, static_cast<int>(p.params.k));
    }
    SIMT_DEVICE void advance() { rows.advance(); }
  };

  SIMT_DEVICE static void multiply(const Arguments&, int, const unsigned char* stage, const uint4* x,
                                   Sums<Tile>& sums) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const uint4* weights = reinterpret_cast<const uint4*>(stage);
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
};

template <typename Tile>
struct Operand<simt::bf16, Tile> : PlainOperand<simt::bf16, Tile> {};
template <typename Tile>
struct Operand<simt::f16, Tile> : PlainOperand<simt::f16, Tile> {};

namespace {

using LargeTile = Tile<128, 128, 2, 4, 32>;

// Calls `body.template operator()<Tile>()` with the tiling for so many rows.
template <typename Body>
auto dispatch_rows(std::int64_t rows, Body&& body) {
  if (rows <= 8) return body.template operator()<Tile<8, 64, 1, 4, 64>>();
  if (rows <= 16) return body.template operator()<Tile<16, 64, 1, 4, 64>>();
  if (rows <= 32) return body.template operator()<Tile<32, 64, 1, 4, 64>>();
  if (rows <= kMaxSkinnyRows) return body.template operator()<Tile<64, 64, 1, 4, 64>>();
  return body.template operator()<LargeTile>();
}

bool is_plain_product(const MatmulLaunch& launch) {
  const Format format = launch.params.outputs[0].weight.format;
  return is_supported(launch) && (format == Format::kBF16 || format == Format::kF16);
}

}  // namespace

std::size_t matmul_workspace_bytes(const MatmulLaunch& launch) {
  if (!is_plain_product(launch)) return 0;
  return dispatch_rows(launch.params.rows, [&]<typename Tile>() { return lay_out<simt::bf16, Tile>(launch).bytes; });
}

cudaError_t launch_matmul(const MatmulLaunch& launch, KernelStream stream) {
  if (!is_plain_product(launch) || !has_aligned_pointers(launch)) return cudaErrorInvalidValue;
  if (launch.params.x_dtype != dtype_of(launch.params.outputs[0].weight.format)) return cudaErrorInvalidValue;
  return dispatch_dtype(launch.params.x_dtype, [&]<typename T>() {
    return dispatch_rows(launch.params.rows, [&]<typename Tile>() { return launch_tiles<T, Tile>(launch, stream); });
  });
}

}  // namespace hogwild::cuda
