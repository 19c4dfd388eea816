// What tests of kv.cu and attention.cu share: the arrangement of pages, written down a second time, and
// arrays of elements whose dtype is known at run time.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "core/float16.h"
#include "device/ops.h"
#include "plan.h"

namespace hogwild::cuda {

// Element `dim` of a token in its page, with rows of `width` elements (page.cuh).
inline std::int64_t element_in_page(std::int64_t width, std::int64_t kv_head, std::int64_t slot, std::int64_t dim) {
  const std::int64_t chunks = width / 8;
  const std::int64_t shared = std::gcd(chunks, std::int64_t{8});
  const std::int64_t chunk = dim / 8 ^ slot / (8 / shared) % shared;
  return ((kv_head * kPageSize + slot) * chunks + chunk) * 8 + dim % 8;
}

inline std::vector<std::int64_t> row_widths() {
  return []<int... kWidths>(std::integer_sequence<int, kWidths...>) {
    return std::vector<std::int64_t>{kWidths...};
  }(RowWidths());
}

// The 16-bit types of the cache, of keys and values alike.
inline Dtype dtype_of(const KvShape& shape) { return shape.key_format == KvFormat::kF16 ? Dtype::kF16 : Dtype::kBF16; }
inline float widen(Dtype dtype, std::uint16_t bits) {
  return dtype == Dtype::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}
inline std::uint16_t narrow(Dtype dtype, float x) { return dtype == Dtype::kF16 ? f32_to_f16(x) : f32_to_bf16(x); }

inline float rounded(Dtype dtype, float x) { return dtype == Dtype::kF32 ? x : widen(dtype, narrow(dtype, x)); }

// Greatest relative error of rounding to the type: half a unit in the last place.
inline double rounding_error(Dtype dtype) {
  return dtype == Dtype::kF32 ? 0x1p-24 : dtype == Dtype::kF16 ? 0x1p-11 : 0x1p-8;
}

// The bytes of an array of this dtype, and back.
inline std::vector<std::uint8_t> to_bytes(Dtype dtype, const std::vector<float>& values) {
  const std::size_t size = dtype_size(dtype);
  std::vector<std::uint8_t> bytes(values.size() * size);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t half = dtype == Dtype::kF32 ? 0 : narrow(dtype, values[i]);
    std::memcpy(bytes.data() + i * size, dtype == Dtype::kF32 ? static_cast<const void*>(&values[i]) : &half, size);
  }
  return bytes;
}
inline std::vector<float> from_bytes(Dtype dtype, const std::vector<std::uint8_t>& bytes) {
  const std::size_t size = dtype_size(dtype);
  std::vector<float> values(bytes.size() / size);
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t half;
    if (dtype == Dtype::kF32) {
      std::memcpy(&values[i], bytes.data() + i * size, size);
    } else {
      std::memcpy(&half, bytes.data() + i * size, size);
      values[i] = widen(dtype, half);
    }
  }
  return values;
}

}  // namespace hogwild::cuda
