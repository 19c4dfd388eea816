#include "device/cpu/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "device/cpu/parallel.h"
#include "device/experts.h"

namespace hogwild {
namespace {

// In double: E is small beside what an expert computes.
void softmax_weights(std::span<const float> logits, std::span<const std::int32_t> chosen, bool normalized,
                     std::span<float> weights) {
  const bool good = std::all_of(logits.begin(), logits.end(),
                                [](float logit) { return logit < std::numeric_limits<float>::infinity(); });
  const double max = logits[static_cast<std::size_t>(chosen[0])];
  double sum = 0;
  const auto add = [&](float logit) { sum += std::exp(logit - max); };
  if (normalized) {
    for (const std::int32_t expert : chosen) add(logits[static_cast<std::size_t>(expert)]);
  } else {
    for (const float logit : logits) add(logit);
  }
  for (std::size_t j = 0; j < chosen.size(); ++j) {
    weights[j] = good ? static_cast<float>(std::exp(logits[static_cast<std::size_t>(chosen[j])] - max) / sum)
                      : std::numeric_limits<float>::quiet_NaN();
  }
}

}  // namespace

void Routing::route(const ExpertsParams& p, ThreadPool& pool) {
  const std::size_t n_experts = p.experts.size();
  const auto pairs = static_cast<std::size_t>(p.rows * p.used);
  used_ = p.used;
  experts_.resize(pairs);
  weights_.resize(pairs);
  places_.resize(pairs);
  active_.reserve(n_experts);
  first_.assign(n_experts + 1, 0);

  const auto used = static_cast<std::size_t>(p.used);
  for_rows(pool, p.rows, static_cast<std::int64_t>(n_experts), [&](std::int64_t begin, std::int64_t end) {
    for (auto row = static_cast<std::size_t>(begin); row < static_cast<std::size_t>(end); ++row) {
      const std::span logits(p.router_logits + row * n_experts, n_experts);
      const std::span chosen = std::span(experts_).subspan(row * used, used);
      select_experts(logits, chosen);
      softmax_weights(logits, chosen, p.normalized, std::span(weights_).subspan(row * used, used));
    }
  });

  for (const std::int32_t expert : experts_) ++first_[static_cast<std::size_t>(expert) + 1];
  for (std::size_t e = 0; e < n_experts; ++e) first_[e + 1] += first_[e];
  next_.assign(first_.begin(), first_.end() - 1);
  for (std::size_t pair = 0; pair < pairs; ++pair) {
    places_[pair] = next_[static_cast<std::size_t>(experts_[pair])]++;
  }
  active_.clear();
  for (std::int32_t e = 0; e < static_cast<std::int32_t>(n_experts); ++e) {
    if (count(e) > 0) active_.push_back(e);
  }
  std::stable_sort(active_.begin(), active_.end(), [this](auto a, auto b) { return count(a) < count(b); });
}

}  // namespace hogwild
