// What is done row by row or element by element between the products: embedding, RMSNorm, gated activation.
#include <climits>
#include <cmath>

#include "core/format.h"
#include "dispatch.cuh"
#include "kernels.h"
#include "reduce.cuh"
#include "simt/simt.h"
#include "vector_load.cuh"

namespace hogwild::cuda {
namespace {

constexpr int kThreads = 256;

// ---- embedding ------------------------------------------------------------------------------------

// One CTA per row; kWide: eight elements at a time.
template <bool kWide>
__global__ void __launch_bounds__(kThreads)
    gather_embedding(const __grid_constant__ EmbeddingParams p, const std::int32_t* tokens, Dtype dtype) {
  const std::int64_t row = blockIdx.x;
  const std::int64_t cols = p.table.cols;
  const std::size_t from = static_cast<std::size_t>(simt::load_constant(tokens + row)) * cols;
  float* out = p.out + row * cols;
  if constexpr (kWide) {
    for (std::int64_t i = 8 * static_cast<std::int64_t>(threadIdx.x); i < cols; i += 8 * kThreads) {
      float x[8];
      convert8(load_raw8(p.table.data, dtype, from + i), dtype, x);
      float4* to = reinterpret_cast<float4*>(out + i);
      to[0] = make_float4(p.scale * x[0], p.scale * x[1], p.scale * x[2], p.scale * x[3]);
      to[1] = make_float4(p.scale * x[4], p.scale * x[5], p.scale * x[6], p.scale * x[7]);
    }
  } else {
    for (std::int64_t i = threadIdx.x; i < cols; i += kThreads) {
      out[i] = p.scale * load1(p.table.data, dtype, from + i);
    }
  }
}

// ---- RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) ------------------------------------------

// kRowThreads (a warp or the CTA) per row; kWide: four elements at a time, else `out` is f32. `x` may be `out`: each
// element is read and written by one thread only.
template <int kRowThreads, bool kWide>
__global__ void __launch_bounds__(kThreads) normalize_rows(const __grid_constant__ RmsNormParams p) {
  SIMT_SHARED_MEMORY(shared);
  constexpr int kWidth = kWide ? 4 : 1;
  const int lane = static_cast<int>(threadIdx.x) % kRowThreads;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (kThreads / kRowThreads) + threadIdx.x / kRowThreads;
  if (row >= p.rows) return;  // whole warps
  const float* x = p.x + row * p.cols;

  float squares = 0;
  for (std::int64_t i = kWidth * lane; i < p.cols; i += kWidth * kRowThreads) {
    if constexpr (kWide) {
      const float4 v = *reinterpret_cast<const float4*>(x + i);
      squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    } else {
      squares += x[i] * x[i];
    }
  }
  if constexpr (kRowThreads == 32) {
    squares = warp_sum(squares);
  } else {
    squares = block_sum<kRowThreads>(squares, reinterpret_cast<float*>(shared));
  }
  const float factor = 1.f / sqrtf(squares / static_cast<float>(p.cols) + p.eps);
  for (std::int64_t i = kWidth * lane; i < p.cols; i += kWidth * kRowThreads) {
    if constexpr (kWide) {
      const float4 v = *reinterpret_cast<const float4*>(x + i);
      const float4 w = simt::load_constant(reinterpret_cast<const float4*>(p.weight + i));
      const float4 y = make_float4(v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w);
      visit_array(p.out, p.out_dtype, [&](auto* out) { store_operands(out + row * p.cols + i, y); });
    } else {
      static_cast<float*>(p.out)[row * p.cols + i] = x[i] * factor * simt::load_constant(p.weight + i);
    }
  }
}

// ---- gated activation -----------------------------------------------------------------------------

template <Activation kActivation>
SIMT_DEVICE float activate(float x) {
  if constexpr (kActivation == Activation::kSilu) {
    return x / (1.f + expf(-x));
  } else {
    // 0.5 x (1 + tanh(u)) = x sigmoid(2 u) (Hendrycks and Gimpel 2016, arXiv 1606.08415)
    const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return x / (1.f + expf(-2.f * u));
  }
}

// A thread per element, or per four of them (kWide), else `out` is f32. `gate` may be `out`.
template <Activation kActivation, bool kWide>
__global__ void __launch_bounds__(kThreads) gate_elements(const __grid_constant__ GatedActivationParams p) {
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * (kWide ? 4 : 1);
  if (i >= p.n) return;
  if constexpr (kWide) {
    const float4 gate = *reinterpret_cast<const float4*>(p.gate + i);
    const float4 up = simt::load_constant(reinterpret_cast<const float4*>(p.up + i));
    const float4 y = make_float4(activate<kActivation>(gate.x) * up.x, activate<kActivation>(gate.y) * up.y,
                                 activate<kActivation>(gate.z) * up.z, activate<kActivation>(gate.w) * up.w);
    visit_array(p.out, p.out_dtype, [&](auto* out) { store_operands(out + i, y); });
  } else {
    static_cast<float*>(p.out)[i] = activate<kActivation>(p.gate[i]) * simt::load_constant(p.up + i);
  }
}

// ---- rounding ---------------------------------------------------------------------------------------

// A thread per four elements.
template <typename T>
__global__ void __launch_bounds__(kThreads) round_elements(const float* x, std::int64_t n, T* out) {
  const std::int64_t i = 4 * (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x);
  if (i < n) store_operands(out + i, simt::load_constant(reinterpret_cast<const float4*>(x + i)));
}

}  // namespace

// ---- launchers --------------------------------------------------------------------------------------

namespace {

// Rows shorter than this take a warp each, else a CTA.
constexpr std::int64_t kLongRow = 1024;

template <typename Body>
cudaError_t dispatch_wide(bool wide, Body&& body) {
  return wide ? body.template operator()<true>() : body.template operator()<false>();
}

}  // namespace

cudaError_t launch_embedding(const EmbeddingParams& params, const StepArrays& step, cudaStream_t stream) {
  if (params.rows < 0 || params.rows > INT_MAX || params.table.cols < 1) return cudaErrorInvalidValue;
  if (!is_plain(params.table.format)) return cudaErrorInvalidValue;
  if (params.rows == 0) return cudaSuccess;
  const Dtype dtype = dtype_of(params.table.format);
  const bool wide = params.table.cols % 8 == 0 && are_aligned({params.table.data, params.out});
  return dispatch_wide(wide, [&]<bool kWide>() {
    return SIMT_LAUNCH(gather_embedding<kWide>, dim3(static_cast<unsigned>(params.rows)), dim3(kThreads), 0, stream,
                       params, step.tokens, dtype);
  });
}

cudaError_t launch_rms_norm(const RmsNormParams& params, cudaStream_t stream) {
  if (params.rows < 0 || params.rows > INT_MAX || params.cols < 1) return cudaErrorInvalidValue;
  if (params.rows == 0) return cudaSuccess;
  const bool wide = params.cols % 4 == 0 && are_aligned({params.x, params.weight, params.out});
  if (!wide && params.out_dtype != Dtype::kF32) return cudaErrorInvalidValue;
  return dispatch_wide(wide, [&]<bool kWide>() {
    if (params.cols < kLongRow) {
      constexpr int kRows = kThreads / 32;
      return SIMT_LAUNCH((normalize_rows<32, kWide>), dim3(static_cast<unsigned>((params.rows + kRows - 1) / kRows)),
                         dim3(kThreads), 0, stream, params);
    }
    return SIMT_LAUNCH((normalize_rows<kThreads, kWide>), dim3(static_cast<unsigned>(params.rows)), dim3(kThreads),
                       kThreads / 32 * sizeof(float), stream, params);
  });
}

cudaError_t launch_gated_activation(const GatedActivationParams& params, cudaStream_t stream) {
  if (params.n < 0 || params.n > std::int64_t{INT_MAX} * kThreads) return cudaErrorInvalidValue;
  if (params.n == 0) return cudaSuccess;
  const bool wide = params.n % 4 == 0 && are_aligned({params.gate, params.up, params.out});
  if (!wide && params.out_dtype != Dtype::kF32) return cudaErrorInvalidValue;
  return dispatch_wide(wide, [&]<bool kWide>() {
    constexpr int kElements = kThreads * (kWide ? 4 : 1);
    const dim3 grid(static_cast<unsigned>((params.n + kElements - 1) / kElements));
    switch (params.activation) {
      case Activation::kSilu:
        return SIMT_LAUNCH((gate_elements<Activation::kSilu, kWide>), grid, dim3(kThreads), 0, stream, params);
      case Activation::kGeluTanh:
        return SIMT_LAUNCH((gate_elements<Activation::kGeluTanh, kWide>), grid, dim3(kThreads), 0, stream, params);
      case Activation::kClampedSwiglu:
        break;
    }
    return cudaErrorInvalidValue;
  });
}

cudaError_t launch_round(const float* x, std::int64_t n, Dtype dtype, void* out, cudaStream_t stream) {
  constexpr int kElements = 4 * kThreads;
  if (n < 0 || n > std::int64_t{INT_MAX} * kElements || n % 4 != 0 || !are_aligned({x, out})) {
    return cudaErrorInvalidValue;
  }
  if (n == 0) return cudaSuccess;
  return dispatch_dtype(dtype, [&]<typename T>() {
    return SIMT_LAUNCH(round_elements<T>, dim3(static_cast<unsigned>((n + kElements - 1) / kElements)), dim3(kThreads),
                       0, stream, x, n, static_cast<T*>(out));
  });
}

}  // namespace hogwild::cuda
