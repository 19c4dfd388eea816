// Wide loads and stores of registers.
#pragma once

#include <cstring>

#include "simt/simt.h"

namespace hogwild::cuda {

// A struct of 16 bytes that no thread of the launch writes, in one load.
template <typename T>
SIMT_DEVICE T load_constant_16(const T* from) {
  static_assert(sizeof(T) == sizeof(uint4) && alignof(T) == alignof(uint4));
  const uint4 raw = simt::load_constant(reinterpret_cast<const uint4*>(from));
  T value;
  memcpy(static_cast<void*>(&value), &raw, sizeof value);
  return value;
}

// Eight floats that no thread of the launch writes, aligned to 16 bytes.
SIMT_DEVICE void load8(const float* from, float (&to)[8]) {
  const float4 low = simt::load_constant(reinterpret_cast<const float4*>(from));
  const float4 high = simt::load_constant(reinterpret_cast<const float4*>(from) + 1);
  to[0] = low.x;
  to[1] = low.y;
  to[2] = low.z;
  to[3] = low.w;
  to[4] = high.x;
  to[5] = high.y;
  to[6] = high.z;
  to[7] = high.w;
}

// Eight values of the 16-bit type T, from * factor, rounded once.
template <typename T>
SIMT_DEVICE uint4 pack8_scaled(const float (&from)[8], float factor) {
  return make_uint4(
      simt::pack2<T>(from[0] * factor, from[1] * factor), simt::pack2<T>(from[2] * factor, from[3] * factor),
      simt::pack2<T>(from[4] * factor, from[5] * factor), simt::pack2<T>(from[6] * factor, from[7] * factor));
}

}  // namespace hogwild::cuda
