// Rows of RoPE's cos and sin for the positions that a step needs.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "device/ops.h"

namespace hogwild {

struct RopeSpec {
  std::vector<double> inverse_frequencies;  // [R / 2], radians per position
  double attention_factor = 1;              // `a` of docs/semantics.md: once through q, once through k

  std::int64_t rotary_dim() const { return 2 * static_cast<std::int64_t>(inverse_frequencies.size()); }
  bool operator==(const RopeSpec&) const = default;
};

// How the keys of each layer are turned. Mostly all in one way, so a RopeSpec alone stands for that.
class LayerRopes {
 public:
  LayerRopes(RopeSpec everywhere) { specs.push_back(std::move(everywhere)); }
  LayerRopes(std::vector<RopeSpec> its_specs, std::vector<std::int32_t> its_layers)
      : specs(std::move(its_specs)), layers(std::move(its_layers)) {}

  // Index of `specs`, or -1: its keys are not turned.
  std::int32_t of(std::int64_t layer) const { return layers.empty() ? 0 : layers[static_cast<std::size_t>(layer)]; }
  // Whether `n_layers` layers are turned alike.
  bool same(const LayerRopes& other, std::int64_t n_layers) const {
    if (specs != other.specs) return false;
    for (std::int64_t i = 0; i < n_layers; ++i) {
      if (of(i) != other.of(i)) return false;
    }
    return true;
  }

  std::vector<RopeSpec> specs;
  std::vector<std::int32_t> layers;  // one for each; empty: all are turned by specs[0]
};

// cos and sin of any position in double precision, without a call of std::cos for each: the angle of
// position 256 h + l is the sum of the angles of 256 h and of l, and the latter are kept. The error,
// below 4e-16 beside that of the product position * frequency, vanishes in the rounding to f32.
class RopeAngles {
 public:
  explicit RopeAngles(const RopeSpec& rope);

  // Half-open range of positions; they may be negative.
  struct Range {
    std::int64_t begin = 0;
    std::int64_t end = 0;
  };

  std::int64_t rotary_dim() const { return 2 * static_cast<std::int64_t>(frequencies_.size()); }
  double attention_factor() const { return attention_factor_; }

  // Writes factor * cos and factor * sin of the range's positions, [end - begin, R / 2] each.
  void write(Range range, double factor, float* cos, float* sin) const;

 private:
  static constexpr int kFineBits = 8;
  static constexpr std::int64_t kFine = std::int64_t{1} << kFineBits;

  std::vector<double> frequencies_;
  double attention_factor_;
  std::vector<double> cos_, sin_;  // [kFine, R / 2], of positions 0 to kFine - 1
};

// Rope tables, one for each of `angles`, with one row for each distinct position of some ranges.
class RopeRows {
 public:
  RopeRows() = default;
  // With the attention factors of the specs, or without, for keys that are moved.
  RopeRows(std::span<const RopeAngles> angles, bool with_factors, std::vector<RopeAngles::Range> ranges);
  RopeRows(const RopeRows&) = delete;  // tables() point into it
  RopeRows& operator=(const RopeRows&) = delete;
  RopeRows(RopeRows&&) = default;
  RopeRows& operator=(RopeRows&&) = default;

  // Row of `position`, which lies in one of the ranges. A range's positions have consecutive rows.
  std::int32_t row(std::int64_t position) const;
  std::span<const RopeTable> tables() const { return tables_; }

 private:
  std::vector<RopeAngles::Range> ranges_;  // disjoint and not adjacent, ascending
  std::vector<std::int64_t> first_rows_;   // of ranges_
  std::vector<float> values_;              // cos, then sin, table after table
  std::vector<RopeTable> tables_;
};

}  // namespace hogwild
