// What launchers share. The only place where run-time values become template constants: a value that is not
// listed is cudaErrorInvalidValue.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <utility>

#include "device/ops.h"
#include "simt/simt.h"

namespace hogwild::cuda {

// Calls `body.template operator()<T>()` with the 16-bit type.
template <typename Body>
cudaError_t dispatch_dtype(Dtype dtype, Body&& body) {
  if (dtype == Dtype::kBF16) return body.template operator()<simt::bf16>();
  if (dtype == Dtype::kF16) return body.template operator()<simt::f16>();
  return cudaErrorInvalidValue;
}

// Calls `body.template operator()<kValue>()` with the listed value that equals `value`.
template <int... kValues, typename Body>
cudaError_t dispatch_int(std::int64_t value, Body&& body) {
  cudaError_t error = cudaErrorInvalidValue;
  static_cast<void>(((value == kValues && (error = body.template operator()<kValues>(), true)) || ...));
  return error;
}
template <int... kValues, typename Body>
cudaError_t dispatch_int(std::integer_sequence<int, kValues...>, std::int64_t value, Body&& body) {
  return dispatch_int<kValues...>(value, static_cast<Body&&>(body));
}

// Whether kernels can read all these arrays 16 bytes at a time.
inline bool are_aligned(std::initializer_list<const void*> arrays) {
  return std::all_of(arrays.begin(), arrays.end(),
                     [](const void* array) { return reinterpret_cast<std::uintptr_t>(array) % 16 == 0; });
}

}  // namespace hogwild::cuda
