// Reductions over a warp and over a CTA, in an order that depends on nothing: the same bits each time.
#pragma once

#include "simt/simt.h"

namespace hogwild::cuda {

// `combine` of all 32 lanes, in all lanes.
template <typename T, typename Combine>
SIMT_DEVICE T warp_reduce(T value, Combine&& combine) {
#pragma unroll
  for (int distance = 16; distance >= 1; distance /= 2) {
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

template <typename T>
SIMT_DEVICE T warp_sum(T value) {
  return warp_reduce(value, [](T a, T b) { return a + b; });
}

// `combine` of kThreads threads, all of the CTA, in all threads. `scratch`: one element for each warp, which
// may be used again after the next barrier.
template <int kThreads, typename T, typename Combine>
SIMT_DEVICE T block_reduce(T value, T* scratch, Combine&& combine) {
  constexpr int kWarps = kThreads / 32;
  static_assert(kThreads % 32 == 0 && kWarps <= 32);
  value = warp_reduce(value, combine);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  T all = scratch[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) all = combine(all, scratch[warp]);
  return all;
}

template <int kThreads, typename T>
SIMT_DEVICE T block_sum(T value, T* scratch) {
  return block_reduce<kThreads>(value, scratch, [](T a, T b) { return a + b; });
}

// Sum of the values of all lower threads of the CTA; `total`: of all. `scratch`: one element for each warp, which may
// be used again after the call.
template <int kThreads, typename T>
SIMT_DEVICE T block_exclusive_sum(T value, T* scratch, T& total) {
  constexpr int kWarps = kThreads / 32;
  static_assert(kThreads % 32 == 0 && kWarps <= 32);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  T upto = value;  // of this warp's lanes up to this one (Hillis and Steele 1986)
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const T lower = __shfl_up_sync(0xffffffffu, upto, static_cast<unsigned>(distance));
    if (lane >= distance) upto += lower;
  }
  if (lane == 31) scratch[warp] = upto;
  __syncthreads();
  T before = 0;
  total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) before += scratch[w];
    total += scratch[w];
  }
  __syncthreads();
  return before + upto - value;
}

}  // namespace hogwild::cuda
