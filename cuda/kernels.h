// All launchers of cuda/: the only header of this folder that others include.
//
// A launcher checks its parameters, enqueues, and returns. It never allocates, synchronises or asks the
// device; scratch memory comes with the parameters. They are those of device/ops.h where nothing has to be added;
// a *Launch adds what the device brings. All pointers are device memory. Lengths that change
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

// ---- the card (probe.cu) ----------------------------------------------------------------------------

// Whether the current device runs this build's kernels.
cudaError_t probe_kernels();

// Reads `bytes` (a multiple of 16) once, at full speed. `result`: anything.
cudaError_t launch_read(const void* data, std::size_t bytes, int multiprocessors, std::uint32_t* result,
                        cudaStream_t stream);

// ---- the KV cache (kv.cu) ---------------------------------------------------------------------------
//
// Pages lie as page.cuh describes. Keys and values have a format each; shape.row_elements() is one of
// RowWidths (plan.h: 32, 64, 80, 96, 112, 128, 192, 256); head_dim is any multiple of 8 up to that. rope.rotary_dim is
// even. Pools, rope tables, q, k, v and out are aligned to 16 bytes.

// k and v: f32, bf16 or f16 (params.buffers.dtype).
cudaError_t launch_kv_append(const KvAppendParams& params, const StepArrays& step, cudaStream_t stream);

// params.rope and params.moves in device memory, as params.slots below. No move writes where any one reads.
cudaError_t launch_kv_move(const KvMoveParams& params, cudaStream_t stream);

cudaError_t launch_kv_read(const KvReadParams& params, cudaStream_t stream);

// On the host, no launch: the marked slots of one page, its keys or its values, and the same rows [Hkv, n, D] one
// behind the other (KvCopyParams). `page`: page_bytes() of this format, as it lies on the device.
void gather_rows(const KvShape& shape, KvFormat format, const std::byte* page, std::uint64_t slots, std::byte* rows);
void scatter_rows(const KvShape& shape, KvFormat format, std::byte* page, std::uint64_t slots, const std::byte* rows);

// ---- concurrent attention (attention.cu) ------------------------------------------------------------

// q and out: f32, bf16 or f16 each.
struct AttentionLaunch {
  AttentionParams params;
  StepArrays step;
  std::int32_t max_ctas = 0;   // CTAs of the main kernel: a small multiple of the multiprocessors
  std::int32_t min_tiles = 1;  // fewest tiles that are worth a CTA of its own
  void* shares = nullptr;      // attention_shares_bytes(), aligned to 256: of the step, shape and window
  void* workspace = nullptr;   // attention_workspace_bytes(), aligned to 256: of one launch after the other
};

// Sets *ctas to how many CTAs of the main kernel a multiprocessor of the current device holds at once: with
// pages of this shape and so many rows. Pointers, max_ctas and min_tiles are not looked at, but for which is null.
cudaError_t attention_ctas_per_multiprocessor(const AttentionLaunch& launch, int* ctas);

// Memory for these bounds, whatever the plan; 0 where the shape is not supported.
std::size_t attention_shares_bytes(const AttentionLaunch& launch);
std::size_t attention_workspace_bytes(const AttentionLaunch& launch);

// Once per step and window, after the plan is in device memory: shares the work out, for all layers of this shape.
cudaError_t launch_attention_plan(const AttentionLaunch& launch, cudaStream_t stream);

// Once per layer, after the step's keys have been appended. A value that is not finite also reaches tokens of the step
// that do not see it, if they share a tile of the work with one that does: 0 * inf is NaN.
// What is not bf16 or f16 is multiplied in bf16: codes of int8 are exact there, f32 is rounded.
cudaError_t launch_attention(const AttentionLaunch& launch, cudaStream_t stream);

// params.ranges in device memory, like the others.
cudaError_t launch_attention_mass(const AttentionMassParams& params, cudaStream_t stream);

// ---- matrix products (matmul.cu) --------------------------------------------------------------------

// Weights bf16 or f16 (all matrices alike) and x in their dtype, all aligned to 16 bytes, k a multiple of 8; sums are
// f32.
struct MatmulLaunch {
  MatmulParams params;
  std::int32_t multiprocessors = 0;  // of the device: the work is shared out over a multiple of these
  void* workspace = nullptr;         // matmul_workspace_bytes(), aligned to 256; zero at first, and left so
};

// Scratch memory for these sizes; pointers are not looked at. 0 where the sizes are not supported.
std::size_t matmul_workspace_bytes(const MatmulLaunch& launch);
cudaError_t launch_matmul(const MatmulLaunch& launch, cudaStream_t stream);

// ---- row by row (pointwise.cu) ----------------------------------------------------------------------

// The table: f32, bf16 or f16.
cudaError_t launch_embedding(const EmbeddingParams& params, const StepArrays& step, cudaStream_t stream);

cudaError_t launch_rms_norm(const RmsNormParams& params, cudaStream_t stream);
cudaError_t launch_gated_activation(const GatedActivationParams& params, cudaStream_t stream);

// The n elements of x, a multiple of 4, rounded to bf16 or f16 as operands of a product; f16: held within its range, as
// where the two ops above write f16. Both are aligned to 16 bytes.
cudaError_t launch_round(const float* x, std::int64_t n, Dtype dtype, void* out, cudaStream_t stream);

// ---- sampling (sample.cu) ---------------------------------------------------------------------------

// SampleParams::Row of device/ops.h, for the device.
struct SampleRow {
  std::int64_t logits_row = 0;
  double uniform = 0;  // uniform_random(seed, draw)
  float temperature = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  std::int32_t top_k = 0;
  std::int32_t first_seen = 0, n_seen = 0;            // in `ids`
  std::int32_t first_forbidden = 0, n_forbidden = 0;  // in `ids`
};

struct SampledRow {
  std::int32_t token = 0;
  float logprob = 0;  // log softmax(raw logits)[token]
  SampleStatus status = SampleStatus::kOk;
};

struct SampleLaunch {
  const float* logits = nullptr;  // [rows of logits, V]
  std::int64_t vocab = 0;
  const SampleRow* rows = nullptr;    // [n]
  const std::int32_t* ids = nullptr;  // those seen and forbidden, of all rows, each in [0, V)
  std::int64_t n = 0;
  bool any_top_k = true, any_top_p = true;  // whether a row has 0 < top_k < V, or top_p < 1
  bool finite = false;                      // -inf among the raw logits is refused as NaN is
  SampledRow* sampled = nullptr;            // [n]
  void* workspace = nullptr;                // sample_workspace_bytes(), aligned to 256
};
std::size_t sample_workspace_bytes(std::int64_t rows, std::int64_t vocab);
cudaError_t launch_sample(const SampleLaunch& launch, cudaStream_t stream);

}  // namespace hogwild::cuda
