#include "device/cpu/sampler.h"

#include <algorithm>
#include <array>
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

// Finds cuts. Tokens are counted and weighed in buckets of ever smaller logits, and only those of the bucket that the
// cut lies in are put in order. Tokens of weights below e^-64 are cut off in any case: they do not show in a sum of
// weights, and no draw meets them.
class CutSearch {
 public:
  // `weights`: exp((logit - max) * factor)
  CutSearch(std::span<const float> logits, const float* weights, float max, float factor,
            std::vector<SamplerScratch::Candidate>& candidates)
      : logits_(logits), weights_(weights), max_(max), candidates_(candidates) {
    float min = max;
    for (const float logit : logits) min = logit < min && logit > kHidden ? logit : min;
    const float range = std::min(max - min, 64 / factor);
    per_logit_ = range > 0 ? std::min((kBuckets - 1) / range, std::numeric_limits<float>::max()) : 0;
    for (std::size_t id = 0; id < logits.size(); id++) {
      const int bucket = bucket_of(logits[id]);
      if (bucket == kBuckets) continue;
      counts_[bucket]++;
      masses_[bucket] += weights[id];
    }
  }

  // The cut after `top_k` tokens, 0: all, then after as few as together have the share `top_p` of those.
  Cut find(std::int64_t top_k, float top_p) {
    std::int64_t n = std::accumulate(counts_.begin(), counts_.end(), std::int64_t{0});
    if (top_k > 0) n = std::min(n, top_k);
    int bucket = 0;
    while (n > counts_[bucket]) n -= counts_[bucket++];
    double wanted = std::accumulate(masses_.begin(), masses_.begin() + bucket, 0.0);
    if (top_p == 1 || n < counts_[bucket]) {
      gather(bucket, n);
      wanted += mass(candidates_.begin(), candidates_.end());
    } else {
      wanted += masses_[bucket];
    }
    if (top_p < 1) {
      wanted *= top_p;
      const int last = bucket;
      for (bucket = 0; bucket < last && masses_[bucket] < wanted; bucket++) wanted -= masses_[bucket];
      if (bucket < last || n == counts_[bucket]) gather(bucket, counts_[bucket]);
      keep_mass(wanted);
    }
    return {candidates_.back().logit, candidates_.back().id};
  }

 private:
  using Candidate = SamplerScratch::Candidate;
  using Iterator = std::vector<Candidate>::iterator;

  static constexpr int kBuckets = 1024;

  static bool before(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
  }
  static double mass(Iterator begin, Iterator end) {
    return std::accumulate(begin, end, 0.0, [](double sum, const Candidate& c) { return sum + c.weight; });
  }

  // kBuckets: in none.
  int bucket_of(float logit) const {
    const float bucket = (max_ - logit) * per_logit_;
    return bucket < kBuckets ? static_cast<int>(bucket) : kBuckets;
  }

  // The first `n` >= 1 tokens of a bucket become the candidates, the last of them behind the others.
  void gather(int bucket, std::int64_t n) {
    candidates_.clear();
    for (std::size_t id = 0; id < logits_.size(); id++) {
      if (bucket_of(logits_[id]) != bucket) continue;
      candidates_.push_back({logits_[id], static_cast<std::int32_t>(id), weights_[id]});
    }
    std::nth_element(candidates_.begin(), candidates_.begin() + (n - 1), candidates_.end(), before);
    candidates_.resize(static_cast<std::size_t>(n));
  }

  // As few of the candidates stay as together weigh `wanted`, the last of them behind the others.
  void keep_mass(double wanted) {
    auto begin = candidates_.begin(), end = candidates_.end();
    // Halves the range that the last one lies in; its heavier elements come first.
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
    candidates_.resize(static_cast<std::size_t>(end - candidates_.begin()));
  }

  const std::span<const float> logits_;
  const float* const weights_;
  const float max_;
  float per_logit_ = 0;
  std::vector<Candidate>& candidates_;
  std::array<std::int64_t, kBuckets> counts_ = {};
  std::array<double, kBuckets> masses_ = {};
};

// The token at which the sum of the weights passes `uniform` of their total. Weights are added up block by block, and
// only the block with the token is gone through one by one.
std::int32_t draw(const float* weights, std::int32_t vocab, double uniform, std::vector<double>& block_sums) {
  constexpr std::int32_t kBlock = 1024;
  constexpr std::int32_t kChains = 8;  // of additions that do not wait for one another
  block_sums.clear();
  double total = 0;
  std::int32_t last_block = 0;  // with anything in it
  for (std::int32_t first = 0; first < vocab; first += kBlock) {
    const std::int32_t end = std::min(first + kBlock, vocab);
    double sums[kChains] = {};
    std::int32_t id = first;
    for (; id + kChains <= end; id += kChains) {
      for (std::int32_t i = 0; i < kChains; i++) sums[i] += weights[id + i];
    }
    for (; id < end; id++) sums[0] += weights[id];
    block_sums.push_back(std::accumulate(std::begin(sums), std::end(sums), 0.0));
    if (block_sums.back() > 0) last_block = first / kBlock;
    total += block_sums.back();
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
      if (weights[id] == 0) continue;
      last = id;
      sum += weights[id];
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
    const std::int32_t n = static_cast<std::int32_t>(vocab);
    if (row.top_k > 0 || row.top_p < 1 || row.min_p > 0) {
      Cut cut;
      if (row.top_k > 0 || row.top_p < 1) {
        const std::span<const float> all(logits, static_cast<std::size_t>(vocab));
        cut = CutSearch(all, weights, max, factor, scratch.candidates).find(row.top_k, row.top_p);
      }
      for (std::int32_t id = 0; id < n; id++) {
        if (weights[id] < row.min_p || !cut.keeps(logits[id], id)) weights[id] = 0;
      }
    }
    result.token = draw(weights, n, uniform_random(row.seed, row.draw), scratch.block_sums);
  }
  if (want_logprob) {
    const double log_sum = std::log(kernels.sum_exp(raw, vocab, raw_max, 1, nullptr));
    result.logprob = static_cast<float>(raw[result.token] - raw_max - log_sum);
  }
  return result;
}

}  // namespace hogwild
