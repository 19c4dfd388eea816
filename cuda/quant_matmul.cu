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
    pair[i] =
        simt::add_bf16x2(simt::and_or(two, 0x007f007fu, 0x43004300u), simt::and_or(two, 0x00800080u, 0xc300c300u));
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
      a[operand][i] = simt::add_bf16x2(simt::and_or(word >> 4 * i, 0x000f000fu, 0x43004300u), p.zero_pair);
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

// The bits of a code are those of a number of bf16 that is smaller by 2^127, subnormal ones included.
SIMT_DEVICE void decode(E2M1, const CodeArguments&, const unsigned char* codes, int half, std::uint32_t (&a)[2][4]) {
  constexpr std::uint32_t kScale = 0x7f007f00u;  // 2^127
  const uint2 words = load_as<uint2>(codes + 16 * (threadIdx.x % 32) + 8 * half);
#pragma unroll
  for (int operand = 0; operand < 2; ++operand) {
    const std::uint32_t word = operand == 0 ? words.x : words.y;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t magnitudes = i < 2 ? word << (6 - 4 * i) : word >> (4 * i - 6);
      a[operand][i] =
          simt::multiply_bf16x2(simt::and_or(word << (12 - 4 * i), 0x80008000u, magnitudes & 0x01c001c0u), kScale);
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

// A warp takes the 16 outputs of two neighbouring records, which it copies itself and no other reads.
template <typename R, typename Tile>
struct QuantOperand {
  static constexpr int kRecords = Tile::kDepth / kFragmentColumns;
  static constexpr int kWarpBytes = kRecords * R::kBytes;  // of a stage
  static_assert(Tile::kWarpOutputs == kFragmentOutputs && Tile::kDepth % kFragmentColumns == 0 && Tile::kRowWarps == 1);
  static constexpr int kWeightBytes = Tile::kOutputs / Tile::kWarpOutputs * kWarpBytes;
  static constexpr int kBytes = kWeightBytes + Tile::kRows * Tile::kDepth * 2;
  // As many CTAs for any number of rows: they decide where sums are cut. Where a multiprocessor has 100 KiB, two fit at
  // once for 4 bits and up to 16 rows.
  static constexpr int kCtasPerMultiprocessor = 2;
  static constexpr int kMinChunks = 1;
  static constexpr int kResidentCtas = Tile::kRowTiles <= 4 ? 2 : 1;
  static constexpr bool kUnrolled = Tile::kRowTiles <= 2;  // else the sums leave no registers for it
  static constexpr int kStages = 3 * kBytes <= 96 * 1024 ? 3 : 2;
  static_assert(kStages * kBytes <= 96 * 1024);

  struct Loader {
    const unsigned char* from;  // the next records of this warp, at this lane's first 16 bytes
    int records;                // from the next one on; none where the matrix has none: nobody looks at what they give

    SIMT_DEVICE void seek(const Arguments& p, const TileAt& at, int chunk) {
      const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
      const std::int64_t block = at.first_output / kFragmentOutputs + warp;
      const bool inside = block * kFragmentOutputs < p.params.outputs[at.matrix].weight.rows;
      const int count = (static_cast<int>(p.params.k) + kFragmentColumns - 1) / kFragmentColumns;
      records = inside ? count - chunk * kRecords : 0;
      from = static_cast<const unsigned char*>(at.weights) + 16 * lane;
      if (inside) from += (block * count + chunk * kRecords) * R::kBytes;
    }

    SIMT_DEVICE void load(const Arguments&, int, uint4* stage) const {
      const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
      const int end = min(records, kRecords) * R::kBytes - 16 * lane;
      stage += warp * (kWarpBytes / 16) + lane;
#pragma unroll
      for (int at = 0; at < kWarpBytes; at += 512) {
        if (at < end) simt::cp_async_16(stage + at / 16, from + at, true);
      }
    }
    SIMT_DEVICE void advance() {
      from += kWarpBytes;
      records -= kRecords;
    }
  };

  // sum += scale * part
  SIMT_DEVICE static void add_scaled(float (&sum)[4], const float (&part)[4], const float (&scale)[2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += scale[i / 2] * part[i];
  }

  // Adds to the sums the products of `a` and two times 16 columns of x, whose groups have scales of their own or share
  // one.
  template <bool kShared>
  SIMT_DEVICE static void add_products(const std::uint32_t (&a)[2][4], const std::uint32_t (&x)[4],
                                       const float (&scales)[2][2], float (&sum)[4]) {
    float part[4] = {};
    simt::mma_m16n8k16<simt::bf16>(part, a[0], x[0], x[1]);
    if constexpr (kShared) {
      simt::mma_m16n8k16<simt::bf16>(part, a[1], x[2], x[3]);
      add_scaled(sum, part, scales[0]);
    } else {
      float second[4] = {};
      simt::mma_m16n8k16<simt::bf16>(second, a[1], x[2], x[3]);
      add_scaled(sum, part, scales[0]);
      add_scaled(sum, second, scales[1]);
    }
  }

  // A record, and the columns of x that it meets.
  SIMT_DEVICE static void multiply_record(const Arguments& p, const unsigned char* codes, const uint4* x,
                                          Sums<Tile>& sums) {
    const std::uint32_t ones[2][4] = {{0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u},
                                      {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u}};
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const RecordScales<R> scales(codes + kCodeBytes<typename R::Codes>, lane / 4);
    const int own_chunk = Tile::chunk_at(lane % 8, lane / 8);  // of x; four chunks on is one bit of its place
    constexpr bool kShared = R::kGroups <= 2;
#pragma unroll(kUnrolled ? 2 : 1)
    for (int half = 0; half < 2; ++half) {
      std::uint32_t a[2][4];
      decode(typename R::Codes(), p.codes, codes, half, a);
      float d[2][2], m[2][2];
#pragma unroll
      for (int i = 0; i < (kShared ? 1 : 2); ++i) {
        const int group = kShared ? half % R::kGroups : 2 * half + i;
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
          d[i][upper] = scales.d(group, upper);
          if constexpr (R::kHasMin) m[i][upper] = scales.m(group, upper);
        }
      }
#pragma unroll
      for (int r = 0; r < Tile::kRowTiles; ++r) {
        std::uint32_t rows[4];
        simt::ldmatrix_x4(rows, x + 8 * r * Tile::kRowChunks + (own_chunk ^ 4 * half));
        add_products<kShared>(a, rows, d, sums.of[0][r]);
        // The sums of x over a group, for all outputs alike.
        if constexpr (R::kHasMin) add_products<kShared>(ones, rows, m, sums.of[0][r]);
      }
    }
  }

  SIMT_DEVICE static void multiply(const Arguments& p, int chunk, const unsigned char* stage, const uint4* x,
                                   Sums<Tile>& sums) {
    const unsigned char* codes = stage + threadIdx.x / 32 * kWarpBytes;
    const int columns = static_cast<int>(p.params.k) - chunk * Tile::kDepth;
#pragma unroll(kUnrolled ? kRecords : 1)
    for (int record = 0; record < kRecords; ++record) {
      if (record > 0 && record * kFragmentColumns >= columns) break;
      multiply_record(p, codes + record * R::kBytes, x + record * (kFragmentColumns / 8), sums);
    }
  }
};

template <typename Codes, Scales kScales, int kGroups, typename Tile>
struct Operand<Record<Codes, kScales, kGroups>, Tile> : QuantOperand<Record<Codes, kScales, kGroups>, Tile> {};

namespace {

// 128 outputs share what is copied of x, which is more than their codes where there are many rows. More rows than 64
// take several tiles.
template <typename Body>
auto dispatch_rows(std::int64_t rows, Body&& body) {
  if (rows <= 8) return body.template operator()<Tile<8, 128, 1, 8, 128>>();
  if (rows <= 16) return body.template operator()<Tile<16, 128, 1, 8, 128>>();
  if (rows <= 32) return body.template operator()<Tile<32, 128, 1, 8, 128>>();
  return body.template operator()<Tile<64, 128, 1, 8, 128>>();
}

bool is_quantised_product(const MatmulLaunch& launch) {
  const Matrix& weight = launch.params.outputs[0].weight;
  return is_supported(launch) && !is_plain(weight.format) && weight.order == Order::kFragments;
}

}  // namespace

std::size_t quantised_matmul_workspace_bytes(const MatmulLaunch& launch) {
  if (!is_quantised_product(launch)) return 0;
  using Any = Record<Affine4, Scales::kF16, 2>;  // all take as much
  return dispatch_rows(launch.params.rows, [&]<typename Tile>() { return lay_out<Any, Tile>(launch).bytes; });
}

cudaError_t launch_quantised_matmul(const MatmulLaunch& launch, KernelStream stream) {
  if (!is_quantised_product(launch) || !has_aligned_pointers(launch)) return cudaErrorInvalidValue;
  if (launch.params.x_dtype != Dtype::kBF16) return cudaErrorInvalidValue;
  const Format format = launch.params.outputs[0].weight.format;
  return dispatch_record(format, [&]<typename R>() {
    return dispatch_rows(launch.params.rows, [&]<typename Tile>() {
      return launch_tiles<R, Tile>(launch, stream, code_arguments(format));
    });
  });
}

}  // namespace hogwild::cuda
