// logits -> token on the host: see SampleParams.
#pragma once

#include <cstdint>
#include <vector>

#include "device/cpu/kernels.h"
#include "device/ops.h"

namespace hogwild {

// Buffers of one thread, kept from row to row.
struct SamplerScratch {
  struct Candidate {
    float logit;
    std::int32_t id;
    float weight;
  };
  std::vector<float> logits;   // [V], penalised
  std::vector<float> weights;  // [V]
  std::vector<Candidate> candidates;
  std::vector<double> block_sums;
};

struct SampledToken {
  std::int32_t token = 0;
  float logprob = 0;  // under the raw logits; only where asked for
};

// `logits` [vocab]. Throws kInvalidArgument (a parameter out of its range, an id outside the
// vocabulary, every token forbidden) or kInvalidModel (a logit that is NaN or +inf, none that is finite, or,
// where `finite`, one that is -inf).
SampledToken sample_row(const CpuKernels& kernels, const float* logits, std::int64_t vocab,
                        const SampleParams::Row& row, bool want_logprob, bool finite, SamplerScratch& scratch);

}  // namespace hogwild
