// The CPU device against plain loops in double precision, at awkward sizes, on every SIMD level that
// this processor has; and what the contract promises beside the numbers: batch invariance bit for bit,
// hidden keys without influence, errors with codes.
#include "device/device.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/format.h"
#include "device/cpu/kernels.h"
#include "device/cpu/simd_dispatch.h"
#include "device/cpu/thread_pool.h"
#include "device/sampling.h"

namespace hogwild {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr Dtype kDtypes[] = {Dtype::kF32, Dtype::kF16, Dtype::kBF16};
constexpr KvFormat kPlainFormats[] = {KvFormat::kF32, KvFormat::kF16, KvFormat::kBF16};  // without scales

// Of keys and of values.
struct KvFormats {
  KvFormat keys, values;
};
constexpr KvFormats kKvFormats[] = {
    {KvFormat::kF32, KvFormat::kF32},   {KvFormat::kF16, KvFormat::kF16},   {KvFormat::kBF16, KvFormat::kBF16},
    {KvFormat::kInt8, KvFormat::kInt8}, {KvFormat::kBF16, KvFormat::kInt8}, {KvFormat::kInt8, KvFormat::kBF16},
    {KvFormat::kF32, KvFormat::kInt8},  {KvFormat::kInt8, KvFormat::kF16},  {KvFormat::kF16, KvFormat::kBF16},
};

std::mt19937_64 rng(20250406);

std::int64_t random_int(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}

std::vector<float> random_floats(std::int64_t n, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(n);
  for (float& value : values) value = normal(rng);
  return values;
}

// f32 -> f16 or bf16 by search of the nearest even neighbour in double precision: slow and plain.
double half_value(std::uint16_t bits, Dtype dtype) {
  if (dtype == Dtype::kBF16) return std::bit_cast<float>(std::uint32_t{bits} << 16);
  const int exponent = bits >> 10 & 31;
  const double mantissa = bits & 1023;
  const double magnitude = exponent == 31  ? (mantissa == 0 ? INFINITY : NAN)
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(1024 + mantissa, exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

std::uint16_t round_to_half(float value, Dtype dtype) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const std::uint16_t infinity = dtype == Dtype::kBF16 ? 0x7f80 : 0x7c00;
  const double magnitude = std::fabs(value);
  if (std::isnan(value)) return infinity + 1;
  std::uint16_t low = 0, high = infinity;  // half_value(low) <= magnitude, bits ascend with values
  while (high - low > 1) {
    const std::uint16_t middle = (low + high) / 2;
    (half_value(middle, dtype) <= magnitude ? low : high) = middle;
  }
  const double below = half_value(low, dtype);
  const double above = high == infinity ? 2 * below - half_value(low - 1, dtype) : half_value(high, dtype);
  const bool up = magnitude - below > above - magnitude || (magnitude - below == above - magnitude && low % 2 == 1);
  return sign | (up ? high : low);
}

// A matrix or vector in its own dtype, on purpose one element off any alignment, and its exact values.
struct Typed {
  Dtype dtype;
  std::vector<std::byte> bytes;
  std::vector<double> values;

  Typed(const std::vector<float>& from, Dtype to) : dtype(to), bytes((from.size() + 1) * dtype_size(to)) {
    for (std::size_t i = 0; i < from.size(); i++) {
      if (dtype == Dtype::kF32) {
        std::memcpy(bytes.data() + 4 * (i + 1), &from[i], 4);
        values.push_back(from[i]);
      } else {
        const std::uint16_t bits = round_to_half(from[i], dtype);
        std::memcpy(bytes.data() + 2 * (i + 1), &bits, 2);
        values.push_back(half_value(bits, dtype));
      }
    }
  }
  const void* data() const { return bytes.data() + dtype_size(dtype); }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Each test that computes runs on each level and on one and several threads.
void on_every_device(const std::function<void(Device&)>& body, const std::vector<int>& thread_counts = {1, 3}) {
  for (const std::string& simd : available_simd_levels()) {
    for (const int threads : thread_counts) {
      const std::shared_ptr<Device> device = create_cpu_device({.threads = threads, .simd = simd});
      CHECK(device->info().simd == simd && device->info().threads == threads);
      body(*device);
    }
  }
}

// HOGWILD_TEST_CASES: how many of them, chosen at random (default all).
template <class T = std::int64_t>
std::vector<T> some_of(std::vector<T> values) {
  const char* text = std::getenv("HOGWILD_TEST_CASES");
  if (text == nullptr) return values;
  std::shuffle(values.begin(), values.end(), rng);
  values.resize(std::min(values.size(), static_cast<std::size_t>(std::atoi(text))));
  return values;
}

void on_every_level(const std::function<void(const CpuKernels&)>& body) {
  for (const std::string& simd : available_simd_levels()) body(*select_level(simd).kernels);
}

// Whether this device multiplies weights in bf16 with bf16: it then rounds x, which is part of what is computed.
bool multiplies_bf16(const Device& device, Dtype dtype) {
  return select_level(device.info().simd).kernels->packs_x(format_of(dtype));
}

double rounded_to_bf16(double x) {
  return half_value(round_to_half(static_cast<float>(x), Dtype::kBF16), Dtype::kBF16);
}

// ---- matrix and pointwise ops -----------------------------------------------------------------------

TEST(matmul_equals_double) {
  on_every_device([](Device& device) {
    for (const Dtype dtype : kDtypes) {
      const bool rounds = multiplies_bf16(device, dtype);
      for (const std::int64_t k : {1, 8, 19, 99, 204}) {
        for (const std::int64_t rows : {1, 2, 3, 4, 5, 19, 50}) {
          const std::vector<float> x = random_floats(rows * k);
          const std::int64_t sizes[] = {1, 19, 99};
          std::vector<Typed> weights;
          std::vector<std::vector<float>> biases, ys, before;
          MatmulParams params{.x = x.data(), .rows = rows, .k = k};
          params.n_outputs = static_cast<int>(random_int(1, 3));
          for (int i = 0; i < params.n_outputs; i++) {
            weights.emplace_back(random_floats(sizes[i] * k), dtype);
            biases.push_back(random_floats(sizes[i]));
            before.push_back(random_floats(rows * sizes[i]));
          }
          ys = before;
          for (int i = 0; i < params.n_outputs; i++) {
            params.outputs[i] = {.weight = {weights[i].data(), format_of(dtype), sizes[i], k},
                                 .bias = i == 1 ? nullptr : biases[i].data(),
                                 .y = ys[i].data(),
                                 .accumulate = i == 2};
          }
          device.matmul(params);
          double worst = 0;
          for (int i = 0; i < params.n_outputs; i++) {
            for (std::int64_t r = 0; r < rows; r++) {
              for (std::int64_t n = 0; n < sizes[i]; n++) {
                double exact = i == 1 ? 0 : biases[i][n], size = 1;
                if (i == 2) exact += before[i][r * sizes[i] + n];
                for (std::int64_t j = 0; j < k; j++) {
                  const double factor = rounds ? rounded_to_bf16(x[r * k + j]) : x[r * k + j];
                  const double term = factor * weights[i].values[n * k + j];
                  exact += term;
                  size += std::fabs(term);
                }
                worst = std::max(worst, std::fabs(ys[i][r * sizes[i] + n] - exact) / size);
              }
            }
          }
          CHECK_MESSAGE(worst < 1e-6, std::to_string(worst));
        }
      }
    }
  });
}

TEST(matmul_is_batch_invariant) {
  for (const std::string& simd : available_simd_levels()) {
    for (const Dtype dtype : kDtypes) {
      const std::int64_t k = 203, n = 150, rows = 37;
      const Typed weight(random_floats(n * k), dtype);
      const std::vector<float> x = random_floats(rows * k), bias = random_floats(n);
      const auto run = [&](const std::vector<float>& input, int threads) {
        std::vector<float> y(input.size() / k * n);
        MatmulParams params{.x = input.data(), .rows = std::ssize(input) / k, .k = k, .n_outputs = 1};
        params.outputs[0] = {.weight = {weight.data(), format_of(dtype), n, k}, .bias = bias.data(), .y = y.data()};
        create_cpu_device({.threads = threads, .simd = simd})->matmul(params);
        return y;
      };
      const std::vector<float> all = run(x, 1);
      CHECK(same_bits(all, run(x, 3)));
      for (std::int64_t first = 0; first < rows; first++) {
        for (const std::int64_t count : {1, 2, 3, 4, 16, 17, 33}) {
          if (first + count > rows) continue;
          const std::vector<float> some(x.begin() + first * k, x.begin() + (first + count) * k);
          const std::vector<float> expected(all.begin() + first * n, all.begin() + (first + count) * n);
          CHECK(same_bits(run(some, 1 + static_cast<int>(first % 2)), expected));
        }
      }
    }
  }
}

// Whatever a level does for few rows and for many must round alike, at the limits of f32 too.
TEST(matmul_of_bf16_is_batch_invariant_at_the_limits) {
  // Exponents of weights and of x: products of ordinary size, around the least normal number, around the greatest, and
  // of any size; with subnormal factors where the lowest is 0.
  struct Exponents {
    int low, high;
  };
  constexpr Exponents kExponents[] = {{120, 134}, {56, 70}, {0, 72}, {183, 193}, {0, 254}};
  const auto random_values = [](std::int64_t n, Exponents exponents, int bits_left_out) {
    std::vector<float> values(n);
    for (float& value : values) {
      const auto exponent = static_cast<std::uint32_t>(random_int(exponents.low, exponents.high));
      const auto rest = static_cast<std::uint32_t>(rng()) & 0x807fffff;
      value = std::bit_cast<float>((rest | exponent << 23) >> bits_left_out << bits_left_out);
    }
    return values;
  };
  on_every_level([&](const CpuKernels& kernels) {
    for (const Exponents exponents : kExponents) {
      for (const std::int64_t k : {1, 2, 31, 32, 33, 100, 576}) {
        const std::int64_t n = random_int(1, 100), rows = 40;
        std::vector<float> w = random_values(n * k, exponents, 16), x = random_values(rows * k, exponents, 0);
        const std::vector<float> bias = random_values(n, exponents, 0);
        const std::vector<float> before = random_values(rows * n, exponents, 0);
        for (std::int64_t i = 1; i < n * k; i += 3) w[i] = -w[i - 1];  // sums that cancel
        for (std::int64_t i = 1; i < rows * k; i += 2) x[i] = x[i - 1];
        const Typed weight(w, Dtype::kBF16);
        const auto run = [&](std::int64_t first, std::int64_t count) {
          std::vector<float> y(before.begin() + first * n, before.begin() + (first + count) * n);
          std::vector<std::byte> packed(packed_bf16_bytes(count, k));
          const void* input = x.data() + first * k;
          if (kernels.packs_x(Format::kBF16)) {
            kernels.pack_x(x.data() + first * k, count, k, 0, count, packed.data());
            input = packed.data();
          }
          MatmulParams::Output output = {
              .weight = {weight.data(), Format::kBF16, n, k}, .bias = bias.data(), .y = y.data(), .accumulate = true};
          kernels.matmul({.x = input, .rows = count, .k = k, .output = &output, .begin = 0, .end = n});
          return y;
        };
        const std::vector<float> all = run(0, rows);
        for (const std::int64_t count : {1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17}) {
          const std::int64_t first = random_int(0, rows - count);
          const std::vector<float> some = run(first, count);
          std::int64_t differ = 0;
          for (std::int64_t i = 0; i < count * n; i++) {
            const float a = some[i], b = all[first * n + i];
            const bool same = std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
            differ += !same && !(std::isnan(a) && std::isnan(b));
          }
          CHECK_MESSAGE(differ == 0, std::to_string(differ) + " of " + std::to_string(count * n) + " outputs of " +
                                         std::to_string(k) + " columns");
        }
      }
    }
  });
}

TEST(matmul_refuses_wrong_shapes) {
  const std::shared_ptr<Device> device = create_cpu_device({.threads = 1});
  const float w[6] = {};
  float y[2];
  MatmulParams params{.x = w, .rows = 1, .k = 2, .n_outputs = 1};
  params.outputs[0] = {.weight = {w, Format::kF32, 2, 3}, .y = y};
  CHECK_CODE(code::kInvalidArgument, device->matmul(params));
  params.n_outputs = 4;
  CHECK_CODE(code::kInvalidArgument, device->matmul(params));
}

void embed(Device& device, std::span<const std::int32_t> tokens, const EmbeddingParams& params) {
  const auto step = device.upload({.plan = {}, .ropes = {}, .slots = {}, .tokens = tokens});
  device.embedding(*step, params);
}

TEST(embedding_gathers_and_scales) {
  on_every_device([](Device& device) {
    for (const Dtype dtype : kDtypes) {
      for (const std::int64_t hidden : {1, 19, 204}) {
        const Typed table(random_floats(7 * hidden), dtype);
        const std::int32_t tokens[] = {6, 0, 3, 3};
        std::vector<float> out(4 * hidden);
        embed(device, tokens,
              {.rows = 4, .table = {table.data(), format_of(dtype), 7, hidden}, .scale = 3, .out = out.data()});
        bool equal = true;
        for (int t = 0; t < 4; t++) {
          for (std::int64_t i = 0; i < hidden; i++) {
            equal &= out[t * hidden + i] == static_cast<float>(3 * table.values[tokens[t] * hidden + i]);
          }
        }
        CHECK(equal);
        for (const std::int32_t bad : {-1, 7}) {
          CHECK_CODE(code::kInvalidArgument,
                     embed(device, {&bad, 1},
                           {.rows = 1, .table = {table.data(), format_of(dtype), 7, hidden}, .out = out.data()}));
        }
      }
    }
  });
}

// Every 16-bit pattern converts to f32 exactly (the embedding copies), and rounds back to itself.
TEST(half_precision_conversions_are_exact) {
  for (const Dtype dtype : {Dtype::kF16, Dtype::kBF16}) {
    std::vector<std::uint16_t> all(65536);
    for (std::size_t i = 0; i < all.size(); i++) all[i] = static_cast<std::uint16_t>(i);
    on_every_device([&](Device& device) {
      const std::int32_t token = 0;
      std::vector<float> out(all.size());
      embed(device, {&token, 1}, {.rows = 1, .table = {all.data(), format_of(dtype), 1, 65536}, .out = out.data()});
      bool equal = true;
      for (std::size_t i = 0; i < all.size(); i++) {
        const double exact = half_value(all[i], dtype);
        equal &= std::isnan(exact) ? std::isnan(out[i]) : out[i] == exact && std::signbit(out[i]) == (all[i] >= 0x8000);
      }
      CHECK(equal);
    });
  }
}

TEST(rms_norm_equals_double) {
  on_every_device([](Device& device) {
    for (const std::int64_t cols : {1, 19, 99, 204, 576}) {
      for (const std::int64_t rows : {1, 40}) {
        std::vector<float> x = random_floats(rows * cols, 3);
        const std::vector<float> weight = random_floats(cols);
        std::vector<float> out(rows * cols);
        device.rms_norm(
            {.x = x.data(), .weight = weight.data(), .eps = 1e-5f, .rows = rows, .cols = cols, .out = out.data()});
        double worst = 0;
        for (std::int64_t r = 0; r < rows; r++) {
          double squares = 0;
          for (std::int64_t i = 0; i < cols; i++) squares += double{x[r * cols + i]} * x[r * cols + i];
          const double scale = 1 / std::sqrt(squares / cols + 1e-5);
          for (std::int64_t i = 0; i < cols; i++) {
            const double exact = x[r * cols + i] * scale * weight[i];
            worst = std::max(worst, std::fabs(out[r * cols + i] - exact) / (std::fabs(exact) + 1e-9));
          }
        }
        CHECK_MESSAGE(worst < 1e-6, std::to_string(worst));
        device.rms_norm(
            {.x = x.data(), .weight = weight.data(), .eps = 1e-5f, .rows = rows, .cols = cols, .out = x.data()});
        CHECK(same_bits(x, out));  // in place
      }
    }
  });
}

TEST(gated_activation_equals_double) {
  on_every_device([](Device& device) {
    for (const std::int64_t n : {1, 19, 204, 20000}) {
      std::vector<float> gate = random_floats(n, 5);
      const std::vector<float> up = random_floats(n);
      gate[0] = -200;
      if (n > 1) gate[1] = 200;
      for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
        std::vector<float> out(n);
        device.gated_activation(
            {.gate = gate.data(), .up = up.data(), .n = n, .activation = activation, .out = out.data()});
        double worst = 0;
        for (std::int64_t i = 0; i < n; i++) {
          const double x = gate[i];
          const double u = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
          const double exact =
              up[i] * (activation == Activation::kSilu ? x / (1 + std::exp(-x)) : x / (1 + std::exp(-2 * u)));
          worst = std::max(worst, std::fabs(out[i] - exact) / (std::fabs(exact) + 1e-6));
        }
        CHECK_MESSAGE(worst < 2e-5, std::to_string(worst));  // gelu: exp of a large u magnifies u's rounding
      }
    }
  });
}

TEST(add_equals_double) {
  on_every_device([](Device& device) {
    for (const std::int64_t n : {1, 19, 204, 20000}) {
      const std::vector<float> before = random_floats(n), y = random_floats(n);
      std::vector<float> x = before;
      device.add({.x = x.data(), .y = y.data(), .n = n, .scale = 0.22f});
      double worst = 0;
      for (std::int64_t i = 0; i < n; i++) {
        worst = std::max(worst, std::fabs(x[i] - (before[i] + double{0.22f} * y[i])));
      }
      CHECK_MESSAGE(worst < 1e-6, std::to_string(worst));
    }
  });
}

TEST(softcap_equals_double) {
  on_every_device([](Device& device) {
    for (const std::int64_t n : {1, 19, 204, 20000}) {
      std::vector<float> before = random_floats(n, 40);
      before[0] = 1e-6f;
      if (n > 2) before[1] = 1e30f, before[2] = -1e30f;
      for (const float softcap : {0.0f, 30.0f}) {
        std::vector<float> x = before;
        device.softcap({.x = x.data(), .n = n, .scale = 0.5f, .softcap = softcap});
        double worst = 0;
        for (std::int64_t i = 0; i < n; i++) {
          const double scaled = 0.5 * before[i];
          const double exact = softcap == 0 ? scaled : softcap * std::tanh(scaled / softcap);
          worst = std::max(worst, std::fabs(x[i] - exact) / (std::fabs(exact) + 1e-6));
        }
        CHECK_MESSAGE(worst < 1e-6, std::to_string(worst));
      }
    }
    std::vector<float> nan = {std::nanf("")};
    device.softcap({.x = nan.data(), .n = 1, .scale = 1, .softcap = 3});
    CHECK(std::isnan(nan[0]));
  });
}

TEST(exp_is_within_two_ulp) {
  on_every_level([](const CpuKernels& kernels) {
    std::vector<float> x = {0, -kInf, -103.9f, -104, -200, -87.5f, -1e-30f, 1e-8f};
    for (int i = 0; i < 200000; i++) x.push_back(-104.0f + 192.0f * i / 200000);
    std::vector<float> e(x.size());
    kernels.sum_exp(x.data(), std::ssize(x), 0, 1, e.data());
    CHECK(e[0] == 1 && e[1] == 0 && e[3] == 0 && e[4] == 0);
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); i++) {
      const double exact = std::exp(double{x[i]});
      const double ulp = std::max(std::ldexp(1.0, std::ilogb(std::max(exact, 1e-300)) - 23), std::ldexp(1.0, -149));
      worst = std::max(worst, std::fabs(e[i] - exact) / ulp);
    }
    CHECK_MESSAGE(worst <= 2, std::to_string(worst));
    const float above[] = {89, 1000, kInf, kNan};
    float out[4];
    kernels.sum_exp(above, 4, 0, 1, out);
    CHECK(out[0] == kInf && out[1] == kInf && out[2] == kInf && std::isnan(out[3]));
  });
}

// ---- the KV cache -----------------------------------------------------------------------------------

// A pool of pages of two layers, of which the second one is used; filled with NaN: whatever is read but was not written
// shows.
struct Pool {
  KvShape shape;
  Buffer keys, values;
  std::int64_t first_page;
  std::vector<double> inverse_frequencies;
  std::vector<float> cosines, sines;
  std::vector<double> angles;  // position of each row of the rope table

  Pool(Device& device, const KvShape& kv_shape, std::int64_t pages, std::int64_t rotary_dim) : shape(kv_shape) {
    shape.layers = 2;
    first_page = device.kv_first_page(shape, pages, 1);
    keys = device.allocate(shape.layers * pages * shape.page_bytes(shape.key_format), "keys");
    values = device.allocate(shape.layers * pages * shape.page_bytes(shape.value_format), "values");
    std::memset(keys.data(), 0xff, keys.bytes());
    std::memset(values.data(), 0xff, values.bytes());
    for (std::int64_t u = 0; u < rotary_dim / 2; u++)
      inverse_frequencies.push_back(std::pow(100.0, -2.0 * u / rotary_dim));
  }
  KvLayer layer() const {
    return {keys.as<std::byte>() + first_page * shape.page_bytes(shape.key_format),
            values.as<std::byte>() + first_page * shape.page_bytes(shape.value_format)};
  }

  std::int32_t angle(double position) {
    angles.push_back(position);
    for (const double frequency : inverse_frequencies) {
      cosines.push_back(static_cast<float>(std::cos(position * frequency)));
      sines.push_back(static_cast<float>(std::sin(position * frequency)));
    }
    return static_cast<std::int32_t>(angles.size()) - 1;
  }
  RopeTable rope() const {
    return {cosines.data(), sines.data(), 2 * static_cast<std::int64_t>(inverse_frequencies.size())};
  }
  std::vector<double> rotate(const float* x, std::int32_t angle) const {
    std::vector<double> out(x, x + shape.head_dim);
    const std::size_t half = inverse_frequencies.size();
    for (std::size_t u = 0; u < half; u++) {
      const double c = std::cos(angles[angle] * inverse_frequencies[u]),
                   s = std::sin(angles[angle] * inverse_frequencies[u]);
      out[u] = x[u] * c - x[half + u] * s;
      out[half + u] = x[half + u] * c + x[u] * s;
    }
    return out;
  }
};

void append(Device& device, const Pool& pool, std::span<const AppendSlot> slots, const std::vector<float>& k,
            const std::vector<float>& v) {
  const RopeTable rope = pool.rope();
  const auto step = device.upload({.plan = {}, .ropes = {&rope, 1}, .slots = slots, .tokens = {}});
  device.kv_append(*step, {.shape = pool.shape,
                           .layer = pool.layer(),
                           .first = 0,
                           .rows = std::ssize(slots),
                           .k = k.data(),
                           .v = v.data()});
}

constexpr double unit_roundoff(KvFormat format) {
  return format == KvFormat::kF32 ? 0x1p-24 : format == KvFormat::kF16 ? 0x1p-11 : 0x1p-8;
}

// x as a format without scales stores it.
float as_stored(float x, KvFormat format) {
  if (format == KvFormat::kF32) return x;
  const Dtype dtype = format == KvFormat::kF16 ? Dtype::kF16 : Dtype::kBF16;
  return static_cast<float>(half_value(round_to_half(x, dtype), dtype));
}

TEST(kv_append_rotates_and_rounds_once) {
  on_every_device([](Device& device) {
    for (const KvFormat format : kPlainFormats) {
      for (const std::int64_t head_dim : {8, 24, 64, 256}) {
        for (const std::int64_t rotary_dim : {head_dim, head_dim / 2, std::int64_t{0}}) {
          Pool pool(device, {1, 3, head_dim, format, format}, 3, rotary_dim);
          std::vector<AppendSlot> slots;
          for (int i = 0; i < 19; i++) slots.push_back({i % 3, i * 3, pool.angle(1000 + 7 * i)});
          const std::vector<float> k = random_floats(19 * 3 * head_dim), v = random_floats(19 * 3 * head_dim);
          append(device, pool, slots, k, v);
          std::vector<float> k_read(k.size()), v_read(v.size());
          device.kv_read({pool.shape, pool.layer(), slots, k_read.data(), v_read.data()});
          double worst = 0;
          for (std::int64_t row = 0; row < 19 * 3; row++) {
            const std::vector<double> rotated = pool.rotate(k.data() + row * head_dim, slots[row / 3].rope_row);
            for (std::int64_t d = 0; d < head_dim; d++) {
              worst = std::max(worst, std::fabs(k_read[row * head_dim + d] - rotated[d]) /
                                          (unit_roundoff(format) * std::fabs(rotated[d]) + 4e-7));
            }
          }
          CHECK_MESSAGE(worst <= 1, std::to_string(worst));
          CHECK(std::equal(v.begin(), v.end(), v_read.begin(),
                           [&](float a, float b) { return as_stored(a, format) == b; }));
          std::vector<float> scratch(3 * head_dim);  // slots in between stay as they were
          const AppendSlot untouched{0, 1, 0};
          device.kv_read({pool.shape, pool.layer(), {&untouched, 1}, scratch.data(), scratch.data()});
          CHECK(std::all_of(scratch.begin(), scratch.end(), [](float x) { return std::isnan(x); }));
        }
      }
    }
  });
}

TEST(kv_append_rounds_special_values) {
  on_every_device([](Device& device) {
    for (const KvFormat format : kPlainFormats) {
      Pool pool(device, {1, 1, 16, format, format}, 1, 0);
      const AppendSlot slot{0, 0, 0};
      const std::vector<float> v = {0.0f,    -0.0f,       kInf,     -kInf,    1.0f + 0x1p-9f, 1.0f + 3 * 0x1p-9f,
                                    65504,   65519,       65520.0f, 0x1p-24f, 0x1p-25f,       3e-8f,
                                    6.0e-5f, -0x1.8p-24f, 1e-40f,   3.4e38f};
      std::vector<float> k_read(16), v_read(16);
      append(device, pool, {&slot, 1}, v, v);
      device.kv_read({pool.shape, pool.layer(), {&slot, 1}, k_read.data(), v_read.data()});
      for (int i = 0; i < 16; i++) {
        const float expected = as_stored(v[i], format);
        CHECK_MESSAGE(v_read[i] == expected && k_read[i] == expected,
                      std::to_string(v[i]) + " " + std::to_string(v_read[i]));
      }
    }
  });
}

TEST(kv_rebase_turns_keys_and_copies_values) {
  on_every_device([](Device& device) {
    for (const KvFormat format : kPlainFormats) {
      const std::int64_t head_dim = device.info().threads == 1 ? 40 : 48;  // not in pairs of bf16, and in pairs
      Pool pool(device, {1, 2, head_dim, format, format}, 4, 24);
      std::vector<AppendSlot> from, to;
      for (int i = 0; i < 30; i++) from.push_back({i / 20, 7 + i % 20, pool.angle(i)});
      const std::vector<float> k = random_floats(30 * 2 * head_dim), v = random_floats(30 * 2 * head_dim);
      append(device, pool, from, k, v);
      const KvMoveParams::Move moves[] = {{0, 2, 7, 30, 20, pool.angle(500)}, {1, 3, 7, 0, 10, -1}};
      device.kv_move({pool.shape, pool.layer(), pool.rope(), moves});
      for (int i = 0; i < 20; i++) to.push_back({2, 30 + i, 0});
      for (int i = 0; i < 10; i++) to.push_back({3, i, 0});
      std::vector<float> k_from(k.size()), v_from(v.size()), k_to(k.size()), v_to(v.size());
      device.kv_read({pool.shape, pool.layer(), from, k_from.data(), v_from.data()});
      device.kv_read({pool.shape, pool.layer(), to, k_to.data(), v_to.data()});
      CHECK(same_bits(v_from, v_to));
      double worst = 0;
      for (std::int64_t row = 0; row < 30 * 2; row++) {
        const float* key = k_from.data() + row * head_dim;
        const std::vector<double> expected =
            row < 40 ? pool.rotate(key, moves[0].rope_row) : std::vector<double>(key, key + head_dim);
        for (std::int64_t d = 0; d < head_dim; d++) {
          const double error = std::fabs(k_to[row * head_dim + d] - expected[d]);
          worst = std::max(worst,
                           row < 40 ? error / (unit_roundoff(format) * std::fabs(expected[d]) + 4e-7) : error * 1e30);
        }
      }
      CHECK_MESSAGE(worst <= 1, std::to_string(worst));
    }
  });
}

// ---- attention --------------------------------------------------------------------------------------

struct AttentionCase {
  Pool pool;
  mutable RopeTable rope;  // the pool's, while a step is in use
  std::int64_t query_heads;
  std::int64_t n_tokens = 0;
  float scale;
  float softcap = 0;
  std::int64_t window = 0;
  std::vector<float> sinks;  // [query_heads] or empty
  std::vector<std::int64_t> pages;
  std::vector<PlanSegment> segments;
  std::vector<QueryRange> query_ranges;
  std::vector<std::int32_t> view_order;  // of query_ranges: the place among its token's
  std::vector<std::int64_t> token_query_ranges, token_query_ranges_at;
  std::vector<float> q;

  AttentionParams params(std::vector<float>& out, std::vector<float>& lse) const {
    out.assign(q.size(), kNan);
    lse.assign(n_tokens * query_heads, kNan);
    return {.shape = pool.shape,
            .layer = pool.layer(),
            .query_heads = query_heads,
            .scale = scale,
            .softcap = softcap,
            .window = window,
            .sinks = sinks.empty() ? nullptr : sinks.data(),
            .q = q.data(),
            .out = out.data(),
            .lse = lse.data()};
  }
  std::unique_ptr<DeviceStep> upload(Device& device) const {
    rope = pool.rope();
    return device.upload({.plan = {n_tokens, pages, segments, query_ranges, token_query_ranges, token_query_ranges_at},
                          .ropes = {&rope, 1},
                          .slots = {},
                          .tokens = {}});
  }
  void attend(Device& device, std::vector<float>& out, std::vector<float>& lse) const {
    device.attention(*upload(device), params(out, lse));
  }

  // Whether a range sees token `i` of its segment, by the definition: the view position of the token, counted from the
  // segment's first, is more than the position of the query less the window.
  bool sees(const QueryRange& range, std::int64_t i) const {
    return i < range.limit && (window == 0 || i > range.distance - window);
  }

  // Slot of token `i` of a segment.
  AppendSlot slot(const PlanSegment& segment, std::int64_t i) const {
    const std::int64_t at = segment.first_slot + i;
    return {pages[segment.first_page + at / kPageSize], static_cast<std::int32_t>(at % kPageSize), 0};
  }

  // Only the tokens for which `keep` is true, as if the others were not in the step.
  AttentionCase only(Device& device, const std::function<bool(std::int64_t)>& keep) const;
};

// Lists each token's query ranges in the order that `view_order` gives.
void index_query_ranges(AttentionCase& c) {
  c.token_query_ranges.clear();
  c.token_query_ranges_at.assign(1, 0);
  for (std::int64_t t = 0; t < c.n_tokens; t++) {
    std::vector<std::int64_t> mine;
    for (std::int64_t v = 0; v < std::ssize(c.query_ranges); v++) {
      if (c.query_ranges[v].token == t) mine.push_back(v);
    }
    std::sort(mine.begin(), mine.end(), [&](auto a, auto b) { return c.view_order[a] < c.view_order[b]; });
    c.token_query_ranges.insert(c.token_query_ranges.end(), mine.begin(), mine.end());
    c.token_query_ranges_at.push_back(std::ssize(c.token_query_ranges));
  }
}

// Of random cases: errors of scores grow with its inverse.
constexpr float kLeastTemperature = 0.7f;

// Random segments in random pages; each token visits a random choice of them in random order. Slots
// outside the segments hold NaN. Where `odd`, some biases and some values seen by nobody are special.
AttentionCase random_case(Device& device, const KvShape& shape, std::int64_t group, std::int64_t tokens,
                          std::int64_t n_segments, std::int64_t max_length) {
  const std::int64_t pages_each = max_length / kPageSize + 2;
  const std::int64_t rotary_dim = random_int(0, shape.head_dim / 2) * 2;
  AttentionCase c{.pool = Pool(device, shape, n_segments * pages_each + 1, rotary_dim),
                  .query_heads = group * shape.kv_heads,
                  .n_tokens = tokens,
                  .scale = 1 / std::sqrt(static_cast<float>(shape.head_dim))};
  std::vector<std::int64_t> free_pages(n_segments * pages_each + 1);
  for (std::size_t i = 0; i < free_pages.size(); i++) free_pages[i] = static_cast<std::int64_t>(i);
  std::shuffle(free_pages.begin(), free_pages.end(), rng);
  std::vector<int> ranges_of(tokens);
  for (std::int64_t s = 0; s < n_segments; s++) {
    PlanSegment segment{.first_page = std::ssize(c.pages),
                        .first_slot = static_cast<std::int32_t>(random_int(0, kPageSize - 1) * random_int(0, 1)),
                        .length = random_int(1, max_length),
                        .first_query_range = std::ssize(c.query_ranges)};
    std::vector<AppendSlot> slots;
    for (std::int64_t i = 0; i < segment.length; i++) {
      const std::int64_t at = segment.first_slot + i;
      if (at / kPageSize >= std::ssize(c.pages) - segment.first_page) {
        c.pages.push_back(free_pages.back());
        free_pages.pop_back();
      }
      slots.push_back({c.pages.back(), static_cast<std::int32_t>(at % kPageSize), c.pool.angle(i)});
    }
    const std::int64_t elements = segment.length * shape.kv_heads * shape.head_dim;
    const std::vector<float> k = random_floats(elements, 2), v = random_floats(elements);
    append(device, c.pool, slots, k, v);
    for (std::int64_t t = 0; t < tokens; t++) {
      for (std::int64_t twice = random_int(0, 3); twice < 4; twice += 3) {  // now and then a segment is seen twice
        if (random_int(0, 3) == 0) continue;
        const float temperatures[] = {1, 1, kLeastTemperature, 3}, biases[] = {0, 0, -1.5f, 2, -kInf};
        const std::int64_t limit = random_int(0, 1) ? segment.length : random_int(1, segment.length);
        c.query_ranges.push_back({.token = static_cast<std::int32_t>(t),
                                  .rope_row = c.pool.angle(static_cast<double>(random_int(0, 3000))),
                                  .limit = limit,
                                  .distance = limit - 1 + random_int(0, 1) * random_int(-300, 200),
                                  .temperature = temperatures[random_int(0, 3)],
                                  .bias = biases[random_int(0, 4)]});
        c.view_order.push_back(ranges_of[t]++);
      }
    }
    segment.n_query_ranges = std::ssize(c.query_ranges) - segment.first_query_range;
    c.segments.push_back(segment);
  }
  for (std::int64_t t = 0; t < tokens; t++) {  // shuffle the view orders
    std::vector<std::int32_t> orders(ranges_of[t]);
    for (int i = 0; i < ranges_of[t]; i++) orders[i] = i;
    std::shuffle(orders.begin(), orders.end(), rng);
    for (std::size_t v = 0; v < c.query_ranges.size(); v++) {
      if (c.query_ranges[v].token == t) c.view_order[v] = orders[c.view_order[v]];
    }
  }
  index_query_ranges(c);
  c.q = random_floats(tokens * c.query_heads * shape.head_dim);
  return c;
}

AttentionCase AttentionCase::only(Device& device, const std::function<bool(std::int64_t)>& keep) const {
  AttentionCase c{.pool = Pool(device, pool.shape, 0, 0),
                  .query_heads = query_heads,
                  .scale = scale,
                  .softcap = softcap,
                  .window = window,
                  .sinks = sinks};
  c.pool.keys = device.allocate(pool.keys.bytes(), "keys");
  c.pool.values = device.allocate(pool.values.bytes(), "values");
  std::memcpy(c.pool.keys.data(), pool.keys.data(), pool.keys.bytes());
  std::memcpy(c.pool.values.data(), pool.values.data(), pool.values.bytes());
  c.pool.inverse_frequencies = pool.inverse_frequencies;
  c.pool.cosines = pool.cosines;
  c.pool.sines = pool.sines;
  c.pool.angles = pool.angles;
  c.pages = pages;
  std::map<std::int64_t, std::int32_t> renumbered;
  const std::int64_t row = query_heads * pool.shape.head_dim;
  for (std::int64_t t = 0; t < n_tokens; t++) {
    if (!keep(t)) continue;
    renumbered[t] = static_cast<std::int32_t>(c.n_tokens++);
    c.q.insert(c.q.end(), q.begin() + t * row, q.begin() + (t + 1) * row);
  }
  for (PlanSegment segment : segments) {
    const std::int64_t first = segment.first_query_range, end = first + segment.n_query_ranges;
    segment.first_query_range = std::ssize(c.query_ranges);
    for (std::int64_t v = first; v < end; v++) {
      if (!renumbered.contains(query_ranges[v].token)) continue;
      c.query_ranges.push_back(query_ranges[v]);
      c.view_order.push_back(view_order[v]);
      c.query_ranges.back().token = renumbered[query_ranges[v].token];
    }
    segment.n_query_ranges = std::ssize(c.query_ranges) - segment.first_query_range;
    if (segment.n_query_ranges > 0) c.segments.push_back(segment);
  }
  index_query_ranges(c);
  return c;
}

// Likewise for keys, or values: of whole vectors.
bool multiplies_bf16(const Device& device, KvFormat format, std::int64_t head_dim) {
  return format == KvFormat::kBF16 && device.info().simd == "avx512bf16" && head_dim % 16 == 0;
}

// What random cases are held to. Weights in bf16 are off by up to 2^-9 of themselves, values are at most about 1, and
// a rounded query may fall to the other side of a tie. Beside int8, queries and weights are rounded to
// 2^-16 of the greatest of their row; a score adds up head_dim of such errors, which are independent.
double attention_tolerance(const Device& device, const KvShape& shape) {
  for (const KvFormat format : {shape.key_format, shape.value_format}) {
    if (multiplies_bf16(device, format, shape.head_dim)) return 0x1p-8 / kLeastTemperature;
  }
  const bool has_int8 = shape.key_format == KvFormat::kInt8 || shape.value_format == KvFormat::kInt8;
  const double roundings = std::sqrt(std::max<double>(1, static_cast<double>(shape.head_dim) / 64));
  return (has_int8 ? 2e-4 * roundings : 2e-5) / kLeastTemperature;
}

// Largest error of out (against max |value| = about 1) and of lse.
double attention_error(Device& device, const AttentionCase& c, const std::vector<float>& out,
                       const std::vector<float>& lse) {
  const std::int64_t head_dim = c.pool.shape.head_dim, kv_heads = c.pool.shape.kv_heads;
  std::vector<std::vector<float>> keys, values;  // per segment, as stored
  for (const PlanSegment& segment : c.segments) {
    std::vector<AppendSlot> slots;
    for (std::int64_t i = 0; i < segment.length; i++) slots.push_back(c.slot(segment, i));
    keys.emplace_back(segment.length * kv_heads * head_dim);
    values.emplace_back(keys.back().size());
    device.kv_read({c.pool.shape, c.pool.layer(), slots, keys.back().data(), values.back().data()});
  }
  double worst = 0;
  for (std::int64_t t = 0; t < c.n_tokens; t++) {
    for (std::int64_t head = 0; head < c.query_heads; head++) {
      const std::int64_t kv_head = head * kv_heads / c.query_heads;
      const float* q = c.q.data() + (t * c.query_heads + head) * head_dim;
      double max = -INFINITY;
      std::vector<double> scores;
      std::vector<const float*> seen;
      for (std::size_t s = 0; s < c.segments.size(); s++) {
        for (std::int64_t v = c.segments[s].first_query_range;
             v < c.segments[s].first_query_range + c.segments[s].n_query_ranges; v++) {
          const QueryRange& range = c.query_ranges[v];
          if (range.token != t) continue;
          std::vector<double> turned = c.pool.rotate(q, range.rope_row);
          for (double& x : turned) {
            x *= c.scale;
            if (multiplies_bf16(device, c.pool.shape.key_format, head_dim)) x = rounded_to_bf16(x);
          }
          for (std::int64_t i = 0; i < c.segments[s].length; i++) {
            if (!c.sees(range, i)) continue;
            const std::int64_t at = (i * kv_heads + kv_head) * head_dim;
            double score = 0;
            for (std::int64_t d = 0; d < head_dim; d++) score += turned[d] * keys[s][at + d];
            if (c.softcap != 0) score = c.softcap * std::tanh(score / c.softcap);
            scores.push_back(score / range.temperature + range.bias);
            seen.push_back(values[s].data() + at);
            max = std::max(max, scores.back());
          }
        }
      }
      const double sink = c.sinks.empty() ? -INFINITY : c.sinks[head];
      max = std::max(max, sink);
      double total = sink == -INFINITY ? 0 : std::exp(sink - max);
      std::vector<double> exact(head_dim);
      if (max > -INFINITY) {
        for (std::size_t i = 0; i < scores.size(); i++) {
          const double weight = std::exp(scores[i] - max);
          total += weight;
          for (std::int64_t d = 0; d < head_dim; d++) exact[d] += weight * seen[i][d];
        }
      }
      const std::int64_t row = t * c.query_heads + head;
      for (std::int64_t d = 0; d < head_dim; d++) {
        const double error = std::fabs(out[row * head_dim + d] - (total > 0 ? exact[d] / total : 0));
        if (!(error <= worst)) worst = error;
      }
      const double exact_lse = total > 0 ? max + std::log(total) : -INFINITY;
      const double error = exact_lse == lse[row] ? 0 : std::fabs(exact_lse - lse[row]);
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

TEST(attention_equals_double) {
  on_every_device(
      [](Device& device) {
        for (const KvFormats& formats : kKvFormats) {
          for (const std::int64_t head_dim : {8, 24, 40, 64, 80, 128, 256}) {
            for (const std::int64_t group : some_of({1, 2, 3, 4, 7, 16})) {
              const std::int64_t kv_heads = random_int(1, 3);
              const AttentionCase c = random_case(device, {1, kv_heads, head_dim, formats.keys, formats.values}, group,
                                                  random_int(1, 5), random_int(0, 4), 330);
              std::vector<float> out, lse;
              c.attend(device, out, lse);
              const double error = attention_error(device, c, out, lse);
              CHECK_MESSAGE(error < attention_tolerance(device, c.pool.shape),
                            device.info().simd + ", D " + std::to_string(head_dim) + " group " + std::to_string(group) +
                                " " + kv_format_name(formats.keys) + " " + kv_format_name(formats.values) + ": " +
                                std::to_string(error));
            }
          }
        }
      },
      {2});
}

// A sliding window, a soft cap, sinks, at random but for `window`.
void add_features(AttentionCase& c, std::int64_t window) {
  const float softcaps[] = {0, 0.5f, 3, 50};
  const float sinks[] = {-kInf, 0, 1.5f, -3, 20};
  c.window = window;
  c.softcap = softcaps[random_int(0, 3)];
  c.sinks.clear();
  if (random_int(0, 1) == 1) {
    for (std::int64_t head = 0; head < c.query_heads; head++) c.sinks.push_back(sinks[random_int(0, 4)]);
  }
}

// Less than a vector, a page, a span of pages, across their borders, and more than there is.
const std::vector<std::int64_t> kWindows = {0, 1, 2, 9, 16, 63, 64, 65, 200, 256, 257, 100000};

TEST(attention_with_window_softcap_and_sinks_equals_double) {
  on_every_device(
      [](Device& device) {
        for (const KvFormats& formats : kKvFormats) {
          for (const std::int64_t head_dim : {24, 64, 80}) {
            for (const std::int64_t window : some_of(kWindows)) {
              const std::int64_t group = random_int(1, 7), kv_heads = random_int(1, 2);
              AttentionCase c = random_case(device, {1, kv_heads, head_dim, formats.keys, formats.values}, group,
                                            random_int(1, 7), random_int(0, 4), 700);
              add_features(c, window);
              std::vector<float> out, lse;
              c.attend(device, out, lse);
              const double error = attention_error(device, c, out, lse);
              CHECK_MESSAGE(error < attention_tolerance(device, c.pool.shape),
                            "D " + std::to_string(head_dim) + " group " + std::to_string(group) + " window " +
                                std::to_string(window) + " softcap " + std::to_string(c.softcap) + " " +
                                kv_format_name(formats.keys) + " " + kv_format_name(formats.values) + ": " +
                                std::to_string(error));
            }
          }
        }
      },
      {2});
}

TEST(attention_does_not_depend_on_company) {
  on_every_device([](Device& device) {
    const std::shared_ptr<Device> other = create_cpu_device({.threads = 2, .simd = device.info().simd});
    for (const KvFormats& formats : kKvFormats) {
      const std::vector<std::pair<int, int>> cases = {{1, 0}, {3, 0}, {8, 0}, {1, 100}, {3, 33}, {3, 300}, {8, 5}};
      for (const auto& [group, window] : some_of(cases)) {
        const std::int64_t head_dim = group == 3 ? 64 : 72;  // in pairs of bf16, and not
        AttentionCase c = random_case(device, {1, 2, head_dim, formats.keys, formats.values}, group, 9, 4, 700);
        if (window > 0) add_features(c, window);
        std::vector<float> out, lse, out_other, lse_other, out_some, lse_some;
        c.attend(device, out, lse);
        c.attend(*other, out_other, lse_other);
        CHECK(same_bits(out, out_other) && same_bits(lse, lse_other));
        for (const std::int64_t modulus : {2, 9}) {
          for (std::int64_t rest = 0; rest < modulus; rest++) {
            const auto keep = [&](std::int64_t t) { return t % modulus == rest; };
            const AttentionCase some = c.only(device, keep);
            some.attend(device, out_some, lse_some);
            std::vector<float> expected, expected_lse;
            for (std::int64_t t = 0; t < c.n_tokens; t++) {
              if (!keep(t)) continue;
              const std::int64_t row = c.query_heads * head_dim;
              expected.insert(expected.end(), out.begin() + t * row, out.begin() + (t + 1) * row);
              expected_lse.insert(expected_lse.end(), lse.begin() + t * c.query_heads,
                                  lse.begin() + (t + 1) * c.query_heads);
            }
            CHECK(same_bits(out_some, expected) && same_bits(lse_some, expected_lse));
          }
        }
      }
    }
  });
}

// A step too large for its partial states to be kept (16 MB) takes another way through the work: same bits.
TEST(attention_of_a_large_step_equals_single_tokens) {
  on_every_device([](Device& device) {
    const std::int64_t head_dim = 256, group = 16, workers = 3, each = 24, shared = 20;
    const std::int64_t shared_tokens = 270 + shared * (shared + 1) / 2;
    AttentionCase c{.pool = Pool(device, {1, 1, head_dim}, 5 + shared + workers, head_dim),
                    .query_heads = group,
                    .n_tokens = workers * each,
                    .scale = 1.0f / 16};
    for (std::int64_t i = 0; i < 300; i++) c.pool.angle(static_cast<double>(i));
    std::vector<std::int32_t> ranges_of(c.n_tokens);
    std::int64_t end = 0;  // view position of the next segment
    const auto add_segment = [&](std::int64_t length, std::int64_t first_token, std::int64_t n_tokens, bool causal) {
      c.segments.push_back({std::ssize(c.pages), 0, length, std::ssize(c.query_ranges), n_tokens});
      std::vector<AppendSlot> slots;
      for (std::int64_t i = 0; i < length; i++) {
        if (i % kPageSize == 0) c.pages.push_back(std::ssize(c.pages));
        slots.push_back({c.pages.back(), static_cast<std::int32_t>(i % kPageSize), static_cast<std::int32_t>(i)});
      }
      const std::vector<float> k = random_floats(length * head_dim), v = random_floats(length * head_dim);
      append(device, c.pool, slots, k, v);
      for (std::int64_t t = first_token; t < first_token + n_tokens; t++) {
        c.query_ranges.push_back({.token = static_cast<std::int32_t>(t),
                                  .rope_row = static_cast<std::int32_t>(random_int(0, 299)),
                                  .limit = causal ? t - first_token + 1 : length,
                                  .distance = shared_tokens + t % each - end});
        c.view_order.push_back(ranges_of[t]++);
      }
      if (!causal) end += length;
    };
    add_segment(270, 0, c.n_tokens, false);  // two spans
    for (std::int64_t s = 0; s < shared; s++) add_segment(shared - s, 0, c.n_tokens, false);
    for (std::int64_t w = 0; w < workers; w++) add_segment(each, w * each, each, true);
    index_query_ranges(c);
    c.q = random_floats(c.n_tokens * group * head_dim);
    std::vector<float> out, lse, out_one, lse_one;
    // Windows that begin among the short segments, in the first one's last span, and in its first: of none are the
    // states of all tokens within 16 MB.
    for (const std::int64_t window : some_of({0, 150, 220, 300})) {
      if (window > 0) add_features(c, window);
      c.attend(device, out, lse);
      for (const std::int64_t token : {0, 1, 23, 24, 40, 71}) {
        const AttentionCase one = c.only(device, [&](std::int64_t t) { return t == token; });
        one.attend(device, out_one, lse_one);
        CHECK(std::memcmp(out_one.data(), out.data() + token * group * head_dim, out_one.size() * 4) == 0);
        CHECK(std::memcmp(lse_one.data(), lse.data() + token * group, lse_one.size() * 4) == 0);
        CHECK(attention_error(device, one, out_one, lse_one) < 2e-5);
      }
    }
  });
}

// Keys and values that a token must not see may hold anything, also where others of its step see them.
TEST(attention_does_not_touch_what_a_token_does_not_see) {
  on_every_device(
      [](Device& device) {
        for (const KvFormats& formats : kKvFormats) {
          for (const std::int64_t window : some_of({0, 1, 20, 70, 300})) {
            const std::int64_t head_dim = 64, tokens = 5;
            AttentionCase c = random_case(device, {1, 1, head_dim, formats.keys, formats.values}, 2, tokens, 3, 400);
            add_features(c, window);
            std::vector<float> out, lse, out_poisoned, lse_poisoned;
            c.attend(device, out, lse);
            for (std::int64_t t = 0; t < tokens; t++) {
              const AttentionCase poisoned = c.only(device, [](std::int64_t) { return true; });
              for (const PlanSegment& segment : c.segments) {
                std::vector<AppendSlot> unseen;
                for (std::int64_t i = 0; i < segment.length; i++) {
                  const auto mine = [&](const QueryRange& range) { return range.token == t && c.sees(range, i); };
                  const auto ranges = c.query_ranges.begin() + segment.first_query_range;
                  if (!std::any_of(ranges, ranges + segment.n_query_ranges, mine)) unseen.push_back(c.slot(segment, i));
                }
                const std::vector<float> nans(unseen.size() * head_dim, kNan);
                append(device, poisoned.pool, unseen, nans, nans);
              }
              poisoned.attend(device, out_poisoned, lse_poisoned);
              const std::int64_t row = c.query_heads * head_dim;
              CHECK(std::memcmp(out_poisoned.data() + t * row, out.data() + t * row, row * 4) == 0);
              CHECK(std::memcmp(lse_poisoned.data() + t * c.query_heads, lse.data() + t * c.query_heads,
                                c.query_heads * 4) == 0);
            }
          }
        }
      },
      {1});
}

// Pages of which nobody sees a token are not read: here they lie outside the address space.
TEST(attention_does_not_read_pages_outside_all_windows) {
  on_every_device(
      [](Device& device) {
        for (const KvFormats& formats : kKvFormats) {
          for (const std::int64_t window : some_of({1, 64, 100, 300})) {
            AttentionCase c = random_case(device, {1, 1, 32, formats.keys, formats.values}, 2, 3, 3, 3000);
            add_features(c, window);
            std::vector<float> out, lse, out_without, lse_without;
            c.attend(device, out, lse);
            std::vector<bool> is_seen(c.pages.size());
            for (const PlanSegment& segment : c.segments) {
              for (std::int64_t v = 0; v < segment.n_query_ranges; v++) {
                const QueryRange& range = c.query_ranges[segment.first_query_range + v];
                for (std::int64_t i = 0; i < segment.length; i++) {
                  if (c.sees(range, i)) is_seen[segment.first_page + (segment.first_slot + i) / kPageSize] = true;
                }
              }
            }
            for (std::size_t page = 0; page < c.pages.size(); page++) {
              if (!is_seen[page]) c.pages[page] = std::int64_t{1} << 40;
            }
            c.attend(device, out_without, lse_without);
            CHECK(same_bits(out, out_without) && same_bits(lse, lse_without));
          }
        }
      },
      {1});
}

TEST(attention_features_that_change_nothing_change_no_bit) {
  on_every_device([](Device& device) {
    for (const KvFormats& formats : kKvFormats) {
      AttentionCase c = random_case(device, {1, 2, 64, formats.keys, formats.values}, 3, 5, 4, 700);
      std::vector<float> out, lse, out_same, lse_same;
      c.attend(device, out, lse);
      c.window = 1 << 20;
      c.sinks.assign(c.query_heads, -kInf);
      c.attend(device, out_same, lse_same);
      CHECK(same_bits(out, out_same) && same_bits(lse, lse_same));
    }
  });
}

// One key whose score is all there is: the log-sum-exp is its capped score.
TEST(soft_cap_is_within_four_ulp) {
  on_every_device(
      [](Device& device) {
        std::vector<float> scores = {0, -0.0f, 1e-30f, -1e-10f, 0.3f, 1e4f, -1e4f, 3e38f, -3e38f, kInf, -kInf};
        for (int i = 0; i < 20000; i++) scores.push_back(-12 + 24 * static_cast<float>(i) / 20000);
        const std::int64_t n = std::ssize(scores);
        AttentionCase c{.pool = Pool(device, {1, 1, 8}, 1, 0), .query_heads = n, .n_tokens = 1, .scale = 1};
        const std::int32_t angle = c.pool.angle(0);
        const AppendSlot slot{0, 0, angle};
        std::vector<float> key(8);
        key[0] = 1;
        append(device, c.pool, {&slot, 1}, key, key);
        c.pages = {0};
        c.segments = {{.first_page = 0, .first_slot = 0, .length = 1, .first_query_range = 0, .n_query_ranges = 1}};
        c.query_ranges = {{.token = 0, .rope_row = angle, .limit = 1}};
        c.view_order = {0};
        index_query_ranges(c);
        c.q.assign(n * 8, 0);
        for (std::int64_t i = 0; i < n; i++) c.q[i * 8] = scores[i];
        for (const float softcap : {1.0f, 3.0f, 50.0f}) {
          c.softcap = softcap;
          std::vector<float> out, lse;
          c.attend(device, out, lse);
          double worst = 0;
          for (std::int64_t i = 0; i < n; i++) {
            const double exact = softcap * std::tanh(double{scores[i]} / softcap);
            const double error = std::fabs(lse[i] - exact) / std::max(std::fabs(exact), 1e-37) / 0x1p-23;
            if (!(error <= worst)) worst = error;
          }
          CHECK_MESSAGE(worst <= 4, std::to_string(worst));
        }
      },
      {1});
}

TEST(attention_refuses_what_it_does_not_support) {
  const std::shared_ptr<Device> device = create_cpu_device({.threads = 1});
  AttentionCase c = random_case(*device, {1, 2, 16}, 2, 1, 1, 10);
  std::vector<float> out, lse;
  const std::unique_ptr<DeviceStep> step = c.upload(*device);
  AttentionParams params = c.params(out, lse);
  params.query_heads = 3;
  CHECK_CODE(code::kInvalidArgument, device->attention(*step, params));
  params = c.params(out, lse);
  params.shape.head_dim = 12;
  CHECK_CODE(code::kInvalidArgument, device->attention(*step, params));
  params.shape.head_dim = 264;
  CHECK_CODE(code::kInvalidArgument, device->attention(*step, params));
  params = c.params(out, lse);
  params.window = -1;
  CHECK_CODE(code::kInvalidArgument, device->attention(*step, params));
  for (const float softcap : {-1.0f, kInf, kNan}) {
    params = c.params(out, lse);
    params.softcap = softcap;
    CHECK_CODE(code::kInvalidArgument, device->attention(*step, params));
  }
}

// ---- sampling ---------------------------------------------------------------------------------------

std::int32_t sample_one(Device& device, const std::vector<float>& logits, const SampleParams::Row& row,
                        float* logprob = nullptr) {
  std::int32_t token = -1;
  device.sample(
      {.logits = logits.data(), .vocab = std::ssize(logits), .rows = {&row, 1}, .tokens = &token, .logprobs = logprob});
  return token;
}

// Probabilities by the definition, with sorting and in double.
std::vector<double> reference_distribution(const std::vector<float>& raw, const SampleParams::Row& row) {
  const std::size_t vocab = raw.size();
  std::vector<double> logits(raw.begin(), raw.end());
  for (const std::int32_t id : row.seen) {
    logits[id] = raw[id] > 0 ? double{raw[id]} / row.repetition_penalty : double{raw[id]} * row.repetition_penalty;
  }
  for (std::size_t i = 0; i < row.seen.size(); i++) {
    if (std::find(row.seen.begin(), row.seen.begin() + i, row.seen[i]) != row.seen.begin() + i) continue;
    logits[row.seen[i]] -= row.presence_penalty + row.frequency_penalty * (row.counts.empty() ? 1 : row.counts[i]);
  }
  for (const std::int32_t id : row.forbidden) logits[id] = -INFINITY;
  std::vector<std::size_t> order(vocab);
  for (std::size_t i = 0; i < vocab; i++) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
  const auto weight = [&](std::size_t i) { return std::exp((logits[i] - logits[order[0]]) / row.temperature); };
  std::size_t kept = row.top_k > 0 ? std::min<std::size_t>(row.top_k, vocab) : vocab;
  double total = 0, sum = 0;
  for (std::size_t i = 0; i < kept; i++) total += weight(order[i]);
  if (row.top_p < 1) {
    std::size_t n = 0;
    while (n < kept && sum < double{row.top_p} * total) sum += weight(order[n++]);
    kept = n;
  }
  std::vector<double> probabilities(vocab);
  total = 0;
  for (std::size_t i = 0; i < kept; i++) {
    if (weight(order[i]) >= row.min_p) total += probabilities[order[i]] = weight(order[i]);
  }
  for (double& p : probabilities) p /= total;
  return probabilities;
}

TEST(philox_known_answers) {
  // From the test vectors of Random123: philox4x32-10, counter and key all zero and all ones.
  CHECK(uniform_random(0, 0) == static_cast<double>((std::uint64_t{0xe169c58d} << 32 | 0x6627e8d5) >> 11) * 0x1p-53);
  double sum = 0;
  for (int i = 0; i < 10000; i++) {
    const double u = uniform_random(7, i);
    CHECK(u >= 0 && u < 1);
    sum += u;
  }
  CHECK(std::fabs(sum / 10000 - 0.5) < 0.01);
}

TEST(sampling_follows_the_distribution) {
  on_every_device([](Device& device) {
    const std::int32_t seen[] = {1, 3, 3, 17}, forbidden[] = {2, 40};
    const std::int32_t distinct[] = {0, 1, 3, 17, 30}, counts[] = {1, 5, 2, 1, 3};
    std::vector<SampleParams::Row> rows(8);
    rows[0].temperature = 1;
    rows[1].temperature = 0.7f;
    rows[1].top_k = 9;
    rows[2].temperature = 1.3f;
    rows[2].top_p = 0.8f;
    rows[3].temperature = 1;
    rows[3].min_p = 0.15f;
    rows[4].temperature = 1;
    rows[4].repetition_penalty = 1.8f;
    rows[4].seen = seen;
    rows[4].forbidden = forbidden;
    rows[5] = rows[4];
    rows[5].top_k = 20;
    rows[5].top_p = 0.9f;
    rows[5].min_p = 0.05f;
    rows[6].temperature = 1;
    rows[6].presence_penalty = 1.2f;
    rows[6].seen = distinct;
    rows[7] = rows[6];
    rows[7].presence_penalty = -0.3f;
    rows[7].frequency_penalty = 0.4f;
    rows[7].repetition_penalty = 1.1f;
    rows[7].counts = counts;
    rows[7].forbidden = forbidden;
    const std::vector<float> logits = random_floats(51, 1.5f);
    for (SampleParams::Row row : rows) {
      const std::vector<double> expected = reference_distribution(logits, row);
      const int draws = 20000;
      std::vector<int> counts(logits.size());
      row.seed = 11;
      for (int i = 0; i < draws; i++) {
        row.draw = i;
        counts[sample_one(device, logits, row)]++;
      }
      double chi_square = 0;
      int cells = 0;
      for (std::size_t i = 0; i < logits.size(); i++) {
        if (expected[i] == 0) {
          CHECK(counts[i] == 0);
          continue;
        }
        cells++;
        const double n = expected[i] * draws;
        chi_square += (counts[i] - n) * (counts[i] - n) / n;
      }
      const double degrees = cells - 1;  // mean of chi-square; its deviation is sqrt(2 degrees)
      CHECK_MESSAGE(chi_square <= degrees + 5 * std::sqrt(2 * degrees), std::to_string(chi_square));
    }
  });
}

// Where the sum of probabilities, by ascending id, passes `uniform`.
std::int32_t reference_draw(const std::vector<double>& probabilities, double uniform) {
  double sum = 0;
  std::int32_t last = -1;
  for (std::size_t id = 0; id < probabilities.size(); id++) {
    if (probabilities[id] == 0) continue;
    last = static_cast<std::int32_t>(id);
    sum += probabilities[id];
    if (sum > uniform) break;
  }
  return last;
}

TEST(every_draw_is_that_of_the_definition) {
  on_every_device([](Device& device) {
    std::uint64_t draw = 0;
    for (const std::int64_t vocab : {1, 2, 7, 1023, 1025, 9000}) {
      for (const float spread : {0.0f, 1e-3f, 1.0f, 25.0f, 1000.0f}) {
        std::vector<float> logits = random_floats(vocab, spread);
        for (std::int64_t id = 3; id < vocab; id += 10) logits[id] = -kInf;
        for (const std::int32_t top_k : {0, 1, 5, 800}) {
          for (const float top_p : {1.0f, 0.999f, 0.4f, 1e-4f}) {
            SampleParams::Row row{.temperature = 0.6f, .top_k = top_k, .top_p = top_p, .seed = 9, .draw = draw++};
            if (draw % 3 == 0) row.min_p = 0.02f;
            const double uniform = uniform_random(row.seed, row.draw);
            const std::int32_t token = sample_one(device, logits, row);
            // Sums of weights in f32 pass a bound a little sooner or later than exact ones.
            bool is_right = false;
            for (const double shift : {-1e-5, 0.0, 1e-5}) {
              SampleParams::Row near = row;
              if (top_p < 1) near.top_p = static_cast<float>(top_p * (1 + shift));
              const std::vector<double> exact = reference_distribution(logits, near);
              for (const double by : {-1e-5, 0.0, 1e-5}) is_right |= token == reference_draw(exact, uniform + by);
            }
            CHECK_MESSAGE(is_right, std::to_string(vocab) + " " + std::to_string(spread) + " " + std::to_string(top_k) +
                                        " " + std::to_string(top_p));
          }
        }
      }
    }
  });
}

TEST(greedy_and_its_equals) {
  on_every_device([](Device& device) {
    for (const std::int64_t vocab : {1, 2, 19, 1000}) {
      std::vector<float> logits = random_floats(vocab);
      for (const std::int64_t top : {vocab - 1, vocab / 2}) {
        logits[top] = 50;  // ties go to the lowest id
        const std::int32_t lowest = static_cast<std::int32_t>(std::min<std::int64_t>(top, vocab - 1));
        CHECK(sample_one(device, logits, {}) == lowest);
        SampleParams::Row row{.temperature = 2, .top_k = 1, .seed = 3};
        CHECK(sample_one(device, logits, row) == lowest);
        row = {.temperature = 2, .top_p = 1e-6f, .seed = 3};
        CHECK(sample_one(device, logits, row) == lowest);
        row = {.temperature = 1e-30f, .seed = 3};
        if (top == vocab - 1) CHECK(sample_one(device, logits, row) == lowest);
      }
    }
    const std::vector<float> equal(300, 0.25f);
    SampleParams::Row row{.temperature = 1, .top_k = 3};
    for (std::uint64_t draw = 0; draw < 50; draw++) {
      row.draw = draw;
      CHECK(sample_one(device, equal, row) < 3);
    }
  });
}

TEST(log_probabilities_are_of_the_raw_logits) {
  on_every_device([](Device& device) {
    const std::vector<float> logits = random_floats(50257, 3);
    const double max = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit - max);
    const std::int32_t forbidden[] = {5};
    const SampleParams::Row row{.temperature = 0.5f, .top_k = 40, .forbidden = forbidden, .seed = 5, .draw = 9};
    float logprob = 0;
    const std::int32_t token = sample_one(device, logits, row, &logprob);
    CHECK(std::fabs(logprob - (logits[token] - max - std::log(sum))) < 1e-5);
  });
}

TEST(most_likely_tokens_are_those_of_the_raw_logits) {
  for (const std::int64_t vocab : {1, 7, 50257}) {
    std::vector<float> logits = random_floats(vocab, 3);
    if (vocab > 5) logits[5] = logits[2] = 100;  // equal ones by ascending id
    if (vocab > 6) logits[6] = -kInf;
    const double max = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit - max);
    const auto exact = [&](std::int32_t id) { return logits[id] - max - std::log(sum); };
    std::vector<std::int32_t> order(vocab);
    for (std::int64_t i = 0; i < vocab; i++) order[i] = static_cast<std::int32_t>(i);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
    for (const std::int64_t n : {0, 1, 5, 20}) {
      const std::vector<RankedToken> top = most_likely(logits, n, {0, static_cast<float>(exact(0))});
      CHECK(std::ssize(top) == std::min(n, vocab));
      for (std::size_t i = 0; i < top.size(); i++) {
        CHECK(top[i].token == order[i]);
        CHECK(top[i].logprob == exact(order[i]) || std::fabs(top[i].logprob - exact(order[i])) < 2e-5);
      }
    }
  }
}

TEST(sampling_of_a_row_does_not_depend_on_others) {
  on_every_device([](Device& device) {
    const std::int64_t vocab = 999;
    const std::vector<float> logits = random_floats(5 * vocab);
    std::vector<SampleParams::Row> rows;
    for (int i = 0; i < 5; i++)
      rows.push_back({.logits_row = 4 - i, .temperature = 1, .top_p = 0.9f, .seed = 1, .draw = 7u + i});
    std::int32_t tokens[5];
    device.sample({.logits = logits.data(), .vocab = vocab, .rows = rows, .tokens = tokens});
    for (int i = 0; i < 5; i++) {
      std::int32_t alone;
      device.sample({.logits = logits.data(), .vocab = vocab, .rows = {&rows[i], 1}, .tokens = &alone});
      CHECK(alone == tokens[i]);
    }
  });
}

TEST(sampling_refuses_bad_input) {
  on_every_device([](Device& device) {
    std::vector<float> logits = random_floats(20);
    std::vector<std::int32_t> all(20);
    for (int i = 0; i < 20; i++) all[i] = i;
    const std::int32_t outside[] = {20}, negative[] = {-1}, four[] = {4};
    for (const float temperature : {0.0f, 1.0f}) {
      CHECK_CODE(code::kInvalidArgument, sample_one(device, logits, {.temperature = temperature, .forbidden = all}));
      CHECK_CODE(code::kInvalidArgument,
                 sample_one(device, logits, {.temperature = temperature, .forbidden = outside}));
      CHECK_CODE(code::kInvalidArgument,
                 sample_one(device, logits, {.temperature = temperature, .repetition_penalty = 2, .seen = negative}));
    }
    CHECK_CODE(code::kInvalidArgument, sample_one(device, logits, {.temperature = -1}));
    CHECK_CODE(code::kInvalidArgument, sample_one(device, logits, {.temperature = kNan}));
    CHECK_CODE(code::kInvalidArgument, sample_one(device, logits, {.top_k = -1}));
    CHECK_CODE(code::kInvalidArgument, sample_one(device, logits, {.top_p = 0}));
    CHECK_CODE(code::kInvalidArgument, sample_one(device, logits, {.min_p = 1.5f}));
    CHECK_CODE(code::kInvalidArgument, sample_one(device, logits, {.repetition_penalty = 0}));
    for (const float penalty : {kNan, kInf, 101.0f, -101.0f}) {
      CHECK_CODE(code::kInvalidArgument, sample_one(device, logits, {.presence_penalty = penalty}));
      CHECK_CODE(code::kInvalidArgument, sample_one(device, logits, {.frequency_penalty = penalty}));
    }
    CHECK_CODE(code::kInvalidArgument, sample_one(device, logits, {.frequency_penalty = 1, .counts = four}));
    for (const float bad : {kNan, kInf}) {
      for (const int at : {0, 7, 19}) {
        std::vector<float> broken = logits;
        broken[at] = bad;
        CHECK_CODE(code::kInvalidModel, sample_one(device, broken, {.temperature = 1}));
        CHECK_CODE(code::kInvalidModel, sample_one(device, broken, {}));
      }
    }
    CHECK_CODE(code::kInvalidModel, sample_one(device, std::vector<float>(20, -kInf), {.temperature = 1}));
    logits[4] = 1e30f;
    CHECK_CODE(code::kInvalidArgument, sample_one(device, logits, {.repetition_penalty = 1e-30f, .seen = four}));
    logits.assign(20, -kInf);
    logits[13] = -3;
    CHECK(sample_one(device, logits, {.temperature = 1}) == 13);
  });
}

// ---- threads, memory, levels ------------------------------------------------------------------------

TEST(thread_pool_runs_everything_once) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (int round = 0; round < 2000; round++) {
      const std::int64_t n = round % 37;
      std::vector<int> seen(n);
      std::atomic<int> calls = 0;
      pool.run(n, [&](std::int64_t begin, std::int64_t end, int thread) {
        calls += thread < 0 || thread >= threads ? 1000000 : 1;
        for (std::int64_t i = begin; i < end; i++) seen[i]++;
      });
      CHECK(std::all_of(seen.begin(), seen.end(), [](int count) { return count == 1; }));
      CHECK(calls <= n);
      if (round % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // helpers fall asleep
    }
  }
}

TEST(allocate_gives_zeros_or_says_why_not) {
  const std::shared_ptr<Device> device = create_cpu_device({.threads = 1});
  const Buffer buffer = device->allocate(100000, "a test");
  CHECK(buffer.bytes() == 100000);
  CHECK(std::all_of(buffer.as<char>(), buffer.as<char>() + 100000, [](char c) { return c == 0; }));
  CHECK(device->allocate(0, "nothing").bytes() == 0);
  for (const std::size_t bytes : {std::size_t{1} << 60, std::numeric_limits<std::size_t>::max()}) {
    try {
      device->allocate(bytes, "the page pool");
      CHECK(false);
    } catch (const Error& error) {
      CHECK(error.code() == std::string(code::kOutOfMemory));
      const std::string message = error.what();
      CHECK(message.find(std::to_string(bytes)) != std::string::npos &&
            message.find("the page pool") != std::string::npos);
    }
  }
}

TEST(simd_levels_are_chosen_by_name) {
  const std::vector<std::string> levels = available_simd_levels();
  CHECK(!levels.empty());
  CHECK(create_cpu_device({})->info().simd == levels.back() || std::getenv("HOGWILD_SIMD"));
  CHECK(create_cpu_device({})->info().threads == available_processors());
  try {
    create_cpu_device({.simd = "mmx"});
    CHECK(false);
  } catch (const Error& error) {
    CHECK(error.code() == std::string(code::kUnsupported));
    CHECK(std::string(error.what()).find(levels.front()) != std::string::npos);
  }
}

TEST(cuda_status_gives_a_reason) {
  const CudaStatus status = cuda_status();
  CHECK(status.cards.size() > 0 || !status.reason.empty());
}

}  // namespace
}  // namespace hogwild

HOGWILD_TEST_MAIN
