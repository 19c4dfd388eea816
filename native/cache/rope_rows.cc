#include "cache/rope_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"

namespace hogwild {

RopeAngles::RopeAngles(const RopeSpec& rope)
    : frequencies_(rope.inverse_frequencies),
      attention_factor_(rope.attention_factor),
      cos_(kFine * frequencies_.size()),
      sin_(kFine * frequencies_.size()) {
  const std::size_t pairs = frequencies_.size();
  for (std::int64_t position = 0; position < kFine; ++position) {
    for (std::size_t u = 0; u < pairs; ++u) {
      const double angle = static_cast<double>(position) * frequencies_[u];
      cos_[position * pairs + u] = std::cos(angle);
      sin_[position * pairs + u] = std::sin(angle);
    }
  }
}

void RopeAngles::write(Range range, double factor, float* cos, float* sin) const {
  const std::size_t pairs = frequencies_.size();
  std::vector<double> coarse_cos(pairs), coarse_sin(pairs);
  for (std::int64_t position = range.begin; position < range.end; ++position) {
    const std::int64_t fine = position & (kFine - 1);
    if (position == range.begin || fine == 0) {
      for (std::size_t u = 0; u < pairs; ++u) {
        const double angle = static_cast<double>(position - fine) * frequencies_[u];
        coarse_cos[u] = factor * std::cos(angle);
        coarse_sin[u] = factor * std::sin(angle);
      }
    }
    const double* fine_cos = &cos_[fine * pairs];
    const double* fine_sin = &sin_[fine * pairs];
    for (std::size_t u = 0; u < pairs; ++u) {
      cos[u] = static_cast<float>(coarse_cos[u] * fine_cos[u] - coarse_sin[u] * fine_sin[u]);
      sin[u] = static_cast<float>(coarse_sin[u] * fine_cos[u] + coarse_cos[u] * fine_sin[u]);
    }
    cos += pairs;
    sin += pairs;
  }
}

RopeRows::RopeRows(std::span<const RopeAngles> angles, bool with_factors, std::vector<RopeAngles::Range> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const RopeAngles::Range& a, const RopeAngles::Range& b) { return a.begin < b.begin; });
  for (const RopeAngles::Range& range : ranges) {
    if (!ranges_.empty() && range.begin <= ranges_.back().end) {
      ranges_.back().end = std::max(ranges_.back().end, range.end);
    } else {
      ranges_.push_back(range);
    }
  }
  std::int64_t rows = 0;
  for (const RopeAngles::Range& range : ranges_) {
    first_rows_.push_back(rows);
    rows += range.end - range.begin;
  }
  if (rows > std::numeric_limits<std::int32_t>::max()) {
    throw Error(code::kUnsupported, "a step may turn queries to at most 2^31 - 1 different positions");
  }
  std::int64_t n_values = 0;
  for (const RopeAngles& rope : angles) n_values += rows * rope.rotary_dim();
  values_.resize(static_cast<std::size_t>(n_values));
  float* cos = values_.data();
  for (const RopeAngles& rope : angles) {
    const std::int64_t pairs = rope.rotary_dim() / 2;
    float* sin = cos + rows * pairs;
    for (std::size_t i = 0; i < ranges_.size(); ++i) {
      rope.write(ranges_[i], with_factors ? rope.attention_factor() : 1, cos + first_rows_[i] * pairs,
                 sin + first_rows_[i] * pairs);
    }
    tables_.push_back({.cos = cos, .sin = sin, .rotary_dim = rope.rotary_dim()});
    cos = sin + rows * pairs;
  }
}

std::int32_t RopeRows::row(std::int64_t position) const {
  const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), position,
                                      [](std::int64_t p, const RopeAngles::Range& range) { return p < range.begin; });
  const std::size_t index = after - ranges_.begin() - 1;
  return static_cast<std::int32_t>(first_rows_[index] + position - ranges_[index].begin);
}

}  // namespace hogwild
