#include "model/outputs.h"

#include <algorithm>
#include <limits>

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
    if (worker.logits == LogitsWanted::kAll) {
      for (std::int64_t i = 0; i + 1 < n; ++i) rows.push_back({end - n + i, w, i, false});
    }
    const std::int64_t last_at = worker.logits == LogitsWanted::kAll    ? n - 1
                                 : worker.logits == LogitsWanted::kLast ? 0
                                                                        : -1;
    if (last_at >= 0 || worker.sampler) rows.push_back({end - 1, w, last_at, worker.sampler.has_value()});
  }
  return rows;
}

SeenIds seen_ids(const std::vector<StepWorker>& workers, std::size_t worker, std::int64_t vocab) {
  const StepWorker& self = workers[worker];
  const WorkerView& view = self.view;
  const std::size_t written = view.write_entry();
  // The tokens that an entry shows: those of its block as they will be after the step or, where it lags, as they are.
  const auto tokens_of = [&](std::size_t entry) {
    const std::shared_ptr<CacheBlock>& block = view.entries[entry].block;
    std::vector<std::int32_t> tokens = block->tokens();
    if (view.entries[entry].lag && entry != written) return tokens;
    for (const StepWorker& writer : workers) {
      if (writer.view.target == block) tokens.insert(tokens.end(), writer.tokens.begin(), writer.tokens.end());
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

void collect_outputs(Device& device, const float* logits, std::int64_t vocab, std::span<const LogitsRow> rows,
                     const std::vector<StepWorker>& workers, const std::vector<SeenIds>& seen, StepResult& result) {
  std::vector<SampleParams::Row> draws;
  std::vector<std::size_t> drawn_for;
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
    if (!rows[i].sample) continue;
    SampleParams::Row draw = *workers[w].sampler;
    draw.logits_row = row;
    draw.seen = seen[w].ids;
    draw.counts = seen[w].counts;
    draw.forbidden = workers[w].forbidden;
    draws.push_back(draw);
    drawn_for.push_back(w);
    want_logprobs |= workers[w].logprob || workers[w].top_logprobs > 0;
    all_checked &= rows[i].logits_at >= 0;
  }
  if (draws.empty()) return;

  std::vector<std::int32_t> tokens(draws.size());
  std::vector<float> logprobs(draws.size());
  device.sample({.logits = logits,
                 .vocab = vocab,
                 .rows = draws,
                 .tokens = tokens.data(),
                 .logprobs = want_logprobs ? logprobs.data() : nullptr,
                 .finite = !all_checked});
  std::vector<float> row_logits;
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const StepWorker& worker = workers[drawn_for[i]];
    StepResult::Worker& out = result.workers[drawn_for[i]];
    out.token = tokens[i];
    if (worker.logprob) out.logprob = logprobs[i];
    if (worker.top_logprobs == 0) continue;
    row_logits.resize(static_cast<std::size_t>(vocab));
    device.download(row_logits.data(), logits + draws[i].logits_row * vocab, row_logits.size() * sizeof(float));
    out.top = most_likely(row_logits, worker.top_logprobs, {.token = tokens[i], .logprob = logprobs[i]});
  }
}

}  // namespace hogwild
