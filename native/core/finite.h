// Whether numbers are numbers.
#pragma once

#include <cstdint>
#include <span>

#include "core/float16.h"

namespace hogwild {

// Without an early end, so that the compiler makes vector instructions of it.
static inline bool all_finite(std::span<const float> values) {
  std::uint32_t special = 0;
  for (const float value : values) special |= (f32_bits(value) & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
  return special == 0;
}

}  // namespace hogwild
