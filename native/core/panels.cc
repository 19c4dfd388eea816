#include "core/panels.h"

#include <cstring>
#include <vector>

namespace hogwild {
namespace {

constexpr std::int64_t kQuads = kPanelColumns / 4;
constexpr std::int64_t kQuadBytes = 4;  // of one output

constexpr bool has_nibbles(int bits) { return bits >= 4 && bits < 8; }
constexpr bool has_two_bits(int bits) { return bits % 4 >= 2; }

std::uint32_t load_u32(const void* from) {
  std::uint32_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// The codes of 32 columns of one output; `lines` points to this output's quad in the first line.
void write_codes(int bits, const std::uint8_t* codes, std::byte* lines) {
  std::uint32_t quads[kQuads];
  std::memcpy(quads, codes, sizeof quads);
  const auto put = [&](std::uint32_t quad) {
    std::memcpy(lines, &quad, sizeof quad);
    lines += kPanelLine;
  };
  if (bits == 8) {
    for (const std::uint32_t quad : quads) put(quad);
    return;
  }
  int shift = 0;
  if (has_nibbles(bits)) {
    for (int j = 0; j < 4; ++j) put((quads[j] & 0x0f0f0f0fu) | (quads[j + 4] & 0x0f0f0f0fu) << 4);
    shift = 4;
  }
  if (has_two_bits(bits)) {
    for (int line = 0; line < 2; ++line) {
      std::uint32_t packed = 0;
      for (int j = 0; j < 4; ++j) packed |= (quads[4 * line + j] >> shift & 0x03030303u) << 2 * j;
      put(packed);
    }
    shift += 2;
  }
  if (bits % 2 == 1) {
    std::uint32_t packed = 0;
    for (int j = 0; j < kQuads; ++j) packed |= (quads[j] >> shift & 0x01010101u) << j;
    put(packed);
  }
}

void read_codes(int bits, const std::byte* lines, std::uint8_t* codes) {
  std::uint32_t quads[kQuads] = {};
  const auto line = [&](int i) { return load_u32(lines + i * kPanelLine); };
  int next = 0, shift = 0;
  if (bits == 8) {
    for (int j = 0; j < kQuads; ++j) quads[j] = line(j);
  }
  if (has_nibbles(bits)) {
    for (int j = 0; j < kQuads; ++j) quads[j] = line(j % 4) >> (j < 4 ? 0 : 4) & 0x0f0f0f0fu;
    next = shift = 4;
  }
  if (has_two_bits(bits)) {
    for (int j = 0; j < kQuads; ++j) quads[j] |= (line(next + j / 4) >> 2 * (j % 4) & 0x03030303u) << shift;
    next += 2, shift += 2;
  }
  if (bits % 2 == 1) {
    for (int j = 0; j < kQuads; ++j) quads[j] |= (line(next) >> j & 0x01010101u) << shift;
  }
  std::memcpy(codes, quads, sizeof quads);
}

// Calls copy(place, scale, bytes) for each scale of a block of one output: `place` counts from the first byte of the
// scales of these columns, in which 16 outputs lie side by side.
template <typename Copy>
void each_scale(const CodeInfo& info, std::int64_t lane, QuantBlock& block, Copy&& copy) {
  const auto at = [lane](std::int64_t first, std::int64_t size) { return first + lane * size; };
  switch (info.scales) {
    case Scales::kF16:
      return copy(at(0, 2), &block.d, 2);
    case Scales::kF16Min:
      copy(at(0, 2), &block.d, 2);
      return copy(at(32, 2), &block.m, 2);
    case Scales::kE8M0:
      return copy(at(0, 1), block.s, 1);
    case Scales::kF32Zero:
      copy(at(0, 4), &block.f32_d, 4);
      return copy(at(64, 1), block.s, 1);
    case Scales::kSuper:
    case Scales::kSuperMin:
      break;
  }
  copy(at(0, 2), &block.d, 2);
  const bool has_min = info.scales == Scales::kSuperMin;
  if (has_min) copy(at(32, 2), &block.m, 2);
  const std::int64_t first = has_min ? 64 : 32;
  const int groups = info.group == 16 ? 16 : 8;
  for (int g = 0; g < groups; ++g) copy(at(first + 16 * g, 1), block.s + g, 1);
  for (int g = 0; has_min && g < groups; ++g) copy(at(first + 16 * (groups + g), 1), block.t + g, 1);
}

}  // namespace

void write_panels(Format format, const FileRows& rows, std::int64_t begin, std::int64_t end, std::byte* panels) {
  const CodeInfo info = code_info(format);
  const FormatInfo& file = format_info(format);
  const std::int64_t bytes = row_bytes(format, rows.cols), panel_size = panel_bytes(info, rows.cols);
  const std::int64_t codes_at = panel_codes_at(info, rows.cols), code_bytes = code_lines(info.bits) * kPanelLine;
  if (end % kPanelOutputs != 0) {  // the last panel is not full
    std::memset(panels + (panel_count(end - begin) - 1) * panel_size, 0, static_cast<std::size_t>(panel_size));
  }
  QuantBlock block;
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t lane = row % kPanelOutputs;
    const std::byte* from = rows.data + rows.interleaved.file_row(row) * bytes;
    std::byte* scales = panels + (row - begin) / kPanelOutputs * panel_size;
    std::byte* codes = scales + codes_at + lane * kQuadBytes;
    for (std::int64_t first = 0; first < rows.cols; first += file.block_elements, from += file.block_bytes) {
      decode_block(format, from, block);
      each_scale(info, lane, block,
                 [&](std::int64_t at, const void* scale, std::size_t size) { std::memcpy(scales + at, scale, size); });
      scales += scale_bytes(info);
      for (std::int64_t i = 0; i < file.block_elements; i += kPanelColumns, codes += code_bytes) {
        write_codes(info.bits, block.codes + i, codes);
      }
    }
  }
}

namespace {

// In the order of the matrix's columns.
void dequantise_stored_row(const Matrix& matrix, std::int64_t row, float* out) {
  if (matrix.order == Order::kRows) {
    const std::byte* data = static_cast<const std::byte*>(matrix.data);
    return dequantise_row(matrix.format, data + row * row_bytes(matrix.format, matrix.cols), matrix.cols, out);
  }
  const CodeInfo info = code_info(matrix.format);
  const std::int64_t elements = format_info(matrix.format).block_elements;
  const std::int64_t lane = row % kPanelOutputs;
  const std::byte* scales =
      static_cast<const std::byte*>(matrix.data) + row / kPanelOutputs * panel_bytes(info, matrix.cols);
  const std::byte* codes = scales + panel_codes_at(info, matrix.cols) + lane * kQuadBytes;
  QuantBlock block;
  for (std::int64_t first = 0; first < matrix.cols; first += elements, scales += scale_bytes(info), out += elements) {
    each_scale(info, lane, block,
               [&](std::int64_t at, void* scale, std::size_t size) { std::memcpy(scale, scales + at, size); });
    for (std::int64_t i = 0; i < elements; i += kPanelColumns, codes += code_lines(info.bits) * kPanelLine) {
      read_codes(info.bits, codes, block.codes + i);
    }
    dequantise_block(info, block, elements, out);
  }
}

}  // namespace

void dequantise_matrix_row(const Matrix& matrix, std::int64_t row, float* out) {
  if (matrix.columns == nullptr) return dequantise_stored_row(matrix, row, out);
  std::vector<float> stored(static_cast<std::size_t>(matrix.cols));
  dequantise_stored_row(matrix, row, stored.data());
  for (std::int64_t i = 0; i < matrix.cols; ++i) out[matrix.columns[i]] = stored[static_cast<std::size_t>(i)];
}

}  // namespace hogwild
