// What is done row by row or element by element between the products: embedding, RMSNorm, gated activation, scaled
// sums, soft caps.
#include <climits>
#include <cmath>

#include "core/format.h"
#include "dispatch.cuh"
#include "gated.cuh"
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
  simt::follow_preceding();
  const std::int64_t row = blockIdx.x;
  const std::int64_t cols = p.table.cols;
  const std::size_t from = static_cast<std::size_t>(simt::load_constant(tokens + row)) * padded_cols(cols);
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
  simt::follow_preceding();
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

// A thread per element, or per four of them (kWide), else `out` is f32. `gate` may be `out`.
template <Activation kActivation, bool kWide>
__global__ void __launch_bounds__(kThreads) gate_elements(const __grid_constant__ GatedActivationParams p) {
  simt::follow_preceding();
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * (kWide ? 4 : 1);
  if (i >= p.n) return;
  if constexpr (kWide) {
    const float4 gate = *reinterpret_cast<const float4*>(p.gate + i);
    const float4 up = *reinterpret_cast<const float4*>(p.up + i);
    const float4 y = make_float4(gated<kActivation>(gate.x, up.x), gated<kActivation>(gate.y, up.y),
                                 gated<kActivation>(gate.z, up.z), gated<kActivation>(gate.w, up.w));
    visit_array(p.out, p.out_dtype, [&](auto* out) { store_operands(out + i, y); });
  } else {
    static_cast<float*>(p.out)[i] = gated<kActivation>(p.gate[i], p.up[i]);
  }
}

// ---- scaled sums and soft caps ----------------------------------------------------------------------

// A thread per element, or per four of them (kWide).
template <bool kWide>
__global__ void __launch_bounds__(kThreads) add_scaled(const __grid_constant__ AddParams p) {
  simt::follow_preceding();
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * (kWide ? 4 : 1);
  if (i >= p.n) return;
  if constexpr (kWide) {
    float4* to = reinterpret_cast<float4*>(p.x + i);
    const float4 x = *to;
    const float4 y = *reinterpret_cast<const float4*>(p.y + i);
    *to = make_float4(x.x + p.scale * y.x, x.y + p.scale * y.y, x.z + p.scale * y.z, x.w + p.scale * y.w);
  } else {
    p.x[i] += p.scale * p.y[i];
  }
}

// `by`: scale / softcap, or scale where there is no cap.
template <bool kCapped>
SIMT_DEVICE float capped(float x, float by, float softcap) {
  return kCapped ? tanhf(x * by) * softcap : x * by;
}

template <bool kCapped, bool kWide>
__global__ void __launch_bounds__(kThreads) cap_elements(float* values, std::int64_t n, float by, float softcap) {
  simt::follow_preceding();
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * (kWide ? 4 : 1);
  if (i >= n) return;
  if constexpr (kWide) {
    float4* at = reinterpret_cast<float4*>(values + i);
    const float4 x = *at;
    *at = make_float4(capped<kCapped>(x.x, by, softcap), capped<kCapped>(x.y, by, softcap),
                      capped<kCapped>(x.z, by, softcap), capped<kCapped>(x.w, by, softcap));
  } else {
    values[i] = capped<kCapped>(values[i], by, softcap);
  }
}

// ---- rounding ---------------------------------------------------------------------------------------

// A thread per four elements.
template <typename T>
__global__ void __launch_bounds__(kThreads) round_elements(const float* x, std::int64_t n, T* out) {
  simt::follow_preceding();
  const std::int64_t i = 4 * (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x);
  if (i < n) store_operands(out + i, *reinterpret_cast<const float4*>(x + i));
}

// Grid: (rows; groups of kThreads pairs of elements). What lies behind a row becomes zero.
template <typename T>
__global__ void __launch_bounds__(kThreads) round_and_pad(const float* x, std::int64_t cols, T* out) {
  simt::follow_preceding();
  const std::int64_t i = 2 * (static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x);
  if (i >= padded_cols(cols)) return;
  const float* row = x + blockIdx.x * cols;
  const float first = i < cols ? row[i] : 0.f;
  const float second = i + 1 < cols ? row[i + 1] : 0.f;
  *reinterpret_cast<std::uint32_t*>(out + blockIdx.x * padded_cols(cols) + i) = round2<T>(first, second);
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

constexpr int elements_of(bool wide) { return kThreads * (wide ? 4 : 1); }  // of a CTA
bool is_count(std::int64_t n) { return 0 <= n && n <= std::int64_t{INT_MAX} * kThreads; }
dim3 grid_for(std::int64_t n, bool wide) {
  return dim3(static_cast<unsigned>((n + elements_of(wide) - 1) / elements_of(wide)));
}

}  // namespace

cudaError_t launch_embedding(const EmbeddingParams& params, const StepArrays& step, KernelStream stream) {
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

cudaError_t launch_rms_norm(const RmsNormParams& params, KernelStream stream) {
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

cudaError_t launch_gated_activation(const GatedActivationParams& params, KernelStream stream) {
  if (!is_count(params.n)) return cudaErrorInvalidValue;
  if (params.n == 0) return cudaSuccess;
  const bool wide = params.n % 4 == 0 && are_aligned({params.gate, params.up, params.out});
  if (!wide && params.out_dtype != Dtype::kF32) return cudaErrorInvalidValue;
  const dim3 grid = grid_for(params.n, wide);
  return dispatch_wide(wide, [&]<bool kWide>() {
    switch (params.activation) {
      case Activation::kSilu:
        return SIMT_LAUNCH((gate_elements<Activation::kSilu, kWide>), grid, dim3(kThreads), 0, stream, params);
      case Activation::kGeluTanh:
        return SIMT_LAUNCH((gate_elements<Activation::kGeluTanh, kWide>), grid, dim3(kThreads), 0, stream, params);
      case Activation::kClampedSwiglu:
        return SIMT_LAUNCH((gate_elements<Activation::kClampedSwiglu, kWide>), grid, dim3(kThreads), 0, stream, params);
    }
    return cudaErrorInvalidValue;
  });
}

cudaError_t launch_add(const AddParams& params, KernelStream stream) {
  if (!is_count(params.n)) return cudaErrorInvalidValue;
  if (params.n == 0) return cudaSuccess;
  const bool wide = params.n % 4 == 0 && are_aligned({params.x, params.y});
  return dispatch_wide(wide, [&]<bool kWide>() {
    return SIMT_LAUNCH(add_scaled<kWide>, grid_for(params.n, wide), dim3(kThreads), 0, stream, params);
  });
}

cudaError_t launch_softcap(const SoftcapParams& params, KernelStream stream) {
  if (!is_count(params.n) || !(params.softcap >= 0)) return cudaErrorInvalidValue;
  if (params.n == 0) return cudaSuccess;
  const bool wide = params.n % 4 == 0 && are_aligned({params.x});
  const auto launch = [&]<bool kCapped, bool kWide>(float by) {
    return SIMT_LAUNCH((cap_elements<kCapped, kWide>), grid_for(params.n, wide), dim3(kThreads), 0, stream, params.x,
                       params.n, by, params.softcap);
  };
  return dispatch_wide(wide, [&]<bool kWide>() {
    return params.softcap == 0 ? launch.template operator()<false, kWide>(params.scale)
                               : launch.template operator()<true, kWide>(params.scale / params.softcap);
  });
}

cudaError_t launch_round(const float* x, std::int64_t rows, std::int64_t cols, Dtype dtype, void* out,
                         KernelStream stream) {
  if (rows < 0 || rows > INT_MAX || cols < 1 || cols > INT_MAX || !is_count(rows * cols)) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  const bool wide = cols % 8 == 0 && are_aligned({x, out});
  return dispatch_dtype(dtype, [&]<typename T>() {
    if (wide) {
      return SIMT_LAUNCH(round_elements<T>, grid_for(rows * cols, true), dim3(kThreads), 0, stream, x, rows * cols,
                         static_cast<T*>(out));
    }
    const auto pairs = static_cast<unsigned>((padded_cols(cols) / 2 + kThreads - 1) / kThreads);
    return SIMT_LAUNCH(round_and_pad<T>, dim3(static_cast<unsigned>(rows), pairs), dim3(kThreads), 0, stream, x, cols,
                       static_cast<T*>(out));
  });
}

}  // namespace hogwild::cuda
