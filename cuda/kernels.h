// All launchers of cuda/: the only header of this folder that others include.
//
// A launcher checks its parameters, enqueues, and returns. It never allocates, synchronises or asks the
// device; scratch memory comes with the parameters. All pointers are device memory. Lengths that change
// from step to step (tokens, segments) are read from device memory, so that a captured graph can be
// replayed; the host only gives their upper bounds.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#elif defined(HOGWILD_SIMT)
#include "simt/simt.h"
#else
#include <driver_types.h>
#endif

#include <cstddef>
#include <cstdint>

#include "device/ops.h"
#include "plan.h"

namespace hogwild::cuda {

// ---- concurrent attention ---------------------------------------------------------------------------

struct AttentionLaunch {
  KvShape shape;  // bf16 or f16; head_dim 64, 80, 96, 112, 128, 192 or 256
  KvLayer layer;  // pages as attention.cuh describes them
  DevicePlan plan;
  RopeTable rope;                // rotary_dim a multiple of 16
  std::int64_t query_heads = 0;  // a multiple of shape.kv_heads
  float scale = 0;               // normally 1 / sqrt(head_dim)
  const float* q = nullptr;      // [T, Hq, D], before RoPE
  float* out = nullptr;          // [T, Hq, D]
  float* lse = nullptr;          // [T, Hq] or null: natural logarithm
  std::int32_t max_tokens = 0;   // upper bounds of plan.counts
  std::int32_t max_segments = 0;
  std::int32_t max_ctas = 0;   // CTAs of the main kernel: a small multiple of the multiprocessors
  std::int32_t min_tiles = 1;  // fewest tiles that are worth a CTA of its own
  void* workspace = nullptr;   // attention_workspace_bytes(), aligned to 256
};

// Scratch memory for these bounds, whatever the plan; 0 where the shape is not supported.
std::size_t attention_workspace_bytes(const AttentionLaunch& launch);

// Once per step, after the plan is in device memory: shares the work out, for all layers.
cudaError_t launch_attention_plan(const AttentionLaunch& launch, cudaStream_t stream);

// Once per layer, after the step's keys have been appended. What it computes: AttentionParams of
// device/ops.h.
cudaError_t launch_attention(const AttentionLaunch& launch, cudaStream_t stream);

}  // namespace hogwild::cuda
