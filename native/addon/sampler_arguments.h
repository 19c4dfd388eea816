// Sampler options and activations: arguments that both the step and the single ops take.
#pragma once

#include <limits>
#include <vector>

#include "addon/convert.h"
#include "device/ops.h"
#include "model/outputs.h"

namespace hogwild::addon {

// NativeSampler of lib/native.ts. The spans of `row` are left to the owner of the vectors.
struct SamplerArguments {
  SampleParams::Row row;
  std::vector<std::int32_t> forbidden;
  PenaltyScope scope;
  std::int64_t last_n;

  explicit SamplerArguments(const Argument& sampler) : forbidden(sampler.property("forbidden").int32s()) {
    constexpr double kMax = std::numeric_limits<float>::max();
    constexpr double kMin = std::numeric_limits<float>::min();
    row.temperature = static_cast<float>(sampler.property("temperature").number(0, kMax));
    row.top_k = static_cast<std::int32_t>(sampler.property("topK").integer(0, INT32_MAX));
    row.top_p = static_cast<float>(sampler.property("topP").number(0, 1));
    row.min_p = static_cast<float>(sampler.property("minP").number(0, 1));
    row.repetition_penalty = static_cast<float>(sampler.property("repetitionPenalty").number(kMin, kMax));
    row.presence_penalty = static_cast<float>(sampler.property("presencePenalty").number(-100, 100));
    row.frequency_penalty = static_cast<float>(sampler.property("frequencyPenalty").number(-100, 100));
    scope =
        sampler.property("scope").one_of<PenaltyScope>({{"view", PenaltyScope::kView}, {"own", PenaltyScope::kOwn}});
    last_n = sampler.property("lastN").count();
    row.seed = sampler.property("seed").uint64();
    row.draw = sampler.property("draw").uint64();
  }
};

inline Activation read_activation(const Argument& name) {
  return name.one_of<Activation>({{"silu", Activation::kSilu},
                                  {"gelu_tanh", Activation::kGeluTanh},
                                  {"clamped_swiglu", Activation::kClampedSwiglu}});
}

}  // namespace hogwild::addon
