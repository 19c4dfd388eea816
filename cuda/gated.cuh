// The gated activations of device/ops.h, for the kernels that compute them.
#pragma once

#include <cmath>

#include "device/ops.h"
#include "simt/simt.h"

namespace hogwild::cuda {

template <Activation kActivation>
SIMT_DEVICE float gated(float gate, float up) {
  if constexpr (kActivation == Activation::kSilu) {
    return gate / (1.f + expf(-gate)) * up;
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    // 0.5 x (1 + tanh(u)) = x sigmoid(2 u) (Hendrycks and Gimpel 2016, arXiv 1606.08415)
    const float u = 0.7978845608028654f * (gate + 0.044715f * gate * gate * gate);
    return gate / (1.f + expf(-2.f * u)) * up;
  } else {
    static_assert(kActivation == Activation::kClampedSwiglu);
    // NaN stays NaN: comparisons with it are false.
    gate = gate > kSwigluLimit ? kSwigluLimit : gate;
    up = up > kSwigluLimit ? kSwigluLimit : up < -kSwigluLimit ? -kSwigluLimit : up;
    return gate / (1.f + expf(-kSwigluAlpha * gate)) * (up + 1.f);
  }
}

// Where it is known at run time, the same for all threads.
SIMT_DEVICE float gated(Activation activation, float gate, float up) {
  if (activation == Activation::kSilu) return gated<Activation::kSilu>(gate, up);
  if (activation == Activation::kGeluTanh) return gated<Activation::kGeluTanh>(gate, up);
  return gated<Activation::kClampedSwiglu>(gate, up);
}

}  // namespace hogwild::cuda
