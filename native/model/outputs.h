// What the workers of a step bring and what they get back: which rows' logits are wanted, which token ids a
// repetition penalty concerns, and what becomes of logits on the way to a token.
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
  // How many of the last tokens are drafts (StepReservation), fewer than all: guesses at what is chosen behind those
  // before them. A token is chosen at each stage: at 0 behind what is no draft, at s behind the s-th draft.
  std::int64_t drafts = 0;
  // Workers of one group go on together: a stage stays if those of all of them who have it are what was chosen. In
  // [0, workers).
  std::int64_t group = 0;
  std::vector<float> embeddings;  // [tokens, hidden], as the first layer reads them, where the ids are all -1; or empty
  LogitsWanted logits = LogitsWanted::kNone;
  std::optional<SampleParams::Row> sampler;  // its `logits_row` and spans need not be set
  PenaltyScope penalty_scope = PenaltyScope::kView;
  std::int64_t penalty_last_n = 0;  // only what stands in so many places up to the last new token; 0: all
  std::vector<std::int32_t> forbidden;
  bool logprob = false;
  std::int64_t top_logprobs = 0;  // how many of the most likely tokens are wanted beside the sampled one
  // Added to the logits of these ids before anything else is done with them: finite, or -infinity.
  std::vector<std::int32_t> bias_ids;
  std::vector<float> bias;
  bool held = false;            // its token is not chosen before Step::choose
  bool hidden = false;          // whether the last layer's output is wanted
  bool attention_mass = false;  // whether it is wanted where it looks

  // Whether its token is chosen from other logits than the model's.
  bool edits() const { return sampler && (held || !bias_ids.empty()); }
  std::int32_t draft(std::int64_t stage) const {
    return tokens[static_cast<std::size_t>(tokens_at_stage(std::ssize(tokens), drafts, stage) - 1)];
  }
};

struct StepResult {
  // What is chosen from one row of logits.
  struct Choice {
    std::int32_t token = -1;  // or -1
    float logprob = 0;        // of `token`, where asked for
    std::vector<RankedToken> top;
  };
  struct Worker {
    // By stage. Those beyond `kept` are guesses: what would be chosen if the drafts before were right and, for a held
    // worker, the most likely tokens.
    std::vector<Choice> choices;
    std::int64_t kept = 0;              // drafts that stay: they are what was chosen
    std::vector<float> logits;          // kLast: [stages, V]; kAll: [new tokens, V]
    std::vector<float> hidden;          // [hidden]: the last new token's, behind the final norm
    std::vector<float> attention_mass;  // [entries of the view]: see model/attention_mass.h
  };
  std::vector<Worker> workers;
  double seconds = 0;  // that the step took, without its waiting for other steps
};

// A new token whose logits somebody wants.
struct LogitsRow {
  std::int64_t row = 0;  // of the step
  std::size_t worker = 0;
  std::int64_t stage = 0;
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

// The ids that a worker's penalties concern, at a stage. A hidden block has none, and keeps its places. Ids outside the
// vocabulary, of an engine without ids or of another model, are left out.
SeenIds seen_ids(const std::vector<StepWorker>& workers, std::size_t worker, std::int64_t vocab,
                 std::int64_t stage = 0);

// Logits of a worker that edits() them, on their way to its token.
struct EditedLogits {
  std::size_t worker = 0;
  std::int64_t stage = 0;
  std::vector<float> logits;  // [V], with the bias
  // For log-probabilities, which are those of the model's logits; empty where nobody asks for them.
  std::vector<float> raw;  // [V]
  RankedToken known;       // one of them
};

// What a held worker's token is chosen from.
struct LogitsEdit {
  std::optional<std::vector<float>> logits;  // [V] in the place of its own
  // Bit id % 32 of element id / 32 is set where the id may be chosen; those beyond may not. Without it all may.
  std::optional<std::vector<std::int32_t>> allowed;
};

// Memory of rows that are not needed any more: that of new ones costs more than what is done to them.
using SpareRows = std::vector<std::vector<float>>;

// seen_ids of each worker, by stage.
using SeenByStage = std::vector<std::vector<SeenIds>>;

// Copies and samples: `logits` [rows, V], device memory. Throws kInvalidModel where a logit is not finite. What comes
// of workers that edit theirs goes to `edited`.
void collect_outputs(Device& device, const float* logits, std::int64_t vocab, std::span<const LogitsRow> rows,
                     const std::vector<StepWorker>& workers, const SeenByStage& seen, SpareRows& spare,
                     StepResult& result, std::vector<EditedLogits>& edited);

// Takes what the caller has made of them. Throws kInvalidArgument, naming the worker: not V logits, NaN, +infinity, or
// nothing left to choose.
void edit(EditedLogits& edited, const StepWorker& worker, LogitsEdit by);

// Chooses the tokens: edited[i] lies in row i of `logits` [n, V], device memory.
void sample_edited(Device& device, const float* logits, std::int64_t vocab, std::span<const EditedLogits* const> edited,
                   const std::vector<StepWorker>& workers, const SeenByStage& seen, StepResult& result);

}  // namespace hogwild
