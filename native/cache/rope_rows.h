// Rows of RoPE's cos and sin for the positions that a step needs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/ops.h"

namespace hogwild {

struct RopeSpec {
  std::vector<double> inverse_frequencies;  // [R / 2], radians per position
  double attention_factor = 1;              // `a` of docs/semantics.md: once through q, once through k

  std::int64_t rotary_dim() const { return 2 * static_cast<std::int64_t>(inverse_frequencies.size()); }
  bool operator==(const RopeSpec&) const = default;
};

// cos and sin of any position in double precision, without a call of std::cos for each: the angle of
// position 256 h + l is the sum of the angles of 256 h and of l, and the latter are kept. The error,
// below 4e-16 beside that of the product position * frequency, vanishes in the rounding to f32.
class RopeAngles {
 public:
  explicit RopeAngles(const std::vector<double>& inverse_frequencies);

  // Half-open range of positions; they may be negative.
  struct Range {
    std::int64_t begin = 0;
    std::int64_t end = 0;
  };

  // Writes factor * cos and factor * sin of the range's positions, [end - begin, R / 2] each.
  void write(Range range, double factor, float* cos, float* sin) const;

 private:
  static constexpr int kFineBits = 8;
  static constexpr std::int64_t kFine = std::int64_t{1} << kFineBits;

  std::vector<double> frequencies_;
  std::vector<double> cos_, sin_;  // [kFine, R / 2], of positions 0 to kFine - 1
};

// A rope table with one row for each distinct position of some ranges.
class RopeRows {
 public:
  RopeRows() = default;
  RopeRows(const RopeAngles& angles, const RopeSpec& rope, double factor, std::vector<RopeAngles::Range> ranges);

  // Row of `position`, which lies in one of the ranges. A range's positions have consecutive rows.
  std::int32_t row(std::int64_t position) const;
  RopeTable table() const { return {.cos = cos_.data(), .sin = sin_.data(), .rotary_dim = rotary_dim_}; }

 private:
  std::vector<RopeAngles::Range> ranges_;  // disjoint and not adjacent, ascending
  std::vector<std::int64_t> first_rows_;   // of ranges_
  std::int64_t rotary_dim_ = 0;
  std::vector<float> cos_, sin_;
};

}  // namespace hogwild
