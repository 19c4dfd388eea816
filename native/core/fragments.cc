#include "core/fragments.h"

#include <cstring>

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

// The scales of one output: of one group or, of formats with two levels, of a record's groups, from group `first` of
// the block on.
void write_scales(const CodeInfo& info, const QuantBlock& block, int first, std::int64_t output, std::byte* scales) {
  const std::int64_t lane = output % 8 * 2 + output / 8;
  const int groups = fragment_groups(info);
  const auto put = [&](std::int64_t pair_at, const auto& value) {
    std::memcpy(scales + pair_at + lane * static_cast<std::int64_t>(sizeof value), &value, sizeof value);
  };
  switch (info.scales) {
    case Scales::kF16:
      return put(0, block.d);
    case Scales::kF16Min:
      put(0, block.d);
      return put(32, block.m);
    case Scales::kE8M0:
      return put(0, block.s[0]);
    case Scales::kF32Zero:
      put(0, block.f32_d);
      return put(64, block.s[0]);
    case Scales::kSuper:
      put(0, block.d);
      for (int g = 0; g < groups; ++g) put(32 + 16 * g, block.s[first + g]);
      return;
    case Scales::kSuperMin:
      put(0, block.d);
      put(32, block.m);
      for (int g = 0; g < groups; ++g) put(64 + 16 * g, block.s[first + g]);
      for (int g = 0; g < groups; ++g) put(64 + 16 * (groups + g), block.t[first + g]);
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
  // What a group has of its own follows on that of the group before, where each has a block of its own in the file.
  const bool has_super = has_super_scales(info.scales);
  const std::int64_t group_scales = has_super ? 0 : (record_size - fragment_code_bytes(info)) / fragment_groups(info);
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
        if (has_super) {
          if (in_record == 0) write_scales(info, block, static_cast<int>(i / info.group), output, scales);
        } else if (i == 0 || in_record == 0) {
          write_scales(info, block, 0, output, scales + in_record / info.group * group_scales);
        }
      }
    }
  }
}

}  // namespace hogwild
