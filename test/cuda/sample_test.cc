// Sampling against a plain reference that sorts the vocabulary: every setting, ties, penalties, errors, and the
// frequencies of what is drawn. Also compiles for a GPU (nvcc -x cu).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../native/check.h"
#include "behind_kernel.h"
#include "core/limits.h"
#include "device_array.h"
#include "kernels.h"
#include "simt/simt.h"

namespace hogwild::cuda {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

struct Draw {
  std::vector<float> logits;
  SampleRow row;  // first_seen, first_forbidden: set by `run`
  std::vector<SeenToken> seen;
  std::vector<std::int32_t> forbidden;
};

std::vector<SampledRow> run(const std::vector<Draw>& draws, bool finite = false) {
  const auto vocab = static_cast<std::int64_t>(draws[0].logits.size());
  std::vector<float> logits;
  std::vector<SampleRow> rows;
  std::vector<SeenToken> seen;
  std::vector<std::int32_t> forbidden;
  for (const Draw& draw : draws) {
    SampleRow row = draw.row;
    row.logits_row = static_cast<std::int64_t>(rows.size());
    row.first_seen = static_cast<std::int32_t>(seen.size());
    row.n_seen = static_cast<std::int32_t>(draw.seen.size());
    seen.insert(seen.end(), draw.seen.begin(), draw.seen.end());
    row.first_forbidden = static_cast<std::int32_t>(forbidden.size());
    row.n_forbidden = static_cast<std::int32_t>(draw.forbidden.size());
    forbidden.insert(forbidden.end(), draw.forbidden.begin(), draw.forbidden.end());
    rows.push_back(row);
    logits.insert(logits.end(), draw.logits.begin(), draw.logits.end());
  }
  const simt::DeviceArray<float> device_logits(logits);
  const simt::DeviceArray<SampleRow> device_rows(rows);
  const simt::DeviceArray<SeenToken> device_seen(seen);
  const simt::DeviceArray<std::int32_t> device_forbidden(forbidden);
  const simt::DeviceArray<SampledRow> sampled(std::vector<SampledRow>(rows.size(), {-1, -1.f, SampleStatus::kOk}));
  const auto n = static_cast<std::int64_t>(rows.size());
  const simt::DeviceArray<std::uint8_t> workspace(std::vector<std::uint8_t>(sample_workspace_bytes(n, vocab), 0xff));
  simt::BehindKernel(device_logits, sampled, workspace).run([&](KernelStream stream) {
    return launch_sample({.logits = device_logits.data(),
                          .vocab = vocab,
                          .rows = device_rows.data(),
                          .seen = device_seen.data(),
                          .forbidden = device_forbidden.data(),
                          .n = n,
                          .finite = finite,
                          .sampled = sampled.data(),
                          .workspace = workspace.data()},
                         stream);
  });
  return sampled.to_host();
}

std::vector<SampledRow> run_under_every_schedule(const std::vector<Draw>& draws) {
  const std::vector<SampledRow> result = run(draws);
  const auto check_same = [&] {
    const std::vector<SampledRow> again = run(draws);
    CHECK(std::memcmp(again.data(), result.data(), result.size() * sizeof(SampledRow)) == 0);
  };
#if SIMT_HOST
  for (const simt::Order order : {simt::Order::kReverse, simt::Order::kRandom}) {
    simt::options.order = order;
    check_same();
  }
  simt::options = {};
#else
  check_same();
#endif
  return result;
}

// What may come out: the token at uniform * total, and its neighbours where that lies next to a boundary.
struct Expected {
  std::vector<std::int32_t> tokens;
  double log_sum = 0;
};

Expected expect(const Draw& draw) {
  const auto vocab = static_cast<std::int32_t>(draw.logits.size());
  std::vector<float> logits = draw.logits;
  for (const SeenToken& seen : draw.seen) {
    const float raw = draw.logits[seen.id];
    const float repeated = raw > 0 ? raw / draw.row.repetition_penalty : raw * draw.row.repetition_penalty;
    logits[seen.id] = repeated - seen.subtracted;
  }
  for (const std::int32_t id : draw.forbidden) logits[id] = -kInf;
  std::vector<std::int32_t> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });

  Expected expected;
  const float raw_max = *std::max_element(draw.logits.begin(), draw.logits.end());
  for (const float logit : draw.logits) expected.log_sum += std::exp(static_cast<double>(logit) - raw_max);
  expected.log_sum = raw_max + std::log(expected.log_sum);
  if (draw.row.temperature == 0) {
    expected.tokens = {order[0]};
    return expected;
  }
  const auto weight = [&](std::int32_t id) {
    return std::exp((static_cast<double>(logits[id]) - logits[order[0]]) / draw.row.temperature);
  };
  // Rounding may move a cut, or the draw, across a boundary: both sides are right then.
  constexpr double kSlack = 1e-5;
  for (const double shift : {-kSlack, 0.0, kSlack}) {
    std::size_t kept = draw.row.top_k > 0 ? std::min<std::size_t>(draw.row.top_k, order.size()) : order.size();
    double mass = 0;
    for (std::size_t i = 0; i < kept; ++i) mass += weight(order[i]);
    if (draw.row.top_p < 1) {
      const double wanted = draw.row.top_p * mass * (1 + shift);
      double sum = 0;
      for (std::size_t i = 0; i < kept; ++i) {
        sum += weight(order[i]);
        if (sum >= wanted) kept = i + 1;
      }
    }
    std::vector<std::int32_t> ids(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept));
    const double least = std::min(1.0, draw.row.min_p * (1 + shift));  // the likeliest token always stays
    std::erase_if(ids, [&](auto id) { return weight(id) == 0 || weight(id) < least; });
    std::sort(ids.begin(), ids.end());
    double total = 0;
    for (const std::int32_t id : ids) total += weight(id);
    for (const double nudge : {-kSlack, 0.0, kSlack}) {
      double sum = 0;
      std::int32_t token = ids.back();
      for (const std::int32_t id : ids) {
        sum += weight(id);
        if (sum > (draw.row.uniform + nudge) * total) {
          token = id;
          break;
        }
      }
      expected.tokens.push_back(token);
    }
  }
  return expected;
}

std::mt19937_64 rng(7);

Draw random_draw(std::int64_t vocab) {
  std::normal_distribution<float> normal(0, 3);
  std::uniform_real_distribution<double> uniform;
  const auto chance = [&](int in) { return rng() % static_cast<std::uint64_t>(in) == 0; };
  Draw draw;
  draw.logits.resize(vocab);
  const bool coarse = chance(3);  // many ties
  for (float& logit : draw.logits) logit = coarse ? std::round(normal(rng)) : normal(rng);
  if (chance(4)) draw.logits[rng() % vocab] = -kInf;
  draw.row.uniform = uniform(rng);
  draw.row.temperature = chance(5) ? 0 : static_cast<float>(0.1 + 2 * uniform(rng));
  if (chance(2)) draw.row.top_k = static_cast<std::int32_t>(1 + rng() % (vocab + 3));
  if (chance(2)) draw.row.top_p = chance(4) ? 1e-6f : static_cast<float>(0.05 + 0.95 * uniform(rng));
  if (chance(3)) draw.row.min_p = chance(4) ? 1 : static_cast<float>(0.3 * uniform(rng));
  if (chance(2)) {
    if (chance(2)) draw.row.repetition_penalty = static_cast<float>(0.5 + 2 * uniform(rng));
    const float frequency_penalty = chance(2) ? normal(rng) : 0;
    for (std::int64_t i = 0; i < 5 + vocab / 40; ++i) {  // some twice
      const auto id = static_cast<std::int32_t>(rng() % vocab);
      draw.seen.push_back({id, frequency_penalty * static_cast<float>(1 + id % 3)});
    }
  }
  if (chance(3)) {
    for (std::int64_t i = 0; i < vocab / 3; ++i) draw.forbidden.push_back(static_cast<std::int32_t>(rng() % vocab));
  }
  return draw;
}

void check_draws(const std::vector<Draw>& draws) {
  const std::vector<SampledRow> sampled = run_under_every_schedule(draws);
  for (std::size_t i = 0; i < draws.size(); ++i) {
    const Expected expected = expect(draws[i]);
    const std::string name = "draw " + std::to_string(i) + ": " + std::to_string(sampled[i].token) + " instead of " +
                             std::to_string(expected.tokens[expected.tokens.size() / 2]);
    CHECK_MESSAGE(sampled[i].status == SampleStatus::kOk, name);
    const bool is_expected =
        std::find(expected.tokens.begin(), expected.tokens.end(), sampled[i].token) != expected.tokens.end();
    CHECK_MESSAGE(is_expected, name);
    if (!is_expected) continue;
    const double logprob = draws[i].logits[sampled[i].token] - expected.log_sum;
    CHECK_MESSAGE(std::abs(sampled[i].logprob - logprob) < 1e-5 * (1 + std::abs(logprob)), name);
  }
}

// HOGWILD_TEST_CASES: random cases of each kind, in quarters of the default.
int cases(int by_default) {
  const char* text = std::getenv("HOGWILD_TEST_CASES");
  return text == nullptr ? by_default : std::max(1, by_default * std::atoi(text) / 4);
}

TEST(draws_equal_the_definition) {
  for (const std::int64_t vocab : {1, 2, 31, 420, 2000, 4096, 4097, 20'000}) {
    const int n = cases(vocab < 4000 ? 60 : 15);  // where there are many tokens for a thread, or several CTAs
    std::vector<Draw> draws;
    for (int i = 0; i < n; ++i) {
      draws.push_back(random_draw(vocab));
      if (vocab > 2) continue;
      draws.back().forbidden.clear();  // something must be left
      std::replace(draws.back().logits.begin(), draws.back().logits.end(), -kInf, 0.f);
    }
    check_draws(draws);
  }
}

TEST(ties_go_to_the_lowest_ids) {
  std::vector<Draw> draws;
  for (const float logit : {2.5f, 0.f}) {
    for (const int k : {1, 2, 4096, 4097, 7000}) {  // slices of the vocabulary have 4096
      for (const double uniform : {0.0, 0.999999}) {
        Draw draw;
        draw.logits.assign(10'000, logit);  // a thread walks through several
        draw.logits[3] = -0.f;              // equal to 0
        draw.row.temperature = 1;
        draw.row.top_k = k;
        draw.row.uniform = uniform;
        draws.push_back(draw);
        draw.row.top_p = 0.75;  // of the equal ones that top-k has left
        draws.push_back(draw);
      }
    }
  }
  check_draws(draws);
  for (const Draw& draw : draws) {
    const double kept = draw.row.top_p < 1 ? std::ceil(0.75 * draw.row.top_k) : draw.row.top_k;
    CHECK(run({draw})[0].token <= kept);
  }
}

// The cut lies among equal ones in the second slice of the vocabulary, with likelier ones before and behind it.
TEST(some_of_the_equal_ones_of_a_slice_stay) {
  std::vector<Draw> draws;
  for (const int k : {4600, 5000, 6000}) {
    for (int i = 0; i < 8; ++i) {
      Draw draw;
      draw.logits.assign(9000, 1.f);
      for (std::size_t id = 0; id < draw.logits.size(); id += 10) draw.logits[id] = 2.f;
      draw.row.temperature = 1;
      draw.row.top_k = k;
      draw.row.uniform = 0.3 + 0.08 * i;
      draws.push_back(draw);
    }
  }
  check_draws(draws);
}

// Sums beyond 32 bits, of two crowds of which top-p leaves a part of the second.
TEST(sums_of_many_weights_carry) {
  std::vector<Draw> draws;
  for (const double uniform : {0.3, 0.6, 0.9}) {
    Draw draw;
    draw.logits.assign(1, 0.f);
    for (int i = 0; i < 1000; ++i) {
      for (const float weight : {0.25f, 0.05f}) draw.logits.push_back(std::log(weight) + 1e-5f * static_cast<float>(i));
    }
    draw.row.temperature = 1;
    draw.row.top_p = 0.9f;
    draw.row.uniform = uniform;
    draws.push_back(draw);
  }
  check_draws(draws);
}

TEST(what_is_listed_twice_is_penalised_once) {
  std::vector<Draw> draws(4);
  draws[0].logits = {4, 3};
  draws[1].logits = {-3, -4};
  draws[2].logits = {-3, -3.3f};  // here once does
  for (Draw& draw : draws) {      // twice would change the order
    draw.seen = {{0}, {0}};
    draw.row.repetition_penalty = 1.2f;
  }
  draws[3].logits = {4, 3};
  draws[3].seen = {{0, 0.75f}, {0, 0.75f}};
  check_draws(draws);
}

// Two logits that are equal where the product is rounded, as on the CPU, before something is subtracted from it.
TEST(penalties_are_rounded_one_by_one) {
  Draw draw;
  draw.row.repetition_penalty = 1 + 0x1p-12f;
  draw.logits = {-1 - 0x1p-12f, -0x1p-11f};  // the first becomes -1 - 2^-11 - 2^-24, halfway between two numbers
  draw.seen = {{0, -1}};
  check_draws({draw});
}

// Those of a row are found behind those of other rows, on both sides of the edges of slices.
TEST(each_id_loses_what_is_its_own) {
  std::vector<Draw> draws;
  for (const std::int32_t least : {0, 4095, 4096, 8191, 8192, 8999}) {
    Draw draw;
    draw.logits.assign(9000, 5.f);
    for (std::int32_t id = 0; id < 9000; ++id) draw.seen.push_back({id, id == least ? -1.f : 0.001f * (id % 7)});
    draws.push_back(draw);
  }
  check_draws(draws);
}

TEST(what_was_seen_and_is_forbidden_does_not_come) {
  Draw draw;
  draw.logits = {4, 3};
  draw.seen = {{0}, {0}};
  draw.row.repetition_penalty = 1.2f;
  draw.forbidden = {0};
  check_draws({draw});
}

// Pearson's test at 5 standard deviations, on evenly spread random numbers.
TEST(frequencies_are_the_probabilities) {
  std::vector<Draw> draws;
  Draw draw = random_draw(8);
  draw = {.logits = draw.logits, .row = {}, .seen = {}, .forbidden = {}};
  for (float& logit : draw.logits) logit = std::max(-3.f, std::min(3.f, logit));
  draw.row.temperature = 0.8f;
  constexpr int kDraws = 500;
  for (int i = 0; i < kDraws; ++i) {
    draw.row.uniform = (i + 0.5) / kDraws;
    draws.push_back(draw);
  }
  std::vector<int> counts(8);
  for (const SampledRow& row : run(draws)) ++counts[row.token];
  double total = 0;
  for (const float logit : draw.logits) total += std::exp(logit / 0.8);
  for (int id = 0; id < 8; ++id) {
    const double expected = kDraws * std::exp(draw.logits[id] / 0.8) / total;
    CHECK_MESSAGE(std::abs(counts[id] - expected) <= 1.01, std::to_string(id));  // evenly spread: at most one off
  }
}

TEST(what_cannot_be_sampled_says_so) {
  Draw good;
  good.logits = {1, 2, 3, 4};
  good.row.temperature = 1;
  const auto status = [&](auto change) {
    Draw draw = good;
    change(draw);
    return run({good, draw, good})[1].status;
  };
  CHECK(status([](Draw&) {}) == SampleStatus::kOk);
  CHECK(status([](Draw& d) { d.logits[2] = NAN; }) == SampleStatus::kNotANumber);
  CHECK(status([](Draw& d) { d.logits[0] = kInf; }) == SampleStatus::kNotANumber);
  CHECK(status([](Draw& d) { d.logits.assign(4, -kInf); }) == SampleStatus::kNothingFinite);
  Draw hidden = good;
  hidden.logits[3] = -kInf;
  CHECK(run({hidden})[0].status == SampleStatus::kOk);
  CHECK(run({hidden}, true)[0].status == SampleStatus::kNotANumber);
  hidden.logits[3] = 4;
  hidden.forbidden = {3};
  CHECK(run({hidden}, true)[0].status == SampleStatus::kOk);
  CHECK(status([](Draw& d) { d.forbidden = {0, 1, 2, 3}; }) == SampleStatus::kAllForbidden);
  CHECK(status([](Draw& d) {
          d.logits[1] = 3e38f;
          d.seen = {{1}};
          d.row.repetition_penalty = 0.1f;
        }) == SampleStatus::kPenaltyOverflows);
  CHECK(status([](Draw& d) {
          d.logits[1] = 3e38f;
          d.seen = {{1, -1e38f}};
        }) == SampleStatus::kPenaltyOverflows);
  CHECK(launch_sample({.vocab = 0, .n = 1}, nullptr) == cudaErrorInvalidValue);
  CHECK(launch_sample({.vocab = kMaxVocab + 1, .n = 1}, nullptr) == cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hogwild::cuda

HOGWILD_TEST_MAIN
