// What tests of kv.cu and attention.cu share: the arrangement of pages, written down a second time, and arrays of
// elements whose dtype is known at run time.
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

inline std::vector<std::int64_t> row_widths() {
  return []<int... kWidths>(std::integer_sequence<int, kWidths...>) {
    return std::vector<std::int64_t>{kWidths...};
  }(RowWidths());
}

inline float widen(Dtype dtype, std::uint16_t bits) {
  return dtype == Dtype::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}
inline std::uint16_t narrow(Dtype dtype, float x) { return dtype == Dtype::kF16 ? f32_to_f16(x) : f32_to_bf16(x); }

inline float rounded(Dtype dtype, float x) { return dtype == Dtype::kF32 ? x : widen(dtype, narrow(dtype, x)); }

// Greatest relative error of rounding to the type: half a unit in the last place.
inline double rounding_error(Dtype dtype) {
  return dtype == Dtype::kF32 ? 0x1p-24 : dtype == Dtype::kF16 ? 0x1p-11 : 0x1p-8;
}

inline Dtype dtype_of(KvFormat format) {
  return format == KvFormat::kF32 ? Dtype::kF32 : format == KvFormat::kF16 ? Dtype::kF16 : Dtype::kBF16;
}

// All keys or all values of a layer (page.cuh).
struct Pool {
  KvShape shape;
  KvFormat format = KvFormat::kF32;
  std::vector<std::uint8_t> bytes;

  Pool() = default;
  Pool(const KvShape& shape, KvFormat format, std::int64_t pages, std::uint8_t fill = 0)
      : shape(shape), format(format), bytes(static_cast<std::size_t>(pages * shape.page_bytes(format)), fill) {}

  bool operator==(const Pool& other) const { return bytes == other.bytes; }

  std::int64_t size() const { return kv_element_bytes(format); }
  bool has_scales() const { return kv_scale_bytes(format) > 0; }
  std::int64_t head_at(std::int64_t page, std::int64_t kv_head) const {
    return page * shape.page_bytes(format) + kv_head * kPageSize * shape.row_bytes(format);
  }
  // Byte of an element, and of the scale of its row.
  std::int64_t at(std::int64_t page, std::int64_t kv_head, std::int64_t slot, std::int64_t dim) const {
    std::int64_t element = slot * shape.row_elements() + dim;
    if (size() == 2) {
      const std::int64_t chunks = shape.row_elements() / 8;
      const std::int64_t shared = std::gcd(chunks, std::int64_t{8});
      element = (slot * chunks + (dim / 8 ^ slot / (8 / shared) % shared)) * 8 + dim % 8;
    }
    return head_at(page, kv_head) + element * size();
  }
  std::int64_t scale_at(std::int64_t page, std::int64_t kv_head, std::int64_t slot) const {
    return head_at(page, kv_head) + kPageSize * shape.row_elements() + 4 * slot;
  }

  std::uint32_t bits(std::int64_t at) const {
    std::uint32_t bits = 0;
    std::memcpy(&bits, bytes.data() + at, static_cast<std::size_t>(size()));
    return bits;
  }
  void set_bits(std::int64_t at, std::uint32_t bits) {
    std::memcpy(bytes.data() + at, &bits, static_cast<std::size_t>(size()));
  }
  void copy_element(std::int64_t to, std::int64_t from) { set_bits(to, bits(from)); }
  void copy_element_of(const Pool& other, std::int64_t at) { set_bits(at, other.bits(at)); }
  // A code is a number of its own: without its scale.
  float number(std::int64_t at) const {
    const std::uint32_t raw = bits(at);
    if (has_scales()) return static_cast<float>(static_cast<std::int8_t>(raw));
    float x;
    std::memcpy(&x, &raw, sizeof x);
    return format == KvFormat::kF32 ? x : widen(dtype_of(format), static_cast<std::uint16_t>(raw));
  }
  void set_number(std::int64_t at, float x) {
    std::uint32_t raw;
    std::memcpy(&raw, &x, sizeof raw);
    if (has_scales()) raw = static_cast<std::uint8_t>(static_cast<std::int8_t>(x));
    if (size() == 2) raw = narrow(dtype_of(format), x);
    set_bits(at, raw);
  }
  float scale(std::int64_t page, std::int64_t kv_head, std::int64_t slot) const {
    float x = 1;
    if (has_scales()) std::memcpy(&x, bytes.data() + scale_at(page, kv_head, slot), sizeof x);
    return x;
  }
  void set_scale(std::int64_t page, std::int64_t kv_head, std::int64_t slot, float x) {
    std::memcpy(bytes.data() + scale_at(page, kv_head, slot), &x, sizeof x);
  }
};

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
