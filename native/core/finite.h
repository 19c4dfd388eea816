// Whether numbers are numbers.
#pragma once

#include <cstdint>
#include <span>

#include "core/float16.h"

namespace hogwild {

// Adding one to an exponent of all ones, infinity's and NaN's, carries into the sign's place. Without an early
// end and without comparisons, so that the compiler makes vector instructions of it.
static inline bool all_finite(std::span<const float> values) {
  std::uint32_t carried = 0;
  for (const float value : values) carried |= (f32_bits(value) & 0x7f800000u) + 0x00800000u;
  return (carried & 0x80000000u) == 0;
}

}  // namespace hogwild
