// All launchers of cuda/: the only header of this folder that others include.
//
// A launcher checks its parameters, enqueues, and returns. It never allocates, synchronises or asks the
// device; scratch memory comes with the parameters. They are those of device/ops.h where nothing has to be added;
// a *Launch adds what the device brings. All pointers are device memory. Lengths that change
// from step to step (tokens, segments) are read from device memory, so that a captured graph can be
// replayed; the host only gives their upper bounds.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "device/ops.h"
#include "plan.h"
#include "simt/kernel_stream.h"

namespace hogwild::cuda {

using simt::KernelStream;

// ---- the card (probe.cu) ----------------------------------------------------------------------------

// Whether the current device runs this build's kernels.
cudaError_t probe_kernels();

// Whether on the current device they wait for the kernel before them (simt/target_cuda.h): that is, whether they have
// been compiled for 9.0 or later. Only then may they overlap.
cudaError_t kernels_wait(bool* wait);

// Reads `bytes` (a multiple of 16) once, at full speed. `result`: anything.
cudaError_t launch_read(const void* data, std::size_t bytes, int multiprocessors, std::uint32_t* result,
                        KernelStream stream);

// ---- the KV cache (kv.cu) ---------------------------------------------------------------------------
//
// Pages lie as page.cuh describes. Keys and values have a format each; shape.row_elements() is one of
// RowWidths (plan.h: 32, 64, 80, 96, 112, 128, 192, 256); head_dim is any multiple of 8 up to that. rope.rotary_dim is
// even. Pools, rope tables, q, k, v and out are aligned to 16 bytes.

// k and v: f32, bf16 or f16 (params.buffers.dtype).
cudaError_t launch_kv_append(const KvAppendParams& params, const StepArrays& step, KernelStream stream);

// params.rope and params.moves in device memory, as params.slots below. No move writes where any one reads.
cudaError_t launch_kv_move(const KvMoveParams& params, KernelStream stream);

cudaError_t launch_kv_read(const KvReadParams& params, KernelStream stream);

// On the host, no launch: the marked slots of one page, its keys or its values, and the same rows [Hkv, n, D] one
// behind the other (KvCopyParams). `page`: page_bytes() of this format, as it lies on the device.
void gather_rows(const KvShape& shape, KvFormat format, const std::byte* page, std::uint64_t slots, std::byte* rows);
void scatter_rows(const KvShape& shape, KvFormat format, std::byte* page, std::uint64_t slots, const std::byte* rows);

// ---- concurrent attention (attention.cu) ------------------------------------------------------------

// q and out: f32, bf16 or f16 each. Deterministic where step.plan.view_segments is not null: what a token gets then
// depends on what it sees alone, to the last bit.
struct AttentionLaunch {
  AttentionParams params;
  StepArrays step;
  std::int32_t max_ctas = 0;         // CTAs of the main kernel: a small multiple of the multiprocessors
  std::int32_t min_tiles = 1;        // fewest tiles that are worth a CTA of its own, ...
  std::int32_t multiprocessors = 0;  // ... but for this many CTAs, which are worth one tile each
  // What deterministic attention may leave of partial results at a time, if that suffices for one row tile: it takes
  // the row tiles in as many goes as that needs.
  std::size_t max_partial_bytes = std::size_t{128} << 20;
  void* shares = nullptr;     // attention_shares_bytes(), aligned to 256: of the step, shape and window
  void* workspace = nullptr;  // attention_workspace_bytes(), aligned to 256: of one launch after the other
};

// Sets *ctas to how many CTAs of the main kernel a multiprocessor of the current device holds at once: with
// pages of this shape and so many rows. Pointers, max_ctas and min_tiles are not looked at, but for which is null.
cudaError_t attention_ctas_per_multiprocessor(const AttentionLaunch& launch, int* ctas);

// Memory for these bounds, whatever the plan; 0 where the shape is not supported.
std::size_t attention_shares_bytes(const AttentionLaunch& launch);
std::size_t attention_workspace_bytes(const AttentionLaunch& launch);

// Once per step and window, after the plan is in device memory: shares the work out, for all layers of this shape.
cudaError_t launch_attention_plan(const AttentionLaunch& launch, KernelStream stream);

// Once per layer, after the step's keys have been appended. A value that is not finite also reaches tokens of the step
// that do not see it, if they share a tile of the work with one that does: 0 * inf is NaN.
// What is not bf16 or f16 is multiplied in bf16: codes of int8 are exact there, f32 is rounded.
cudaError_t launch_attention(const AttentionLaunch& launch, KernelStream stream);

// params.ranges in device memory, like the others.
cudaError_t launch_attention_mass(const AttentionMassParams& params, KernelStream stream);

// Elements of a row of a plain matrix on the device, and of what it is multiplied with: zeros behind its own, so that
// rows are read 16 bytes at a time.
#if defined(__CUDACC__)
__host__ __device__
#endif
    constexpr std::int64_t padded_cols(std::int64_t cols) {
  return (cols + 7) / 8 * 8;
}

// ---- matrix products (matmul.cu) --------------------------------------------------------------------

// Matrices of experts, as their kernels find them: for each expert gate, up and down.
struct alignas(16) ExpertMatrix {
  const void* data = nullptr;
  const float* bias = nullptr;            // null: none
  const std::int32_t* columns = nullptr;  // Matrix::columns
  std::int32_t group = 0;                 // its expert's (SelectedRuns)
  std::int32_t unused = 0;
};
inline constexpr int kExpertMatrices = 3;

// Neighbouring rows that go to one expert, at most as many as a tile of the products has.
struct alignas(16) ExpertRun {
  std::int32_t expert = 0;
  std::int32_t first = 0, rows = 0;      // of all (row, choice) pairs, expert after expert
  std::int32_t first_run = 0, runs = 0;  // of this expert
  std::int32_t unused[3] = {};
};

// Products with each expert's own matrices, of the rows that go to it.
struct ExpertProducts {
  const ExpertRun* runs = nullptr;         // null: no experts
  const std::int32_t* n_runs = nullptr;    // [1]
  const ExpertMatrix* matrices = nullptr;  // [E, kExpertMatrices]
  std::int32_t first_matrix = 0;           // which of the three is the first output
  std::int32_t max_runs = 0;               // upper bound of n_runs
};

// What becomes of two products with as many outputs each, gate and up, once both are there (GatedActivationParams).
struct GatedProducts {
  void* out = nullptr;  // [rows, n], may be y of the gate where it is f32; null: nothing becomes of them
  Activation activation = Activation::kSilu;
  Dtype out_dtype = Dtype::kF32;
  std::uint8_t unused[6] = {};  // no padding: the emulated card compares launches byte by byte
};

// What a row gets does not depend, to the last bit, on how many there are, as long as there are no more than these.
inline constexpr std::int64_t kMaxInvariantRows = 64;

// Weights bf16 or f16 (all matrices alike) and x in their dtype, all aligned to 16 bytes, k a multiple of 8; sums are
// f32. Of experts: `params.rows` is the most that a run has, at most 64; x and y hold the rows of all runs, and the
// matrices' data and biases are those of `experts`.
struct MatmulLaunch {
  MatmulParams params;
  ExpertProducts experts = {};
  GatedProducts gated = {};          // its out is looked at for the sizes too
  std::int32_t multiprocessors = 0;  // of the device: the work is shared out over a multiple of these
  void* workspace = nullptr;         // matmul_workspace_bytes(), aligned to 256; zero at first, and left so
};

// Scratch memory for these sizes; pointers are not looked at. 0 where the sizes are not supported.
std::size_t matmul_workspace_bytes(const MatmulLaunch& launch);
cudaError_t launch_matmul(const MatmulLaunch& launch, KernelStream stream);

// The same with quantised weights in fragments (core/fragments.h), all matrices of one format, and x in bf16
// (quant_matmul.cu).
std::size_t quantised_matmul_workspace_bytes(const MatmulLaunch& launch);
cudaError_t launch_quantised_matmul(const MatmulLaunch& launch, KernelStream stream);

// ---- experts (routing.cu) -----------------------------------------------------------------------------
//
// ExpertsParams in parts: each row's choice, its copies side by side expert after expert, three products (above), and
// the sum of what they give. params.experts gives the number of experts; of pointers only router_logits and out are
// looked at.

struct RoutingLaunch {
  ExpertsParams params;
  const std::int32_t* n_rows = nullptr;  // [1]: rows beyond so many are left out; null: none are
  std::int32_t run_rows = 0;             // most rows of a run
  std::int32_t* experts = nullptr;       // [rows, used]: in descending order of the logits
  float* weights = nullptr;              // [rows, used]
  std::int32_t* places = nullptr;        // [rows, used]: of the pairs, expert after expert
  ExpertRun* runs = nullptr;             // [max_expert_runs(...)]
  std::int32_t* n_runs = nullptr;        // [1]
};
constexpr std::int64_t max_expert_runs(std::int64_t pairs, std::int64_t experts, std::int64_t run_rows) {
  return std::min(pairs, experts) + pairs / run_rows;
}
cudaError_t launch_routing(const RoutingLaunch& launch, KernelStream stream);

// Where experts differ in their formats, products take one group of those that do not after the other: of the runs
// those of one group, in their order.
struct SelectedRuns {
  const ExpertMatrix* matrices = nullptr;  // [E, kExpertMatrices]
  std::int32_t group = 0;
  ExpertRun* runs = nullptr;       // [max_expert_runs(...)]
  std::int32_t* n_runs = nullptr;  // [1]: none where no row goes to the group
};
cudaError_t launch_select_runs(const RoutingLaunch& launch, const SelectedRuns& selected, KernelStream stream);

// Rows for the pairs, at their places and rounded to bf16 or f16: out [rows * used, padded_cols(cols)].
struct GatherParams {
  const float* x = nullptr;  // [rows, cols], or, with at_places, [rows * used, cols]
  bool at_places = false;    // a pair's row is at its place already
  std::int64_t cols = 0;
  const ExpertMatrix* matrices = nullptr;  // [E, kExpertMatrices]: puts the columns in the order of one of the three;
  std::int32_t matrix = 0;                 // null: they stay as they are
  Dtype dtype = Dtype::kBF16;
  void* out = nullptr;
};
cudaError_t launch_gather(const RoutingLaunch& launch, const GatherParams& params, KernelStream stream);

// params.out[r] += sum over r's pairs of weight * y[place]; y [rows * used, H].
cudaError_t launch_combine(const RoutingLaunch& launch, const float* y, KernelStream stream);

// ---- row by row (pointwise.cu) ----------------------------------------------------------------------

// The table: f32, bf16 or f16, its rows padded.
cudaError_t launch_embedding(const EmbeddingParams& params, const StepArrays& step, KernelStream stream);

// The table: quantised, in fragments (quant_rows.cu).
cudaError_t launch_quantised_embedding(const EmbeddingParams& params, const StepArrays& step, KernelStream stream);

// out[r][i] = x[r][columns[i]], elements of 16 bits, x [rows, k], k even; all are aligned to 16 bytes (quant_rows.cu).
cudaError_t launch_permute(const void* x, const std::int32_t* columns, std::int64_t rows, std::int64_t k, void* out,
                           KernelStream stream);

cudaError_t launch_rms_norm(const RmsNormParams& params, KernelStream stream);
cudaError_t launch_gated_activation(const GatedActivationParams& params, KernelStream stream);
cudaError_t launch_add(const AddParams& params, KernelStream stream);
cudaError_t launch_softcap(const SoftcapParams& params, KernelStream stream);

// x [rows, cols] rounded to bf16 or f16 as operands of a product, [rows, padded_cols(cols)]; f16: held within its
// range, as where the two ops above write f16.
cudaError_t launch_round(const float* x, std::int64_t rows, std::int64_t cols, Dtype dtype, void* out,
                         KernelStream stream);

// ---- sampling (sample.cu) ---------------------------------------------------------------------------

// An id that penalties apply to.
struct alignas(8) SeenToken {
  std::int32_t id = 0;
  float subtracted = 0;  // from its logit, behind the repetition penalty
};

// SampleParams::Row of device/ops.h, for the device.
struct SampleRow {
  std::int64_t logits_row = 0;
  double uniform = 0;  // uniform_random(seed, draw)
  float temperature = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  std::int32_t top_k = 0;
  std::int32_t first_seen = 0, n_seen = 0;            // in `seen`
  std::int32_t first_forbidden = 0, n_forbidden = 0;  // in `forbidden`
};

struct SampledRow {
  std::int32_t token = 0;
  float logprob = 0;  // log softmax(raw logits)[token]
  SampleStatus status = SampleStatus::kOk;
};

struct SampleLaunch {
  const float* logits = nullptr;            // [rows of logits, V]
  std::int64_t vocab = 0;                   // at most kMaxVocab
  const SampleRow* rows = nullptr;          // [n]
  const SeenToken* seen = nullptr;          // of all rows, ids in [0, V); alike where a row has an id twice
  const std::int32_t* forbidden = nullptr;  // of all rows, ids in [0, V)
  std::int64_t n = 0;
  bool any_top_k = true, any_top_p = true;  // whether a row has 0 < top_k < V, or top_p < 1
  bool finite = false;                      // -inf among the raw logits is refused as NaN is
  SampledRow* sampled = nullptr;            // [n]
  void* workspace = nullptr;                // sample_workspace_bytes(), aligned to 256
};
std::size_t sample_workspace_bytes(std::int64_t rows, std::int64_t vocab);
cudaError_t launch_sample(const SampleLaunch& launch, KernelStream stream);

}  // namespace hogwild::cuda
