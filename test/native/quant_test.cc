// Products of quantised weights against what their files stand for, in double precision, on every SIMD level and number
// of threads, and what they promise beside the numbers: batch invariance, levels and orders of a matrix with the same
// bits, rows that are not finite. (test/quant.test.ts holds the numbers themselves against gguf-py.)
#include "core/quant.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "check.h"
#include "core/float16.h"
#include "core/format.h"
#include "core/panels.h"
#include "device/device.h"
#include "random_blocks.h"

namespace hogwild {
namespace {

std::mt19937_64 rng(20251129);

std::int64_t random_int(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}

std::vector<float> random_floats(std::int64_t n) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = normal(rng);
  return values;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

// A matrix of random blocks as a file has it, whose weights are of size 1 or so.
struct QuantMatrix {
  Format format;
  std::int64_t rows, cols;
  std::vector<std::byte> file;
  std::vector<float> values, bias;

  QuantMatrix(Format format, std::int64_t rows, std::int64_t cols)
      : format(format),
        rows(rows),
        cols(cols),
        file(random_blocks(rng, format, rows, cols)),
        values(static_cast<std::size_t>(rows * cols)),
        bias(random_floats(rows)) {
    for (std::int64_t row = 0; row < rows; ++row) {
      dequantise_row(format, file.data() + row * row_bytes(format, cols), cols, values.data() + row * cols);
    }
  }
  WeightSource source(bool repack) const {
    return {.data = file.data(), .format = format, .rows = rows, .cols = cols, .interleaved = {}, .repack = repack};
  }
};

// Products of the rows of x with some matrices, [rows, n] each.
std::vector<std::vector<float>> multiply(Device& device, std::span<const float> x, std::int64_t rows,
                                         std::span<const QuantMatrix> matrices, bool repack = true) {
  WeightStorage storage;
  std::vector<std::vector<float>> results;
  for (const QuantMatrix& matrix : matrices) results.emplace_back(static_cast<std::size_t>(rows * matrix.rows));
  MatmulParams params{
      .x = x.data(), .rows = rows, .k = matrices[0].cols, .n_outputs = static_cast<int>(matrices.size())};
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    params.outputs[i] = {device.upload_weight(matrices[i].source(repack), storage), matrices[i].bias.data(),
                         results[i].data()};
  }
  device.matmul(params);
  return results;
}

std::shared_ptr<Device> cpu(const std::string& simd, int threads) {
  return create_cpu_device({.threads = threads, .simd = simd});
}

const std::vector<Format>& formats() {
  static const std::vector<Format> all = [] {
    std::vector<Format> found;
    for (const FormatInfo& info : kFormats) {
      if (!is_plain(info.format)) found.push_back(info.format);
    }
    return found;
  }();
  return all;
}

std::string name_of(const QuantMatrix& matrix, const std::string& simd) {
  return std::string(format_name(matrix.format)) + " " + std::to_string(matrix.rows) + " x " +
         std::to_string(matrix.cols) + ", " + simd;
}

// x is rounded, per 32 columns, to integers of 15 bits: half a unit each. The rest is the rounding of f32 sums.
TEST(products_equal_double) {
  constexpr std::int64_t kMostRows = 53;
  constexpr double kLargestInteger = 16319;
  for (const Format format : formats()) {
    const std::int64_t block = format_info(format).block_elements;
    // One group, sizes of real models; outputs that do not fill panels.
    for (const auto& [k, n] : std::vector<std::pair<std::int64_t, std::int64_t>>{
             {block, 5}, {block == 256 ? 512 : 3 * block, 16}, {768, 33}}) {
      const QuantMatrix matrix(format, n, k);
      std::vector<float> x = random_floats(kMostRows * k);
      for (std::int64_t row = 0; row < kMostRows; ++row) {
        x[row * k + 7] = 40;  // far larger than its neighbours
        std::fill_n(x.begin() + row * k + k - 32, 31, 0.f);
      }
      std::vector<double> expected, bounds;
      for (std::int64_t row = 0; row < kMostRows; ++row) {
        std::vector<double> units;  // of each 32 columns
        for (std::int64_t first = 0; first < k; first += 32) {
          double most = 0;
          for (std::int64_t i = first; i < first + 32; ++i) most = std::max(most, std::abs(double{x[row * k + i]}));
          units.push_back(most / kLargestInteger);
        }
        for (std::int64_t output = 0; output < n; ++output) {
          double sum = matrix.bias[output], sizes = std::abs(sum), rounding = 0;
          for (std::int64_t i = 0; i < k; ++i) {
            const double weight = matrix.values[output * k + i], product = weight * x[row * k + i];
            sum += product;
            sizes += std::abs(product);
            rounding += std::abs(weight) * units[static_cast<std::size_t>(i / 32)];
          }
          expected.push_back(sum);
          bounds.push_back(0.5 * rounding + 0x1p-20 * sizes);
        }
      }
      for (const std::string& simd : available_simd_levels()) {
        for (const std::int64_t rows : {std::int64_t{1}, std::int64_t{2}, std::int64_t{3}, std::int64_t{4},
                                        std::int64_t{7}, std::int64_t{14}, kMostRows}) {
          const std::vector<float> out = multiply(*cpu(simd, rows == 3 ? 3 : 1), x, rows, {&matrix, 1})[0];
          double worst = 0;
          for (std::size_t i = 0; i < out.size(); ++i) {
            const double error = std::abs(out[i] - expected[i]) / bounds[i];
            worst = std::max(worst, std::isnan(error) ? 1e9 : error);
          }
          CHECK_MESSAGE(worst <= 1,
                        name_of(matrix, simd) + ", rows " + std::to_string(rows) + ": " + std::to_string(worst));
        }
      }
    }
  }
}

TEST(rows_threads_and_orders_change_no_bit_of_a_row) {
  constexpr std::int64_t kRows = 53, kCols = 768;
  for (const Format format : formats()) {
    const QuantMatrix matrices[] = {{format, 70, kCols}, {Format::kQ6_K, 20, kCols}};
    const std::vector<float> x = random_floats(kRows * kCols);
    const std::span<const float> all_x = x;
    for (const std::string& simd : available_simd_levels()) {
      const std::shared_ptr<Device> one = cpu(simd, 1), three = cpu(simd, 3);
      std::vector<std::vector<float>> alone[kRows];
      for (std::int64_t row = 0; row < kRows; ++row) {
        alone[row] = multiply(*one, all_x.subspan(row * kCols, kCols), 1, matrices);
      }
      const auto check = [&](Device& device, std::int64_t first, std::int64_t count, bool repack) {
        const auto outs = multiply(device, all_x.subspan(first * kCols, count * kCols), count, matrices, repack);
        int different = 0;
        for (std::size_t i = 0; i < outs.size(); ++i) {
          const std::span<const float> out = outs[i];
          for (std::int64_t row = 0; row < count; ++row) {
            const std::int64_t n = matrices[i].rows;
            different += !same_bits(out.subspan(row * n, n), alone[first + row][i]);
          }
        }
        CHECK_MESSAGE(different == 0, name_of(matrices[0], simd) + ", rows " + std::to_string(count) +
                                          (repack ? "" : " as the file has them") + ": " + std::to_string(different));
      };
      for (const std::int64_t count : {2, 3, 4, 5, 8, 9, 12, 13, 16, 17, 23, 28, 53}) {
        check(*one, random_int(0, kRows - count), count, true);
        check(*three, random_int(0, kRows - count), count, true);
      }
      check(*three, 0, 5, false);
      check(*three, 0, 10, false);
      check(*three, 0, kRows, false);
    }
  }
}

// Rows so long that a level with tiles keeps few panels ready for them.
TEST(long_rows_in_any_company_have_the_same_bits) {
  constexpr std::int64_t kRows = 20, kCols = 8192;
  for (const Format format : {Format::kQ8_0, Format::kQ4_K, Format::kQ6_K}) {
    const QuantMatrix matrix(format, 70, kCols);
    const std::vector<float> x = random_floats(kRows * kCols);
    for (const std::string& simd : available_simd_levels()) {
      const std::shared_ptr<Device> device = cpu(simd, 1);
      const std::vector<float> together = multiply(*device, x, kRows, {&matrix, 1})[0];
      for (const std::int64_t row : {std::int64_t{0}, kRows - 1}) {
        const std::span<const float> part = std::span(x).subspan(static_cast<std::size_t>(row * kCols), kCols);
        CHECK_MESSAGE(same_bits(multiply(*device, part, 1, {&matrix, 1})[0],
                                std::span(together).subspan(static_cast<std::size_t>(row * 70), 70)),
                      name_of(matrix, simd) + ", row " + std::to_string(row));
      }
    }
  }
}

// `baseline` of x86 has no fused multiply-add.
TEST(levels_with_fma_give_the_same_bits) {
  constexpr std::int64_t kRows = 51, kCols = 1536;
  for (const Format format : formats()) {
    const QuantMatrix matrix(format, 48, kCols);
    const std::vector<float> x = random_floats(kRows * kCols);
    std::vector<float> first;
    for (const std::string& simd : available_simd_levels()) {
      if (simd == "baseline") continue;
      const std::vector<float> out = multiply(*cpu(simd, 2), x, kRows, {&matrix, 1})[0];
      if (first.empty()) first = out;
      CHECK_MESSAGE(same_bits(out, first), name_of(matrix, simd));
    }
  }
}

TEST(a_row_that_is_not_finite_stays_alone) {
  constexpr std::int64_t kRows = 50, kCols = 256, kOutputs = 20;
  for (const Format format : formats()) {
    const QuantMatrix matrix(format, kOutputs, kCols);
    const std::vector<float> x = random_floats(kRows * kCols);
    std::vector<float> damaged = x;
    damaged[1 * kCols + 40] = std::numeric_limits<float>::quiet_NaN();
    damaged[4 * kCols + 200] = std::numeric_limits<float>::infinity();
    for (const std::string& simd : available_simd_levels()) {
      const std::shared_ptr<Device> device = cpu(simd, 1);
      const std::vector<float> before = multiply(*device, x, kRows, {&matrix, 1})[0];
      const std::vector<float> after = multiply(*device, damaged, kRows, {&matrix, 1})[0];
      for (std::int64_t row = 0; row < kRows; ++row) {
        const auto part = [&](const std::vector<float>& out) {
          return std::span(out).subspan(static_cast<std::size_t>(row * kOutputs), kOutputs);
        };
        const bool good = row == 1 || row == 4 ? std::ranges::all_of(part(after), [](float v) { return std::isnan(v); })
                                               : same_bits(part(after), part(before));
        CHECK_MESSAGE(good, name_of(matrix, simd) + ", row " + std::to_string(row));
      }
    }
  }
}

// A row of a table is the same from the file and from panels.
TEST(panels_hold_what_the_file_holds) {
  for (const Format format : formats()) {
    const QuantMatrix matrix(format, 37, 768);
    WeightStorage storage;
    const std::shared_ptr<Device> device = cpu("", 2);
    const Matrix panels = device->upload_weight(matrix.source(true), storage);
    CHECK(panels.order == Order::kPanels);
    std::vector<float> row(768);
    int different = 0;
    for (std::int64_t i = 0; i < matrix.rows; ++i) {
      dequantise_matrix_row(panels, i, row.data());
      different += !same_bits(row, std::span(matrix.values).subspan(static_cast<std::size_t>(i * 768), 768));
    }
    CHECK_MESSAGE(different == 0, name_of(matrix, "") + std::to_string(different));
  }
}

}  // namespace
}  // namespace hogwild

HOGWILD_TEST_MAIN
