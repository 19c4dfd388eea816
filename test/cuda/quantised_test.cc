// Products with quantised weights, and rows of quantised tables, of every format against float64: random blocks, sizes
// with tails, several matrices, biases, accumulation, experts. Under g++ each case also runs under three schedules,
// which must agree bit for bit, and the bytes read are counted.
//
// Also compiles for a GPU (nvcc -x cu).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../native/check.h"
#include "../native/random_blocks.h"
#include "behind_kernel.h"
#include "core/float16.h"
#include "core/fragments.h"
#include "device_array.h"
#include "gated_reference.h"
#include "kernels.h"
#include "simt/simt.h"

namespace hogwild::cuda {
namespace {

using Rng = std::mt19937_64;

constexpr Format kQuantised[] = {Format::kQ8_0,  Format::kQ4_0,    Format::kQ4_1,    Format::kQ5_0,
                                 Format::kQ5_1,  Format::kQ2_K,    Format::kQ3_K,    Format::kQ4_K,
                                 Format::kQ5_K,  Format::kQ6_K,    Format::kIQ4_NL,  Format::kIQ4_XS,
                                 Format::kMXFP4, Format::kInt4G32, Format::kInt4G64, Format::kInt4G128};

struct Weight {
  std::int64_t rows = 0;
  std::vector<float> values;  // [rows, k], as the format means them
  std::vector<std::byte> records;
  std::vector<float> bias, before;
};

Weight random_weight(Rng& rng, Format format, std::int64_t rows, std::int64_t k, std::int64_t tokens) {
  Weight weight{.rows = rows, .values = std::vector<float>(static_cast<std::size_t>(rows * k))};
  const std::vector<std::byte> file = random_blocks(rng, format, rows, k);
  for (std::int64_t row = 0; row < rows; ++row) {
    dequantise_row(format, file.data() + row * row_bytes(format, k), k, weight.values.data() + row * k);
  }
  weight.records.resize(static_cast<std::size_t>(
      matrix_bytes({.data = nullptr, .format = format, .rows = rows, .cols = k, .order = Order::kFragments})));
  // In two parts, as several threads make them.
  const std::int64_t first = rows / 32 * 16;
  const FileRows from = {file.data(), k, {}};
  if (first > 0) write_fragments(format, from, 0, first, weight.records.data());
  write_fragments(format, from, first, rows,
                  weight.records.data() + first / 16 * fragment_count(k) * fragment_bytes(code_info(format)));
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < rows; ++i) weight.bias.push_back(normal(rng));
  for (std::int64_t i = 0; i < rows * tokens; ++i) weight.before.push_back(normal(rng));
  return weight;
}

struct Case {
  Format format = Format::kQ8_0;
  std::int64_t rows = 0, k = 0;
  std::vector<Weight> weights;
  std::vector<float> x;  // numbers of bf16
  bool accumulate = false, bias = false;
  std::int32_t multiprocessors = 1;

  std::string name() const {
    std::string text = std::string(format_name(format)) + ", " + std::to_string(rows) + " rows, k " +
                       std::to_string(k) + ", " + std::to_string(multiprocessors) + " multiprocessors, outputs";
    for (const Weight& weight : weights) text += " " + std::to_string(weight.rows);
    return text;
  }
};

std::vector<float> random_x(Rng& rng, std::int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& value : x) value = bf16_to_f32(f32_to_bf16(normal(rng)));
  return x;
}

Case random_case(std::uint64_t seed, Format format, std::int64_t rows) {
  Rng rng(seed);
  const auto random = [&](std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(high - low + 1));
  };
  const std::int64_t block = format_info(format).block_elements;
  Case c{.format = format, .rows = rows, .k = block * random(1, block == 256 ? 2 : 512 / block)};
  for (std::int64_t i = random(1, 3); i > 0; --i) {
    c.weights.push_back(random_weight(rng, format, random(1, 200), c.k, rows));
  }
  c.x = random_x(rng, rows * c.k);
  c.accumulate = random(0, 1) == 1;
  c.bias = random(0, 1) == 1;
  c.multiprocessors = static_cast<std::int32_t>(random(1, 9));
  return c;
}

template <typename T>
using Array = simt::DeviceArray<T>;
using Result = std::vector<std::vector<float>>;

std::vector<std::uint16_t> in_bf16(const std::vector<float>& values) {
  std::vector<std::uint16_t> bits;
  for (const float value : values) bits.push_back(f32_to_bf16(value));
  return bits;
}

// `gated`: appends what becomes of the first two products, in bf16.
Result run(const Case& c, bool gated = false) {
  const Array<std::uint16_t> x(in_bf16(c.x));
  std::vector<std::unique_ptr<Array<std::byte>>> records;
  std::vector<std::unique_ptr<Array<float>>> biases, ys;
  MatmulLaunch launch;
  launch.params = {.x = x.data(),
                   .x_dtype = Dtype::kBF16,
                   .rows = c.rows,
                   .k = c.k,
                   .n_outputs = static_cast<int>(c.weights.size())};
  launch.multiprocessors = c.multiprocessors;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (std::size_t i = 0; i < c.weights.size(); ++i) {
    const Weight& weight = c.weights[i];
    records.push_back(std::make_unique<Array<std::byte>>(weight.records));
    biases.push_back(std::make_unique<Array<float>>(weight.bias));
    ys.push_back(
        std::make_unique<Array<float>>(c.accumulate ? weight.before : std::vector<float>(weight.before.size(), nan)));
    launch.params.outputs[i] = {.weight = {records[i]->data(), c.format, weight.rows, c.k, Order::kFragments},
                                .bias = c.bias ? biases[i]->data() : nullptr,
                                .y = ys[i]->data(),
                                .accumulate = c.accumulate};
  }
  const Array<std::uint16_t> activated(std::vector<std::uint16_t>(gated ? c.weights[0].before.size() : 0, 0xffff));
  if (gated) launch.gated = {.out = activated.data(), .out_dtype = Dtype::kBF16};
  std::vector<std::uint8_t> memory(quantised_matmul_workspace_bytes(launch), 0xff);
  constexpr std::size_t kTickets = std::size_t{8} << 15;
  CHECK(memory.size() > kTickets);
  std::fill_n(memory.begin(), std::min(memory.size(), kTickets), 0);
  const Array<std::uint8_t> workspace(memory);
  launch.workspace = workspace.data();
  simt::BehindKernel behind(x, workspace, activated);
  for (const auto& y : ys) behind.bring(*y);
  behind.run([&](KernelStream stream) { return launch_quantised_matmul(launch, stream); });
  Result result;
  for (const auto& y : ys) result.push_back(y->to_host());
  if (gated) result.push_back(to_floats(activated.to_host(), Dtype::kBF16));
  return result;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}
bool same_bits(const Result& a, const Result& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const auto& x, const auto& y) { return same_bits(x, y); });
}

// Sums in f32 of products that are exact, of at most k terms; with minima, of those and of the terms without them.
double error_of(Format format, const float* weights, const float* x, std::int64_t k, double before, double found) {
  const CodeInfo info = code_info(format);
  const bool has_min =
      info.scales == Scales::kF16Min || info.scales == Scales::kSuperMin || info.scales == Scales::kF32Zero;
  double exact = before, magnitude = std::abs(before);
  for (std::int64_t first = 0; first < k; first += 32) {
    float largest = 0;
    for (std::int64_t i = first; i < first + 32; ++i) largest = std::max(largest, std::abs(weights[i]));
    for (std::int64_t i = first; i < first + 32; ++i) {
      exact += static_cast<double>(weights[i]) * x[i];
      magnitude += (std::abs(weights[i]) + (has_min ? 4 * largest : 0)) * std::abs(x[i]);
    }
  }
  const double error = std::abs(found - exact) / (static_cast<double>(k + 8) * 0x1p-24 * magnitude + 1e-30);
  return std::isnan(error) ? 1e9 : error;
}

void check_values(const Case& c, const Result& result) {
  double worst = 0;
  for (std::size_t m = 0; m < c.weights.size(); ++m) {
    const Weight& weight = c.weights[m];
    for (std::int64_t row = 0; row < c.rows; ++row) {
      for (std::int64_t output = 0; output < weight.rows; ++output) {
        const auto at = static_cast<std::size_t>(row * weight.rows + output);
        const double before =
            (c.bias ? weight.bias[static_cast<std::size_t>(output)] : 0.) + (c.accumulate ? weight.before[at] : 0.);
        worst = std::max(worst, error_of(c.format, &weight.values[static_cast<std::size_t>(output * c.k)],
                                         &c.x[static_cast<std::size_t>(row * c.k)], c.k, before, result[m][at]));
      }
    }
  }
  CHECK_MESSAGE(worst <= 1, c.name() + ": error / tolerance " + std::to_string(worst));
}

void check_case(const Case& c) {
#if SIMT_HOST
  simt::options = {.order = simt::Order::kForward, .copies = simt::CopyTiming::kLazy};
  simt::stats = {};
#endif
  const Result result = run(c);
#if SIMT_HOST
  CHECK_MESSAGE(simt::stats.ldmatrix_conflicts == 0, c.name());
  if (c.rows <= 64) {
    // Records once, whatever the rows; x once for each tile of 128 outputs.
    std::uint64_t expected = 0;
    for (const Weight& weight : c.weights) {
      expected += weight.records.size() + static_cast<std::uint64_t>((weight.rows + 127) / 128 * c.rows * c.k * 2);
    }
    CHECK_MESSAGE(simt::stats.bytes_copied == expected, c.name());
  }
  const simt::Options schedules[] = {
      {.order = simt::Order::kReverse, .copies = simt::CopyTiming::kEager, .overlap = false},
      {.order = simt::Order::kRandom, .copies = simt::CopyTiming::kLazy, .seed = 5}};
  for (const simt::Options& schedule : schedules) {
    simt::options = schedule;
    CHECK_MESSAGE(same_bits(run(c), result), c.name());
  }
  simt::options = {};
#else
  CHECK_MESSAGE(same_bits(run(c), result), c.name());
#endif
  check_values(c, result);
}

// HOGWILD_TEST_CASES: random cases of each kind, in quarters of the default.
int scaled(int cases) {
  const char* text = std::getenv("HOGWILD_TEST_CASES");
  return text != nullptr ? std::max(1, cases * std::atoi(text) / 4) : cases;
}

TEST(few_rows_equal_the_definition) {
  for (int i = 0; i < scaled(4); ++i) {
    for (const Format format : kQuantised) {
      const std::int64_t rows[] = {1, 9 + i, 5, 17 + 3 * i};
      check_case(random_case(static_cast<std::uint64_t>(100 * i) + static_cast<std::uint64_t>(format), format,
                             rows[static_cast<std::size_t>(i) % 4]));
    }
  }
}

TEST(many_rows_equal_the_definition) {
  for (int i = 0; i < scaled(4); ++i) {
    const Format formats[] = {Format::kQ4_K, Format::kQ6_K, Format::kIQ4_XS, Format::kQ8_0};
    check_case(random_case(static_cast<std::uint64_t>(7000 + i), formats[i % 4], i % 2 ? 70 + 30 * i : 40 + i));
  }
}

// One row's result does not depend, to the last bit, on how many others there are.
TEST(a_row_does_not_depend_on_its_company) {
  for (const Format format : {Format::kQ5_K, Format::kQ4_0, Format::kMXFP4}) {
    const Case all = random_case(33, format, 64);
    const Result together = run(all);
    for (const std::int64_t rows : {1, 9, 17, 33}) {
      Case some = all;
      some.rows = rows;
      some.x.assign(all.x.end() - rows * all.k, all.x.end());
      for (Weight& weight : some.weights)
        weight.before.erase(weight.before.begin(), weight.before.end() - rows * weight.rows);
      const Result alone = run(some);
      for (std::size_t m = 0; m < alone.size(); ++m) {
        const std::vector<float> part(together[m].end() - std::ssize(alone[m]), together[m].end());
        CHECK_MESSAGE(same_bits(alone[m], part), all.name() + ", of which " + std::to_string(rows));
      }
    }
  }
}

TEST(gate_and_up_are_activated_behind_the_product) {
  for (const Format format : {Format::kQ4_K, Format::kQ8_0, Format::kMXFP4}) {
    Case c = random_case(71, format, 11);
    c.accumulate = false;
    Rng rng(72);
    c.weights = {random_weight(rng, format, 170, c.k, c.rows), random_weight(rng, format, 170, c.k, c.rows)};
    const Result products = run(c), result = run(c, true);
    CHECK(same_bits({result[0], result[1]}, products));
    const double worst = worst_gated_error(products[0], products[1], Activation::kSilu, result[2], Dtype::kBF16);
    CHECK_MESSAGE(worst <= 1, c.name() + ": error / tolerance " + std::to_string(worst));
  }
}

TEST(a_row_that_is_not_finite_stays_alone) {
  for (const Format format : {Format::kQ4_1, Format::kQ8_0}) {
    Case c = random_case(5, format, 6);
    c.accumulate = false;
    const Result before = run(c);
    c.x[static_cast<std::size_t>(1 * c.k + 7)] = std::numeric_limits<float>::quiet_NaN();
    const Result after = run(c);
    for (std::size_t m = 0; m < after.size(); ++m) {
      const std::int64_t n = c.weights[m].rows;
      for (std::int64_t i = 0; i < c.rows * n; ++i) {
        const float value = after[m][static_cast<std::size_t>(i)];
        CHECK(i / n == 1 ? std::isnan(value) : value == before[m][static_cast<std::size_t>(i)]);
      }
    }
  }
}

// Runs of rows of three experts, one of them with two.
TEST(products_of_experts_equal_the_definition) {
  for (const Format format : {Format::kMXFP4, Format::kQ4_K, Format::kQ6_K}) {
    Rng rng(static_cast<std::uint64_t>(format));
    const std::int64_t k = 256, n = 70;
    const std::vector<ExpertRun> runs = {{.expert = 0, .first = 0, .rows = 8, .first_run = 0, .runs = 2},
                                         {.expert = 0, .first = 8, .rows = 3, .first_run = 0, .runs = 2},
                                         {.expert = 2, .first = 11, .rows = 1, .first_run = 2, .runs = 1}};
    const std::int64_t rows = 12;
    std::vector<Weight> weights;
    std::vector<std::unique_ptr<Array<std::byte>>> records;
    std::vector<std::unique_ptr<Array<float>>> biases;
    std::vector<ExpertMatrix> table(3 * kExpertMatrices);
    for (int e = 0; e < 3; ++e) {
      weights.push_back(random_weight(rng, format, n, k, 1));
      records.push_back(std::make_unique<Array<std::byte>>(weights.back().records));
      biases.push_back(std::make_unique<Array<float>>(weights.back().bias));
      table[static_cast<std::size_t>(kExpertMatrices * e + 2)] = {records.back()->data(), biases.back()->data()};
    }
    const std::vector<float> x = random_x(rng, rows * k);
    const Array<std::uint16_t> device_x(in_bf16(x));
    const Array<ExpertRun> device_runs(runs);
    const Array<ExpertMatrix> device_table(table);
    const Array<std::int32_t> n_runs(std::vector<std::int32_t>{3});
    const Array<float> y(std::vector<float>(static_cast<std::size_t>(rows * n), NAN));
    MatmulLaunch launch;
    launch.params = {.x = device_x.data(), .x_dtype = Dtype::kBF16, .rows = 8, .k = k, .n_outputs = 1};
    launch.params.outputs[0] = {.weight = {nullptr, format, n, k, Order::kFragments}, .bias = nullptr, .y = y.data()};
    launch.experts = {.runs = device_runs.data(),
                      .n_runs = n_runs.data(),
                      .matrices = device_table.data(),
                      .first_matrix = 2,
                      .max_runs = 5};
    launch.multiprocessors = 2;
    simt::BehindKernel(device_x, device_runs, n_runs, y).run([&](KernelStream stream) {
      return launch_quantised_matmul(launch, stream);
    });
    const std::vector<float> found = y.to_host();
    double worst = 0;
    for (const ExpertRun& run : runs) {
      const Weight& weight = weights[static_cast<std::size_t>(run.expert)];
      for (std::int64_t row = run.first; row < run.first + run.rows; ++row) {
        for (std::int64_t output = 0; output < n; ++output) {
          worst = std::max(
              worst, error_of(format, &weight.values[static_cast<std::size_t>(output * k)],
                              &x[static_cast<std::size_t>(row * k)], k, weight.bias[static_cast<std::size_t>(output)],
                              found[static_cast<std::size_t>(row * n + output)]));
        }
      }
    }
    CHECK_MESSAGE(worst <= 1, std::string(format_name(format)) + ": " + std::to_string(worst));
  }
}

TEST(rows_of_a_table_are_those_of_the_format) {
  for (const Format format : kQuantised) {
    Rng rng(static_cast<std::uint64_t>(format) + 50);
    const std::int64_t cols = format_info(format).block_elements * (rng() % 2 ? 3 : 1), vocab = 37;
    const Weight table = random_weight(rng, format, vocab, cols, 1);
    std::vector<std::int32_t> tokens = {36, 0, 15, 16, 8, 7}, columns(static_cast<std::size_t>(cols));
    for (std::size_t i = 0; i < columns.size(); ++i) columns[i] = static_cast<std::int32_t>(i);
    std::shuffle(columns.begin(), columns.end(), rng);
    const Array<std::byte> records(table.records);
    const Array<std::int32_t> device_tokens(tokens), device_columns(columns);
    for (const bool sorted : {false, true}) {
      const Array<float> out(std::vector<float>(tokens.size() * static_cast<std::size_t>(cols), NAN));
      const std::int32_t* order = sorted ? device_columns.data() : nullptr;
      simt::BehindKernel(out).run([&](KernelStream stream) {
        return launch_quantised_embedding({.rows = std::ssize(tokens),
                                           .table = {records.data(), format, vocab, cols, Order::kFragments, order},
                                           .scale = 2,
                                           .out = out.data()},
                                          {.tokens = device_tokens.data(), .slots = nullptr, .rope = {}, .plan = {}},
                                          stream);
      });
      const std::vector<float> found = out.to_host();
      bool equal = true;
      for (std::size_t t = 0; t < tokens.size(); ++t) {
        for (std::int64_t i = 0; i < cols; ++i) {
          const float exact = 2 * table.values[static_cast<std::size_t>(tokens[t] * cols + i)];
          const std::int64_t at = sorted ? columns[static_cast<std::size_t>(i)] : i;
          // One rounding more where a zero of f32 scales counts as a minimum, or the sum is fused.
          equal &= std::abs(found[t * static_cast<std::size_t>(cols) + static_cast<std::size_t>(at)] - exact) <=
                   1e-5f * std::abs(exact) + 1e-7f;
        }
      }
      CHECK_MESSAGE(equal, format_name(format));
    }
  }
}

TEST(columns_are_put_in_order) {
  Rng rng(8);
  for (const std::int64_t k : {2, 64, 1000}) {
    std::vector<std::int32_t> columns(static_cast<std::size_t>(k));
    for (std::size_t i = 0; i < columns.size(); ++i) columns[i] = static_cast<std::int32_t>(i);
    std::shuffle(columns.begin(), columns.end(), rng);
    const std::int64_t rows = 3;
    std::vector<std::uint16_t> x(static_cast<std::size_t>(rows * k));
    for (std::uint16_t& value : x) value = static_cast<std::uint16_t>(rng());
    const Array<std::uint16_t> device_x(x), out(std::vector<std::uint16_t>(x.size()));
    const Array<std::int32_t> device_columns(columns);
    simt::BehindKernel(device_x, out).run([&](KernelStream stream) {
      return launch_permute(device_x.data(), device_columns.data(), rows, k, out.data(), stream);
    });
    const std::vector<std::uint16_t> found = out.to_host();
    bool equal = true;
    for (std::int64_t i = 0; i < rows * k; ++i) {
      equal &= found[static_cast<std::size_t>(i)] ==
               x[static_cast<std::size_t>(i / k * k + columns[static_cast<std::size_t>(i % k)])];
    }
    CHECK(equal);
  }
}

TEST(what_is_not_supported_is_refused) {
  const Case c = random_case(1, Format::kQ4_0, 2);
  MatmulLaunch good;
  good.params = {.x_dtype = Dtype::kBF16, .rows = 2, .k = c.k, .n_outputs = 1};
  good.params.outputs[0].weight = {nullptr, Format::kQ4_0, 4, c.k, Order::kFragments};
  good.multiprocessors = 1;
  const auto refused = [&](auto change) {
    MatmulLaunch launch = good;
    change(launch);
    return launch_quantised_matmul(launch, nullptr) == cudaErrorInvalidValue;
  };
  CHECK(refused([](MatmulLaunch& l) { l.params.x_dtype = Dtype::kF16; }));
  CHECK(refused([](MatmulLaunch& l) { l.params.rows = 0; }));
  CHECK(refused([](MatmulLaunch& l) { l.params.outputs[0].weight.format = Format::kBF16; }));
  CHECK(refused([](MatmulLaunch& l) { l.params.outputs[0].weight.order = Order::kPanels; }));
  CHECK(launch_permute(nullptr, nullptr, 1, 3, nullptr, nullptr) == cudaErrorInvalidValue);
  CHECK(launch_permute(nullptr, nullptr, 0, 4, nullptr, nullptr) == cudaErrorInvalidValue);
  CHECK(launch_quantised_embedding({.rows = 1, .table = {nullptr, Format::kF32, 4, 8}}, {}, nullptr) ==
        cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hogwild::cuda

HOGWILD_TEST_MAIN
