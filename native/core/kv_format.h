// Formats in which a cache stores keys and values, each its own.
//
// Everything here is internal to the file that includes it: kernels.cc of device/cpu/, compiled once per instruction
// set, is one of them.
#pragma once

#include <cstdint>

namespace hogwild {

// kInt8: x = code * scale, code from -127 to 127; one f32 scale = max |x| / 127 for each (token, kv head).
enum class KvFormat : std::uint8_t { kF32, kF16, kBF16, kInt8 };

static constexpr const char* kv_format_name(KvFormat format) {
  switch (format) {
    case KvFormat::kF32:
      return "f32";
    case KvFormat::kF16:
      return "f16";
    case KvFormat::kBF16:
      return "bf16";
    case KvFormat::kInt8:
      return "int8";
  }
  return "?";
}

static constexpr std::int64_t kv_element_bytes(KvFormat format) {
  switch (format) {
    case KvFormat::kF32:
      return 4;
    case KvFormat::kF16:
    case KvFormat::kBF16:
      return 2;
    case KvFormat::kInt8:
      return 1;
  }
  return 0;
}

// Of the scale that goes with each (token, kv head); 0 where the format has none.
static constexpr std::int64_t kv_scale_bytes(KvFormat format) { return format == KvFormat::kInt8 ? 4 : 0; }

// Whether a stored key may be turned to another position, in f32 and rounded once more. One of codes that share a
// scale would lose a half of its precision each time.
static constexpr bool kv_can_turn(KvFormat format) { return kv_scale_bytes(format) == 0; }

}  // namespace hogwild
