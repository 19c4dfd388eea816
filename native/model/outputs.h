// What the workers of a step bring and what they get back: which rows' logits are wanted, which token ids a
// repetition penalty concerns, and what becomes of logits.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "cache/attention_plan.h"
#include "device/device.h"

namespace hogwild {

enum class LogitsWanted : std::uint8_t { kNone, kLast, kAll };

struct StepWorker {
  WorkerView view;  // its `tokens` need not be set: those below count
  std::vector<std::int32_t> tokens;
  LogitsWanted logits = LogitsWanted::kNone;
  std::optional<SampleParams::Row> sampler;  // its `logits_row`, `seen` and `forbidden` need not be set
  std::vector<std::int32_t> forbidden;
  bool logprob = false;
};

struct StepResult {
  struct Worker {
    std::int32_t token = -1;    // sampled, or -1
    float logprob = 0;          // of `token`, where asked for
    std::vector<float> logits;  // kLast: [V]; kAll: [new tokens, V]
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

// The distinct token ids that a worker sees, ascending: its own and others', the new ones of this step included.
// Ids outside the vocabulary, of an engine without ids or of another model, are left out.
std::vector<std::int32_t> ids_in_view(const std::vector<StepWorker>& workers, std::size_t worker, std::int64_t vocab);

// Copies and samples: `logits` [rows, V], device memory. seen[w] are ids_in_view of worker w. Throws
// kInvalidModel where a logit is not finite.
void collect_outputs(Device& device, const float* logits, std::int64_t vocab, std::span<const LogitsRow> rows,
                     const std::vector<StepWorker>& workers, const std::vector<std::vector<std::int32_t>>& seen,
                     StepResult& result);

}  // namespace hogwild
