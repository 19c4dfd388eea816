// Which experts the rows of a mixture of experts go to, and which rows each expert gets.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/cpu/thread_pool.h"
#include "device/ops.h"

namespace hogwild {

// A (row, choice) pair is number row * used + choice. The pairs of one expert lie together at the "places"
// [first(e), first(e) + count(e)), in ascending order of rows.
class Routing {
 public:
  // Of `params`, whose sizes were checked. Keeps its memory from call to call.
  void route(const ExpertsParams& params, ThreadPool& pool);

  // Experts that have rows, those with few before those with many: work that is cut into ranges which become
  // smaller ends evenly.
  std::span<const std::int32_t> active() const { return active_; }
  std::int64_t first(std::int32_t expert) const { return first_[static_cast<std::size_t>(expert)]; }
  std::int64_t count(std::int32_t expert) const { return first(expert + 1) - first(expert); }

  // Of a row, [used], in descending order of the logits.
  std::span<const float> weights(std::int64_t row) const { return of_row(weights_, row); }
  std::span<const std::int64_t> places(std::int64_t row) const { return of_row(places_, row); }

 private:
  template <typename T>
  std::span<const T> of_row(const std::vector<T>& pairs, std::int64_t row) const {
    return std::span(pairs).subspan(static_cast<std::size_t>(row * used_), static_cast<std::size_t>(used_));
  }

  std::int64_t used_ = 0;
  std::vector<std::int32_t> experts_;  // per pair
  std::vector<float> weights_;         // per pair
  std::vector<std::int64_t> places_;   // per pair
  std::vector<std::int64_t> first_;    // [E + 1]
  std::vector<std::int64_t> next_;     // [E]: free place
  std::vector<std::int32_t> active_;
};

}  // namespace hogwild
