// Embedding, RMSNorm, gated activations, scaled sums and soft caps against float64: any sizes, aligned or not, in place
// or not.
// Also compiles for a GPU (nvcc -x cu).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../native/check.h"
#include "behind_kernel.h"
#include "core/float16.h"
#include "core/format.h"
#include "device_array.h"
#include "gated_reference.h"
#include "kernels.h"
#include "simt/simt.h"

namespace hogwild::cuda {
namespace {

std::mt19937_64 rng(1);

std::int64_t random_int(std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(high - low + 1));
}

std::vector<float> random_floats(std::int64_t n, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(n);
  for (float& value : values) value = normal(rng);
  return values;
}

std::vector<float> not_numbers(std::int64_t n) {
  return std::vector<float>(n, std::numeric_limits<float>::quiet_NaN());
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// The result of `run`, which must be the same, bit for bit, under every schedule.
template <typename Run>
std::vector<float> under_every_schedule(const std::string& name, Run&& run) {
  const std::vector<float> result = run();
#if SIMT_HOST
  for (const simt::Order order : {simt::Order::kReverse, simt::Order::kRandom}) {
    simt::options.order = order;
    CHECK_MESSAGE(same_bits(run(), result), name);
  }
  simt::options = {};
#else
  CHECK_MESSAGE(same_bits(run(), result), name);
#endif
  return result;
}

TEST(embedding_gathers_and_scales) {
  for (int i = 0; i < 60; ++i) {
    const Dtype dtype = std::vector<Dtype>{Dtype::kF32, Dtype::kBF16, Dtype::kF16}[i % 3];
    const std::int64_t vocab = random_int(1, 50), rows = random_int(1, 20);
    const std::int64_t cols = i % 2 ? 8 * random_int(1, 300) : random_int(1, 700);
    const float scale = i % 5 ? 1 : 11.5f;
    std::vector<float> values = random_floats(vocab * cols);
    std::vector<std::uint8_t> table(vocab * padded_cols(cols) * dtype_size(dtype), 0xff);
    for (std::int64_t i = 0; i < vocab * cols; ++i) {
      const auto at = static_cast<std::size_t>(i),
                 to = static_cast<std::size_t>(i / cols * padded_cols(cols) + i % cols);
      const std::uint16_t bits = dtype == Dtype::kF16 ? f32_to_f16(values[at]) : f32_to_bf16(values[at]);
      if (dtype == Dtype::kF32) {
        std::memcpy(&table[4 * to], &values[at], 4);
      } else {
        values[at] = dtype == Dtype::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
        std::memcpy(&table[2 * to], &bits, 2);
      }
    }
    std::vector<std::int32_t> tokens(rows);
    for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random_int(0, vocab - 1));
    const simt::DeviceArray<std::uint8_t> device_table(table);
    const simt::DeviceArray<std::int32_t> device_tokens(tokens);
    const std::string name =
        std::string(dtype_name(dtype)) + " [" + std::to_string(vocab) + ", " + std::to_string(cols) + "]";
    const std::vector<float> out = under_every_schedule(name, [&] {
      const simt::DeviceArray<float> device_out(not_numbers(rows * cols));
      simt::BehindKernel(device_out).run([&](KernelStream stream) {
        return launch_embedding({.rows = rows,
                                 .table = {device_table.data(), format_of(dtype), vocab, cols},
                                 .scale = scale,
                                 .out = device_out.data()},
                                {.tokens = device_tokens.data(), .slots = nullptr, .rope = {}, .plan = {}}, stream);
      });
      return device_out.to_host();
    });
    bool equal = true;
    for (std::int64_t t = 0; t < rows; ++t) {
      for (std::int64_t c = 0; c < cols; ++c) equal &= out[t * cols + c] == scale * values[tokens[t] * cols + c];
    }
    CHECK_MESSAGE(equal, name);
  }
}

TEST(rms_norm_equals_the_definition) {
  for (int i = 0; i < 80; ++i) {
    const std::int64_t cols = i % 4 == 0   ? random_int(1, 40)
                              : i % 4 == 1 ? 4 * random_int(1, 100)
                                           : random_int(900, 3000);
    const std::int64_t rows = cols > 800 ? random_int(1, 4) : random_int(1, 40);
    const bool in_place = i % 3 == 0;
    const float eps = i % 2 ? 1e-6f : 1e-5f;
    const std::vector<float> x = random_floats(rows * cols, i % 7 ? 1.f : 1e4f), weight = random_floats(cols);
    const simt::DeviceArray<float> device_weight(weight);
    const std::string name = "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
    const std::vector<float> out = under_every_schedule(name, [&] {
      const simt::DeviceArray<float> device_x(x), device_out(not_numbers(x.size()));
      float* to = in_place ? device_x.data() : device_out.data();
      simt::BehindKernel(device_x, device_out).run([&](KernelStream stream) {
        return launch_rms_norm(
            {.x = device_x.data(), .weight = device_weight.data(), .eps = eps, .rows = rows, .cols = cols, .out = to},
            stream);
      });
      return in_place ? device_x.to_host() : device_out.to_host();
    });
    double worst = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      double squares = 0;
      for (std::int64_t c = 0; c < cols; ++c) squares += std::pow(static_cast<double>(x[row * cols + c]), 2);
      const double factor = 1 / std::sqrt(squares / static_cast<double>(cols) + eps);
      for (std::int64_t c = 0; c < cols; ++c) {
        const double exact = x[row * cols + c] * factor * weight[c];
        const double error = std::abs(out[row * cols + c] - exact) / (1e-6 * std::abs(exact) + 1e-30);
        worst = std::max(worst, std::isnan(error) ? 1e9 : error);
      }
    }
    CHECK_MESSAGE(worst <= 4, name + ": " + std::to_string(worst));
  }
}

TEST(gated_activations_equal_the_definition) {
  for (int i = 0; i < 60; ++i) {
    const Activation activation = kActivations[i % 3];
    const std::int64_t n = i % 4 ? random_int(1, 3000) : 4 * random_int(1, 800);
    std::vector<float> gate = random_floats(n, 3), up = random_floats(n, i % 2 ? 1 : 5);
    const float special[] = {0, -0.f, 30, -30, 200, -200, 1e20f, -1e20f};
    std::copy_n(special, std::min<std::int64_t>(n, 8), gate.begin());
    const bool in_place = i % 5 == 0;
    const simt::DeviceArray<float> device_up(up);
    const std::string name = std::to_string(n) + " elements";
    const std::vector<float> out = under_every_schedule(name, [&] {
      const simt::DeviceArray<float> device_gate(gate), device_out(not_numbers(n));
      float* to = in_place ? device_gate.data() : device_out.data();
      simt::BehindKernel(device_gate, device_up, device_out).run([&](KernelStream stream) {
        return launch_gated_activation(
            {.gate = device_gate.data(), .up = device_up.data(), .n = n, .activation = activation, .out = to}, stream);
      });
      return in_place ? device_gate.to_host() : device_out.to_host();
    });
    const double worst = worst_gated_error(gate, up, activation, out);
    CHECK_MESSAGE(worst <= 1, name + ": " + std::to_string(worst));
  }
}

TEST(what_is_not_a_number_stays_so_in_a_clamped_activation) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t n : {7, 8}) {
    std::vector<float> gate(n, 1), up(n, 1);
    gate[0] = up[1] = nan;
    const simt::DeviceArray<float> device_gate(gate), device_up(up);
    simt::check_launch(launch_gated_activation({.gate = device_gate.data(),
                                                .up = device_up.data(),
                                                .n = n,
                                                .activation = Activation::kClampedSwiglu,
                                                .out = device_gate.data()},
                                               nullptr));
    const std::vector<float> out = device_gate.to_host();
    for (std::int64_t i = 0; i < n; ++i) CHECK(std::isnan(out[i]) == (i < 2));
  }
}

TEST(scaled_sums_equal_the_definition) {
  for (int i = 0; i < 40; ++i) {
    const std::int64_t n = i % 4 ? random_int(1, 3000) : 4 * random_int(1, 800);
    const std::vector<float> x = random_floats(n), y = random_floats(n);
    const float scale = i % 3 ? 0.22f : 1;
    const simt::DeviceArray<float> device_y(y);
    const std::string name = std::to_string(n) + " elements";
    const std::vector<float> out = under_every_schedule(name, [&] {
      const simt::DeviceArray<float> device_x(x);
      simt::BehindKernel(device_x, device_y).run([&](KernelStream stream) {
        return launch_add({.x = device_x.data(), .y = device_y.data(), .n = n, .scale = scale}, stream);
      });
      return device_x.to_host();
    });
    double worst = 0;
    for (std::int64_t at = 0; at < n; ++at) {
      const double exact = x[at] + static_cast<double>(scale) * y[at];
      const double tolerance = 0x1p-23 * (std::abs(x[at]) + std::abs(scale * y[at]));
      worst = std::max(worst, std::abs(out[at] - exact) / tolerance);
    }
    CHECK_MESSAGE(worst <= 1, name + ": " + std::to_string(worst));
  }
}

TEST(soft_caps_equal_the_definition) {
  for (int i = 0; i < 40; ++i) {
    const std::int64_t n = i % 4 ? random_int(1, 3000) : 4 * random_int(1, 800);
    std::vector<float> x = random_floats(n, 40);
    const float special[] = {0, -0.f, 1e-20f, 1e20f, -1e20f, 1e-3f, -3e-3f};
    std::copy_n(special, std::min<std::int64_t>(n, std::ssize(special)), x.begin());
    const float scale = i % 3 ? 1 : 0.3f, softcap = i % 2 ? 30 : 0;
    const std::string name = std::to_string(n) + " elements, cap " + std::to_string(softcap);
    const std::vector<float> out = under_every_schedule(name, [&] {
      const simt::DeviceArray<float> device_x(x);
      simt::BehindKernel(device_x).run([&](KernelStream stream) {
        return launch_softcap({.x = device_x.data(), .n = n, .scale = scale, .softcap = softcap}, stream);
      });
      return device_x.to_host();
    });
    double worst = 0;
    for (std::int64_t at = 0; at < n; ++at) {
      const double scaled = static_cast<double>(scale) * x[at];
      const double exact = softcap == 0 ? scaled : softcap * std::tanh(scaled / softcap);
      const double error = std::abs(out[at] - exact) / (4e-7 * std::abs(exact) + 1e-30);
      worst = std::max(worst, std::isnan(error) ? 1e9 : error);
    }
    CHECK_MESSAGE(worst <= 1, name + ": " + std::to_string(worst));
  }
}

TEST(rows_of_operands_are_padded) {
  for (int i = 0; i < 20; ++i) {
    const std::int64_t rows = random_int(1, 6), cols = random_int(1, i % 2 ? 40 : 1200), padded = padded_cols(cols);
    const std::vector<float> x = random_floats(rows * cols);
    const simt::DeviceArray<float> device_x(x);
    const simt::DeviceArray<std::uint16_t> out(std::vector<std::uint16_t>(rows * padded, 0x1234));
    simt::BehindKernel(device_x, out).run([&](KernelStream stream) {
      return launch_round(device_x.data(), rows, cols, Dtype::kBF16, out.data(), stream);
    });
    const std::vector<std::uint16_t> found = out.to_host();
    bool right = true;
    for (std::int64_t at = 0; at < rows * padded; ++at) {
      const std::int64_t c = at % padded;
      right &= found[at] == (c < cols ? f32_to_bf16(x[at / padded * cols + c]) : 0);
    }
    CHECK_MESSAGE(right, "[" + std::to_string(rows) + ", " + std::to_string(cols) + "]");
  }
}

// What is rounded where it is computed has the bits of what is rounded afterwards, f16 beyond its range too.
TEST(operands_are_rounded_once) {
  const auto rounded = [](const std::vector<float>& values, Dtype dtype) {
    const simt::DeviceArray<float> from(values);
    const auto n = static_cast<std::size_t>(padded_cols(std::ssize(values)));
    const simt::DeviceArray<std::uint16_t> to(std::vector<std::uint16_t>(n, 0x1234));
    simt::check_launch(launch_round(from.data(), 1, std::ssize(values), dtype, to.data(), nullptr));
    std::vector<std::uint16_t> all = to.to_host();
    for (std::size_t at = values.size(); at < n; ++at) CHECK(all[at] == 0);
    all.resize(values.size());
    return all;
  };
  for (int i = 0; i < 24; ++i) {
    const Dtype dtype = i % 2 ? Dtype::kBF16 : Dtype::kF16;
    const std::int64_t rows = random_int(1, 5), cols = 4 * random_int(1, i % 4 < 2 ? 100 : 700);
    const std::int64_t n = rows * cols;
    std::vector<float> x = random_floats(n, 3);
    const std::vector<float> weight = random_floats(cols, i % 3 ? 1.f : 3e5f),
                             up = random_floats(n, i % 3 ? 1.f : 3e5f);
    if (i % 5 == 0) x[0] = std::numeric_limits<float>::quiet_NaN();
    const simt::DeviceArray<float> device_x(x), device_weight(weight), device_up(up);
    const std::string name =
        std::string(dtype_name(dtype)) + " [" + std::to_string(rows) + ", " + std::to_string(cols) + "]";
    const auto check = [&](auto&& launch) {
      const simt::DeviceArray<float> wide(not_numbers(n));
      const simt::DeviceArray<std::uint16_t> narrow(std::vector<std::uint16_t>(n, 0x1234));
      simt::check_launch(launch(wide.data(), Dtype::kF32));
      simt::check_launch(launch(narrow.data(), dtype));
      CHECK_MESSAGE(narrow.to_host() == rounded(wide.to_host(), dtype), name);
    };
    check([&](void* out, Dtype out_dtype) {
      return launch_rms_norm({.x = device_x.data(),
                              .weight = device_weight.data(),
                              .eps = 1e-5f,
                              .rows = rows,
                              .cols = cols,
                              .out = out,
                              .out_dtype = out_dtype},
                             nullptr);
    });
    check([&](void* out, Dtype out_dtype) {
      return launch_gated_activation({.gate = device_x.data(),
                                      .up = device_up.data(),
                                      .n = n,
                                      .activation = kActivations[i % 3],
                                      .out = out,
                                      .out_dtype = out_dtype},
                                     nullptr);
    });
    const std::vector<std::uint16_t> bits = rounded(up, dtype);
    bool right = true;
    for (std::int64_t at = 0; at < n; ++at) {
      const float held = std::clamp(up[at], -65504.f, 65504.f);
      right &= bits[at] == (dtype == Dtype::kF16 ? f32_to_f16(held) : f32_to_bf16(up[at]));
    }
    CHECK_MESSAGE(right, name);
  }
}

TEST(what_is_not_supported_is_refused) {
  const simt::DeviceArray<float> values(std::vector<float>(8));
  const simt::DeviceArray<std::uint16_t> narrow(std::vector<std::uint16_t>(8));
  CHECK(launch_round(values.data(), 1, 0, Dtype::kBF16, narrow.data(), nullptr) == cudaErrorInvalidValue);
  CHECK(launch_round(values.data(), -1, 8, Dtype::kBF16, narrow.data(), nullptr) == cudaErrorInvalidValue);
  CHECK(launch_round(values.data(), 1, 4, Dtype::kF32, narrow.data(), nullptr) == cudaErrorInvalidValue);
  CHECK(launch_rms_norm({.x = values.data(),
                         .weight = values.data(),
                         .rows = 1,
                         .cols = 6,
                         .out = narrow.data(),
                         .out_dtype = Dtype::kBF16},
                        nullptr) == cudaErrorInvalidValue);
  CHECK(launch_gated_activation(
            {.gate = values.data(), .up = values.data(), .n = 6, .out = narrow.data(), .out_dtype = Dtype::kF16},
            nullptr) == cudaErrorInvalidValue);
  CHECK(launch_rms_norm({.rows = 1, .cols = 0}, nullptr) == cudaErrorInvalidValue);
  CHECK(launch_rms_norm({.rows = -1, .cols = 8}, nullptr) == cudaErrorInvalidValue);
  CHECK(launch_embedding({.rows = 1}, {}, nullptr) == cudaErrorInvalidValue);
  CHECK(launch_gated_activation({.n = -1}, nullptr) == cudaErrorInvalidValue);
  CHECK(launch_add({.n = -1}, nullptr) == cudaErrorInvalidValue);
  CHECK(launch_softcap({.n = -1}, nullptr) == cudaErrorInvalidValue);
  CHECK(launch_softcap({.x = values.data(), .n = 4, .softcap = -1}, nullptr) == cudaErrorInvalidValue);
  CHECK(launch_rms_norm({.rows = 0, .cols = 8}, nullptr) == cudaSuccess);
}

}  // namespace
}  // namespace hogwild::cuda

HOGWILD_TEST_MAIN
