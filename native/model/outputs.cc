#include "model/outputs.h"

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

std::vector<std::int32_t> ids_in_view(const std::vector<StepWorker>& workers, std::size_t worker, std::int64_t vocab) {
  std::vector<bool> seen(static_cast<std::size_t>(vocab));
  const auto add = [&](const std::vector<std::int32_t>& ids) {
    for (const std::int32_t id : ids) {
      if (id >= 0 && id < vocab) seen[static_cast<std::size_t>(id)] = true;
    }
  };
  const WorkerView& view = workers[worker].view;
  for (std::size_t i = 0; i < view.blocks.size(); ++i) {
    const bool hidden = !view.bias.empty() && view.bias[i] == -std::numeric_limits<float>::infinity();
    if (hidden) continue;
    add(view.blocks[i]->tokens());
    for (const StepWorker& other : workers) {
      if (other.view.target == view.blocks[i]) add(other.tokens);
    }
  }
  std::vector<std::int32_t> ids;
  for (std::int32_t id = 0; id < vocab; ++id) {
    if (seen[static_cast<std::size_t>(id)]) ids.push_back(id);
  }
  return ids;
}

void collect_outputs(Device& device, const float* logits, std::int64_t vocab, std::span<const LogitsRow> rows,
                     const std::vector<StepWorker>& workers, const std::vector<std::vector<std::int32_t>>& seen,
                     StepResult& result) {
  std::vector<SampleParams::Row> draws;
  std::vector<std::size_t> drawn_for;
  bool want_logprobs = false;
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
    draw.seen = seen[w];
    draw.forbidden = workers[w].forbidden;
    draws.push_back(draw);
    drawn_for.push_back(w);
    want_logprobs |= workers[w].logprob;
  }
  if (draws.empty()) return;

  std::vector<std::int32_t> tokens(draws.size());
  std::vector<float> logprobs(draws.size());
  device.sample({.logits = logits,
                 .vocab = vocab,
                 .rows = draws,
                 .tokens = tokens.data(),
                 .logprobs = want_logprobs ? logprobs.data() : nullptr,
                 .finite = true});
  for (std::size_t i = 0; i < draws.size(); ++i) {
    StepResult::Worker& out = result.workers[drawn_for[i]];
    out.token = tokens[i];
    if (workers[drawn_for[i]].logprob) out.logprob = logprobs[i];
  }
}

}  // namespace hogwild
