// Rows of quantised tables, and the columns of activations in the order of a quantised matrix.
#include <climits>
#include <type_traits>

#include "core/format.h"
#include "dispatch.cuh"
#include "fragments.cuh"
#include "kernels.h"
#include "simt/simt.h"

namespace hogwild::cuda {
namespace {

constexpr int kThreads = 256;

// The number that stands at a column of a record's output.
template <typename Codes>
SIMT_DEVICE int number_at(const CodeArguments& p, const unsigned char* record, int output, int column) {
  const int operand = column / 16, within = column % 16;
  const int lane = output % 8 * 4 + within % 8 / 2;
  const int i = output / 8 + 2 * (within / 8);  // register
  if constexpr (kCodeBytes<Codes> == 1024) {
    const int at = operand / 2 * 512 + lane * 16 + operand % 2 * 8 + i / 2 * 4 + i % 2 + 2 * (within % 2);
    return static_cast<std::int8_t>(record[at]);
  } else {
    const auto word = load_as<std::uint32_t>(record + lane * 16 + operand * 4);
    const int code = static_cast<int>(word >> (4 * i + 16 * (within % 2)) & 15);
    if constexpr (std::is_same_v<Codes, Affine4>) return code - p.zero;
    return static_cast<std::int8_t>(p.table[code / 4] >> 8 * (code % 4) & 0xff);
  }
}

// One CTA per row. With `columns` those of the table are put where x has them.
template <typename R>
__global__ void __launch_bounds__(kThreads)
    gather_quantised(const __grid_constant__ EmbeddingParams p, const __grid_constant__ CodeArguments codes,
                     const std::int32_t* tokens) {
  simt::follow_preceding();
  const std::int64_t row = simt::load_constant(tokens + blockIdx.x);
  const int cols = static_cast<int>(p.table.cols);
  const int output = static_cast<int>(row % kFragmentOutputs);
  const unsigned char* records =
      static_cast<const unsigned char*>(p.table.data) + row / kFragmentOutputs * ((cols + 63) / 64) * R::kBytes;
  float* out = p.out + static_cast<std::size_t>(blockIdx.x) * static_cast<std::size_t>(cols);
  for (int i = static_cast<int>(threadIdx.x); i < cols; i += kThreads) {
    const unsigned char* record = records + static_cast<std::int64_t>(i / 64) * R::kBytes;
    const int column = i % 64;
    const RecordScales<R> scales(record + kCodeBytes<typename R::Codes>, output % 8);
    const int group = column * R::kGroups / 64;
    float m = 0;
    if constexpr (R::kHasMin) m = scales.m(group, output / 8);
    const float number = static_cast<float>(number_at<typename R::Codes>(codes, record, output, column));
    const int to = p.table.columns == nullptr ? i : simt::load_constant(p.table.columns + i);
    out[to] = p.scale * (scales.d(group, output / 8) * number + m);
  }
}

// A thread per two elements.
__global__ void __launch_bounds__(kThreads)
    permute_rows(const std::uint16_t* x, const std::int32_t* columns, std::int64_t k, std::uint16_t* out) {
  simt::follow_preceding();
  const std::int64_t i = 2 * (static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x);
  if (i >= k) return;
  const std::uint16_t* row = x + blockIdx.x * k;
  const int2 from = simt::load_constant(reinterpret_cast<const int2*>(columns + i));
  const std::uint32_t pair = row[from.x] | std::uint32_t{row[from.y]} << 16;
  *reinterpret_cast<std::uint32_t*>(out + blockIdx.x * k + i) = pair;
}

}  // namespace

cudaError_t launch_quantised_embedding(const EmbeddingParams& params, const StepArrays& step, KernelStream stream) {
  if (params.rows < 0 || params.rows > INT_MAX) return cudaErrorInvalidValue;
  if (params.table.cols < 1 || params.table.cols > INT_MAX - kThreads) return cudaErrorInvalidValue;
  if (is_plain(params.table.format) || params.table.order != Order::kFragments) return cudaErrorInvalidValue;
  if (!are_aligned({params.table.data})) return cudaErrorInvalidValue;
  if (params.rows == 0) return cudaSuccess;
  return dispatch_record(params.table.format, [&]<typename R>() {
    return SIMT_LAUNCH(gather_quantised<R>, dim3(static_cast<unsigned>(params.rows)), dim3(kThreads), 0, stream, params,
                       code_arguments(params.table.format), step.tokens);
  });
}

cudaError_t launch_permute(const void* x, const std::int32_t* columns, std::int64_t rows, std::int64_t k, void* out,
                           KernelStream stream) {
  if (rows < 1 || rows > INT_MAX || k < 2 || k % 2 != 0 || k > INT_MAX) return cudaErrorInvalidValue;
  if (!are_aligned({x, columns, out})) return cudaErrorInvalidValue;
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>((k / 2 + kThreads - 1) / kThreads));
  return SIMT_LAUNCH(permute_rows, grid, dim3(kThreads), 0, stream, static_cast<const std::uint16_t*>(x), columns, k,
                     static_cast<std::uint16_t*>(out));
}

}  // namespace hogwild::cuda
