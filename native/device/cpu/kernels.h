// The CPU kernels: a table of functions, one table per SIMD level (kernels.cc is compiled once for
// each). They compute slices of ops; cpu_device.cc cuts an op into slices for its threads. What a
// kernel computes for one row does not depend on the slice it comes in.
#pragma once

#include <stdint.h>

#include "core/limits.h"
#include "device/ops.h"

namespace hogwild {

// What pack_x makes of x is the level's own business. It takes ranges that begin at multiples of kPackedRows.
constexpr int64_t kPackedRows = 16;
static constexpr int64_t packed_bf16_bytes(int64_t rows, int64_t k) { return rows * ((k + 31) / 32) * 64; }

// Outputs [begin, end) of one matrix, for all rows. Slices that begin at multiples of CpuKernels::output_block and are
// not shorter run fastest.
struct MatmulSlice {
  const void* x;  // [rows, k]: f32, or what pack_x has made of it where packs_x(format of the weight)
  int64_t rows;
  int64_t k;
  const MatmulParams::Output* output;
  int64_t begin;
  int64_t end;
};

// Attention works on spans: runs of kSpanPages pages of a segment, counted from its first page. A
// row is one (query range, query head); for each span of which it sees a key it gets a softmax state. Spans begin
// and end at the same keys whoever else is in the step, and a row's states are merged in its view order: so
// its result does not depend, to the last bit, on how the work was cut or who shared it. What no row sees of a
// segment, behind its limit or before its window, is not read.
constexpr int64_t kSpanPages = 4;

// Rows that share a page in f32 at most: their queries, scores and states stay in the L2 cache.
constexpr int64_t kMaxSpanRows = 96;

// Floats of a state: maximum of the scores, sum of exp(score - maximum), padding, then at
// kStateValues the sum of exp(score - maximum) * value [D], padded to whole vectors of any level.
constexpr int64_t kStateMax = 0;
constexpr int64_t kStateSum = 1;
constexpr int64_t kStateValues = 16;
static inline int64_t padded_head_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
static inline int64_t state_size(int64_t head_dim) { return kStateValues + padded_head_dim(head_dim); }

struct AttentionRow {
  const QueryRange* range;  // sees a key of the span
  const float* q;           // [D], before RoPE
  float* state;             // [state_size(D)], written
};

struct AttentionSpan {
  const KvShape* shape;
  const KvLayer* layer;
  RopeTable rope;
  float scale;
  float softcap;   // 0: off
  int64_t window;  // 0: off
  int64_t kv_head;
  const int64_t* pages;  // of the segment, from its first page
  int64_t first_slot;
  int64_t first_page;  // of the span; it ends kSpanPages later or with the segment
  // What the thread reads behind the span, brought into the cache: a page of the pool, and how many slots of it.
  int64_t next_page, next_kv_head, next_slots;
  const AttentionRow* rows;
  int64_t n_rows;  // <= kMaxSpanRows
  float* scratch;  // [span_scratch_size(n_rows, D)], aligned to 64 bytes
};

// The rows' rotated queries, one page's keys or values in f32, and the rows' scores.
static inline int64_t span_scratch_size(int64_t n_rows, int64_t head_dim) {
  return (n_rows + kPageSize) * padded_head_dim(head_dim) + n_rows * kPageSize;
}

struct CpuKernels {
  // out[t] = scale * table[tokens[t]], t < n
  void (*embedding)(const Matrix& table, const int32_t* tokens, int64_t n, float scale, float* out);
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t rows, int64_t cols, float* out);
  bool (*packs_x)(Format weight);
  // Rows [begin, end) of x [rows, k], rounded to bf16, into `packed` [packed_bf16_bytes(rows, k)].
  void (*pack_x)(const float* x, int64_t rows, int64_t k, int64_t begin, int64_t end, void* packed);
  int64_t output_block;
  void (*matmul)(const MatmulSlice& slice);
  void (*gated_activation)(const float* gate, const float* up, int64_t n, Activation activation, float* out);
  void (*add)(float* x, const float* y, int64_t n, float scale);
  void (*softcap)(float* x, int64_t n, float scale, float softcap);
  // out[i] += the sum of weights[j] * x[rows[j], i], j ascending, i < cols
  void (*add_weighted)(const float* x, const int64_t* rows, const float* weights, int64_t n_rows, int64_t cols,
                       float* out);

  // [begin, end) of the (slot, kv head), in this order, of k and v [slots, kv_heads, D]; not empty.
  void (*kv_append)(const KvShape& shape, const KvLayer& layer, const RopeTable& rope, const AppendSlot* slots,
                    int64_t begin, int64_t end, const float* k, const float* v);
  void (*kv_move)(const KvShape& shape, const KvLayer& layer, const RopeTable& rope, const KvMoveParams::Move* moves,
                  int64_t n);
  void (*kv_read)(const KvShape& shape, const KvLayer& layer, const AppendSlot* slots, int64_t n, float* k, float* v);

  // One page between the pool and plain rows (KvCopyParams): slots [n], ascending.
  void (*kv_save)(const KvShape& shape, const KvLayer& layer, int64_t page, const uint8_t* slots, int64_t n,
                  void* rows);
  void (*kv_load)(const KvShape& shape, const KvLayer& layer, int64_t page, const uint8_t* slots, int64_t n,
                  void* rows);

  void (*attention_span)(const AttentionSpan& span);
  // into = into joined with state; both [state_size(D)]
  void (*merge_state)(float* into, const float* state, int64_t head_dim);
  // out [D] = values / sum (zeros where nothing was seen); returns the log-sum-exp. exp(sink) is added to the sum.
  float (*finish_state)(const float* state, int64_t head_dim, float sink, float* out);

  // The greatest of x[n] and the lowest index that has it; false if one is NaN or +inf.
  bool (*find_max)(const float* x, int64_t n, float* max, int64_t* index);
  // Sum of exp((x[i] - max) * scale), in double; the terms go to `terms` [n] unless it is null.
  double (*sum_exp)(const float* x, int64_t n, float max, float scale, float* terms);

  // Reads n floats and returns a value that depends on all of them: to measure bandwidth.
  float (*read)(const float* data, int64_t n);
};

}  // namespace hogwild
