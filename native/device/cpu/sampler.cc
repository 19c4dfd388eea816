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
    return (other_logit > logit) | ((other_logit == logit) & (other_id <= id));
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

// The kept token at which the sum of weights passes `uniform` of their total. Weights are added up block by block, and
// only the block with the token is gone through one by one.
std::int32_t draw(const float* logits, const float* weights, std::int32_t vocab, const Cut& cut, float min_weight,
                  double uniform, std::vector<double>& block_sums) {
  constexpr std::int32_t kBlock = 1024;
  constexpr std::int32_t kChains = 8;  // of additions that do not wait for one another
  const auto kept = [&](std::int32_t id) {
    const bool keeps = (weights[id] > 0) & (weights[id] >= min_weight) & cut.keeps(logits[id], id);
    return keeps ? weights[id] : 0.0F;
  };
  block_sums.clear();
  double total = 0;
  std::int32_t last_block = 0;  // with anything in it
  for (std::int32_t first = 0; first < vocab; first += kBlock) {
    const std::int32_t end = std::min(first + kBlock, vocab);
    double sums[kChains] = {};
    std::int32_t id = first;
    for (; id + kChains <= end; id += kChains) {
      for (std::int32_t i = 0; i < kChains; i++) sums[i] += kept(id + i);
    }
    for (; id < end; id++) sums[0] += kept(id);
    const double sum = std::accumulate(std::begin(sums), std::end(sums), 0.0);
    if (sum > 0) last_block = first / kBlock;
    block_sums.push_back(sum);
    total += sum;
  }
  const double target = uniform * total;
  double sum = 0;
  std::int32_t last = -1;
  for (std::int32_t block = 0; block <= last_block; block++) {
    // (sums in two orders round differently: the search may end a block later, and has to end in the last)
    if (block < last_block && sum + block_sums[block] <= target) {
      sum += block_sums[block];
      continue;
    }
    const std::int32_t end = std::min((block + 1) * kBlock, vocab);
    for (std::int32_t id = block * kBlock; id < end; id++) {
      const float weight = kept(id);
      if (weight == 0) continue;
      last = id;
      sum += weight;
      if (sum > target) return id;
    }
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
    result.token = draw(logits, weights, static_cast<std::int32_t>(vocab), cut, row.min_p,
                        uniform_random(row.seed, row.draw), scratch.block_sums);
  }
  if (want_logprob) {
    const double log_sum = std::log(kernels.sum_exp(raw, vocab, raw_max, 1, nullptr));
    result.logprob = static_cast<float>(raw[result.token] - raw_max - log_sum);
  }
  return result;
}

}  // namespace hogwild
