#include "model/outputs.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/finite.h"
#include "device/sampling.h"

namespace hogwild {

std::vector<LogitsRow> logits_rows(const std::vector<StepWorker>& workers) {
  std::vector<LogitsRow> rows;
  std::int64_t end = 0;
  for (std::size_t w = 0; w < workers.size(); ++w) {
    const StepWorker& worker = workers[w];
    const auto n = static_cast<std::int64_t>(worker.tokens.size());
    end += n;
    const std::int64_t first = n - 1 - worker.drafts;  // that a token is chosen behind
    if (worker.logits == LogitsWanted::kAll) {
      for (std::int64_t i = 0; i < first; ++i) rows.push_back({.row = end - n + i, .worker = w, .logits_at = i});
    }
    if (worker.logits == LogitsWanted::kNone && !worker.sampler) continue;
    for (std::int64_t stage = 0; stage <= worker.drafts; ++stage) {
      rows.push_back({.row = end - n + first + stage,
                      .worker = w,
                      .stage = stage,
                      .logits_at = worker.logits == LogitsWanted::kAll    ? first + stage
                                   : worker.logits == LogitsWanted::kLast ? stage
                                                                          : -1,
                      .sample = worker.sampler.has_value()});
    }
  }
  return rows;
}

SeenIds seen_ids(const std::vector<StepWorker>& workers, std::size_t worker, std::int64_t vocab, std::int64_t stage) {
  const StepWorker& self = workers[worker];
  const WorkerView& view = self.view;
  const std::size_t written = view.write_entry();
  // The tokens that an entry shows: those of its block as they will be after the stage or, where it lags, before it.
  const auto tokens_of = [&](std::size_t entry) {
    const std::shared_ptr<CacheBlock>& block = view.entries[entry].block;
    const std::int64_t end = view.entries[entry].lag && entry != written ? stage - 1 : stage;
    std::vector<std::int32_t> tokens = block->tokens();
    for (const StepWorker& writer : workers) {
      if (writer.view.target != block) continue;
      const std::int64_t n = tokens_at_stage(std::ssize(writer.tokens), writer.drafts, end);
      tokens.insert(tokens.end(), writer.tokens.begin(), writer.tokens.begin() + n);
    }
    return tokens;
  };
  std::vector<std::int32_t> counts(static_cast<std::size_t>(vocab));
  const auto count = [&](std::span<const std::int32_t> ids) {
    for (const std::int32_t id : ids) {
      if (id >= 0 && id < vocab) ++counts[static_cast<std::size_t>(id)];
    }
  };
  const auto last = [](std::span<const std::int32_t> ids, std::int64_t n) {
    return ids.last(static_cast<std::size_t>(std::min(n, std::ssize(ids))));
  };
  std::int64_t left = self.penalty_last_n > 0 ? self.penalty_last_n : std::numeric_limits<std::int64_t>::max();
  if (self.penalty_scope == PenaltyScope::kOwn) {
    count(last(tokens_of(written), left));
  } else {
    // Back from the last new token; without a limit what stands behind it counts too.
    const std::size_t end = self.penalty_last_n > 0 ? written + 1 : view.entries.size();
    for (std::size_t i = end; i-- > 0 && left > 0;) {
      const std::vector<std::int32_t> tokens = tokens_of(i);
      const bool hidden = view.entries[i].bias == -std::numeric_limits<float>::infinity();
      if (!hidden) count(last(tokens, left));
      left -= std::ssize(tokens);
    }
  }
  SeenIds seen;
  for (std::int32_t id = 0; id < vocab; ++id) {
    if (const std::int32_t n = counts[static_cast<std::size_t>(id)]; n > 0) {
      seen.ids.push_back(id);
      seen.counts.push_back(n);
    }
  }
  return seen;
}

namespace {

// Each stage has the draw that the step which it stands for would have.
SampleParams::Row draw_of(const StepWorker& worker, const SeenIds& seen, std::int64_t stage, std::int64_t logits_row) {
  SampleParams::Row draw = *worker.sampler;
  draw.draw += static_cast<std::uint64_t>(stage);
  draw.logits_row = logits_row;
  draw.seen = seen.ids;
  draw.counts = seen.counts;
  draw.forbidden = worker.forbidden;
  return draw;
}

bool wants_logprobs(const StepWorker& worker) { return worker.logprob || worker.top_logprobs > 0; }

std::vector<float> take_row(SpareRows& spare) {
  if (spare.empty()) return {};
  std::vector<float> row = std::move(spare.back());
  spare.pop_back();
  return row;
}

std::vector<float> download_row(Device& device, const float* logits, std::int64_t vocab, std::int64_t row,
                                SpareRows& spare) {
  std::vector<float> values = take_row(spare);
  values.resize(static_cast<std::size_t>(vocab));
  device.download(values.data(), logits + row * vocab, values.size() * sizeof(float));
  return values;
}

// The likeliest tokens of some rows, which tells whether their logits are those of a working model.
std::vector<RankedToken> likeliest(Device& device, const float* logits, std::int64_t vocab,
                                   std::span<const std::int64_t> rows, bool want_logprobs) {
  std::vector<SampleParams::Row> draws;
  for (const std::int64_t row : rows) draws.emplace_back().logits_row = row;
  std::vector<std::int32_t> tokens(rows.size());
  std::vector<float> logprobs(rows.size());
  device.sample({.logits = logits,
                 .vocab = vocab,
                 .rows = draws,
                 .tokens = tokens.data(),
                 .logprobs = want_logprobs ? logprobs.data() : nullptr,
                 .finite = true});
  std::vector<RankedToken> result;
  for (std::size_t i = 0; i < rows.size(); ++i) result.push_back({.token = tokens[i], .logprob = logprobs[i]});
  return result;
}

void begin_edits(Device& device, const float* logits, std::int64_t vocab, std::span<const LogitsRow> rows,
                 const std::vector<StepWorker>& workers, SpareRows& spare, std::vector<EditedLogits>& edited) {
  std::vector<std::int64_t> at;
  bool want_logprobs = false;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const StepWorker& worker = workers[rows[i].worker];
    if (!rows[i].sample || !worker.edits()) continue;
    at.push_back(static_cast<std::int64_t>(i));
    want_logprobs |= wants_logprobs(worker);
  }
  if (at.empty()) return;
  spare.reserve(spare.size() + 2 * (edited.size() + at.size()));  // giving them back must not fail
  const std::vector<RankedToken> known = likeliest(device, logits, vocab, at, want_logprobs);
  for (std::size_t i = 0; i < at.size(); ++i) {
    const LogitsRow& from = rows[static_cast<std::size_t>(at[i])];
    const StepWorker& worker = workers[from.worker];
    EditedLogits& row = edited.emplace_back();
    row.worker = from.worker;
    row.stage = from.stage;
    row.logits = download_row(device, logits, vocab, at[i], spare);
    row.known = known[i];
    if (wants_logprobs(worker)) {
      row.raw = take_row(spare);
      row.raw.assign(row.logits.begin(), row.logits.end());
    }
    for (std::size_t b = 0; b < worker.bias_ids.size(); ++b) {
      row.logits[static_cast<std::size_t>(worker.bias_ids[b])] += worker.bias[b];
    }
  }
}

// What has changed a worker's logits, for messages.
std::string changed_by(std::size_t index, const StepWorker& worker, const LogitsEdit& by) {
  std::string names;
  const auto add = [&](bool is_there, const char* name) {
    if (!is_there) return;
    if (!names.empty()) names.append(" and ");
    names.append(name);
  };
  add(!worker.bias_ids.empty(), "logitBias");
  add(by.logits.has_value(), "processLogits");
  add(by.allowed.has_value(), "grammar");
  return "workers[" + std::to_string(index) + "]: " + names;
}

constexpr float kNever = -std::numeric_limits<float>::infinity();

// Masks of grammars are mostly whole words; what is between them is few tokens that may come, or few that may not.
void forbid_all_but(std::span<const std::int32_t> allowed, std::span<float> logits) {
  for (std::size_t first = 0; first < logits.size(); first += 32) {
    const std::size_t n = std::min<std::size_t>(32, logits.size() - first);
    const std::size_t word = first / 32;
    const std::uint32_t forbidden = word < allowed.size() ? ~static_cast<std::uint32_t>(allowed[word]) : ~0u;
    if (forbidden == ~0u) {
      std::fill_n(logits.begin() + static_cast<std::ptrdiff_t>(first), n, kNever);
      continue;
    }
    for (std::uint32_t left = forbidden; left != 0; left &= left - 1) {
      const auto bit = static_cast<std::size_t>(std::countr_zero(left));
      if (bit < n) logits[first + bit] = kNever;
    }
  }
}

// Throws kInvalidArgument unless they are finite or -Infinity.
void check_numbers(std::span<const float> logits, const std::string& changed) {
  constexpr std::uint32_t kExponent = 0x7f800000u;
  const std::uint32_t never = f32_bits(kNever);
  std::uint32_t bad = 0;
  for (const float logit : logits) {  // (integers without branches: the compiler makes vector instructions of it)
    const std::uint32_t bits = f32_bits(logit);
    const std::uint32_t special = (bits & kExponent) == kExponent ? ~0u : 0;
    bad |= bits == never ? 0 : special;
  }
  if (bad == 0) return;
  const auto at = std::ranges::find_if(logits, [](float logit) { return !std::isfinite(logit) && logit != kNever; });
  refuse(changed + " gave the logit of token " + std::to_string(at - logits.begin()) + " the value " +
         (std::isnan(*at) ? "NaN" : "Infinity") + ": expected finite numbers or -Infinity");
}

}  // namespace

void collect_outputs(Device& device, const float* logits, std::int64_t vocab, std::span<const LogitsRow> rows,
                     const std::vector<StepWorker>& workers, const SeenByStage& seen, SpareRows& spare,
                     StepResult& result, std::vector<EditedLogits>& edited) {
  std::vector<SampleParams::Row> draws;
  std::vector<LogitsRow> drawn_for;
  bool want_logprobs = false;
  bool all_checked = true;  // all that are sampled from
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const std::size_t w = rows[i].worker;
    const auto row = static_cast<std::int64_t>(i);
    if (rows[i].logits_at >= 0) {
      float* to = result.workers[w].logits.data() + rows[i].logits_at * vocab;
      device.download(to, logits + row * vocab, static_cast<std::size_t>(vocab) * sizeof(float));
      if (!all_finite({to, static_cast<std::size_t>(vocab)})) check_sampled(SampleStatus::kNotANumber);
    }
    if (!rows[i].sample || workers[w].edits()) continue;
    const auto stage = static_cast<std::size_t>(rows[i].stage);
    draws.push_back(draw_of(workers[w], seen[w][stage], rows[i].stage, row));
    drawn_for.push_back(rows[i]);
    want_logprobs |= wants_logprobs(workers[w]);
    all_checked &= rows[i].logits_at >= 0;
  }
  begin_edits(device, logits, vocab, rows, workers, spare, edited);
  if (draws.empty()) return;

  std::vector<std::int32_t> tokens(draws.size());
  std::vector<float> logprobs(draws.size());
  device.sample({.logits = logits,
                 .vocab = vocab,
                 .rows = draws,
                 .tokens = tokens.data(),
                 .logprobs = want_logprobs ? logprobs.data() : nullptr,
                 .finite = !all_checked});
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const StepWorker& worker = workers[drawn_for[i].worker];
    StepResult::Choice& out = result.workers[drawn_for[i].worker].choices[static_cast<std::size_t>(drawn_for[i].stage)];
    out.token = tokens[i];
    if (worker.logprob) out.logprob = logprobs[i];
    if (worker.top_logprobs == 0) continue;
    spare.push_back(download_row(device, logits, vocab, draws[i].logits_row, spare));
    out.top = most_likely(spare.back(), worker.top_logprobs, {.token = tokens[i], .logprob = logprobs[i]});
  }
}

void edit(EditedLogits& edited, const StepWorker& worker, LogitsEdit by) {
  const std::size_t vocab = edited.logits.size();
  const std::string changed = changed_by(edited.worker, worker, by);
  if (by.logits) {
    if (by.logits->size() != vocab) {
      refuse(changed + ": expected " + std::to_string(vocab) + " logits, received " +
             std::to_string(by.logits->size()));
    }
    edited.logits = std::move(*by.logits);
  }
  if (by.allowed) forbid_all_but(*by.allowed, edited.logits);
  // (what the model gave has been checked)
  if (by.logits || !worker.bias_ids.empty()) check_numbers(edited.logits, changed);
  if (std::ranges::all_of(edited.logits, [](float logit) { return logit == kNever; })) {
    refuse(changed + " left no token to choose: all logits are -Infinity");
  }
}

void sample_edited(Device& device, const float* logits, std::int64_t vocab, std::span<const EditedLogits* const> edited,
                   const std::vector<StepWorker>& workers, const SeenByStage& seen, StepResult& result) {
  std::vector<SampleParams::Row> draws;
  for (const EditedLogits* row : edited) {
    const SeenIds& ids = seen[row->worker][static_cast<std::size_t>(row->stage)];
    draws.push_back(draw_of(workers[row->worker], ids, row->stage, std::ssize(draws)));
  }
  std::vector<std::int32_t> tokens(draws.size());
  device.sample({.logits = logits, .vocab = vocab, .rows = draws, .tokens = tokens.data()});
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const EditedLogits& row = *edited[i];
    const StepWorker& worker = workers[row.worker];
    StepResult::Choice& out = result.workers[row.worker].choices[static_cast<std::size_t>(row.stage)];
    out.token = tokens[i];
    if (worker.logprob) {
      const double distance =
          double{row.raw[static_cast<std::size_t>(out.token)]} - row.raw[static_cast<std::size_t>(row.known.token)];
      out.logprob = static_cast<float>(row.known.logprob + distance);
    }
    if (worker.top_logprobs > 0) out.top = most_likely(row.raw, worker.top_logprobs, row.known);
  }
}

}  // namespace hogwild
