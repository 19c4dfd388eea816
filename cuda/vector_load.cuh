// Wide loads and stores of registers. Elements of the two 16-bit types are converted to and from f32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/tensor.h"
#include "simt/simt.h"

namespace hogwild::cuda {

// A struct of 16 bytes, in one load_constant.
template <typename T>
SIMT_DEVICE T load_constant_16(const T* from) {
  static_assert(sizeof(T) == sizeof(uint4) && alignof(T) == alignof(uint4));
  const uint4 raw = simt::load_constant(reinterpret_cast<const uint4*>(from));
  T value;
  memcpy(static_cast<void*>(&value), &raw, sizeof value);
  return value;
}

// The same of 32 bytes, in two loads.
template <typename T>
SIMT_DEVICE T load_constant_32(const T* from) {
  static_assert(sizeof(T) == 2 * sizeof(uint4) && alignof(T) == alignof(uint4));
  const uint4* halves = reinterpret_cast<const uint4*>(from);
  const uint4 raw[2] = {simt::load_constant(halves), simt::load_constant(halves + 1)};
  T value;
  memcpy(static_cast<void*>(&value), raw, sizeof value);
  return value;
}

// Eight floats, aligned to 16 bytes, by load_constant.
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

// Eight values of the 16-bit type T.
template <typename T>
SIMT_DEVICE void unpack8(uint4 packed, float (&to)[8]) {
  const std::uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = simt::unpack2<T>(pairs[i]);
    to[2 * i] = pair.x;
    to[2 * i + 1] = pair.y;
  }
}

// Eight values of the 16-bit type T, from * factor, rounded once.
template <typename T>
SIMT_DEVICE uint4 pack8(const float (&from)[8], float factor = 1.f) {
  return make_uint4(
      simt::pack2<T>(from[0] * factor, from[1] * factor), simt::pack2<T>(from[2] * factor, from[3] * factor),
      simt::pack2<T>(from[4] * factor, from[5] * factor), simt::pack2<T>(from[6] * factor, from[7] * factor));
}

// Two values as operands of a product: rounded to T. f16 reaches only to 65504: beyond, they are held there. NaN stays.
template <typename T>
SIMT_DEVICE std::uint32_t round2(float low, float high);
template <>
SIMT_DEVICE std::uint32_t round2<simt::bf16>(float low, float high) {
  return simt::pack2<simt::bf16>(low, high);
}
template <>
SIMT_DEVICE std::uint32_t round2<simt::f16>(float low, float high) {
  constexpr float kMax = 65504.f;
  const auto hold = [](float v) { return v > kMax ? kMax : v < -kMax ? -kMax : v; };
  return simt::pack2<simt::f16>(hold(low), hold(high));
}

// Four neighbouring elements, rounded as operands where T is a 16-bit type; aligned as the four are.
SIMT_DEVICE void store_operands(float* to, float4 v) { *reinterpret_cast<float4*>(to) = v; }
template <typename T>
SIMT_DEVICE void store_operands(T* to, float4 v) {
  *reinterpret_cast<uint2*>(to) = make_uint2(round2<T>(v.x, v.y), round2<T>(v.z, v.w));
}

// One element, likewise.
SIMT_DEVICE void store_operand(float* to, float v) { *to = v; }
template <typename T>
SIMT_DEVICE void store_operand(T* to, float v) {
  to->bits = static_cast<std::uint16_t>(round2<T>(v, 0.f));
}

// Two neighbouring elements, rounded where T is a 16-bit type; aligned as the pair is.
SIMT_DEVICE void store2(float* to, float first, float second) {
  *reinterpret_cast<float2*>(to) = make_float2(first, second);
}
template <typename T>
SIMT_DEVICE void store2(T* to, float first, float second) {
  *reinterpret_cast<std::uint32_t*>(to) = simt::pack2<T>(first, second);
}

// ---- arrays whose dtype is known at run time, the same for all threads ------------------------------

// Eight elements as they lie in memory; those of a 16-bit type are all in `first`. Loading and converting are
// apart so that a thread can have several loads under way.
struct Raw8 {
  uint4 first, second;
};

// Elements [at, at + 8), aligned to eight elements.
SIMT_DEVICE Raw8 load_raw8(const void* from, Dtype dtype, std::size_t at) {
  const uint4* chunk = static_cast<const uint4*>(from) + at / 8 * (dtype == Dtype::kF32 ? 2 : 1);
  Raw8 raw = {*chunk, make_uint4(0, 0, 0, 0)};
  if (dtype == Dtype::kF32) raw.second = chunk[1];
  return raw;
}

SIMT_DEVICE void convert8(const Raw8& raw, Dtype dtype, float (&to)[8]) {
  if (dtype == Dtype::kF32) {
    memcpy(to, &raw.first, sizeof raw.first);
    memcpy(to + 4, &raw.second, sizeof raw.second);
  } else if (dtype == Dtype::kBF16) {
    unpack8<simt::bf16>(raw.first, to);
  } else {
    unpack8<simt::f16>(raw.first, to);
  }
}

// One element.
SIMT_DEVICE float load1(const void* from, Dtype dtype, std::size_t at) {
  if (dtype == Dtype::kF32) return static_cast<const float*>(from)[at];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(from)[at];
  return dtype == Dtype::kBF16 ? simt::unpack2<simt::bf16>(bits).x : simt::unpack2<simt::f16>(bits).x;
}

// Calls `body` with the array as one of float, bf16 or f16.
template <typename Body>
SIMT_DEVICE void visit_array(void* array, Dtype dtype, Body&& body) {
  if (dtype == Dtype::kF32) {
    body(static_cast<float*>(array));
  } else if (dtype == Dtype::kBF16) {
    body(static_cast<simt::bf16*>(array));
  } else {
    body(static_cast<simt::f16*>(array));
  }
}

}  // namespace hogwild::cuda
