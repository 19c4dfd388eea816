// Products with quantised weights (product.cuh): codes become whole numbers in bf16, which is exact, and the sums of a
// group are multiplied by its scale in f32. So the rounding of x to bf16 is all that is lost.
#include "fragments.cuh"
#include "product.cuh"

namespace hogwild::cuda {

// Signed bytes as numbers in bf16: bytes 0 and 2, then 1 and 3.
SIMT_DEVICE void pairs_of_bytes(std::uint32_t bytes, std::uint32_t (&pair)[2]) {
  // A bf16 with the bits 0x4300 | b, b < 128, is 128 + b; with 0x4380 it is 256. So the lower bits give 128 to 255, and
  // the sign takes 128 or 256 from them.
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t two = bytes >> 8 * i;
    pair[i] = simt::add_bf16x2((two & 0x007f007fu) | 0x43004300u, (two & 0x00800080u) | 0xc300c300u);
  }
}

// What 4 codes in the lower 16 bits stand for, as bytes.
SIMT_DEVICE std::uint32_t look_up(const std::uint32_t (&table)[4], std::uint32_t codes) {
  const std::uint32_t within = codes & 0x7777u;
  const std::uint32_t low = simt::select_bytes(table[0], table[1], within);
  const std::uint32_t high = simt::select_bytes(table[2], table[3], within);
  return simt::select_bytes(low, high, 0x3210u | (codes >> 1 & 0x4444u));
}

// Operands 2 * half and 2 * half + 1 of mma.sync, in bf16.
SIMT_DEVICE void decode(Affine4, const CodeArguments& p, const unsigned char* codes, int half,
                        std::uint32_t (&a)[2][4]) {
  const uint2 words = load_as<uint2>(codes + 16 * (threadIdx.x % 32) + 8 * half);
#pragma unroll
  for (int operand = 0; operand < 2; ++operand) {
    const std::uint32_t word = operand == 0 ? words.x : words.y;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[operand][i] = simt::add_bf16x2((word >> 4 * i & 0x000f000fu) | 0x43004300u, p.zero_pair);
    }
  }
}

SIMT_DEVICE void decode(Table4, const CodeArguments& p, const unsigned char* codes, int half,
                        std::uint32_t (&a)[2][4]) {
  const uint2 words = load_as<uint2>(codes + 16 * (threadIdx.x % 32) + 8 * half);
#pragma unroll
  for (int operand = 0; operand < 2; ++operand) {
    const std::uint32_t word = operand == 0 ? words.x : words.y;
    const std::uint32_t first = look_up(p.table, word & 0xffffu), second = look_up(p.table, word >> 16);
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      std::uint32_t pair[2];
      pairs_of_bytes(simt::select_bytes(first, second, i == 0 ? 0x5410u : 0x7632u), pair);
      a[operand][i] = pair[0];
      a[operand][i + 1] = pair[1];
    }
  }
}

SIMT_DEVICE void decode(Signed8, const CodeArguments&, const unsigned char* codes, int half, std::uint32_t (&a)[2][4]) {
  const uint4 words = load_as<uint4>(codes + 512 * half + 16 * (threadIdx.x % 32));
  const std::uint32_t bytes[2][2] = {{words.x, words.y}, {words.z, words.w}};
#pragma unroll
  for (int operand = 0; operand < 2; ++operand) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      std::uint32_t pair[2];
      pairs_of_bytes(bytes[operand][i / 2], pair);
      a[operand][i] = pair[0];
      a[operand][i + 1] = pair[1];
    }
  }
}

// A warp takes the 16 outputs of one record, which it copies itself and no other reads.
template <typename Codes, typename Tile>
struct QuantOperand {
  static_assert(Tile::kWarpOutputs == kFragmentOutputs && Tile::kDepth == kFragmentColumns && Tile::kRowWarps == 1);
  static constexpr int kMaxRecordBytes = kCodeBytes<Codes> + (kCodeBytes<Codes> == 512 ? 192 : 128);
  static constexpr int kWeightBytes = Tile::kOutputs / Tile::kWarpOutputs * kMaxRecordBytes;
  static constexpr int kBytes = kWeightBytes + Tile::kRows * Tile::kDepth * 2;
  // As many CTAs for any number of rows: they decide where sums are cut. Two fit into 99 KiB, but for 64 rows and 8
  // bits.
  static constexpr int kCtasPerMultiprocessor = 2;
  static constexpr int kStages = std::clamp(47 * 1024 / kBytes, 3, 6);
  static_assert(kStages * kBytes <= 96 * 1024);

  struct Loader {
    const unsigned char* from;  // the next record of this warp
    bool inside;                // the matrix has it

    SIMT_DEVICE void seek(const Arguments& p, const TileAt& at, int chunk) {
      const std::int64_t block = at.first_output / kFragmentOutputs + threadIdx.x / 32;
      inside = block * kFragmentOutputs < p.params.outputs[at.matrix].weight.rows;
      from = static_cast<const unsigned char*>(at.weights) +
             (inside ? (block * p.chunks + chunk) * p.codes.record_bytes : 0);
    }

    SIMT_DEVICE void load(const Arguments& p, uint4* to, int) const {
      to += threadIdx.x / 32 * (kMaxRecordBytes / 16);
      const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
      for (int i = lane; i < kMaxRecordBytes / 16; i += 32) {
        if (16 * i >= p.codes.record_bytes) break;
        simt::cp_async_16(to + i, reinterpret_cast<const uint4*>(from) + (inside ? i : 0), inside);
      }
    }
    SIMT_DEVICE void advance(const Arguments& p) {
      if (inside) from += p.codes.record_bytes;
    }
  };

  // sum += scale * part
  SIMT_DEVICE static void add_scaled(float (&sum)[4], const float (&part)[4], const float (&scale)[2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += scale[i / 2] * part[i];
  }

  SIMT_DEVICE static void multiply(const Arguments& p, const unsigned char* stage, const uint4* x, Sums<Tile>& sums) {
    const std::uint32_t ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const unsigned char* codes = stage + threadIdx.x / 32 * kMaxRecordBytes;
    const unsigned char* scales = codes + kCodeBytes<Codes>;
    const bool by_16 = p.codes.group == 16;  // else both operands of a half share a scale
    const bool has_min = p.codes.has_min();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      std::uint32_t a[2][4];
      decode(Codes(), p.codes, codes, half, a);
      ScalePair first = {}, second;
      if (by_16) first = load_scales(p.codes, scales, 2 * half, lane / 4);
      second = load_scales(p.codes, scales, by_16 ? 2 * half + 1 : p.codes.group == 32 ? half : 0, lane / 4);
#pragma unroll
      for (int r = 0; r < Tile::kRowTiles; ++r) {
        std::uint32_t rows[4];
        simt::ldmatrix_x4(rows, x + Tile::chunk_at(8 * r + lane % 8, 4 * half + lane / 8));
        float (&sum)[4] = sums.of[0][r];
        const auto add = [&](const std::uint32_t (&a0)[4], const std::uint32_t (&a1)[4], const float (&d0)[2],
                             const float (&d1)[2]) {
          float part[4] = {};
          simt::mma_m16n8k16<simt::bf16>(part, a0, rows[0], rows[1]);
          if (by_16) {
            add_scaled(sum, part, d0);
            part[0] = part[1] = part[2] = part[3] = 0;
          }
          simt::mma_m16n8k16<simt::bf16>(part, a1, rows[2], rows[3]);
          add_scaled(sum, part, d1);
        };
        add(a[0], a[1], first.d, second.d);
        // The sums of x over a group, for all outputs alike.
        if (has_min) add(ones, ones, first.m, second.m);
      }
    }
  }
};

template <typename Tile>
struct Operand<Affine4, Tile> : QuantOperand<Affine4, Tile> {};
template <typename Tile>
struct Operand<Table4, Tile> : QuantOperand<Table4, Tile> {};
template <typename Tile>
struct Operand<Signed8, Tile> : QuantOperand<Signed8, Tile> {};

namespace {

// 128 outputs share what is copied of x, which is more than their codes where there are many rows. More rows than 64
// take several tiles.
template <typename Body>
auto dispatch_rows(std::int64_t rows, Body&& body) {
  if (rows <= 8) return body.template operator()<Tile<8, 128, 1, 8, 64>>();
  if (rows <= 16) return body.template operator()<Tile<16, 128, 1, 8, 64>>();
  if (rows <= 32) return body.template operator()<Tile<32, 128, 1, 8, 64>>();
  return body.template operator()<Tile<64, 128, 1, 8, 64>>();
}

bool is_quantised_product(const MatmulLaunch& launch) {
  const Matrix& weight = launch.params.outputs[0].weight;
  return is_supported(launch) && !is_plain(weight.format) && weight.order == Order::kFragments;
}

}  // namespace

std::size_t quantised_matmul_workspace_bytes(const MatmulLaunch& launch) {
  if (!is_quantised_product(launch)) return 0;
  return dispatch_rows(launch.params.rows, [&]<typename Tile>() { return lay_out<Affine4, Tile>(launch).bytes; });
}

cudaError_t launch_quantised_matmul(const MatmulLaunch& launch, KernelStream stream) {
  if (!is_quantised_product(launch) || !has_aligned_pointers(launch)) return cudaErrorInvalidValue;
  if (launch.params.x_dtype != Dtype::kBF16) return cudaErrorInvalidValue;
  const Format format = launch.params.outputs[0].weight.format;
  return dispatch_codes(format, [&]<typename Codes>() {
    return dispatch_rows(launch.params.rows, [&]<typename Tile>() {
      return launch_tiles<Codes, Tile>(launch, stream, code_arguments(format));
    });
  });
}

}  // namespace hogwild::cuda
