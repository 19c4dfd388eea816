#include "device/sampling.h"

#include <algorithm>
#include <cmath>
#include <ranges>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"

namespace hogwild {
namespace {

constexpr float kMaxPenalty = 100;  // however often an id was seen, its logit stays finite

void check_ids(std::span<const std::int32_t> ids, std::int64_t vocab, const char* what) {
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= vocab) {
      throw Error(code::kInvalidArgument, std::string(what) + " token id " + std::to_string(id) +
                                              " is outside the vocabulary of " + std::to_string(vocab));
    }
  }
}

void check(bool good, const char* what, double value) {
  if (!good) throw Error(code::kInvalidArgument, std::string(what) + ", received " + std::to_string(value));
}

}  // namespace

void check_sampling(const SampleParams::Row& row, std::int64_t vocab) {
  check(row.temperature >= 0 && std::isfinite(row.temperature), "temperature must be finite and >= 0", row.temperature);
  check(row.top_k >= 0, "top-k must be >= 0", row.top_k);
  check(row.top_p > 0 && row.top_p <= 1, "top-p must be in (0, 1]", row.top_p);
  check(row.min_p >= 0 && row.min_p <= 1, "min-p must be in [0, 1]", row.min_p);
  check(row.repetition_penalty > 0 && std::isfinite(row.repetition_penalty),
        "repetition penalty must be finite and > 0", row.repetition_penalty);
  const auto check_penalty = [](const char* what, float penalty) {
    check(std::fabs(penalty) <= kMaxPenalty, what, penalty);
  };
  check_penalty("presence penalty must be in [-100, 100]", row.presence_penalty);
  check_penalty("frequency penalty must be in [-100, 100]", row.frequency_penalty);
  if (!row.counts.empty() && row.counts.size() != row.seen.size()) refuse("counts: expected one for each id seen");
  check_ids(row.seen, vocab, "seen");
  check_ids(row.forbidden, vocab, "forbidden");
}

bool has_penalty(const SampleParams::Row& row) {
  return row.repetition_penalty != 1 || row.presence_penalty != 0 || row.frequency_penalty != 0;
}

float subtracted(const SampleParams::Row& row, std::size_t i) {
  const float count = row.counts.empty() ? 1 : static_cast<float>(row.counts[i]);
  return row.presence_penalty + count * row.frequency_penalty;
}

void check_sampled(SampleStatus status) {
  switch (status) {
    case SampleStatus::kOk:
      return;
    case SampleStatus::kNotANumber:
      throw Error(code::kInvalidModel, "the logits contain NaN or infinity");
    case SampleStatus::kNothingFinite:
      throw Error(code::kInvalidModel, "no logit is finite");
    case SampleStatus::kPenaltyOverflows:
      refuse("a logit overflows under a penalty");
    case SampleStatus::kAllForbidden:
      refuse("every token with a finite logit is forbidden");
  }
}

std::vector<RankedToken> most_likely(std::span<const float> logits, std::int64_t n, RankedToken known) {
  const auto ids = std::views::iota(std::int32_t{0}, static_cast<std::int32_t>(logits.size()));
  std::vector<std::int32_t> best(static_cast<std::size_t>(std::min(n, std::ssize(logits))));
  std::partial_sort_copy(ids.begin(), ids.end(), best.begin(), best.end(), [logits](std::int32_t a, std::int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
  });
  std::vector<RankedToken> ranked;
  ranked.reserve(best.size());
  for (const std::int32_t id : best) {
    const double distance = double{logits[id]} - logits[known.token];
    ranked.push_back({.token = id, .logprob = static_cast<float>(known.logprob + distance)});
  }
  return ranked;
}

double uniform_random(std::uint64_t seed, std::uint64_t draw) {
  std::uint32_t counter[4] = {static_cast<std::uint32_t>(draw), static_cast<std::uint32_t>(draw >> 32), 0, 0};
  std::uint32_t key[2] = {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; round++) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * counter[2];
    const std::uint32_t next[4] = {
        static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
        static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    std::copy(next, next + 4, counter);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  const std::uint64_t bits = std::uint64_t{counter[1]} << 32 | counter[0];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace hogwild
