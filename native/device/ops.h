// The contract between the model and a device: one plain parameter struct per op.
//
// The CPU device and the CUDA launchers take the same structs. Activations are row-major and f32, but for what the next
// op is a product of: that may be as Device::product_input says. Weights and the KV cache keep their own dtype. On the
// CPU every op is batch-invariant: what it computes for one row (one new token) does not depend, to the last bit, on
// how many other rows there are, on their order, or on the number of threads. On CUDA every op except attention is
// batch-invariant up to 64 rows, and all are on a deterministic device. Where the hardware multiplies 16 bits with 16
// bits (CUDA, AVX512_BF16), the other operand of a weight, key or value of that dtype is rounded to it first; sums are
// f32. For quantised weights x is rounded to integers of 15 bits with a scale per row and 32 columns
// (device/cpu/quant_kernels.h).
#pragma once

#include <cstdint>
#include <span>

#include "core/kv_format.h"
#include "core/tensor.h"

namespace hogwild {

// ---- pointwise and matrix ops ---------------------------------------------------------------------

// out[t] = scale * table[tokens[t]], for the first `rows` tokens of the step
struct EmbeddingParams {
  std::int64_t rows = 0;
  Matrix table;          // [V, hidden]
  float scale = 1;       // 1, or sqrt(hidden) (Gemma)
  float* out = nullptr;  // [rows, hidden]
};

// out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight
struct RmsNormParams {
  const float* x = nullptr;       // [rows, cols]
  const float* weight = nullptr;  // [cols]
  float eps = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  void* out = nullptr;  // [rows, cols], may be x where it is f32
  Dtype out_dtype = Dtype::kF32;
};

// y_i = x W_i^T + b_i for up to three matrices that read the same x: (q, k, v), (gate, up), or one.
// Each weight is read from memory once for all rows.
struct MatmulParams {
  struct Output {
    Matrix weight;                // [n_i, k]
    const float* bias = nullptr;  // [n_i] or null
    float* y = nullptr;           // [rows, n_i]
    bool accumulate = false;      // y += instead of y =  (the residual stream)
  };
  static constexpr int kMaxOutputs = 3;

  const void* x = nullptr;  // [rows, k]
  Dtype x_dtype = Dtype::kF32;
  std::int64_t rows = 0;
  std::int64_t k = 0;
  int n_outputs = 0;
  Output outputs[kMaxOutputs];
};

enum class Activation : std::uint8_t {
  kSilu,
  kGeluTanh,
  // gpt-oss: gate' * sigmoid(kSwigluAlpha * gate') * (up' + 1), where gate' = min(gate, kSwigluLimit) and up' is up
  // held within -kSwigluLimit and kSwigluLimit
  kClampedSwiglu,
};
inline constexpr float kSwigluAlpha = 1.702f;
inline constexpr float kSwigluLimit = 7;

// out = activation(gate) * up, or as said at the activation
struct GatedActivationParams {
  const float* gate = nullptr;  // [n]
  const float* up = nullptr;    // [n]
  std::int64_t n = 0;
  Activation activation = Activation::kSilu;
  void* out = nullptr;  // [n], may be gate where it is f32
  Dtype out_dtype = Dtype::kF32;
};

// x += scale * y
struct AddParams {
  float* x = nullptr;        // [n]
  const float* y = nullptr;  // [n]
  std::int64_t n = 0;
  float scale = 1;
};

// x = softcap * tanh(scale * x / softcap), or scale * x where softcap is 0
struct SoftcapParams {
  float* x = nullptr;  // [n]
  std::int64_t n = 0;
  float scale = 1;
  float softcap = 0;
};

class DeviceStep;

// ---- mixture of experts ---------------------------------------------------------------------------

// down(activation(gate(x), up(x))). H hidden size, F intermediate size.
struct FeedForward {
  Matrix gate_proj, up_proj;         // [F, H]
  Matrix down_proj;                  // [H, F]
  const float* gate_bias = nullptr;  // [F] or null
  const float* up_bias = nullptr;    // [F] or null
  const float* down_bias = nullptr;  // [H] or null
};

// out[r] += sum over the `used` experts e with the greatest router logits of row r of
//   weight(r, e) * (down_e activation(gate_e x[r], up_e x[r]))
// Of equal logits that of the lower index counts as greater. The weights are the softmax of the row's logits:
// over all experts, or with `normalized` over those used (Mixtral; gpt-oss, whose order of top-k and softmax
// comes to the same). A row whose logits hold NaN or +infinity gets NaN weights.
//
// Each matrix is read from memory once for all rows that go to its expert. What a row gets does not depend on the
// other rows: its experts are summed in f32 in descending order of their logits, then added to out.
struct ExpertsParams {
  const float* x = nullptr;              // [rows, H]
  const float* router_logits = nullptr;  // [rows, E]
  std::int64_t rows = 0;
  std::int64_t hidden = 0;               // H
  std::int64_t intermediate = 0;         // F
  std::span<const FeedForward> experts;  // [E], host memory
  const void* device_experts = nullptr;  // what Device::upload_experts made of them
  const DeviceStep* step = nullptr;      // rows beyond its tokens may be left out; null: none are
  std::int64_t used = 0;                 // in [1, E]
  bool normalized = false;
  Activation activation = Activation::kSilu;
  float* scratch = nullptr;  // [experts_scratch_floats(...)]
  float* out = nullptr;      // [rows, H], not x
};

// Inputs of all (row, expert) pairs, overwritten by their outputs, and gate and up.
constexpr std::int64_t experts_scratch_floats(std::int64_t rows, std::int64_t used, std::int64_t hidden,
                                              std::int64_t intermediate) {
  return rows * used * (hidden + 2 * intermediate);
}

// ---- the KV cache as devices see it ---------------------------------------------------------------

// Shape of a page pool. A page holds kPageSize tokens of one layer: keys [Hkv, P, D] and values [Hkv, P, D] and, where
// the format has them, a scale for each (kv head, slot). How they are arranged inside a page is the device's own
// business.
inline constexpr std::int64_t kPageSize = 64;

struct KvShape {
  std::int64_t layers = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  KvFormat key_format = KvFormat::kF32;
  KvFormat value_format = KvFormat::kF32;
  std::int64_t padding = 0;  // elements behind each row of D, for a device that wants wider rows: zeros

  std::int64_t row_elements() const { return head_dim + padding; }
  std::int64_t page_elements() const { return kv_heads * kPageSize * row_elements(); }  // keys, or values
  // One (token, kv head), its scale included: without what pads its row, and with it.
  std::int64_t data_bytes(KvFormat format) const {
    return head_dim * kv_element_bytes(format) + kv_scale_bytes(format);
  }
  std::int64_t row_bytes(KvFormat format) const {
    return row_elements() * kv_element_bytes(format) + kv_scale_bytes(format);
  }
  // Key and value of one token in one layer.
  std::int64_t token_bytes() const { return kv_heads * (data_bytes(key_format) + data_bytes(value_format)); }
  // A page's keys, or its values.
  std::int64_t page_bytes(KvFormat format) const { return kv_heads * kPageSize * row_bytes(format); }
};

// One layer of the pool, from Device::kv_first_page on. 64-bit page offsets: a pool may exceed 2^31 elements.
struct KvLayer {
  void* keys = nullptr;    // [N pages] of page_bytes(key_format)
  void* values = nullptr;  // [N pages] of page_bytes(value_format)
  std::int32_t rope = 0;   // of StepView::ropes: turns its keys, and queries that meet them; -1: nothing does
};

// cos and sin of position * inverse_frequency, computed in double precision and rounded once.
// Row i belongs to the i-th distinct position of the step, in every table. Where R is 0 nothing is turned.
struct RopeTable {
  const float* cos = nullptr;   // [rows, R / 2]
  const float* sin = nullptr;   // [rows, R / 2]
  std::int64_t rotary_dim = 0;  // R: pairs (u, u + R/2), u < R/2, of the first R dimensions
};

// Where a new token's key and value go.
struct AppendSlot {
  std::int64_t page = 0;
  std::int32_t slot = 0;      // in [0, P)
  std::int32_t rope_row = 0;  // row of the rope tables at which its key is rotated
};

// A run of tokens in storage: it starts at `first_slot` of its first page and goes on through
// consecutive entries of the plan's page list.
struct PlanSegment {
  std::int64_t first_page = 0;  // index into AttentionPlanView::pages
  std::int32_t first_slot = 0;
  std::int64_t length = 0;             // tokens
  std::int64_t first_query_range = 0;  // index into AttentionPlanView::query ranges
  std::int64_t n_query_ranges = 0;
};

// One new token looks at one segment. Its query, rotated to row `rope_row`, meets the segment's keys
// as they are stored (docs/semantics.md, "Keys are rotated once").
struct QueryRange {
  std::int32_t token = 0;     // row of q, in [0, T)
  std::int32_t rope_row = 0;  // row of the rope tables
  std::int64_t limit = 0;     // it sees the first `limit` tokens of the segment, 1 <= limit <= length
  std::int64_t distance = 0;  // view positions from the segment's first token to the new one; may be negative
  float temperature = 1;      // divides every score of this range
  float bias = 0;             // then added to it: a log-weight per (worker, entry of its view)

  // The first token of the segment that it sees through a sliding window (AttentionParams::window); where that is not
  // below `limit`, it sees none.
  std::int64_t first_seen(std::int64_t window) const {
    return window == 0 || distance < window ? 0 : distance - window + 1;
  }
};

// What every layer of a step does, built once per step on the host (cache/attention_plan.h).
struct AttentionPlanView {
  std::int64_t n_tokens = 0;                            // T
  std::span<const std::int64_t> pages;                  // page ids, segment after segment
  std::span<const PlanSegment> segments;                // each segment of storage once, whoever sees it
  std::span<const QueryRange> query_ranges;             // grouped by segment, in ascending token order within one
  std::span<const std::int64_t> token_query_ranges;     // range indices, grouped by token, in view order
  std::span<const std::int64_t> token_query_ranges_at;  // [T + 1]: token t's are [at[t], at[t + 1])
};

// What the ops of a step share, made once per step on the host.
struct StepView {
  AttentionPlanView plan;
  std::span<const RopeTable> ropes;      // host memory
  std::span<const AppendSlot> slots;     // [T]
  std::span<const std::int32_t> tokens;  // [T], each in [0, V); empty where nobody asks for embeddings

  bool has_rope(const KvLayer& layer) const {
    return layer.rope >= 0 && layer.rope < static_cast<std::int64_t>(ropes.size());
  }
  // The table that turns keys and queries of a layer.
  RopeTable rope(const KvLayer& layer) const {
    return has_rope(layer) ? ropes[static_cast<std::size_t>(layer.rope)] : RopeTable();
  }
};

// A step on a device, made by Device::upload: ops that need one of its parts take it beside their parameters, which
// stay plain values that kernels can be given. Devices with memory of their own derive from it.
class DeviceStep {
 public:
  // What `view` points to outlives this object.
  explicit DeviceStep(const StepView& view) : view_(view) {}
  DeviceStep(const DeviceStep&) = delete;
  DeviceStep& operator=(const DeviceStep&) = delete;
  virtual ~DeviceStep() = default;

  const StepView& view() const { return view_; }  // host memory

 private:
  StepView view_;
};

// Whose activations an op of the cache reads and writes: an engine may keep its own on the device.
struct ExternalBuffers {
  Dtype dtype = Dtype::kF32;  // of q, k and v: the CPU device has kernels for f32 only
  void* stream = nullptr;     // cudaStream_t on which they are made and used; null: the device's own order
  bool is_external = false;   // an engine's: the device checks that the addresses are of its memory
};

// keys[slot] = rotate(k), values[slot] = v, for rows [first, first + rows) of the step. Keys are rotated
// in f32 and rounded once. int8: code = x / scale, rounded to nearest, ties to even; of a row that holds a NaN or an
// infinity the scale is NaN, of one with max |x| < 2^-100 all is 0.
struct KvAppendParams {
  KvShape shape;
  KvLayer layer;
  std::int64_t first = 0;
  std::int64_t rows = 0;
  const void* k = nullptr;       // [rows, Hkv, D], before RoPE
  const void* v = nullptr;       // [rows, Hkv, D]
  ExternalBuffers buffers = {};  // of k and v
};

// Concurrent attention: for each new token t and query head h, over all query ranges of t,
//   score = cap(scale * <rotate(q, rope_row), key>) / temperature + bias
//   cap(x) = softcap * tanh(x / softcap), or x for 0
//   out = sum exp(score - lse) value,   lse = log(sum exp(score) + exp(sinks[h]))
// A key that is `window` or more view positions before t is not seen: neither read nor counted. Each segment's keys and
// values are read once for all tokens that visit it. A token that sees nothing gets out = 0 and lse = sinks[h], -inf
// without sinks. Query head h reads kv head floor(h * Hkv / Hq).
struct AttentionParams {
  KvShape shape;
  KvLayer layer;
  std::int64_t query_heads = 0;  // Hq, a multiple of Hkv
  float scale = 0;               // normally 1 / sqrt(D)
  float softcap = 0;             // 0: off
  std::int64_t window = 0;       // in view positions, the token's own included; 0: off
  const float* sinks = nullptr;  // [Hq] or null, finite or -inf: f32
  const void* q = nullptr;       // [T, Hq, D], before RoPE
  void* out = nullptr;           // [T, Hq, D]
  float* lse = nullptr;          // [T, Hq] or null: f32
  ExternalBuffers buffers = {};  // of q and out
  Dtype out_dtype = Dtype::kF32;
};

// Of attention over some query ranges alone, each as a token of its own, what a range's share of its token's attention
// is, summed over the query heads: sums[range.sum] += sum over h of exp(range_lse[i, h] - lse[range.token, h]) for the
// i-th range. No two ranges have one sum.
struct AttentionMassParams {
  struct Range {
    std::int32_t token = 0;
    std::int32_t sum = 0;
  };
  std::int64_t query_heads = 0;      // Hq
  std::span<const Range> ranges;     // [n], host memory
  const float* range_lse = nullptr;  // [n, Hq]
  const float* lse = nullptr;        // [T, Hq]
  float* sums = nullptr;
};

// Copies runs of tokens inside one layer's pool; keys are turned on the way by row `rope_row` of the
// table (in f32, rounded once), or kept bit for bit, with their scales, where rope_row < 0. Only keys of a format
// that kv_can_turn are turned.
struct KvMoveParams {
  struct Move {
    std::int64_t from_page = 0;
    std::int64_t to_page = 0;
    std::int32_t from_slot = 0;
    std::int32_t to_slot = 0;
    std::int32_t length = 0;  // tokens; the run stays inside both pages
    std::int32_t rope_row = -1;
  };
  KvShape shape;
  KvLayer layer;
  RopeTable rope;  // host memory; without attention factor: moving a key multiplies it by nothing
  std::span<const Move> moves;
};

// Reads keys and values as they are stored, as f32, in token order.
struct KvReadParams {
  KvShape shape;
  KvLayer layer;
  std::span<const AppendSlot> slots;  // [n]; rope_row unused
  float* k = nullptr;                 // [n, Hkv, D]
  float* v = nullptr;                 // [n, Hkv, D]
};

// Copies tokens between the pages of one layer and host memory, bit for bit and in an order that is no device's own:
// page after page, of each the n marked slots in ascending order, keys [Hkv, n, D], their scales [Hkv, n] where the
// format has them, values [Hkv, n, D] and theirs, in the cache's formats, little-endian. Of a page that is written,
// slots that are not marked hold anything afterwards.
struct KvCopyParams {
  struct Page {
    std::int64_t page = 0;
    std::uint64_t slots = 0;  // bit i: slot i
  };
  static_assert(kPageSize == 64, "a bit for each slot");
  KvShape shape;
  KvLayer layer;
  std::span<const Page> pages;  // distinct
  std::byte* rows = nullptr;    // host memory: shape.token_bytes() for each marked slot
};

// ---- sampling -------------------------------------------------------------------------------------

// logits -> token, one row at a time. Order: forbidden, repetition penalty (Keskar et al. 2019,
// arXiv 1909.05858), presence and frequency penalties (OpenAI's: both are subtracted, the second once for each time
// that the id was seen), temperature, top-k, top-p (Holtzman et al. 2020, arXiv 1904.09751), min-p
// (Nguyen et al. 2024, arXiv 2407.01082), then one draw. The random number of a draw is a function
// of (seed, draw) alone, so it does not depend on other rows.
struct SampleParams {
  struct Row {
    std::int64_t logits_row = 0;              // row of `logits`
    float temperature = 0;                    // 0: greedy, ties to the lowest id
    std::int32_t top_k = 0;                   // 0: off
    float top_p = 1;                          // 1: off
    float min_p = 0;                          // 0: off
    float repetition_penalty = 1;             // 1: off
    float presence_penalty = 0;               // 0: off
    float frequency_penalty = 0;              // 0: off
    std::span<const std::int32_t> seen;       // ids that the penalties apply to
    std::span<const std::int32_t> counts;     // how often each was seen, alike for an id listed twice; empty: once
    std::span<const std::int32_t> forbidden;  // ids that never come out
    std::uint64_t seed = 0;
    std::uint64_t draw = 0;
  };
  const float* logits = nullptr;  // [rows, V], device memory
  std::int64_t vocab = 0;
  std::span<const Row> rows;
  std::int32_t* tokens = nullptr;  // [rows.size()], host memory
  float* logprobs = nullptr;       // [rows.size()], host memory: log softmax(raw logits)[token], or null
  // The logits are a model's: -infinity, else a hidden token, is refused as NaN is.
  bool finite = false;
};

// What became of a row.
enum class SampleStatus : std::int32_t {
  kOk,
  kNotANumber,        // the logits contain NaN or +infinity
  kNothingFinite,     // no logit is finite
  kPenaltyOverflows,  // a logit becomes infinite under a penalty
  kAllForbidden,      // every token with a finite logit is forbidden
};

}  // namespace hogwild
