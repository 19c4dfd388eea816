#include "core/int4.h"

#include <algorithm>
#include <cstring>

#include "core/float16.h"
#include "core/format.h"

namespace hogwild {
namespace {

constexpr std::int64_t kWord = 8;     // integers in a word
constexpr std::int64_t kHalves = 32;  // columns whose codes lie together in a block: i and i + 16 share a byte
constexpr std::int64_t kTile = 128;   // outputs whose words are read together: a cache line of them, in AWQ
constexpr unsigned kSymmetricZero = 8;

template <typename T>
T load(const std::byte* from, std::int64_t index) {
  T value;
  std::memcpy(&value, from + index * static_cast<std::int64_t>(sizeof(T)), sizeof value);
  return value;
}

unsigned integer(const std::byte* words, std::int64_t word, std::int64_t place) {
  return load<std::uint32_t>(words, word) >> 4 * place & 15;
}

// Where an output stands in a word.
template <Int4Layout kLayout>
constexpr std::int64_t place_of(std::int64_t output) {
  const std::int64_t in_word = output % kWord;
  if constexpr (kLayout == Int4Layout::kAwq) return in_word / 2 + in_word % 2 * 4;
  return in_word;
}

template <Int4Layout kLayout>
unsigned code_of(const Int4Tensors& t, std::int64_t output, std::int64_t col) {
  if constexpr (kLayout == Int4Layout::kAwq) {
    return integer(t.codes, col * (t.outputs / kWord) + output / kWord, place_of<kLayout>(output));
  }
  if constexpr (kLayout == Int4Layout::kGptq) return integer(t.codes, col / kWord * t.outputs + output, col % kWord);
  return integer(t.codes, output * (t.cols / kWord) + col / kWord, col % kWord);
}

template <Int4Layout kLayout>
unsigned stored_zero(const Int4Tensors& t, std::int64_t output, std::int64_t group) {
  const std::int64_t eight = output / kWord;
  const std::int64_t word = kLayout == Int4Layout::kCompressedTensors ? eight * (t.cols / t.group) + group
                                                                      : group * (t.outputs / kWord) + eight;
  return integer(t.zeros, word, place_of<kLayout>(output));
}

template <Int4Layout kLayout>
float scale_of(const Int4Tensors& t, std::int64_t output, std::int64_t group) {
  const std::int64_t at =
      kLayout == Int4Layout::kCompressedTensors ? output * (t.cols / t.group) + group : group * t.outputs + output;
  switch (t.scale_dtype) {
    case Dtype::kF16:
      return f16_to_f32(load<std::uint16_t>(t.scales, at));
    case Dtype::kBF16:
      return bf16_to_f32(load<std::uint16_t>(t.scales, at));
    case Dtype::kF32:
      break;
  }
  return load<float>(t.scales, at);
}

// Whether every zero of these outputs is stored as 7, or every one as 8.
template <Int4Layout kLayout>
bool looks_symmetric(const Int4Tensors& t, std::int64_t first, std::int64_t rows) {
  const unsigned zero = stored_zero<kLayout>(t, first, 0);
  if (zero != 7 && zero != 8) return false;
  for (std::int64_t g = 0; g < t.cols / t.group; ++g) {
    for (std::int64_t n = first; n < first + rows; ++n) {
      if (stored_zero<kLayout>(t, n, g) != zero) return false;
    }
  }
  return true;
}

template <Int4Layout kLayout>
void write_rows(const Int4Tensors& t, std::int64_t first, std::int64_t rows, std::span<const std::int32_t> columns,
                std::byte* out) {
  const std::int64_t groups = t.cols / t.group;
  const std::int64_t block_bytes = sizeof(float) + 1 + t.group / 2;
  const bool may_be_8 = t.zero_rule == Int4Zeros::kStoredOr8 || t.zero_rule == Int4Zeros::kLessOneOr8;
  const bool less_one = t.zero_rule == Int4Zeros::kLessOne || t.zero_rule == Int4Zeros::kLessOneOr8;
  const bool are_8 = t.zeros == nullptr || (may_be_8 && looks_symmetric<kLayout>(t, first, rows));

  const auto write_block = [&](std::int64_t output, std::int64_t group, std::byte* to) {
    const float scale = scale_of<kLayout>(t, output, group);
    std::memcpy(to, &scale, sizeof scale);
    to += sizeof scale;
    const unsigned zero = are_8 ? kSymmetricZero : stored_zero<kLayout>(t, output, group) + (less_one ? 1 : 0);
    *to++ = static_cast<std::byte>(zero & 15);
    for (std::int64_t col = group * t.group; col < (group + 1) * t.group; col += kHalves) {
      const auto code = [&](std::int64_t i) {
        return code_of<kLayout>(t, output, columns.empty() ? i : columns[static_cast<std::size_t>(i)]);
      };
      for (std::int64_t i = col; i < col + kHalves / 2; ++i) {
        *to++ = static_cast<std::byte>(code(i) | code(i + kHalves / 2) << 4);
      }
    }
  };
  for (std::int64_t tile = 0; tile < rows; tile += kTile) {
    for (std::int64_t group = 0; group < groups; ++group) {
      for (std::int64_t row = tile; row < std::min(tile + kTile, rows); ++row) {
        write_block(first + row, group, out + (row * groups + group) * block_bytes);
      }
    }
  }
}

}  // namespace

std::optional<std::vector<std::int32_t>> sort_columns(const std::byte* groups, std::int64_t cols, std::int64_t group) {
  std::vector<std::int32_t> group_of(static_cast<std::size_t>(cols));
  std::memcpy(group_of.data(), groups, group_of.size() * sizeof(std::int32_t));
  const std::vector<std::int32_t> none;
  if (std::all_of(group_of.begin(), group_of.end(), [](std::int32_t g) { return g == -1; })) return none;

  std::vector<std::int32_t> columns(group_of.size());
  std::vector<std::int64_t> found(static_cast<std::size_t>(cols / group));  // columns of each group so far
  bool in_order = true;
  for (std::int64_t col = 0; col < cols; ++col) {
    const std::int64_t g = group_of[static_cast<std::size_t>(col)];
    if (g < 0 || g >= std::ssize(found) || found[static_cast<std::size_t>(g)] == group) return std::nullopt;
    const std::int64_t place = g * group + found[static_cast<std::size_t>(g)]++;
    columns[static_cast<std::size_t>(place)] = static_cast<std::int32_t>(col);
    in_order &= place == col;
  }
  return in_order ? none : columns;
}

void write_int4_rows(const Int4Tensors& tensors, std::int64_t first, std::int64_t rows,
                     std::span<const std::int32_t> columns, std::byte* out) {
  switch (tensors.layout) {
    case Int4Layout::kAwq:
      return write_rows<Int4Layout::kAwq>(tensors, first, rows, columns, out);
    case Int4Layout::kGptq:
      return write_rows<Int4Layout::kGptq>(tensors, first, rows, columns, out);
    case Int4Layout::kCompressedTensors:
      return write_rows<Int4Layout::kCompressedTensors>(tensors, first, rows, columns, out);
  }
}

}  // namespace hogwild
