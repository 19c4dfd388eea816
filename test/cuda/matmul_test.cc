// The matrix products against float64: random sizes with tails everywhere, several matrices, biases,
// accumulation. Under g++ each case also runs under three schedules, which must agree bit for bit, and the
// bytes read are counted.
//
// Also compiles for a GPU (nvcc -x cu).
#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../native/check.h"
#include "behind_kernel.h"
#include "core/float16.h"
#include "core/format.h"
#include "device_array.h"
#include "gated_reference.h"
#include "kernels.h"
#include "quotient.cuh"
#include "simt/simt.h"

namespace hogwild::cuda {
namespace {

using Rng = std::mt19937_64;

struct Case {
  Dtype dtype = Dtype::kBF16;
  std::int64_t rows = 0;
  std::int64_t k = 0;
  std::vector<std::int64_t> outputs;  // of each matrix
  bool accumulate = false;
  bool bias = false;
  std::int32_t multiprocessors = 1;

  std::vector<float> x;
  std::vector<std::vector<std::uint16_t>> weights;
  std::vector<std::vector<float>> biases, before;  // `before`: y as it was

  std::string name() const {
    std::string text = std::string(dtype_name(dtype)) + ", " + std::to_string(rows) + " rows, k " + std::to_string(k) +
                       ", " + std::to_string(multiprocessors) + " multiprocessors, outputs";
    for (const std::int64_t n : outputs) text += " " + std::to_string(n);
    return text;
  }
  float widen(std::uint16_t bits) const { return dtype == Dtype::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits); }
  std::uint16_t round(float v) const { return dtype == Dtype::kF16 ? f32_to_f16(v) : f32_to_bf16(v); }
};

void fill(Case& c, std::uint64_t seed) {
  Rng rng(seed);
  std::normal_distribution<float> normal;
  const auto floats = [&](std::int64_t n) {
    std::vector<float> values(n);
    for (float& value : values) value = normal(rng);
    return values;
  };
  c.x = floats(c.rows * c.k);
  for (const std::int64_t n : c.outputs) {
    std::vector<std::uint16_t>& weight = c.weights.emplace_back(n * c.k);
    for (std::uint16_t& bits : weight) bits = c.round(normal(rng));
    c.biases.push_back(floats(n));
    c.before.push_back(floats(c.rows * n));
  }
}

Case random_case(std::uint64_t seed, std::int64_t max_rows) {
  Rng rng(seed);
  const auto random = [&](std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(high - low + 1));
  };
  Case c;
  c.dtype = random(0, 1) ? Dtype::kBF16 : Dtype::kF16;
  c.rows = random(1, max_rows);
  c.k = 8 * random(1, 40);
  for (std::int64_t i = random(1, 3); i > 0; --i) c.outputs.push_back(random(1, 200));
  c.accumulate = random(0, 1) == 1;
  c.bias = random(0, 1) == 1;
  c.multiprocessors = static_cast<std::int32_t>(random(1, 9));
  fill(c, seed + 1);
  return c;
}

using Result = std::vector<std::vector<float>>;  // y of each matrix

// What becomes of the first two products.
struct Gate {
  Activation activation = Activation::kSilu;
  Dtype dtype = Dtype::kF32;
  bool in_place = false;  // over the gate
};

// `twice`: on the workspace as the first run leaves it. `gate`: appends what it gives.
Result run(const Case& c, bool twice = false, const Gate* gate = nullptr) {
  std::vector<std::uint16_t> rounded;
  for (const float value : c.x) rounded.push_back(c.round(value));
  const simt::DeviceArray<std::uint16_t> x(rounded);
  std::vector<simt::DeviceArray<std::uint16_t>*> weights;
  std::vector<simt::DeviceArray<float>*> biases, ys;
  MatmulLaunch launch;
  launch.params.rows = c.rows;
  launch.params.k = c.k;
  launch.params.x = x.data();
  launch.params.x_dtype = c.dtype;
  launch.params.n_outputs = static_cast<int>(c.outputs.size());
  launch.multiprocessors = c.multiprocessors;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (std::size_t i = 0; i < c.outputs.size(); ++i) {
    weights.push_back(new simt::DeviceArray<std::uint16_t>(c.weights[i]));
    biases.push_back(new simt::DeviceArray<float>(c.biases[i]));
    ys.push_back(
        new simt::DeviceArray<float>(c.accumulate ? c.before[i] : std::vector<float>(c.before[i].size(), nan)));
    launch.params.outputs[i].weight = {weights[i]->data(), format_of(c.dtype), c.outputs[i], c.k};
    launch.params.outputs[i].bias = c.bias ? biases[i]->data() : nullptr;
    launch.params.outputs[i].y = ys[i]->data();
    launch.params.outputs[i].accumulate = c.accumulate;
  }
  const bool is_narrow = gate != nullptr && gate->dtype != Dtype::kF32;
  const std::size_t n_gated = gate == nullptr || gate->in_place ? 0 : c.before[0].size();
  const simt::DeviceArray<float> wide(std::vector<float>(is_narrow ? 0 : n_gated, nan));
  const simt::DeviceArray<std::uint16_t> narrow(std::vector<std::uint16_t>(is_narrow ? n_gated : 0, 0xffff));
  if (gate != nullptr) {
    void* const out = gate->in_place ? static_cast<void*>(ys[0]->data())
                      : is_narrow    ? static_cast<void*>(narrow.data())
                                     : static_cast<void*>(wide.data());
    launch.gated = {.out = out, .activation = gate->activation, .out_dtype = gate->dtype};
  }
  // The part that need not be zero is NaN: what is read there must have been written.
  std::vector<std::uint8_t> memory(matmul_workspace_bytes(launch), 0xff);
  constexpr std::size_t kTickets = std::size_t{8} << 15;
  CHECK(memory.size() > kTickets);
  std::fill_n(memory.begin(), std::min(memory.size(), kTickets), 0);
  const simt::DeviceArray<std::uint8_t> workspace(memory);
  launch.workspace = workspace.data();
  simt::BehindKernel behind(x, workspace, wide, narrow);
  for (const auto* y : ys) behind.bring(*y);
  behind.run([&](KernelStream stream) {
    const cudaError_t error = launch_matmul(launch, stream);
    return twice && !c.accumulate && error == cudaSuccess ? launch_matmul(launch, stream) : error;
  });
  const std::vector<std::uint8_t> after = workspace.to_host();
  CHECK_MESSAGE(std::all_of(after.begin(), after.begin() + kTickets, [](std::uint8_t byte) { return byte == 0; }),
                c.name());
  Result result;
  for (std::size_t i = 0; i < c.outputs.size(); ++i) {
    result.push_back(ys[i]->to_host());
    delete weights[i];
    delete biases[i];
    delete ys[i];
  }
  if (n_gated > 0) result.push_back(is_narrow ? to_floats(narrow.to_host(), gate->dtype) : wide.to_host());
  return result;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}
bool same_bits(const Result& a, const Result& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const auto& x, const auto& y) { return same_bits(x, y); });
}

// Exact, but for the one rounding of x, which is part of what is computed; f32 sums of k products err by at
// most k units of 2^-24 of the sum of magnitudes.
void check_values(const Case& c, const Result& result) {
  double worst = 0;
  for (std::size_t m = 0; m < c.outputs.size(); ++m) {
    const std::int64_t n = c.outputs[m];
    for (std::int64_t row = 0; row < c.rows; ++row) {
      for (std::int64_t output = 0; output < n; ++output) {
        double exact = 0, magnitude = 0;
        for (std::int64_t i = 0; i < c.k; ++i) {
          const double product =
              static_cast<double>(c.widen(c.round(c.x[row * c.k + i]))) * c.widen(c.weights[m][output * c.k + i]);
          exact += product;
          magnitude += std::abs(product);
        }
        if (c.bias) exact += c.biases[m][output];
        if (c.accumulate) exact += c.before[m][row * n + output];
        const double tolerance = static_cast<double>(c.k + 4) * 0x1p-24 * (magnitude + 4);
        const double error = std::abs(result[m][row * n + output] - exact) / tolerance;
        worst = std::max(worst, std::isnan(error) ? 1e9 : error);
      }
    }
  }
  CHECK_MESSAGE(worst <= 1, c.name() + ": error / tolerance " + std::to_string(worst));
}

[[maybe_unused]] std::uint64_t bytes_of_weights(const Case& c) {
  std::uint64_t elements = 0;
  for (const std::int64_t n : c.outputs) elements += static_cast<std::uint64_t>(n * c.k);
  return elements * 2;
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
    // Weights once, whatever the rows; x once for each tile of 64 outputs.
    std::uint64_t tiles = 0;
    for (const std::int64_t n : c.outputs) tiles += static_cast<std::uint64_t>((n + 63) / 64);
    const std::uint64_t x_bytes = tiles * static_cast<std::uint64_t>(c.rows * c.k) * 2;
    CHECK_MESSAGE(simt::stats.bytes_copied == bytes_of_weights(c) + x_bytes, c.name());
  }
  const simt::Options schedules[] = {
      {.order = simt::Order::kReverse, .copies = simt::CopyTiming::kEager, .overlap = false},
      {.order = simt::Order::kRandom, .copies = simt::CopyTiming::kLazy, .seed = 5}};
  for (const simt::Options& schedule : schedules) {
    simt::options = schedule;
    CHECK_MESSAGE(same_bits(run(c, true), result), c.name());
  }
  simt::options = {};
#else
  CHECK_MESSAGE(same_bits(run(c, true), result), c.name());
#endif
  check_values(c, result);
}

// HOGWILD_TEST_CASES: random cases of each kind, in quarters of the default.
int scaled(int cases) {
  const char* text = std::getenv("HOGWILD_TEST_CASES");
  return text != nullptr ? std::max(1, cases * std::atoi(text) / 4) : cases;
}

TEST(quotients_and_shares) {
  std::mt19937 random(5);
  for (int i = 0; i < 20'000; ++i) {
    const int bits = 1 + i % 31;
    const int divisor = 1 + static_cast<int>(random() >> (32 - bits) & 0x7ffffffe);
    const Quotient quotient(divisor);
    const std::int64_t multiple = divisor * (static_cast<std::int64_t>(random()) % (INT_MAX / divisor) + 1);
    for (const std::int64_t x : {std::int64_t{0}, std::int64_t{INT_MAX}, static_cast<std::int64_t>(random() >> 1),
                                 multiple - 1, multiple, multiple + 1}) {
      if (x > INT_MAX) continue;
      const bool is_right = quotient.of(static_cast<int>(x)) == static_cast<int>(x) / divisor;
      CHECK_MESSAGE(is_right, std::to_string(x) + " / " + std::to_string(divisor));
      if (!is_right) return;
    }
  }
  for (const auto& [total, ctas] : {std::pair{1, 1}, {7, 3}, {6, 3}, {264, 264}, {1000, 264}, {14'155'776, 264}}) {
    const Shares shares(total, ctas);
    CHECK(shares.begin(0) == 0 && shares.begin(ctas) == total);
    for (int cta = 0; cta < ctas; ++cta) {
      const int begin = shares.begin(cta), end = shares.begin(cta + 1);
      CHECK(end - begin == total / ctas || end - begin == total / ctas + 1);
      CHECK(shares.owner(begin) == cta && shares.owner(end - 1) == cta);
    }
  }
}

TEST(few_rows_equal_the_definition) {
  for (int seed = 0; seed < scaled(40); ++seed) check_case(random_case(seed * 10, 64));
}

TEST(one_to_eight_rows_equal_the_definition) {
  for (int seed = 0; seed < scaled(40); ++seed) check_case(random_case(10'000 + seed * 10, 8));
}

TEST(many_rows_equal_the_definition) {
  for (int seed = 0; seed < scaled(8); ++seed) {
    Case c = random_case(20'000 + seed * 10, 64);
    Case larger;
    larger.dtype = c.dtype;
    larger.rows = 65 + seed * 23;
    larger.k = c.k;
    larger.outputs = c.outputs;
    larger.accumulate = c.accumulate;
    larger.bias = c.bias;
    larger.multiprocessors = c.multiprocessors;
    fill(larger, seed);
    check_case(larger);
  }
}

// One row's result does not depend, to the last bit, on how many others there are.
TEST(a_row_does_not_depend_on_its_company) {
  for (int seed = 0; seed < scaled(6); ++seed) {
    Case all = random_case(30'000 + seed * 10, 64);
    all.rows = 64;
    all.weights.clear();
    all.biases.clear();
    all.before.clear();
    fill(all, seed);
    const Result together = run(all);
    for (const std::int64_t rows : {1, 7, 9, 17, 33}) {
      Case some = all;
      some.rows = rows;
      some.x.assign(all.x.end() - rows * all.k, all.x.end());
      for (std::size_t m = 0; m < all.outputs.size(); ++m) {
        some.before[m].assign(all.before[m].end() - rows * all.outputs[m], all.before[m].end());
      }
      const Result alone = run(some);
      bool same = true;
      for (std::size_t m = 0; m < all.outputs.size(); ++m) {
        same &= std::memcmp(alone[m].data(), &*(together[m].end() - rows * all.outputs[m]),
                            alone[m].size() * sizeof(float)) == 0;
      }
      CHECK_MESSAGE(same, all.name() + ", of which " + std::to_string(rows));
    }
  }
}

// The products stay what they are without; what becomes of them is worked out once both are there, wherever they are
// cut.
TEST(gate_and_up_are_activated_behind_the_product) {
  for (int seed = 0; seed < scaled(16); ++seed) {
    Case c = random_case(40'000 + seed * 10, seed % 4 == 3 ? 64 : 12);
    c.outputs = {c.outputs[0], c.outputs[0]};
    c.accumulate = false;
    if (seed % 8 == 7) c.rows = 130;
    c.weights.clear();
    c.biases.clear();
    c.before.clear();
    fill(c, seed);
    const Gate gate = {.activation = kActivations[seed % 3],
                       .dtype = std::vector<Dtype>{Dtype::kF32, Dtype::kBF16, Dtype::kF16, Dtype::kF32}[seed % 4],
                       .in_place = seed % 4 == 3};
    const Result products = run(c);
    const auto check = [&] {
      const Result result = run(c, true, &gate);
      CHECK_MESSAGE(gate.in_place || same_bits({result[0], result[1]}, products), c.name());
      CHECK_MESSAGE(same_bits(result[1], products[1]), c.name());
      const double worst = worst_gated_error(products[0], products[1], gate.activation,
                                             gate.in_place ? result[0] : result[2], gate.dtype);
      CHECK_MESSAGE(worst <= 1, c.name() + ": error / tolerance " + std::to_string(worst));
    };
#if SIMT_HOST
    for (const simt::Order order : {simt::Order::kForward, simt::Order::kReverse, simt::Order::kRandom}) {
      simt::options.order = order;
      check();
    }
    simt::options = {};
#else
    check();
#endif
  }
}

TEST(what_is_not_supported_is_refused) {
  const simt::DeviceArray<float> x(std::vector<float>(64)), y(std::vector<float>(64));
  const simt::DeviceArray<std::uint16_t> weight(std::vector<std::uint16_t>(64));
  const simt::DeviceArray<std::uint8_t> workspace(std::vector<std::uint8_t>(16));
  MatmulLaunch good;
  good.params.rows = 2;
  good.params.k = 8;
  good.params.x = x.data();
  good.params.x_dtype = Dtype::kBF16;
  good.params.n_outputs = 1;
  good.params.outputs[0] = {.weight = {weight.data(), Format::kBF16, 4, 8}, .bias = nullptr, .y = y.data()};
  good.multiprocessors = 1;
  good.workspace = workspace.data();
  CHECK(matmul_workspace_bytes(good) > 0);
  const auto refused = [&](auto change) {
    MatmulLaunch launch = good;
    change(launch);
    return launch_matmul(launch, nullptr) == cudaErrorInvalidValue;
  };
  CHECK(refused([](MatmulLaunch& l) { l.params.rows = 0; }));
  CHECK(refused([](MatmulLaunch& l) { l.params.k = 12; }));
  CHECK(refused([](MatmulLaunch& l) { l.params.n_outputs = 0; }));
  CHECK(refused([](MatmulLaunch& l) { l.params.n_outputs = 4; }));
  CHECK(refused([](MatmulLaunch& l) { l.multiprocessors = 0; }));
  CHECK(refused([](MatmulLaunch& l) { l.params.outputs[0].weight.format = Format::kF32; }));
  CHECK(refused([](MatmulLaunch& l) { l.params.outputs[0].weight.cols = 16; }));
  CHECK(refused([](MatmulLaunch& l) { l.params.outputs[0].weight.rows = 0; }));
  CHECK(refused([](MatmulLaunch& l) { l.params.outputs[0].weight.rows = std::int64_t{1} << 40; }));
  CHECK(refused([](MatmulLaunch& l) { l.params.x = static_cast<const float*>(l.params.x) + 1; }));
  CHECK(refused([](MatmulLaunch& l) { l.params.x_dtype = Dtype::kF32; }));
  CHECK(refused([](MatmulLaunch& l) { l.params.x_dtype = Dtype::kF16; }));
  MatmulLaunch gated = good;
  gated.params.n_outputs = 2;
  gated.params.outputs[1] = gated.params.outputs[0];
  gated.gated.out = y.data();
  CHECK(matmul_workspace_bytes(gated) > 0);
  gated.params.outputs[1].weight.rows = 3;
  CHECK(matmul_workspace_bytes(gated) == 0 && launch_matmul(gated, nullptr) == cudaErrorInvalidValue);
  gated.params.outputs[1] = gated.params.outputs[0];
  gated.params.outputs[0].accumulate = true;
  CHECK(matmul_workspace_bytes(gated) == 0);
  CHECK(refused([&](MatmulLaunch& l) { l.gated.out = y.data(); }));  // one output
  CHECK(refused([](MatmulLaunch& l) {
    l.params.outputs[1] = l.params.outputs[0];
    l.params.outputs[1].weight.format = Format::kF16;
    l.params.n_outputs = 2;
  }));
}

}  // namespace
}  // namespace hogwild::cuda

HOGWILD_TEST_MAIN
