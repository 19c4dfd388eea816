// The gated activations in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/float16.h"
#include "core/tensor.h"
#include "device/ops.h"

namespace hogwild {

inline constexpr Activation kActivations[] = {Activation::kSilu, Activation::kGeluTanh, Activation::kClampedSwiglu};

inline double gated_exactly(double gate, double up, Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return gate / (1 + std::exp(-gate)) * up;
    case Activation::kGeluTanh:
      return 0.5 * gate *
             (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (gate + 0.044715 * gate * gate * gate))) * up;
    case Activation::kClampedSwiglu:
      gate = std::min(gate, 7.);
      return gate / (1 + std::exp(-1.702 * gate)) * (std::clamp(up, -7., 7.) + 1);
  }
  return 0;
}

// The greatest error of `found`, in `dtype`, over what is allowed: 1e9 for one that is not a number.
inline double worst_gated_error(const std::vector<float>& gate, const std::vector<float>& up, Activation activation,
                                const std::vector<float>& found, Dtype dtype = Dtype::kF32) {
  const double rounding = dtype == Dtype::kBF16 ? 0x1p-8 : dtype == Dtype::kF16 ? 0x1p-11 : 0;
  double worst = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double exact = gated_exactly(gate[i], up[i], activation);
    // Behind -10 the activation itself is next to nothing: an absolute bound.
    const double tolerance = (4e-6 + rounding) * std::abs(exact) + 1e-6 * (std::abs(up[i]) + 1);
    const double error = std::abs(found[i] - exact) / tolerance;
    worst = std::max(worst, std::isnan(error) ? 1e9 : error);
  }
  return worst;
}

// Elements of `dtype` as they lie in memory, in f32.
inline std::vector<float> to_floats(const std::vector<std::uint16_t>& bits, Dtype dtype) {
  std::vector<float> values;
  for (const std::uint16_t b : bits) values.push_back(dtype == Dtype::kF16 ? f16_to_f32(b) : bf16_to_f32(b));
  return values;
}

}  // namespace hogwild
