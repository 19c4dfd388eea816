#include "core/fragments.h"

#include <cstring>

#include "core/float16.h"

namespace hogwild {
namespace {

constexpr std::int64_t kOperandColumns = 16;

// The codes of 16 columns of one output; `operand`: which of the record's.
void write_codes(const CodeInfo& info, const std::uint8_t* codes, std::int64_t output, std::int64_t operand,
                 std::byte* record) {
  for (std::int64_t column = 0; column < kOperandColumns; column += 2) {
    const std::int64_t lane = output % 8 * 4 + column % 8 / 2;
    const std::int64_t i = output / 8 + 2 * (column / 8);  // register
    const std::uint8_t* pair = codes + column;
    std::byte* at;
    std::uint32_t bits, word;
    if (fragment_bits(info) == 4) {
      at = record + lane * 16 + operand * 4;
      bits = (pair[0] | static_cast<std::uint32_t>(pair[1]) << 16) << 4 * i;
    } else {
      const auto value = [&](std::uint8_t code) {
        return static_cast<std::uint32_t>(static_cast<std::uint8_t>(code_value(info, code)));
      };
      at = record + operand / 2 * 512 + lane * 16 + operand % 2 * 8 + i / 2 * 4;
      bits = (value(pair[0]) | value(pair[1]) << 16) << 8 * (i % 2);
    }
    std::memcpy(&word, at, sizeof word);
    word |= bits;
    std::memcpy(at, &word, sizeof word);
  }
}

// The scales of one output: of group `group` or, of formats with two levels, of all of a record's groups, from group
// `first` of the block on.
void write_scales(const CodeInfo& info, const QuantBlock& block, int first, int group, std::int64_t output,
                  std::byte* scales) {
  const int groups = fragment_groups(info);
  const FragmentScales counts = fragment_scales(info.scales, groups);
  const std::int64_t o = output % 8, half = output / 8;
  const auto put_number = [&](int index, const auto& value) {
    std::memcpy(scales + ((o * counts.numbers + index) * 2 + half) * counts.number_bytes, &value, sizeof value);
  };
  std::byte* const bytes = scales + kFragmentOutputs * counts.numbers * counts.number_bytes;
  const auto put_byte = [&](int index, std::uint8_t value) {
    bytes[(o * counts.bytes + index) * 2 + half] = std::byte{value};
  };
  switch (info.scales) {
    case Scales::kF16:
      return put_number(group, block.d);
    case Scales::kF16Min:
      put_number(group, block.d);
      return put_number(groups + group, block.m);
    case Scales::kE8M0:
      return put_number(group, f32_to_bf16(e8m0_to_f32(block.s[0])));
    case Scales::kF32Zero:
      put_number(group, block.f32_d);
      return put_byte(group, block.s[0]);
    case Scales::kSuperMin:
      put_number(1, block.m);
      for (int g = 0; g < groups; ++g) put_byte(groups + g, block.t[first + g]);
      [[fallthrough]];
    case Scales::kSuper:
      put_number(0, block.d);
      for (int g = 0; g < groups; ++g) put_byte(g, block.s[first + g]);
      return;
  }
}

}  // namespace

void write_fragments(Format format, const FileRows& rows, std::int64_t begin, std::int64_t end, std::byte* records) {
  const CodeInfo info = code_info(format);
  const FormatInfo& file = format_info(format);
  const std::int64_t row_size = row_bytes(format, rows.cols), record_size = fragment_bytes(info);
  const std::int64_t count = fragment_count(rows.cols);
  const std::int64_t blocks_of_16 = (end - begin + kFragmentOutputs - 1) / kFragmentOutputs;
  std::memset(records, 0, static_cast<std::size_t>(blocks_of_16 * count * record_size));
  QuantBlock block;
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t output = row % kFragmentOutputs;
    const std::byte* from = rows.data + rows.interleaved.file_row(row) * row_size;
    std::byte* of_output = records + (row - begin) / kFragmentOutputs * count * record_size;
    for (std::int64_t column = 0; column < rows.cols; column += file.block_elements, from += file.block_bytes) {
      decode_block(format, from, block);
      for (std::int64_t i = 0; i < file.block_elements; i += kOperandColumns) {
        const std::int64_t at = column + i, in_record = at % kFragmentColumns;
        std::byte* record = of_output + at / kFragmentColumns * record_size;
        write_codes(info, block.codes + i, output, in_record / kOperandColumns, record);
        std::byte* scales = record + fragment_code_bytes(info);
        if (has_super_scales(info.scales)) {
          if (in_record == 0) write_scales(info, block, static_cast<int>(i / info.group), 0, output, scales);
        } else if (i == 0 || in_record == 0) {
          // (a group of 128 is the only one of each of its two records)
          write_scales(info, block, 0, static_cast<int>(in_record / info.group), output, scales);
        }
      }
    }
  }
}

}  // namespace hogwild
