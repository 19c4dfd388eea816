// The mixture of experts of the CPU device against plain loops in double precision, at awkward sizes, on every SIMD
// level and number of threads, and what it promises beside the numbers: ties, rows that do not see each other, NaN.
#include "device/experts.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/float16.h"
#include "core/format.h"
#include "device/cpu/simd_dispatch.h"
#include "device/device.h"
#include "device/profile_device.h"

namespace hogwild {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::mt19937_64 rng(20251128);

std::vector<float> random_floats(std::int64_t n, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = normal(rng);
  return values;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

// A matrix in its own dtype and its exact values.
struct Weight {
  std::vector<std::byte> bytes;
  std::vector<double> values;
  Matrix matrix;

  Weight(std::int64_t rows, std::int64_t cols, Dtype dtype) {
    const std::vector<float> from = random_floats(rows * cols, 1 / std::sqrt(static_cast<float>(cols)));
    bytes.resize(from.size() * dtype_size(dtype));
    for (std::size_t i = 0; i < from.size(); ++i) {
      if (dtype == Dtype::kF32) {
        std::memcpy(bytes.data() + 4 * i, &from[i], 4);
        values.push_back(from[i]);
      } else {
        const std::uint16_t bits = dtype == Dtype::kF16 ? f32_to_f16(from[i]) : f32_to_bf16(from[i]);
        std::memcpy(bytes.data() + 2 * i, &bits, 2);
        values.push_back(dtype == Dtype::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits));
      }
    }
    matrix = {bytes.data(), format_of(dtype), rows, cols};
  }
};

struct TestExpert {
  Weight gate, up, down;
  std::vector<float> gate_bias, up_bias, down_bias;
};

struct Shape {
  std::int64_t hidden = 0, intermediate = 0, experts = 0, used = 0;
  Dtype dtype = Dtype::kF32;
  bool biases = false;
  bool normalized = true;
  Activation activation = Activation::kSilu;
};

struct Layer {
  Shape shape;
  std::vector<TestExpert> own;
  std::vector<FeedForward> experts;

  explicit Layer(const Shape& shape) : shape(shape) {
    const auto bias = [&](std::int64_t n) { return shape.biases ? random_floats(n) : std::vector<float>(); };
    const auto pointer = [](const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); };
    own.reserve(static_cast<std::size_t>(shape.experts));
    for (std::int64_t e = 0; e < shape.experts; ++e) {
      own.push_back({{shape.intermediate, shape.hidden, shape.dtype},
                     {shape.intermediate, shape.hidden, shape.dtype},
                     {shape.hidden, shape.intermediate, shape.dtype},
                     bias(shape.intermediate),
                     bias(shape.intermediate),
                     bias(shape.hidden)});
    }
    for (const TestExpert& e : own) {
      experts.push_back(
          {e.gate.matrix, e.up.matrix, e.down.matrix, pointer(e.gate_bias), pointer(e.up_bias), pointer(e.down_bias)});
    }
  }

  // out = before + experts
  std::vector<float> run(Device& device, std::span<const float> x, std::span<const float> logits,
                         std::span<const float> before) const {
    std::vector<float> out(before.begin(), before.end());
    const std::int64_t rows = std::ssize(logits) / shape.experts;
    // Never more than is asked for: the sanitizers would see it.
    std::vector<float> scratch(
        static_cast<std::size_t>(experts_scratch_floats(rows, shape.used, shape.hidden, shape.intermediate)));
    device.experts({.x = x.data(),
                    .router_logits = logits.data(),
                    .rows = rows,
                    .hidden = shape.hidden,
                    .intermediate = shape.intermediate,
                    .experts = experts,
                    .used = shape.used,
                    .normalized = shape.normalized,
                    .activation = shape.activation,
                    .scratch = scratch.data(),
                    .out = out.data()});
    return out;
  }

  // Of one row, by the definition. `rounds`: x and what goes into the second product are rounded to bf16.
  std::vector<double> exact(std::span<const float> x, std::span<const float> logits, bool rounds) const {
    const auto factor = [&](double value) {
      return rounds ? double{bf16_to_f32(f32_to_bf16(static_cast<float>(value)))} : value;
    };
    const auto product = [&](const Weight& w, const std::vector<float>& bias, const std::vector<double>& in) {
      std::vector<double> y(static_cast<std::size_t>(w.matrix.rows));
      for (std::size_t r = 0; r < y.size(); ++r) {
        y[r] = bias.empty() ? 0 : bias[r];
        for (std::size_t i = 0; i < in.size(); ++i) y[r] += w.values[r * in.size() + i] * factor(in[i]);
      }
      return y;
    };
    std::vector<std::size_t> order(logits.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
    double sum = 0;
    for (std::size_t j = 0; j < order.size(); ++j) {
      if (!shape.normalized || j < static_cast<std::size_t>(shape.used)) sum += std::exp(double{logits[order[j]]});
    }
    std::vector<double> out(static_cast<std::size_t>(shape.hidden));
    const std::vector<double> in(x.begin(), x.end());
    for (std::int64_t j = 0; j < shape.used; ++j) {
      const std::size_t e = order[static_cast<std::size_t>(j)];
      std::vector<double> gate = product(own[e].gate, own[e].gate_bias, in);
      std::vector<double> up = product(own[e].up, own[e].up_bias, in);
      for (std::size_t i = 0; i < gate.size(); ++i) {
        const double g = gate[i];
        switch (shape.activation) {
          case Activation::kSilu:
            gate[i] = g / (1 + std::exp(-g)) * up[i];
            break;
          case Activation::kGeluTanh:
            gate[i] = 0.5 * g * (1 + std::tanh(std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g))) * up[i];
            break;
          case Activation::kClampedSwiglu: {
            const double held = std::min(g, 7.0);
            gate[i] = held / (1 + std::exp(-1.702 * held)) * (std::clamp(up[i], -7.0, 7.0) + 1);
            break;
          }
        }
      }
      const std::vector<double> y = product(own[e].down, own[e].down_bias, gate);
      const double weight = std::exp(double{logits[e]}) / sum;
      for (std::size_t i = 0; i < y.size(); ++i) out[i] += weight * y[i];
    }
    return out;
  }
};

const Shape kShapes[] = {
    {.hidden = 8, .intermediate = 8, .experts = 1, .used = 1},
    {.hidden = 19, .intermediate = 33, .experts = 4, .used = 2, .normalized = false},
    {.hidden = 99, .intermediate = 19, .experts = 7, .used = 7, .biases = true},
    {.hidden = 204,
     .intermediate = 99,
     .experts = 33,
     .used = 5,
     .biases = true,
     .activation = Activation::kClampedSwiglu},
    {.hidden = 40,
     .intermediate = 204,
     .experts = 130,
     .used = 8,
     .normalized = false,
     .activation = Activation::kGeluTanh},
};

std::span<const float> row_of(std::span<const float> x, std::int64_t row, std::int64_t cols) {
  return x.subspan(static_cast<std::size_t>(row * cols), static_cast<std::size_t>(cols));
}

TEST(experts_equal_double) {
  for (const std::string& simd : available_simd_levels()) {
    for (const int threads : {1, 3}) {
      const std::shared_ptr<Device> device = create_cpu_device({.threads = threads, .simd = simd});
      for (Shape shape : kShapes) {
        for (const Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kBF16}) {
          shape.dtype = dtype;
          const bool rounds = select_level(simd).kernels->packs_x(format_of(dtype));
          const Layer layer(shape);
          for (const std::int64_t rows : {1, 3, 19}) {
            // Large, so that the activation's limits are met.
            const std::vector<float> x = random_floats(rows * shape.hidden, 5);
            const std::vector<float> logits = random_floats(rows * shape.experts, 2);
            const std::vector<float> before = random_floats(rows * shape.hidden);
            const std::vector<float> out = layer.run(*device, x, logits, before);
            double error = 0, size = 0;
            for (std::int64_t r = 0; r < rows; ++r) {
              const std::vector<double> exact =
                  layer.exact(row_of(x, r, shape.hidden), row_of(logits, r, shape.experts), rounds);
              for (std::int64_t i = 0; i < shape.hidden; ++i) {
                const auto at = static_cast<std::size_t>(r * shape.hidden + i);
                const double expected = before[at] + exact[static_cast<std::size_t>(i)];
                error += (out[at] - expected) * (out[at] - expected);
                size += expected * expected;
              }
            }
            // Rounding an activation to bf16 can go the other way where f32 is off by its last bit.
            CHECK_MESSAGE(error / size < (rounds ? 1e-7 : 1e-12), simd + ": " + std::to_string(error / size));
          }
        }
      }
    }
  }
}

TEST(a_row_does_not_depend_on_others) {
  for (const std::string& simd : available_simd_levels()) {
    for (Shape shape : kShapes) {
      for (const Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kBF16}) {
        shape.dtype = dtype;
        const Layer layer(shape);
        const std::int64_t rows = 37;
        const std::vector<float> x = random_floats(rows * shape.hidden);
        const std::vector<float> logits = random_floats(rows * shape.experts);
        const std::vector<float> before = random_floats(rows * shape.hidden);
        const std::vector<float> all = layer.run(*create_cpu_device({.threads = 1, .simd = simd}), x, logits, before);
        const std::shared_ptr<Device> threaded = create_cpu_device({.threads = 3, .simd = simd});
        CHECK(same_bits(all, layer.run(*threaded, x, logits, before)));
        for (std::int64_t first = 0; first < rows; first += 5) {
          for (const std::int64_t count : {1, 2, 4, 7}) {
            if (first + count > rows) continue;
            const auto part = [&](const std::vector<float>& of, std::int64_t cols) {
              return std::span(of).subspan(static_cast<std::size_t>(first * cols),
                                           static_cast<std::size_t>(count * cols));
            };
            const std::vector<float> some =
                layer.run(*threaded, part(x, shape.hidden), part(logits, shape.experts), part(before, shape.hidden));
            CHECK(same_bits(some, part(all, shape.hidden)));
          }
        }
      }
    }
  }
}

// As if all rows went to one expert, and to experts that nobody else goes to.
TEST(any_distribution_of_rows_is_right) {
  const Layer layer({.hidden = 19, .intermediate = 99, .experts = 40, .used = 2});
  const std::shared_ptr<Device> device = create_cpu_device({.threads = 3});
  const std::int64_t rows = 25;
  const std::vector<float> x = random_floats(rows * 19), before(static_cast<std::size_t>(rows * 19));
  for (const bool apart : {false, true}) {
    std::vector<float> logits(static_cast<std::size_t>(rows * 40));
    for (std::int64_t r = 0; r < rows; ++r) {
      logits[static_cast<std::size_t>(r * 40 + (apart ? r : 39))] = 4;
      logits[static_cast<std::size_t>(r * 40 + (apart ? r + 15 : 3))] = 3;
    }
    const std::vector<float> out = layer.run(*device, x, logits, before);
    double worst = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::vector<double> exact = layer.exact(row_of(x, r, 19), row_of(logits, r, 40), false);
      for (std::size_t i = 0; i < 19; ++i) {
        worst = std::max(worst, std::fabs(out[static_cast<std::size_t>(r * 19) + i] - exact[i]));
      }
    }
    CHECK_MESSAGE(worst < 1e-5, std::to_string(worst));
  }
}

std::vector<std::int32_t> select(std::vector<float> logits, std::size_t used) {
  std::vector<std::int32_t> chosen(used, -1);
  select_experts(logits, chosen);
  return chosen;
}

TEST(the_greatest_are_chosen_and_ties_go_to_the_lower_index) {
  CHECK((select({1, 3, 2}, 1) == std::vector<std::int32_t>{1}));
  CHECK((select({1, 3, 2}, 3) == std::vector<std::int32_t>{1, 2, 0}));
  CHECK((select({2, 2, 2, 2}, 2) == std::vector<std::int32_t>{0, 1}));
  CHECK((select({1, 2, 3, 2, 3}, 3) == std::vector<std::int32_t>{2, 4, 1}));
  CHECK((select({0.0f, -0.0f, 0.0f}, 2) == std::vector<std::int32_t>{0, 1}));
  CHECK((select({-kInf, -kInf, 1}, 2) == std::vector<std::int32_t>{2, 0}));
  for (int i = 0; i < 300; ++i) {
    const auto n = 1 + static_cast<std::size_t>(rng() % 20);
    std::vector<float> logits(n);
    for (float& logit : logits) logit = static_cast<float>(rng() % 6);  // many ties
    std::vector<std::int32_t> order(n);
    for (std::size_t e = 0; e < n; ++e) order[e] = static_cast<std::int32_t>(e);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
      return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
    });
    order.resize(1 + rng() % n);
    CHECK(select(logits, order.size()) == order);
  }
}

TEST(nan_stays_in_its_row) {
  const Layer layer({.hidden = 19, .intermediate = 33, .experts = 6, .used = 3, .biases = true});
  const std::shared_ptr<Device> device = create_cpu_device({.threads = 2});
  const std::vector<float> x = random_floats(3 * 19), logits = random_floats(3 * 6), before = random_floats(3 * 19);
  const std::vector<float> good = layer.run(*device, x, logits, before);
  const auto check = [&](const std::vector<float>& bad_x, const std::vector<float>& bad_logits) {
    const std::vector<float> out = layer.run(*device, bad_x, bad_logits, before);
    CHECK(same_bits(row_of(out, 0, 19), row_of(good, 0, 19)));
    CHECK(same_bits(row_of(out, 2, 19), row_of(good, 2, 19)));
    const auto middle = row_of(out, 1, 19);
    CHECK(std::all_of(middle.begin(), middle.end(), [](float value) { return std::isnan(value); }));
  };
  // One NaN, though other experts be chosen; all; infinity; nothing to choose from.
  const std::size_t lowest =
      static_cast<std::size_t>(std::min_element(logits.begin() + 6, logits.begin() + 12) - logits.begin());
  for (const float value : {kNan, kInf}) {
    std::vector<float> bad = logits;
    bad[lowest] = value;
    check(x, bad);
    std::fill_n(bad.begin() + 6, 6, value);
    check(x, bad);
  }
  std::vector<float> nothing = logits;
  std::fill_n(nothing.begin() + 6, 6, -kInf);
  check(x, nothing);
  std::vector<float> bad_x = x;
  bad_x[19 + 4] = kNan;
  check(bad_x, logits);
  for (const std::size_t used : {1, 3, 6}) {
    std::vector<std::int32_t> chosen = select({kNan, 1, kNan, 2, kNan, kNan}, used);
    std::sort(chosen.begin(), chosen.end());
    CHECK(chosen.front() >= 0 && chosen.back() < 6 && std::adjacent_find(chosen.begin(), chosen.end()) == chosen.end());
  }
}

TEST(wrong_shapes_are_refused) {
  const Layer layer({.hidden = 8, .intermediate = 16, .experts = 3, .used = 2});
  const std::shared_ptr<Device> device = create_cpu_device({.threads = 1});
  std::vector<float> floats(1000);
  const ExpertsParams good{.x = floats.data(),
                           .router_logits = floats.data(),
                           .rows = 1,
                           .hidden = 8,
                           .intermediate = 16,
                           .experts = layer.experts,
                           .used = 2,
                           .scratch = floats.data() + 100,
                           .out = floats.data() + 900};
  device->experts(good);
  for (const std::int64_t used : {0, 4, -1}) {
    ExpertsParams bad = good;
    bad.used = used;
    CHECK_CODE(code::kInvalidArgument, device->experts(bad));
  }
  ExpertsParams bad = good;
  bad.intermediate = 15;
  CHECK_CODE(code::kInvalidArgument, device->experts(bad));
  std::vector<FeedForward> experts = layer.experts;
  std::swap(experts[2].up_proj.rows, experts[2].up_proj.cols);
  bad = good;
  bad.experts = experts;
  CHECK_CODE(code::kInvalidArgument, device->experts(bad));
  bad = good;
  bad.rows = 0;
  device->experts(bad);
}

// Each matrix that is used counts once, whoever uses it.
TEST(the_profile_counts_the_experts_in_use) {
  const Layer layer({.hidden = 8, .intermediate = 16, .experts = 5, .used = 2, .dtype = Dtype::kBF16});
  ProfileDevice device(create_cpu_device({.threads = 1}));
  const std::vector<float> x = random_floats(3 * 8), before = random_floats(3 * 8);
  const std::vector<float> logits = {9, 8, 0, 0, 0, /**/ 9, 0, 8, 0, 0, /**/ 0, 0, 9, 8, 0};
  layer.run(device, x, logits, before);
  const std::vector<OpProfile> profile = device.take_profile();
  CHECK(profile.size() == 1 && profile[0].op == "experts 8 x 16" && profile[0].calls == 1);
  CHECK(profile[0].bytes == 4 * 3 * 8 * 16 * 2);
}

}  // namespace
}  // namespace hogwild

HOGWILD_TEST_MAIN
