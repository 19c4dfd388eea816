#include "device/cpu/attention_schedule.h"

#include <algorithm>
#include <limits>

#include "device/cpu/parallel.h"

namespace hogwild {
namespace {

// Partial softmax states that a call may keep. Beyond (long prefills) each tile of rows goes through
// its spans in order and merges at once; tokens whose views differ then read the cache once each, so a step of few
// tokens may keep more.
constexpr std::size_t kMaxStateBytes = std::size_t{16} << 20;
constexpr std::size_t kMaxStateBytesOfFew = std::size_t{256} << 20;
constexpr std::int64_t kFewTokens = 16;

constexpr std::int64_t kSpanTokens = kSpanPages * kPageSize;

// Spans [begin, end) of a segment.
struct Spans {
  std::int64_t begin = 0;
  std::int64_t end = 0;

  std::int64_t count() const { return end - begin; }
  bool contains(std::int64_t span) const { return begin <= span && span < end; }
};

// Those of which a range sees a token.
Spans spans_seen(const AttentionParams& p, const PlanSegment& segment, const QueryRange& range) {
  const std::int64_t first = range.first_seen(p.window);
  if (first >= range.limit) return {};
  return {(segment.first_slot + first) / kSpanTokens, ceil_div(segment.first_slot + range.limit, kSpanTokens)};
}

// Says what is read behind `span`.
void set_next(AttentionSpan& span, const StepView& step, const PlanSegment& segment, std::int64_t next_span,
              std::int64_t kv_head) {
  span.next_page = step.plan.pages[segment.first_page + next_span * kSpanPages];
  span.next_kv_head = kv_head;
  span.next_slots = segment.first_slot + segment.length - next_span * kSpanTokens;
}

// The spans from the first to the last that one of several ranges sees.
void include(Spans& spans, const Spans& more) {
  if (more.count() == 0) return;
  spans = spans.count() == 0 ? more : Spans{std::min(spans.begin, more.begin), std::max(spans.end, more.end)};
}

}  // namespace

AttentionSchedule::AttentionSchedule(const CpuKernels& kernels, ThreadPool& pool)
    : kernels_(kernels), pool_(pool), threads_(static_cast<std::size_t>(pool.threads())) {}

AttentionSpan AttentionSchedule::make_span(const AttentionParams& p, const StepView& step, const PlanSegment& segment,
                                           std::int64_t kv_head, std::int64_t span) const {
  AttentionSpan made = {.shape = &p.shape,
                        .layer = &p.layer,
                        .rope = step.rope(p.layer),
                        .scale = p.scale,
                        .softcap = p.softcap,
                        .window = p.window,
                        .kv_head = kv_head,
                        .pages = step.plan.pages.data() + segment.first_page,
                        .first_slot = segment.first_slot,
                        .first_page = span * kSpanPages,
                        .next_page = 0,
                        .next_kv_head = 0,
                        .next_slots = 0,
                        .rows = nullptr,
                        .n_rows = 0,
                        .scratch = nullptr};
  set_next(made, step, segment, span, kv_head);
  return made;
}

void AttentionSchedule::run_span(AttentionSpan& span, PerThread& thread) {
  span.rows = thread.rows.data();
  span.n_rows = std::ssize(thread.rows);
  kernels_.attention_span(span);
}

// merged = merged joined with state, in place; the first state itself where `merged` is null.
void AttentionSchedule::join(float*& merged, float* state, std::int64_t head_dim) const {
  if (merged) {
    kernels_.merge_state(merged, state, head_dim);
  } else {
    merged = state;
  }
}

// Writes one (token, query head); `merged` is null where it sees nothing.
void AttentionSchedule::finish(const AttentionParams& p, std::int64_t token, std::int64_t head,
                               const float* merged) const {
  const std::int64_t row = token * p.query_heads + head;
  float* out = static_cast<float*>(p.out) + row * p.shape.head_dim;
  float lse = p.sinks ? p.sinks[head] : -std::numeric_limits<float>::infinity();
  if (merged) {
    lse = kernels_.finish_state(merged, p.shape.head_dim, lse, out);
  } else {
    std::fill_n(out, p.shape.head_dim, 0.0f);
  }
  if (p.lse) p.lse[row] = lse;
}

void AttentionSchedule::run(const AttentionParams& p, const StepView& step) {
  first_state_.resize(step.plan.query_ranges.size());
  segment_of_range_.resize(step.plan.query_ranges.size());
  std::int64_t n_states = 0;
  for (std::int64_t s = 0; s < std::ssize(step.plan.segments); s++) {
    const PlanSegment& segment = step.plan.segments[s];
    for (std::int64_t v = segment.first_query_range; v < segment.first_query_range + segment.n_query_ranges; v++) {
      first_state_[v] = n_states;
      segment_of_range_[v] = s;
      n_states += spans_seen(p, segment, step.plan.query_ranges[v]).count();
    }
  }
  const std::size_t state_bytes =
      static_cast<std::size_t>(n_states * p.query_heads * state_size(p.shape.head_dim)) * sizeof(float);
  if (state_bytes <= (step.plan.n_tokens <= kFewTokens ? kMaxStateBytesOfFew : kMaxStateBytes)) {
    run_by_span(p, step, n_states);
  } else {
    run_by_rows(p, step);
  }
}

// Decoding: every span is read once for all rows that see it; states are merged afterwards. Where threads have several
// kv heads each, a thread does all of one, so that states stay in its cache until they are merged; else what it takes
// next are spans.
void AttentionSchedule::run_by_span(const AttentionParams& p, const StepView& step, std::int64_t n_states) {
  constexpr std::int64_t kHeadsPerThread = 4;
  const std::int64_t head_dim = p.shape.head_dim;
  const std::int64_t group = p.query_heads / p.shape.kv_heads;
  const std::int64_t size = state_size(head_dim);
  const std::int64_t kv_heads = p.shape.kv_heads, head_states = n_states * group * size;
  const bool by_head = kv_heads >= kHeadsPerThread * pool_.threads();
  float* all_states = states_.get<float>((by_head ? pool_.threads() : kv_heads) * head_states);
  // Of one kv head: state of (query range, span, query head of the group): the range's span number `index` of those
  // that it sees.
  const auto state = [&](float* states, std::int64_t range, std::int64_t index, std::int64_t i) {
    return states + ((first_state_[range] + index) * group + i) * size;
  };

  units_.clear();
  for (std::int64_t s = 0; s < std::ssize(step.plan.segments); s++) {
    const PlanSegment& segment = step.plan.segments[s];
    for (std::int64_t row = 0; row < segment.n_query_ranges * group; row += kMaxSpanRows) {
      const std::int64_t row_end = std::min(row + kMaxSpanRows, segment.n_query_ranges * group);
      Spans spans;
      for (std::int64_t v = row / group; v * group < row_end; v++) {
        include(spans, spans_seen(p, segment, step.plan.query_ranges[segment.first_query_range + v]));
      }
      for (std::int64_t span = spans.begin; span < spans.end; span++) {
        units_.push_back({.segment = s, .span = span, .row_begin = row, .row_end = row_end});
      }
    }
  }
  const std::int64_t n_units = std::ssize(units_);
  for (PerThread& thread : threads_) {
    thread.floats.get<float>(span_scratch_size(kMaxSpanRows, head_dim));
    thread.rows.reserve(kMaxSpanRows);
  }

  // Units of all kv heads, head after head.
  const auto run_unit = [&](std::int64_t i, float* states, PerThread& thread) {
    const SpanUnit& unit = units_[i % n_units];
    const std::int64_t kv_head = i / n_units;
    const PlanSegment& segment = step.plan.segments[unit.segment];
    thread.rows.clear();
    for (std::int64_t r = unit.row_begin; r < unit.row_end; r++) {
      const std::int64_t v = segment.first_query_range + r / group;
      const QueryRange& range = step.plan.query_ranges[v];
      const Spans spans = spans_seen(p, segment, range);
      if (!spans.contains(unit.span)) continue;
      const std::int64_t head = kv_head * group + r % group;
      thread.rows.push_back({.range = &range,
                             .q = static_cast<const float*>(p.q) + (range.token * p.query_heads + head) * head_dim,
                             .state = state(states, v, unit.span - spans.begin, r % group)});
    }
    if (thread.rows.empty()) return;  // between two windows
    AttentionSpan span = make_span(p, step, segment, kv_head, unit.span);
    if (i + 1 < kv_heads * n_units) {
      const SpanUnit& next = units_[(i + 1) % n_units];
      set_next(span, step, step.plan.segments[next.segment], next.span, (i + 1) / n_units);
    }
    span.scratch = thread.floats.get<float>(0);
    run_span(span, thread);
  };
  const auto finish_token = [&](std::int64_t t, std::int64_t kv_head, float* states) {
    for (std::int64_t h = 0; h < group; h++) {
      float* merged = nullptr;
      for (std::int64_t i = step.plan.token_query_ranges_at[t]; i < step.plan.token_query_ranges_at[t + 1]; i++) {
        const std::int64_t v = step.plan.token_query_ranges[i];
        const Spans spans = spans_seen(p, step.plan.segments[segment_of_range_[v]], step.plan.query_ranges[v]);
        for (std::int64_t span = 0; span < spans.count(); span++) join(merged, state(states, v, span, h), head_dim);
      }
      finish(p, t, kv_head * group + h, merged);
    }
  };

  if (by_head) {
    pool_.run(kv_heads, [&](std::int64_t begin, std::int64_t end, int thread) {
      float* states = all_states + thread * head_states;
      for (std::int64_t kv_head = begin; kv_head < end; kv_head++) {
        for (std::int64_t u = 0; u < n_units; u++) run_unit(kv_head * n_units + u, states, threads_[thread]);
        for (std::int64_t t = 0; t < step.plan.n_tokens; t++) finish_token(t, kv_head, states);
      }
    });
    return;
  }
  pool_.run(kv_heads * n_units, [&](std::int64_t begin, std::int64_t end, int thread) {
    for (std::int64_t i = begin; i < end; i++) run_unit(i, all_states + i / n_units * head_states, threads_[thread]);
  });
  for_rows(pool_, step.plan.n_tokens, p.query_heads * head_dim, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; t++) {
      for (std::int64_t kv_head = 0; kv_head < kv_heads; kv_head++) {
        finish_token(t, kv_head, all_states + kv_head * head_states);
      }
    }
  });
}

// Long prefills: a tile of rows goes through its spans in view order and merges as it goes. The same
// states are merged in the same order as above, so the results are the same to the last bit.
void AttentionSchedule::run_by_rows(const AttentionParams& p, const StepView& step) {
  const std::int64_t head_dim = p.shape.head_dim;
  const std::int64_t group = p.query_heads / p.shape.kv_heads;
  const std::int64_t size = state_size(head_dim);
  const auto n_query_ranges = [&](std::int64_t t) {
    return step.plan.token_query_ranges_at[t + 1] - step.plan.token_query_ranges_at[t];
  };
  const auto range_of = [&](std::int64_t t, std::int64_t i) {
    return step.plan.token_query_ranges[step.plan.token_query_ranges_at[t] + i];
  };
  const auto same_segments = [&](std::int64_t a, std::int64_t b) {
    if (n_query_ranges(a) != n_query_ranges(b)) return false;
    for (std::int64_t i = 0; i < n_query_ranges(a); i++) {
      if (segment_of_range_[range_of(a, i)] != segment_of_range_[range_of(b, i)]) return false;
    }
    return true;
  };

  units_.clear();
  for (std::int64_t t = 0, next = 0; t < step.plan.n_tokens; t = next) {
    for (next = t + 1; next < step.plan.n_tokens && same_segments(t, next); next++) {
    }
    for (std::int64_t row = t * group; row < next * group; row += kMaxSpanRows) {
      const std::int64_t row_end = std::min(row + kMaxSpanRows, next * group);
      for (std::int64_t kv_head = 0; kv_head < p.shape.kv_heads; kv_head++) {
        units_.push_back({.kv_head = kv_head, .row_begin = row, .row_end = row_end});
      }
    }
  }
  const std::int64_t span_scratch = span_scratch_size(kMaxSpanRows, head_dim);
  for (PerThread& thread : threads_) {
    thread.floats.get<float>(span_scratch + 2 * kMaxSpanRows * size);
    thread.rows.reserve(kMaxSpanRows);
  }

  pool_.run(std::ssize(units_), [&](std::int64_t begin, std::int64_t end, int thread_index) {
    PerThread& thread = threads_[thread_index];
    for (std::int64_t u = begin; u < end; u++) {
      const SpanUnit& unit = units_[u];
      const std::int64_t first_token = unit.row_begin / group;
      float* scratch = thread.floats.get<float>(0);
      float* merged_states = scratch + span_scratch;
      float* span_states = merged_states + kMaxSpanRows * size;
      float* merged[kMaxSpanRows] = {};
      for (std::int64_t i = 0; i < n_query_ranges(first_token); i++) {
        const PlanSegment& segment = step.plan.segments[segment_of_range_[range_of(first_token, i)]];
        Spans spans;
        for (std::int64_t t = first_token; t * group < unit.row_end; t++) {
          include(spans, spans_seen(p, segment, step.plan.query_ranges[range_of(t, i)]));
        }
        for (std::int64_t span_index = spans.begin; span_index < spans.end; span_index++) {
          thread.rows.clear();
          for (std::int64_t r = unit.row_begin; r < unit.row_end; r++) {
            const QueryRange& range = step.plan.query_ranges[range_of(r / group, i)];
            if (!spans_seen(p, segment, range).contains(span_index)) continue;
            const std::int64_t head = unit.kv_head * group + r % group;
            const std::int64_t local = r - unit.row_begin;
            thread.rows.push_back(
                {.range = &range,
                 .q = static_cast<const float*>(p.q) + (range.token * p.query_heads + head) * head_dim,
                 .state = (merged[local] ? span_states : merged_states) + local * size});
          }
          if (thread.rows.empty()) continue;  // between two windows
          AttentionSpan span = make_span(p, step, segment, unit.kv_head, span_index);
          if (span_index + 1 < spans.end) set_next(span, step, segment, span_index + 1, unit.kv_head);
          span.scratch = scratch;
          run_span(span, thread);
          for (const AttentionRow& row : thread.rows) {
            const bool first = row.state < span_states;
            const std::int64_t local = (row.state - (first ? merged_states : span_states)) / size;
            join(merged[local], row.state, head_dim);
          }
        }
      }
      for (std::int64_t r = unit.row_begin; r < unit.row_end; r++) {
        finish(p, r / group, unit.kv_head * group + r % group, merged[r - unit.row_begin]);
      }
    }
  });
}

}  // namespace hogwild
