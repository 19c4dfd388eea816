// Products of the CUDA device, on the emulated card: what it makes of matrices when they are uploaded, and mixtures of
// experts, against float64. The kernels themselves have their own tests.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../native/check.h"
#include "core/float16.h"
#include "core/format.h"
#include "core/limits.h"
#include "core/quant.h"
#include "device/device.h"
#include "gated_reference.h"
#include "kernels.h"
#include "simt/cuda_api.h"

namespace hogwild {
namespace {

std::mt19937_64 rng(17);

std::vector<float> random_floats(std::int64_t n, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = normal(rng);
  return values;
}

double in_bf16(double value) { return bf16_to_f32(f32_to_bf16(static_cast<float>(value))); }
double in_f16(double value) { return f16_to_f32(f32_to_f16(static_cast<float>(value))); }

// A matrix as a file has it and the weights that it means on the card, as x has its columns.
struct Weight {
  Format format = Format::kF32;
  std::int64_t rows = 0, cols = 0;
  std::vector<std::byte> file;
  std::vector<double> values;
  std::vector<std::int32_t> columns;  // empty: in order

  Weight(Format format, std::int64_t rows, std::int64_t cols, bool sorted = false)
      : format(format), rows(rows), cols(cols), file(static_cast<std::size_t>(rows * row_bytes(format, cols))) {
    for (std::byte& byte : file) byte = static_cast<std::byte>(rng());
    const FormatInfo& info = format_info(format);
    const std::vector<float> numbers = random_floats(rows * cols, 1 / std::sqrt(static_cast<float>(cols)));
    for (std::size_t i = 0, at = 0; at < file.size(); ++i, at += static_cast<std::size_t>(info.block_bytes)) {
      const std::uint16_t half = f32_to_f16(is_plain(format) ? numbers[i] : 0.01f);
      const std::uint16_t rounded = f32_to_bf16(numbers[i % numbers.size()]);
      const float d = 0.01f;
      switch (format) {
        case Format::kF32:
          std::memcpy(&file[at], &numbers[i], sizeof(float));
          break;
        case Format::kBF16:
          std::memcpy(&file[at], &rounded, sizeof rounded);
          break;
        case Format::kInt4G32:
          std::memcpy(&file[at], &d, sizeof d);
          file[at + 4] &= std::byte{15};
          break;
        default:  // f16, or a scale in front
          std::memcpy(&file[at], &half, sizeof half);
      }
    }
    std::vector<float> stored(static_cast<std::size_t>(rows * cols));
    for (std::int64_t row = 0; row < rows; ++row) {
      dequantise_row(format, file.data() + row * row_bytes(format, cols), cols, stored.data() + row * cols);
    }
    if (sorted) {
      columns.resize(static_cast<std::size_t>(cols));
      std::iota(columns.begin(), columns.end(), 0);
      std::shuffle(columns.begin(), columns.end(), rng);
    }
    values.resize(stored.size());
    for (std::int64_t i = 0; i < rows * cols; ++i) {
      const std::int64_t column = sorted ? columns[static_cast<std::size_t>(i % cols)] : i % cols;
      const float value = stored[static_cast<std::size_t>(i)];
      values[static_cast<std::size_t>(i / cols * cols + column)] = format == Format::kF32 ? in_bf16(value) : value;
    }
  }

  Matrix upload(Device& device, WeightStorage& storage) const {
    return device.upload_weight({.data = file.data(),
                                 .format = format,
                                 .rows = rows,
                                 .cols = cols,
                                 .columns = columns.empty() ? nullptr : columns.data()},
                                storage);
  }

  // What is multiplied with it is rounded as it is.
  std::vector<double> times(const std::vector<double>& x, std::span<const float> bias) const {
    std::vector<double> y(static_cast<std::size_t>(rows));
    for (std::size_t r = 0; r < y.size(); ++r) {
      y[r] = bias.empty() ? 0 : bias[r];
      for (std::size_t i = 0; i < x.size(); ++i) {
        y[r] += values[r * x.size() + i] * (format == Format::kF16 ? in_f16(x[i]) : in_bf16(x[i]));
      }
    }
    return y;
  }
};

// A host array on the card.
struct Array {
  Buffer buffer;
  Array(Device& device, std::span<const float> values) : buffer(device.allocate(values.size_bytes(), "a test")) {
    device.upload(buffer.data(), values.data(), values.size_bytes());
  }
  float* data() const { return buffer.as<float>(); }
  std::vector<float> to_host(Device& device) const {
    std::vector<float> values(buffer.bytes() / sizeof(float));
    device.download(values.data(), buffer.data(), buffer.bytes());
    return values;
  }
};

double row_of(std::span<const float> values, std::int64_t row, std::int64_t cols, std::vector<double>& to) {
  to.assign(values.begin() + row * cols, values.begin() + (row + 1) * cols);
  return std::accumulate(to.begin(), to.end(), 0., [](double sum, double value) { return sum + std::abs(value); });
}

// Formats side by side, columns in several orders, rows of any length: all in one op.
TEST(matrices_of_all_kinds_in_one_product) {
  const auto device = create_cuda_device(0);
  const std::int64_t rows = 5;
  const std::vector<std::vector<Weight>> groups = {
      {{Format::kF32, 33, 27}, {Format::kF32, 1000, 27}, {Format::kF16, 12, 27}},
      {{Format::kQ8_0, 50, 96, true}, {Format::kBF16, 17, 96}, {Format::kInt4G32, 70, 96, true}},
      {{Format::kQ4_0, 17, 64}, {Format::kQ4_0, 90, 64}, {Format::kIQ4_NL, 16, 64}}};
  for (const std::vector<Weight>& weights : groups) {
    const std::int64_t k = weights.front().cols;
    const std::vector<float> x = random_floats(rows * k);
    const Array device_x(*device, x);
    WeightStorage storage;
    MatmulParams params{.x = device_x.data(), .rows = rows, .k = k, .n_outputs = 3};
    std::vector<Array> ys;
    for (const Weight& weight : weights) ys.emplace_back(*device, std::vector<float>(rows * weight.rows, NAN));
    for (std::size_t i = 0; i < weights.size(); ++i) {
      params.outputs[i] = {.weight = weights[i].upload(*device, storage), .bias = nullptr, .y = ys[i].data()};
      CHECK(params.outputs[i].weight.cols == k);
    }
    device->matmul(params);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      const std::vector<float> found = ys[i].to_host(*device);
      double worst = 0;
      for (std::int64_t row = 0; row < rows; ++row) {
        std::vector<double> in;
        const double size = row_of(x, row, k, in);
        const std::vector<double> exact = weights[i].times(in, {});
        for (std::int64_t o = 0; o < weights[i].rows; ++o) {
          const double error = std::abs(found[row * weights[i].rows + o] - exact[static_cast<std::size_t>(o)]);
          worst = std::max(worst, std::isnan(error) ? 1e9 : error / (1e-6 * size));
        }
      }
      CHECK_MESSAGE(worst <= 1, std::string(format_name(weights[i].format)) + ": " + std::to_string(worst));
    }
  }
}

// What a device does at once has the bits of what it does one after the other; it does so with matrices of one kind.
TEST(gated_products_are_products_and_an_activation) {
  const auto device = create_cuda_device(0);
  constexpr std::int64_t kRows = 6, kCols = 96, kOutputs = 200, kElements = kRows * kOutputs;
  const Array x(*device, random_floats(kRows * kCols)), bias(*device, random_floats(kOutputs));
  const std::pair<Weight, Weight> pairs[] = {
      {{Format::kBF16, kOutputs, kCols}, {Format::kBF16, kOutputs, kCols}},
      {{Format::kF32, kOutputs, 27}, {Format::kF32, kOutputs, 27}},
      {{Format::kQ8_0, kOutputs, kCols}, {Format::kQ8_0, kOutputs, kCols}},
      {{Format::kQ4_0, kOutputs, kCols}, {Format::kBF16, kOutputs, kCols}},
      {{Format::kInt4G32, kOutputs, kCols, true}, {Format::kInt4G32, kOutputs, kCols, true}}};
  for (const auto& [gate, up] : pairs) {
    WeightStorage storage;
    const Matrix gate_matrix = gate.upload(*device, storage), up_matrix = up.upload(*device, storage);
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16, Dtype::kF16}) {
      const auto results = [&](bool at_once, int& launches) {
        const std::vector<float> nothing(kElements, NAN);
        const Array gates(*device, nothing), ups(*device, nothing), out(*device, nothing);
        const MatmulParams product = {
            .x = x.data(),
            .rows = kRows,
            .k = gate.cols,
            .n_outputs = 2,
            .outputs = {{gate_matrix, bias.data(), gates.data()}, {up_matrix, nullptr, ups.data()}}};
        const GatedActivationParams activation = {.gate = gates.data(),
                                                  .up = ups.data(),
                                                  .n = kElements,
                                                  .activation = Activation::kGeluTanh,
                                                  .out = dtype == Dtype::kF32 ? gates.data() : out.data(),
                                                  .out_dtype = dtype};
        const int before = simt::card.kernel_launches;
        if (at_once) {
          device->gated_matmul(product, activation);
        } else {
          device->matmul(product);
          device->gated_activation(activation);
        }
        launches = simt::card.kernel_launches - before;
        std::vector<float> all = gates.to_host(*device);
        for (const Array* array : {&ups, &out}) {
          const std::vector<float> part = array->to_host(*device);
          all.insert(all.end(), part.begin(), part.end());
        }
        return all;
      };
      int apart = 0, together = 0;
      const std::vector<float> expected = results(false, apart), found = results(true, together);
      CHECK(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)) == 0);
      const bool alike = gate_matrix.format == up_matrix.format && gate_matrix.columns == up_matrix.columns;
      CHECK(together == apart - (alike ? 1 : 0));
    }
  }
}

TEST(rows_of_a_table_of_any_width) {
  const auto device = create_cuda_device(0);
  for (const auto& [format, cols] : {std::pair{Format::kF32, 27}, {Format::kBF16, 20}, {Format::kQ8_0, 96}}) {
    const Weight table(format, 19, cols, format == Format::kQ8_0);
    WeightStorage storage;
    const std::vector<std::int32_t> tokens = {18, 0, 7};
    const auto step = device->upload(StepView{.plan = {}, .ropes = {}, .slots = {}, .tokens = tokens});
    const Array out(*device, std::vector<float>(tokens.size() * static_cast<std::size_t>(cols), NAN));
    device->embedding(*step, {.rows = 3, .table = table.upload(*device, storage), .scale = 2, .out = out.data()});
    const std::vector<float> found = out.to_host(*device);
    bool right = true;
    for (std::int64_t i = 0; i < std::ssize(found); ++i) {
      const double exact = 2 * table.values[static_cast<std::size_t>(tokens[i / cols] * cols + i % cols)];
      right &= std::abs(found[i] - exact) <= 1e-6 * std::abs(exact);
    }
    CHECK_MESSAGE(right, format_name(format));
  }
}

// An order of columns that several matrices share is on the card once.
TEST(orders_of_columns_are_uploaded_once) {
  const auto device = create_cuda_device(0);
  const Weight weight(Format::kQ4_0, 16, 64, true);
  WeightStorage storage;
  const Matrix first = weight.upload(*device, storage), second = weight.upload(*device, storage);
  CHECK(first.columns != nullptr && first.columns == second.columns && first.data != second.data);
  CHECK(storage.buffers.size() == 3);
}

TEST(the_largest_vocabulary_has_a_kernel) {
  for (const std::int64_t rows : {1, 8, 9, 16, 17, 32, 33, 64}) {
    MatmulParams params{.x_dtype = Dtype::kBF16, .rows = rows, .k = 64, .n_outputs = 1};
    params.outputs[0].weight = {nullptr, Format::kBF16, kMaxVocab, 64};
    CHECK(cuda::matmul_workspace_bytes({.params = params, .multiprocessors = 132}) > 0);
    params.outputs[0].weight = {nullptr, Format::kQ8_0, kMaxVocab, 64, Order::kFragments};
    CHECK(cuda::quantised_matmul_workspace_bytes({.params = params, .multiprocessors = 132}) > 0);
  }
}

struct Expert {
  Weight gate, up, down;
  std::vector<float> gate_bias, up_bias, down_bias;
};

struct MixtureCase {
  const char* name;
  std::vector<std::array<Format, 3>> formats;  // gate, up, down: of the experts in turn
  std::int64_t rows, hidden, intermediate;
  bool sorted = false, biases = false;
  Activation activation = Activation::kSilu;
};

TEST(mixtures_equal_the_definition) {
  constexpr std::int64_t kExperts = 5, kUsed = 2;
  constexpr std::array kAllBF16 = {Format::kBF16, Format::kBF16, Format::kBF16};
  constexpr std::array kAllF16 = {Format::kF16, Format::kF16, Format::kF16};
  constexpr std::array kQuantised = {Format::kQ8_0, Format::kQ4_0, Format::kQ8_0};
  constexpr std::array kInt4 = {Format::kInt4G32, Format::kInt4G32, Format::kInt4G32};
  constexpr std::array kF16Gate = {Format::kF16, Format::kQ4_0, Format::kBF16};
  const MixtureCase cases[] = {
      {"bf16", {kAllBF16}, 3, 64, 96},
      {"many rows", {kAllBF16}, 150, 32, 40},
      {"odd sizes", {{Format::kF32, Format::kF32, Format::kF32}}, 4, 20, 27, false, true},
      {"an odd width", {kAllF16}, 4, 27, 32},
      {"quantised", {kQuantised}, 4, 64, 96},
      {"gpt-oss",
       {{Format::kMXFP4, Format::kMXFP4, Format::kMXFP4}},
       9,
       96,
       64,
       false,
       true,
       Activation::kClampedSwiglu},
      {"sorted columns", {kInt4}, 4, 64, 96, true},
      {"gates in f16 beside quantised ones", {kF16Gate}, 4, 64, 96, false, true},
      {"two formats", {kAllBF16, kQuantised}, 5, 64, 96},
      {"four formats", {kAllBF16, kAllF16, kQuantised, kF16Gate}, 7, 64, 96, false, true},
      {"four formats, many rows", {kF16Gate, kQuantised, kAllF16, kAllBF16}, 150, 32, 64},
      {"four formats, one row", {kAllF16, kQuantised, kAllBF16, kF16Gate}, 1, 32, 64},
      {"two formats, odd sizes", {kAllF16, kAllBF16}, 9, 20, 27, false, true},
      {"some with sorted columns", {kAllBF16, kInt4, kAllF16}, 8, 64, 96, true},
  };
  for (const MixtureCase& c : cases) {
    const auto device = create_cuda_device(0);
    std::vector<Expert> own;
    const auto bias = [&](std::int64_t n) { return c.biases ? random_floats(n) : std::vector<float>(); };
    for (std::int64_t e = 0; e < kExperts; ++e) {
      const auto [gate, up, down] = c.formats[static_cast<std::size_t>(e) % c.formats.size()];
      const bool sorted = c.sorted && gate == Format::kInt4G32;
      own.push_back({{gate, c.intermediate, c.hidden, sorted},
                     {up, c.intermediate, c.hidden, sorted},
                     {down, c.hidden, c.intermediate, sorted},
                     bias(c.intermediate),
                     bias(c.intermediate),
                     bias(c.hidden)});
      if (gate == Format::kMXFP4) {  // exponents that make weights of a usual size
        for (Weight* weight : {&own.back().gate, &own.back().up, &own.back().down}) {
          for (std::size_t at = 0; at < weight->file.size(); at += 17) weight->file[at] = std::byte{121};
          for (std::int64_t row = 0; row < weight->rows; ++row) {
            std::vector<float> values(static_cast<std::size_t>(weight->cols));
            dequantise_row(weight->format, weight->file.data() + row * row_bytes(weight->format, weight->cols),
                           weight->cols, values.data());
            std::copy(values.begin(), values.end(), weight->values.begin() + row * weight->cols);
          }
        }
      }
    }
    WeightStorage storage;
    std::vector<Array> biases;
    biases.reserve(3 * kExperts);
    const auto upload_bias = [&](const std::vector<float>& values) -> const float* {
      if (values.empty()) return nullptr;
      biases.emplace_back(*device, values);
      return biases.back().data();
    };
    std::vector<FeedForward> experts;
    for (const Expert& e : own) {
      experts.push_back({e.gate.upload(*device, storage), e.up.upload(*device, storage),
                         e.down.upload(*device, storage), upload_bias(e.gate_bias), upload_bias(e.up_bias),
                         upload_bias(e.down_bias)});
    }
    const Buffer table = device->upload_experts(experts);
    const std::vector<float> x = random_floats(c.rows * c.hidden), logits = random_floats(c.rows * kExperts);
    const std::vector<float> before = random_floats(c.rows * c.hidden);
    const Array device_x(*device, x), device_logits(*device, logits), out(*device, before);
    const Array scratch(
        *device, std::vector<float>(
                     static_cast<std::size_t>(experts_scratch_floats(c.rows, kUsed, c.hidden, c.intermediate)), NAN));
    device->experts({.x = device_x.data(),
                     .router_logits = device_logits.data(),
                     .rows = c.rows,
                     .hidden = c.hidden,
                     .intermediate = c.intermediate,
                     .experts = experts,
                     .device_experts = table.data(),
                     .used = kUsed,
                     .normalized = true,
                     .activation = c.activation,
                     .scratch = scratch.data(),
                     .out = out.data()});
    const std::vector<float> found = out.to_host(*device);
    double errors = 0, sizes = 0;
    for (std::int64_t row = 0; row < c.rows; ++row) {
      std::vector<double> in;
      row_of(x, row, c.hidden, in);
      std::vector<std::size_t> order(kExperts);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](auto a, auto b) { return logits[row * kExperts + a] > logits[row * kExperts + b]; });
      double sum = 0;
      for (std::int64_t j = 0; j < kUsed; ++j) sum += std::exp(double{logits[row * kExperts + order[j]]});
      std::vector<double> exact(before.begin() + row * c.hidden, before.begin() + (row + 1) * c.hidden);
      for (std::int64_t j = 0; j < kUsed; ++j) {
        const Expert& e = own[order[j]];
        const std::vector<double> gate = e.gate.times(in, e.gate_bias), up = e.up.times(in, e.up_bias);
        std::vector<double> activated(gate.size());
        for (std::size_t i = 0; i < gate.size(); ++i) activated[i] = gated_exactly(gate[i], up[i], c.activation);
        const std::vector<double> y = e.down.times(activated, e.down_bias);
        const double weight = std::exp(double{logits[row * kExperts + order[j]]}) / sum;
        for (std::size_t i = 0; i < y.size(); ++i) exact[i] += weight * y[i];
      }
      for (std::int64_t i = 0; i < c.hidden; ++i) {
        errors += std::pow(found[row * c.hidden + i] - exact[static_cast<std::size_t>(i)], 2);
        sizes += std::pow(exact[static_cast<std::size_t>(i)], 2);
      }
    }
    // An activation next to the boundary of two numbers of 16 bits may be rounded to the other.
    CHECK_MESSAGE(errors <= 1e-7 * sizes, std::string(c.name) + ": " + std::to_string(errors / sizes));
  }
}

}  // namespace
}  // namespace hogwild

HOGWILD_TEST_MAIN
