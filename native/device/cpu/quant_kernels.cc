// Compiled once per SIMD level; HOGWILD_SIMD is the level's name. The rule of kernels.cc holds here too.
#include "device/cpu/quant_kernels.h"

// In this order: each builds on those before it.
// clang-format off
#include "device/cpu/simd.h"
#include "device/cpu/quant_codes.h"
#include "device/cpu/quant_product.h"
#include "device/cpu/quant_matmul.h"
#if defined(__AMX_INT8__)
#include "device/cpu/amx.h"
#include "device/cpu/quant_tiles.h"
#endif
// clang-format on

#define HOGWILD_CONCAT_(a, b) a##b
#define HOGWILD_CONCAT(a, b) HOGWILD_CONCAT_(a, b)

namespace hogwild {
namespace {

#if defined(__AMX_INT8__)
int64_t row_blocks(int64_t rows) {
  return uses_tiles(rows) ? (rows + kTileRows - 1) / kTileRows : quant_row_blocks(rows);
}

void pack_x(const float* x, int64_t rows, int64_t k, const int32_t* columns, int64_t group, int64_t begin, int64_t end,
            void* packed) {
  if (uses_tiles(rows)) return pack_x_for_tiles(x, rows, k, columns, group, begin, end, packed);
  pack_x_for_vectors(x, rows, k, columns, group, begin, end, packed);
}

template <Format kFormat>
void quant_matmul(const QuantSlice& slice) {
  using F = Quantised<kFormat>;
  if (uses_tiles(slice.rows)) return quant_matmul_tiles<F>(slice);
  quant_matmul_vectors<F>(slice);
}
#else
int64_t row_blocks(int64_t rows) { return quant_row_blocks(rows); }

constexpr auto pack_x = pack_x_for_vectors;

int64_t scratch_bytes(int64_t, int64_t) { return 0; }

template <Format kFormat>
void quant_matmul(const QuantSlice& slice) {
  quant_matmul_vectors<Quantised<kFormat> >(slice);
}
#endif

void matmul(const QuantSlice& slice) {
  switch (slice.output->weight.format) {
    case Format::kQ8_0:
      return quant_matmul<Format::kQ8_0>(slice);
    case Format::kQ4_0:
      return quant_matmul<Format::kQ4_0>(slice);
    case Format::kQ4_1:
      return quant_matmul<Format::kQ4_1>(slice);
    case Format::kQ5_0:
      return quant_matmul<Format::kQ5_0>(slice);
    case Format::kQ5_1:
      return quant_matmul<Format::kQ5_1>(slice);
    case Format::kQ2_K:
      return quant_matmul<Format::kQ2_K>(slice);
    case Format::kQ3_K:
      return quant_matmul<Format::kQ3_K>(slice);
    case Format::kQ4_K:
      return quant_matmul<Format::kQ4_K>(slice);
    case Format::kQ5_K:
      return quant_matmul<Format::kQ5_K>(slice);
    case Format::kQ6_K:
      return quant_matmul<Format::kQ6_K>(slice);
    case Format::kIQ4_NL:
      return quant_matmul<Format::kIQ4_NL>(slice);
    case Format::kIQ4_XS:
      return quant_matmul<Format::kIQ4_XS>(slice);
    case Format::kMXFP4:
      return quant_matmul<Format::kMXFP4>(slice);
    case Format::kInt4G32:
      return quant_matmul<Format::kInt4G32>(slice);
    case Format::kInt4G64:
      return quant_matmul<Format::kInt4G64>(slice);
    case Format::kInt4G128:
      return quant_matmul<Format::kInt4G128>(slice);
    case Format::kF32:
    case Format::kF16:
    case Format::kBF16:
      return;  // kernels.h has them
  }
}

}  // namespace

extern const QuantKernels HOGWILD_CONCAT(kQuantKernels_, HOGWILD_SIMD);
const QuantKernels HOGWILD_CONCAT(kQuantKernels_, HOGWILD_SIMD) = {
    .row_blocks = row_blocks,
    .pack_x = pack_x,
    .scratch_bytes = scratch_bytes,
    .matmul = matmul,
};

}  // namespace hogwild
