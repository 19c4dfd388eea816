// What all devices share of sampling: what is refused, and the random numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "device/ops.h"

namespace hogwild {

// Throws kInvalidArgument: a parameter out of its range, an id outside the vocabulary.
void check_sampling(const SampleParams::Row& row, std::int64_t vocab);

// Whether ids that were seen have other logits.
bool has_penalty(const SampleParams::Row& row);

// What the i-th of the ids seen loses behind the repetition penalty.
float subtracted(const SampleParams::Row& row, std::size_t i);

// Throws kInvalidModel, or kInvalidArgument where it is the caller's doing, unless a token was found.
void check_sampled(SampleStatus status);

struct RankedToken {
  std::int32_t token = 0;
  float logprob = 0;  // log softmax(raw logits)[token]
};

// The `n` tokens with the largest logits [V], the largest first, equal ones by ascending id; fewer where V < n.
// `known`: any token with a finite logit and its log-probability, from which the others' follow.
std::vector<RankedToken> most_likely(std::span<const float> logits, std::int64_t n, RankedToken known);

// Uniform in [0, 1), 53 bits: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
// 1, 2, 3") with key `seed` and counter `draw`.
double uniform_random(std::uint64_t seed, std::uint64_t draw);

}  // namespace hogwild
