// Limits that several parts of the engine share.
#pragma once

#include <cstdint>

namespace hogwild {

// head_dim: kernels keep one head's query, or its output, in registers.
inline constexpr std::int64_t kMaxHeadDim = 256;
inline constexpr std::int64_t kHeadDimMultiple = 8;

constexpr bool is_supported_head_dim(std::int64_t head_dim) {
  return head_dim >= kHeadDimMultiple && head_dim <= kMaxHeadDim && head_dim % kHeadDimMultiple == 0;
}

// Experts of a layer: many times those of the largest known model.
inline constexpr std::int64_t kMaxExperts = 4096;

// Ids of a vocabulary: eight times those of the largest known model. The sampler's and the product's kernels of a CUDA
// device take so many.
inline constexpr std::int64_t kMaxVocab = std::int64_t{1} << 21;

}  // namespace hogwild
