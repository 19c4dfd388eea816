// Mixtures of experts on the card: the choice, the places, the products of each expert's rows and their sum, against
// float64. Under g++ also under three schedules, which must agree bit for bit, and the bytes read are counted.
//
// Also compiles for a GPU (nvcc -x cu).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../native/check.h"
#include "behind_kernel.h"
#include "core/float16.h"
#include "core/format.h"
#include "device_array.h"
#include "kernels.h"
#include "simt/simt.h"

namespace hogwild::cuda {
namespace {

std::mt19937_64 rng(3);

std::int64_t random_int(std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(high - low + 1));
}

std::vector<float> random_floats(std::int64_t n, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = normal(rng);
  return values;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// HOGWILD_TEST_CASES: random cases of each kind, in quarters of the default.
int scaled(int cases) {
  const char* text = std::getenv("HOGWILD_TEST_CASES");
  return text != nullptr ? std::max(1, cases * std::atoi(text) / 4) : cases;
}

// Two matrices per expert, which read the same rows, as gate and up do: out[r] += sum of weight * (second y).
struct Case {
  std::int32_t left_out = 0;  // rows at the end
  std::int64_t rows = 0, hidden = 0, first_outputs = 0, experts = 0, used = 0;
  std::int32_t run_rows = 8, multiprocessors = 1;
  bool normalized = false, biases = false;
  Dtype dtype = Dtype::kBF16;
  std::vector<float> logits, x, before;
  std::vector<std::vector<std::uint16_t>> weights;  // of each expert, first matrix [F, H], second [H, H]
  std::vector<std::vector<float>> bias;

  std::string name() const {
    return std::to_string(rows) + " rows, " + std::to_string(used) + " of " + std::to_string(experts) + " experts, H " +
           std::to_string(hidden) + ", F " + std::to_string(first_outputs) + ", runs of " + std::to_string(run_rows) +
           ", " + std::to_string(multiprocessors) + " multiprocessors";
  }
  float widen(std::uint16_t bits) const { return dtype == Dtype::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits); }
  std::uint16_t round(float v) const { return dtype == Dtype::kF16 ? f32_to_f16(v) : f32_to_bf16(v); }
  // Rows as the card has them.
  std::vector<std::uint16_t> padded(const std::vector<std::uint16_t>& weight) const {
    const std::int64_t k = padded_cols(hidden);
    std::vector<std::uint16_t> rows(weight.size() / static_cast<std::size_t>(hidden) * static_cast<std::size_t>(k));
    for (std::int64_t i = 0; i < std::ssize(weight); ++i) {
      rows[static_cast<std::size_t>(i / hidden * k + i % hidden)] = weight[static_cast<std::size_t>(i)];
    }
    return rows;
  }
  std::int64_t outputs_of(int matrix) const { return matrix == 0 ? first_outputs : hidden; }
};

Case random_case(int i, std::int64_t rows, std::int64_t experts, std::int64_t used) {
  Case c;
  c.rows = rows;
  c.experts = experts;
  c.used = used;
  c.hidden = i % 3 == 1 ? random_int(1, 160) : 8 * random_int(1, 20);
  c.first_outputs = random_int(1, 150);
  c.multiprocessors = static_cast<std::int32_t>(random_int(1, 9));
  c.run_rows = std::vector<std::int32_t>{8, 16, 32, 64}[static_cast<std::size_t>(i % 4)];
  c.normalized = i % 2 == 0;
  c.biases = i % 3 == 0;
  c.dtype = i % 5 == 0 ? Dtype::kF16 : Dtype::kBF16;
  c.logits = random_floats(rows * experts, 2);
  c.x = random_floats(rows * c.hidden);
  c.before = random_floats(rows * c.hidden);
  for (std::int64_t e = 0; e < experts; ++e) {
    for (const int matrix : {0, 1}) {
      std::vector<std::uint16_t>& weight = c.weights.emplace_back();
      for (const float value : random_floats(c.outputs_of(matrix) * c.hidden)) weight.push_back(c.round(value));
      c.bias.push_back(random_floats(c.outputs_of(matrix)));
    }
  }
  return c;
}

struct Result {
  std::vector<std::int32_t> experts, places;
  std::vector<float> weights, first, out;  // first: [pairs, F], at the places
  std::vector<ExpertRun> runs;
};

template <typename T>
using Array = simt::DeviceArray<T>;

Result run(const Case& c) {
  const std::int64_t pairs = c.rows * c.used;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Array<float> logits(c.logits), x(c.x), out(c.before);
  const Array<std::int32_t> experts(std::vector<std::int32_t>(pairs, -1)), places(std::vector<std::int32_t>(pairs, -1));
  const Array<float> weights(std::vector<float>(pairs, nan));
  const std::int64_t max_runs = max_expert_runs(pairs, c.experts, c.run_rows);
  const Array<ExpertRun> runs{std::vector<ExpertRun>(max_runs)};
  const Array<std::int32_t> n_runs(std::vector<std::int32_t>(1, -1));
  std::vector<std::unique_ptr<Array<std::uint16_t>>> matrices;
  std::vector<std::unique_ptr<Array<float>>> biases;
  std::vector<ExpertMatrix> table;
  for (std::size_t i = 0; i < c.weights.size(); ++i) {
    matrices.push_back(std::make_unique<Array<std::uint16_t>>(c.padded(c.weights[i])));
    biases.push_back(std::make_unique<Array<float>>(c.bias[i]));
    if (i % 2 == 0) table.push_back({});  // of the three the first is not used
    table.push_back({matrices.back()->data(), c.biases ? biases.back()->data() : nullptr});
  }
  const Array<ExpertMatrix> device_table(table);
  const std::vector<FeedForward> count(static_cast<std::size_t>(c.experts));
  const Array<std::int32_t> n_rows(std::vector<std::int32_t>{static_cast<std::int32_t>(c.rows) - c.left_out});

  const RoutingLaunch routing{.params = {.router_logits = logits.data(),
                                         .rows = c.rows,
                                         .hidden = c.hidden,
                                         .intermediate = c.first_outputs,
                                         .experts = count,
                                         .used = c.used,
                                         .normalized = c.normalized,
                                         .out = out.data()},
                              .n_rows = c.left_out > 0 ? n_rows.data() : nullptr,
                              .run_rows = c.run_rows,
                              .experts = experts.data(),
                              .weights = weights.data(),
                              .places = places.data(),
                              .runs = runs.data(),
                              .n_runs = n_runs.data()};
  const std::int64_t k = padded_cols(c.hidden);
  const Array<std::uint16_t> gathered(std::vector<std::uint16_t>(pairs * k, 0xffff));
  const Array<float> first(std::vector<float>(pairs * c.first_outputs, nan));
  const Array<float> second(std::vector<float>(pairs * c.hidden, nan));
  MatmulLaunch products;
  products.params = {.x = gathered.data(), .x_dtype = c.dtype, .rows = c.run_rows, .k = k, .n_outputs = 2};
  products.params.outputs[0] = {.weight = {nullptr, format_of(c.dtype), c.first_outputs, k}, .y = first.data()};
  products.params.outputs[1] = {.weight = {nullptr, format_of(c.dtype), c.hidden, k}, .y = second.data()};
  products.experts = {.runs = runs.data(),
                      .n_runs = n_runs.data(),
                      .matrices = device_table.data(),
                      .first_matrix = 1,
                      .max_runs = static_cast<std::int32_t>(max_runs)};
  products.multiprocessors = c.multiprocessors;
  simt::BehindKernel(logits, x, out, experts, places, weights, runs, n_runs, gathered, first, second)
      .run([&](KernelStream stream) {
        const GatherParams rows = {.x = x.data(), .cols = c.hidden, .dtype = c.dtype, .out = gathered.data()};
        cudaError_t error = launch_routing(routing, stream);
        if (error == cudaSuccess) error = launch_gather(routing, rows, stream);
        if (error == cudaSuccess) error = launch_matmul(products, stream);
        return error == cudaSuccess ? launch_combine(routing, second.data(), stream) : error;
      });
  Result result{experts.to_host(), places.to_host(), weights.to_host(), first.to_host(), out.to_host(), runs.to_host()};
  result.runs.resize(static_cast<std::size_t>(std::clamp<std::int64_t>(n_runs.to_host()[0], 0, max_runs)));
  return result;
}

// What a row goes to, with which weight.
std::vector<std::size_t> order_of(const Case& c, std::int64_t row) {
  const float* logits = c.logits.data() + row * c.experts;
  std::vector<std::size_t> order(static_cast<std::size_t>(c.experts));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
  return order;
}
double weight_of(const Case& c, std::int64_t row, std::size_t j, const std::vector<std::size_t>& order) {
  const float* logits = c.logits.data() + row * c.experts;
  double sum = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (!c.normalized || i < static_cast<std::size_t>(c.used)) sum += std::exp(double{logits[order[i]]});
  }
  return std::exp(double{logits[order[j]]}) / sum;
}

// Each pair has one place, those of an expert lie together, and the runs are these places.
void check_places(const Case& c, const Result& result) {
  std::vector<std::int32_t> at(result.places.size(), -1);  // the pair at a place
  bool right = true;
  for (std::size_t pair = 0; pair < at.size(); ++pair) {
    const std::int32_t place = result.places[pair];
    right &= place >= 0 && place < std::ssize(at) && at[static_cast<std::size_t>(place)] == -1;
    if (!right) break;
    at[static_cast<std::size_t>(place)] = static_cast<std::int32_t>(pair);
  }
  CHECK_MESSAGE(right, c.name());
  if (!right) return;
  std::int32_t next = 0;
  for (std::size_t i = 0; i < result.runs.size(); ++i) {
    const ExpertRun& run = result.runs[i];
    right &= run.first == next && run.rows >= 1 && run.rows <= c.run_rows && run.runs >= 1;
    right &= static_cast<std::size_t>(run.first_run) <= i && i < static_cast<std::size_t>(run.first_run + run.runs);
    for (std::int32_t p = run.first; p < run.first + run.rows && p < std::ssize(at); ++p) {
      right &= result.experts[static_cast<std::size_t>(at[static_cast<std::size_t>(p)])] == run.expert;
    }
    next += run.rows;
  }
  CHECK_MESSAGE(right && next == std::ssize(at), c.name());
}

void check_values(const Case& c, const Result& result) {
  double worst = 0, worst_weight = 0;
  bool chosen = true;
  const auto product = [&](std::int64_t row, std::size_t e, int matrix, std::int64_t output, double& magnitude) {
    const std::vector<std::uint16_t>& weight = c.weights[2 * e + static_cast<std::size_t>(matrix)];
    double sum = c.biases ? c.bias[2 * e + static_cast<std::size_t>(matrix)][static_cast<std::size_t>(output)] : 0;
    magnitude = std::abs(sum);
    for (std::int64_t i = 0; i < c.hidden; ++i) {
      const double one = static_cast<double>(c.widen(weight[static_cast<std::size_t>(output * c.hidden + i)])) *
                         c.widen(c.round(c.x[static_cast<std::size_t>(row * c.hidden + i)]));
      sum += one;
      magnitude += std::abs(one);
    }
    return sum;
  };
  const auto compare = [&](double found, double exact, double magnitude) {
    const double error = std::abs(found - exact) / (static_cast<double>(c.hidden + 40) * 0x1p-24 * (magnitude + 4));
    worst = std::max(worst, std::isnan(error) ? 1e9 : error);
  };
  for (std::int64_t row = 0; row < c.rows; ++row) {
    const std::vector<std::size_t> order = order_of(c, row);
    for (std::size_t j = 0; j < static_cast<std::size_t>(c.used); ++j) {
      const auto pair = static_cast<std::size_t>(row * c.used) + j;
      chosen &= static_cast<std::size_t>(result.experts[pair]) == order[j];
      const double weight = weight_of(c, row, j, order);
      worst_weight = std::max(worst_weight, std::abs(result.weights[pair] - weight) / (4e-6 * weight + 1e-30));
      for (std::int64_t output = 0; output < c.first_outputs; ++output) {
        double magnitude = 0;
        const double exact = product(row, order[j], 0, output, magnitude);
        compare(result.first[static_cast<std::size_t>(result.places[pair] * c.first_outputs + output)], exact,
                magnitude);
      }
    }
    for (std::int64_t output = 0; output < c.hidden; ++output) {
      const auto at = static_cast<std::size_t>(row * c.hidden + output);
      double exact = c.before[at], magnitude = std::abs(exact);
      for (std::size_t j = 0; j < static_cast<std::size_t>(c.used); ++j) {
        double of_product = 0;
        const double weight = weight_of(c, row, j, order);
        exact += weight * product(row, order[j], 1, output, of_product);
        magnitude += weight * of_product;
      }
      compare(result.out[at], exact, 4 * magnitude);
    }
  }
  CHECK_MESSAGE(chosen, c.name());
  CHECK_MESSAGE(worst_weight <= 1, c.name() + ": weights " + std::to_string(worst_weight));
  CHECK_MESSAGE(worst <= 1, c.name() + ": error / tolerance " + std::to_string(worst));
}

void check_case(const Case& c) {
#if SIMT_HOST
  simt::options = {.order = simt::Order::kForward, .copies = simt::CopyTiming::kLazy};
  simt::stats = {};
#endif
  const Result result = run(c);
  check_places(c, result);
  check_values(c, result);
#if SIMT_HOST
  CHECK_MESSAGE(simt::stats.ldmatrix_conflicts == 0, c.name());
  // Each run reads its expert's matrices once, and x once for each tile of 64 outputs.
  const auto bytes = [&](std::int64_t rows, std::int64_t times) {
    return static_cast<std::uint64_t>(rows * padded_cols(c.hidden) * 2 * times);
  };
  const std::int64_t tiles = (c.first_outputs + 63) / 64 + (c.hidden + 63) / 64;
  CHECK_MESSAGE(simt::stats.bytes_copied ==
                    bytes(c.first_outputs + c.hidden, std::ssize(result.runs)) + bytes(c.rows * c.used, tiles),
                c.name());
  const simt::Options schedules[] = {
      {.order = simt::Order::kReverse, .copies = simt::CopyTiming::kEager, .overlap = false},
      {.order = simt::Order::kRandom, .copies = simt::CopyTiming::kLazy, .seed = 5}};
  for (const simt::Options& schedule : schedules) {
    simt::options = schedule;
    CHECK_MESSAGE(same_bits(run(c).out, result.out), c.name());
  }
  simt::options = {};
#else
  CHECK_MESSAGE(same_bits(run(c).out, result.out), c.name());
#endif
}

TEST(few_rows_equal_the_definition) {
  for (int i = 0; i < scaled(24); ++i) {
    const std::int64_t experts = random_int(2, 12);
    check_case(random_case(i, random_int(1, 12), experts, random_int(1, std::min<std::int64_t>(experts, 4))));
  }
}

TEST(many_rows_equal_the_definition) {
  for (int i = 0; i < scaled(8); ++i) check_case(random_case(i, random_int(40, 120), 3, 1 + i % 3));
}

// More experts than lanes, and more of them used.
TEST(many_experts_equal_the_definition) {
  for (int i = 0; i < scaled(4); ++i) {
    const std::int64_t experts = random_int(33, 70);
    check_case(random_case(i, 3, experts, i % 2 ? experts : 7));
  }
}

// One row's result does not depend, to the last bit, on the other rows or on the size of the runs.
TEST(a_row_does_not_depend_on_its_company) {
  for (int i = 0; i < scaled(4); ++i) {
    Case all = random_case(i, 24, 5, 2);
    all.run_rows = 32;
    const Result together = run(all);
    for (const std::int64_t rows : {1, 7, 13}) {
      Case some = all;
      some.rows = rows;
      some.run_rows = rows < 8 ? 8 : 16;
      some.logits.assign(all.logits.end() - rows * all.experts, all.logits.end());
      some.x.assign(all.x.end() - rows * all.hidden, all.x.end());
      some.before.assign(all.before.end() - rows * all.hidden, all.before.end());
      CHECK_MESSAGE(same_bits(run(some).out, {together.out.end() - rows * all.hidden, together.out.end()}), all.name());
    }
  }
}

// In their order, as many as there are, each expert's side by side; none of a group that no row goes to.
TEST(runs_of_each_group_are_selected) {
  for (const auto& [rows, n_experts] : {std::pair(100, 3), {40, 6}, {3, 70}, {20, 70}}) {
    Case c = random_case(0, rows, n_experts, std::min(n_experts, 7));
    c.run_rows = 8;
    const Result routed = run(c);
    std::vector<ExpertMatrix> table(static_cast<std::size_t>(n_experts) * kExpertMatrices);
    for (std::size_t e = 0; e < table.size() / kExpertMatrices; ++e) {
      const auto group = static_cast<std::int32_t>(rng() % 3);
      for (std::size_t i = 0; i < kExpertMatrices; ++i) table[kExpertMatrices * e + i].group = group;
    }
    const Array<ExpertMatrix> device_table(table);
    std::vector<ExpertRun> behind = routed.runs;  // what lies behind the runs of the step
    behind.insert(behind.end(), routed.runs.begin(), routed.runs.end());
    const Array<ExpertRun> runs(behind);
    const Array<std::int32_t> n_runs(std::vector<std::int32_t>(1, static_cast<std::int32_t>(routed.runs.size())));
    const std::vector<FeedForward> experts(static_cast<std::size_t>(n_experts));
    const RoutingLaunch routing{.params = {.rows = c.rows, .hidden = c.hidden, .experts = experts, .used = c.used},
                                .run_rows = c.run_rows,
                                .runs = runs.data(),
                                .n_runs = n_runs.data()};
    for (std::int32_t group = 0; group <= 3; ++group) {
      std::vector<ExpertRun> expected;
      for (const ExpertRun& run : routed.runs) {
        if (table[static_cast<std::size_t>(run.expert) * kExpertMatrices].group != group) continue;
        const auto own = std::find_if(expected.begin(), expected.end(),
                                      [&run](const ExpertRun& other) { return other.expert == run.expert; });
        const auto first_run = static_cast<std::int32_t>(own - expected.begin());
        expected.push_back({run.expert, run.first, run.rows, first_run, run.runs});
      }
      const Array<ExpertRun> selected(std::vector<ExpertRun>(routed.runs.size(), {-1, -1, -1, -1, -1}));
      const Array<std::int32_t> n_selected(std::vector<std::int32_t>(1, -1));
      simt::check_launch(launch_select_runs(
          routing,
          {.matrices = device_table.data(), .group = group, .runs = selected.data(), .n_runs = n_selected.data()},
          nullptr));
      const std::vector<ExpertRun> found = selected.to_host();
      bool right = n_selected.to_host()[0] == std::ssize(expected);
      for (std::size_t i = 0; i < found.size(); ++i) {
        const ExpertRun wanted = i < expected.size() ? expected[i] : ExpertRun{-1, -1, -1, -1, -1};
        right &= std::memcmp(&found[i], &wanted, sizeof wanted) == 0;
      }
      CHECK_MESSAGE(right, c.name() + ", group " + std::to_string(group));
    }
  }
}

// Columns in the order of each expert's own matrix, of rows in their order or at their places; zeros behind them.
TEST(rows_are_gathered_in_the_order_of_columns) {
  for (const bool at_places : {false, true}) {
    const Case c = random_case(2, 9, 4, 2);
    const std::int64_t pairs = c.rows * c.used, cols = 37, k = padded_cols(cols);
    const Result routed = run(c);
    const std::vector<FeedForward> experts(4);
    const Array<std::int32_t> chosen(routed.experts), places(routed.places);
    const RoutingLaunch routing{.params = {.rows = c.rows, .hidden = c.hidden, .experts = experts, .used = c.used},
                                .run_rows = c.run_rows,
                                .experts = chosen.data(),
                                .places = places.data()};
    std::vector<std::vector<std::int32_t>> columns;
    std::vector<std::unique_ptr<Array<std::int32_t>>> device_columns;
    std::vector<ExpertMatrix> table(4 * kExpertMatrices);
    for (std::size_t e = 0; e < 4; ++e) {
      std::vector<std::int32_t>& own = columns.emplace_back(cols);
      for (std::size_t i = 0; i < own.size(); ++i) own[i] = static_cast<std::int32_t>(i);
      std::shuffle(own.begin(), own.end(), rng);
      device_columns.push_back(std::make_unique<Array<std::int32_t>>(own));
      if (e != 1) table[kExpertMatrices * e + 2].columns = device_columns.back()->data();
    }
    std::iota(columns[1].begin(), columns[1].end(), 0);
    const std::vector<float> x = random_floats((at_places ? pairs : c.rows) * cols);
    const Array<float> device_x(x);
    const Array<ExpertMatrix> device_table(table);
    const Array<std::uint16_t> out(std::vector<std::uint16_t>(pairs * k, 0xffff));
    simt::BehindKernel(device_x, chosen, places, out).run([&](KernelStream stream) {
      return launch_gather(routing,
                           {.x = device_x.data(),
                            .at_places = at_places,
                            .cols = cols,
                            .matrices = device_table.data(),
                            .matrix = 2,
                            .out = out.data()},
                           stream);
    });
    const std::vector<std::uint16_t> found = out.to_host();
    bool right = true;
    for (std::int64_t pair = 0; pair < pairs; ++pair) {
      const std::int64_t place = routed.places[static_cast<std::size_t>(pair)];
      const auto& order = columns[static_cast<std::size_t>(routed.experts[static_cast<std::size_t>(pair)])];
      const std::int64_t row = at_places ? place : pair / c.used;
      for (std::int64_t i = 0; i < k; ++i) {
        const std::uint16_t value =
            i < cols ? f32_to_bf16(x[static_cast<std::size_t>(row * cols + order[static_cast<std::size_t>(i)])])
                     : std::uint16_t{0};
        right &= found[static_cast<std::size_t>(place * k + i)] == value;
      }
    }
    CHECK(right);
  }
}

// What a graph was captured for may be more than a step has.
TEST(rows_beyond_the_step_go_nowhere) {
  Case c = random_case(0, 8, 6, 2);
  c.left_out = 3;
  const Result result = run(c);
  Case some = c;
  some.rows = 5;
  some.left_out = 0;
  some.logits.resize(5 * 6);
  some.x.resize(static_cast<std::size_t>(5 * c.hidden));
  some.before.resize(static_cast<std::size_t>(5 * c.hidden));
  const Result alone = run(some);
  CHECK(alone.runs.size() == result.runs.size());
  std::int64_t rows = 0;
  for (const ExpertRun& run : result.runs) rows += run.rows;
  CHECK(rows == 5 * 2);
  std::vector<float> expected = alone.out;
  expected.insert(expected.end(), c.before.end() - 3 * c.hidden, c.before.end());
  CHECK(same_bits(result.out, expected));
}

TEST(equal_logits_go_to_the_lower_index) {
  Case c = random_case(0, 3, 40, 5);
  std::fill(c.logits.begin(), c.logits.end(), 0.5f);
  c.logits[7] = c.logits[39] = 1;  // of row 0
  check_case(c);
}

TEST(logits_that_are_not_finite_stay_in_their_row) {
  for (const bool normalized : {false, true}) {
    Case c = random_case(1, 6, 9, 3);
    c.normalized = normalized;
    const Result before = run(c);
    const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    c.logits[1 * 9 + 4] = nan;
    std::fill_n(c.logits.begin() + 2 * 9, 9, nan);
    c.logits[3 * 9 + 8] = inf;
    c.logits[4 * 9 + 2] = -inf;
    const Result after = run(c);
    check_places(c, after);
    for (std::int64_t row = 0; row < c.rows; ++row) {
      const std::vector<float> out(after.out.begin() + row * c.hidden, after.out.begin() + (row + 1) * c.hidden);
      const std::vector<float> was(before.out.begin() + row * c.hidden, before.out.begin() + (row + 1) * c.hidden);
      if (row >= 1 && row <= 3) {
        CHECK(std::all_of(out.begin(), out.end(), [](float value) { return std::isnan(value); }));
      } else if (row == 4) {
        CHECK(std::none_of(out.begin(), out.end(), [](float value) { return std::isnan(value); }));
      } else {
        CHECK(same_bits(out, was));
      }
    }
  }
}

TEST(what_is_not_supported_is_refused) {
  const std::vector<FeedForward> experts(4);
  RoutingLaunch good{.params = {.rows = 2, .hidden = 8, .experts = experts, .used = 2}, .run_rows = 8};
  const auto refused = [&](auto change) {
    RoutingLaunch launch = good;
    change(launch);
    return launch_routing(launch, nullptr) == cudaErrorInvalidValue &&
           launch_select_runs(launch, {}, nullptr) == cudaErrorInvalidValue;
  };
  CHECK(refused([](RoutingLaunch& l) { l.params.rows = 0; }));
  CHECK(refused([](RoutingLaunch& l) { l.params.used = 0; }));
  CHECK(refused([](RoutingLaunch& l) { l.params.used = 5; }));
  CHECK(refused([](RoutingLaunch& l) { l.params.hidden = 0; }));
  CHECK(refused([](RoutingLaunch& l) { l.params.rows = std::int64_t{1} << 40; }));
  CHECK(refused([](RoutingLaunch& l) { l.run_rows = 0; }));
  MatmulLaunch products;
  const ExpertRun run;
  products.params = {.x_dtype = Dtype::kBF16, .rows = 65, .k = 8, .n_outputs = 1};
  products.params.outputs[0].weight = {nullptr, Format::kBF16, 4, 8};
  products.multiprocessors = 1;
  products.experts = {.runs = &run, .max_runs = 1};
  CHECK(launch_matmul(products, nullptr) == cudaErrorInvalidValue);  // more rows than a tile has
  products.params.rows = 64;
  products.experts.max_runs = 0;
  CHECK(launch_matmul(products, nullptr) == cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hogwild::cuda

HOGWILD_TEST_MAIN
