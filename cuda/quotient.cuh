// Division by numbers that the host knows: a GPU has no instruction for it, and its substitute is long.
#pragma once

#include <bit>
#include <cstdint>

#include "simt/simt.h"

namespace hogwild::cuda {

// x / divisor for 0 <= x < 2^31 and a divisor >= 1, by multiplication (Granlund and Montgomery 1994, "Division by
// invariant integers using multiplication"): with L = ceil(log2(divisor)) and m = ceil(2^(31 + L) / divisor) < 2^32,
// x m / 2^(31 + L) exceeds x / divisor by less than 1 / divisor.
struct Quotient {
  int divisor = 1;
  std::uint32_t multiplier = 1u << 31;
  int shift = 31;

  Quotient() = default;
  explicit Quotient(int divisor)
      : divisor(divisor), shift(31 + static_cast<int>(std::bit_width(static_cast<std::uint32_t>(divisor) - 1))) {
    multiplier = static_cast<std::uint32_t>(((std::uint64_t{1} << shift) + static_cast<std::uint64_t>(divisor) - 1) /
                                            static_cast<std::uint64_t>(divisor));
  }
  SIMT_HOST_DEVICE int of(int x) const {
    return static_cast<int>(static_cast<std::uint64_t>(static_cast<std::uint32_t>(x)) * multiplier >> shift);
  }
};

// `total` units of work, 1 <= total < 2^31, in one order, cut into `ctas` shares, ctas <= total: the first of them
// one unit larger where there is a rest.
struct Shares {
  int larger = 0;  // how many shares are one unit larger
  Quotient by_large{}, by_small{};

  Shares() = default;
  Shares(int total, int ctas) : larger(total % ctas), by_large(total / ctas + 1), by_small(total / ctas) {}

  SIMT_HOST_DEVICE int begin(int cta) const { return cta * by_small.divisor + (cta < larger ? cta : larger); }
  // The CTA whose share holds `unit`.
  SIMT_HOST_DEVICE int owner(int unit) const {
    const int first_small = larger * by_large.divisor;
    return unit < first_small ? by_large.of(unit) : larger + by_small.of(unit - first_small);
  }
};

}  // namespace hogwild::cuda
