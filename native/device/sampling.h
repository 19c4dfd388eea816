// What all devices share of sampling: what is refused, and the random numbers.
#pragma once

#include <cstdint>

#include "device/ops.h"

namespace hogwild {

// Throws kInvalidArgument: a parameter out of its range, an id outside the vocabulary.
void check_sampling(const SampleParams::Row& row, std::int64_t vocab);

// Throws kInvalidModel, or kInvalidArgument where it is the caller's doing, unless a token was found.
void check_sampled(SampleStatus status);

// Uniform in [0, 1), 53 bits: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
// 1, 2, 3") with key `seed` and counter `draw`.
double uniform_random(std::uint64_t seed, std::uint64_t draw);

}  // namespace hogwild
