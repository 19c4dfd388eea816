// What the workers of a step bring and what they get back: which rows' logits are wanted, which token ids a
// repetition penalty concerns, and what becomes of logits.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "cache/attention_plan.h"
#include "device/device.h"
#include "device/sampling.h"

namespace hogwild {

enum class LogitsWanted : std::uint8_t { kNone, kLast, kAll };

// Which token ids a sampler's penalties concern: those of the view, or of the block that the worker writes to; the new
// ones of this step included.
enum class PenaltyScope : std::uint8_t { kView, kOwn };

struct StepWorker {
  WorkerView view;  // its `tokens` need not be set: those below count
  std::vector<std::int32_t> tokens;
  LogitsWanted logits = LogitsWanted::kNone;
  std::optional<SampleParams::Row> sampler;  // its `logits_row` and spans need not be set
  PenaltyScope penalty_scope = PenaltyScope::kView;
  std::int64_t penalty_last_n = 0;  // only what stands in so many places up to the last new token; 0: all
  std::vector<std::int32_t> forbidden;
  bool logprob = false;
  std::int64_t top_logprobs = 0;  // how many of the most likely tokens are wanted beside the sampled one
};

struct StepResult {
  struct Worker {
    std::int32_t token = -1;    // sampled, or -1
    float logprob = 0;          // of `token`, where asked for
    std::vector<float> logits;  // kLast: [V]; kAll: [new tokens, V]
    std::vector<RankedToken> top;
  };
  std::vector<Worker> workers;
  double seconds = 0;  // that the step took, without its waiting for other steps
};

// A new token whose logits somebody wants.
struct LogitsRow {
  std::int64_t row = 0;  // of the step
  std::size_t worker = 0;
  std::int64_t logits_at = -1;  // row of the worker's result that gets the logits, or -1
  bool sample = false;
};

// In ascending order of rows.
std::vector<LogitsRow> logits_rows(const std::vector<StepWorker>& workers);

// Token ids and how often they were seen, in ascending order of ids.
struct SeenIds {
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> counts;
};

// The ids that a worker's penalties concern. A hidden block has none, and keeps its places. Ids outside the vocabulary,
// of an engine without ids or of another model, are left out.
SeenIds seen_ids(const std::vector<StepWorker>& workers, std::size_t worker, std::int64_t vocab);

// Copies and samples: `logits` [rows, V], device memory. seen[w] are seen_ids of worker w. Throws
// kInvalidModel where a logit is not finite.
void collect_outputs(Device& device, const float* logits, std::int64_t vocab, std::span<const LogitsRow> rows,
                     const std::vector<StepWorker>& workers, const std::vector<SeenIds>& seen, StepResult& result);

}  // namespace hogwild
