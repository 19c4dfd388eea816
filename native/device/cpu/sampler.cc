#include "device/cpu/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>

#include "core/finite.h"
#include "device/sampling.h"

namespace hogwild {
namespace {

constexpr float kHidden = -std::numeric_limits<float>::infinity();

// Where the tokens that stay end, in the order of descending logits, equal ones by ascending id: the
// last token that stays. Top-k, top-p and min-p each can only move it forward.
struct Cut {
  float logit = kHidden;
  std::int32_t id = std::numeric_limits<std::int32_t>::max();

  bool keeps(float other_logit, std::int32_t other_id) const {
    return other_logit > logit || (other_logit == logit && other_id <= id);
  }
};

// The cut after `top_k` tokens, then after as few as together have the share `top_p` of those.
Cut find_cut(const float* logits, const float* weights, std::int64_t vocab, const SampleParams::Row& row,
             std::vector<std::int32_t>& order) {
  const auto before = [logits](std::int32_t a, std::int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  };
  order.resize(vocab);
  std::iota(order.begin(), order.end(), 0);
  auto begin = order.begin(), end = order.end();
  if (row.top_k > 0 && row.top_k < vocab) {
    end = begin + row.top_k;
    std::nth_element(begin, end - 1, order.end(), before);
  }
  if (row.top_p < 1) {
    const auto mass = [weights](auto first, auto last) {
      return std::accumulate(first, last, 0.0, [weights](double sum, std::int32_t id) { return sum + weights[id]; });
    };
    // Halves the range that the cut lies in; its heavier elements come first.
    double wanted = row.top_p * mass(begin, end);
    while (end - begin > 1) {
      const auto middle = begin + (end - begin) / 2;
      std::nth_element(begin, middle, end, before);
      const double first_half = mass(begin, middle);
      if (first_half >= wanted) {
        end = middle;
      } else {
        wanted -= first_half;
        begin = middle;
      }
    }
    return {logits[*begin], *begin};
  }
  const std::int32_t last = *std::max_element(begin, end, before);
  return {logits[last], last};
}

std::int32_t draw(const float* logits, const float* weights, std::int64_t vocab, const Cut& cut, float min_weight,
                  double uniform) {
  const auto keeps = [&](std::int32_t id) {
    return weights[id] > 0 && weights[id] >= min_weight && cut.keeps(logits[id], id);
  };
  double total = 0;
  for (std::int32_t id = 0; id < vocab; id++) {
    if (keeps(id)) total += weights[id];
  }
  const double target = uniform * total;
  double sum = 0;
  std::int32_t last = -1;
  for (std::int32_t id = 0; id < vocab; id++) {
    if (!keeps(id)) continue;
    last = id;
    sum += weights[id];
    if (sum > target) break;
  }
  return last;
}

}  // namespace

SampledToken sample_row(const CpuKernels& kernels, const float* raw, std::int64_t vocab, const SampleParams::Row& row,
                        bool want_logprob, bool finite, SamplerScratch& scratch) {
  check_sampling(row, vocab);

  float raw_max = 0;
  std::int64_t best = 0;
  if (!kernels.find_max(raw, vocab, &raw_max, &best)) check_sampled(SampleStatus::kNotANumber);
  if (raw_max == kHidden) check_sampled(SampleStatus::kNothingFinite);
  if (finite && !all_finite({raw, static_cast<std::size_t>(vocab)})) check_sampled(SampleStatus::kNotANumber);

  const float* logits = raw;
  float max = raw_max;
  const bool penalised = !row.seen.empty() && has_penalty(row);
  if (penalised || !row.forbidden.empty()) {
    scratch.logits.assign(raw, raw + vocab);
    if (penalised) {
      for (std::size_t i = 0; i < row.seen.size(); i++) {  // (from the raw logit: an id listed twice is penalised once)
        const std::int32_t id = row.seen[i];
        const float repeated = raw[id] > 0 ? raw[id] / row.repetition_penalty : raw[id] * row.repetition_penalty;
        scratch.logits[id] = repeated - subtracted(row, i);
      }
    }
    for (const std::int32_t id : row.forbidden) scratch.logits[id] = kHidden;
    logits = scratch.logits.data();
    if (!kernels.find_max(logits, vocab, &max, &best)) check_sampled(SampleStatus::kPenaltyOverflows);
    if (max == kHidden) check_sampled(SampleStatus::kAllForbidden);
  }

  SampledToken result;
  if (row.temperature == 0) {
    result.token = static_cast<std::int32_t>(best);
  } else {
    scratch.weights.resize(vocab);
    float* weights = scratch.weights.data();
    // (finite even where the quotient is not: infinity times the largest logit's distance of 0 would be NaN)
    const float factor = std::min(1 / row.temperature, std::numeric_limits<float>::max());
    kernels.sum_exp(logits, vocab, max, factor, weights);
    Cut cut;
    if (row.top_k > 0 || row.top_p < 1) cut = find_cut(logits, weights, vocab, row, scratch.order);
    result.token = draw(logits, weights, vocab, cut, row.min_p, uniform_random(row.seed, row.draw));
  }
  if (want_logprob) {
    const double log_sum = std::log(kernels.sum_exp(raw, vocab, raw_max, 1, nullptr));
    result.logprob = static_cast<float>(raw[result.token] - raw_max - log_sum);
  }
  return result;
}

}  // namespace hogwild
