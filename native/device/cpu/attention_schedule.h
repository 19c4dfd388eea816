// Concurrent attention on the CPU: which thread meets which queries with which keys, and the merging of what
// they find. The arithmetic is in attention.h.
#pragma once

#include <cstdint>
#include <vector>

#include "device/cpu/kernels.h"
#include "device/cpu/memory.h"
#include "device/cpu/thread_pool.h"
#include "device/ops.h"

namespace hogwild {

class AttentionSchedule {
 public:
  // Both outlive this object.
  AttentionSchedule(const CpuKernels& kernels, ThreadPool& pool);

  // `params` were checked. By spans or by rows, as there are few or many partial results; both merge the same states in
  // the same order, so the results are the same to the last bit.
  void run(const AttentionParams& params, const StepView& step);

 private:
  // What one thread keeps from call to call.
  struct PerThread {
    Scratch floats;
    std::vector<AttentionRow> rows;
  };

  // Rows [row_begin, row_end) of a segment's (query range, query head of one kv head) pairs meet one span. By rows:
  // those of (token, query head of this kv head) pairs meet all spans that they see.
  struct SpanUnit {
    std::int64_t segment = 0;
    std::int64_t kv_head = 0;
    std::int64_t span = 0;
    std::int64_t row_begin = 0;
    std::int64_t row_end = 0;
  };

  // `n_states` of each query head.
  void run_by_span(const AttentionParams& params, const StepView& step, std::int64_t n_states);
  void run_by_rows(const AttentionParams& params, const StepView& step);

  AttentionSpan make_span(const AttentionParams& params, const StepView& step, const PlanSegment& segment,
                          std::int64_t kv_head, std::int64_t span) const;
  void run_span(AttentionSpan& span, PerThread& thread);
  void join(float*& merged, float* state, std::int64_t head_dim) const;
  void finish(const AttentionParams& params, std::int64_t token, std::int64_t head, const float* merged) const;

  const CpuKernels& kernels_;
  ThreadPool& pool_;
  std::vector<PerThread> threads_;
  Scratch states_;
  std::vector<std::int64_t> first_state_;       // per query range, in states per query head
  std::vector<std::int64_t> segment_of_range_;  // per query range
  std::vector<SpanUnit> units_;
};

}  // namespace hogwild
