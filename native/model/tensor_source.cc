#include "model/tensor_source.h"

#include "core/error.h"
#include "core/format.h"

namespace hogwild {
namespace {

// Elements from the tensor's first to its last. False where there is no such number.
bool span_elements(const TensorSource& source, std::uint64_t* elements) {
  const std::int64_t block = format_info(source.format).block_elements;
  if (source.rows < 1 || source.cols < 1 || source.cols % block != 0) return false;
  if (!is_strided(source)) return !__builtin_mul_overflow(source.rows, source.cols, elements);
  // Blocks are not taken apart.
  const bool whole =
      is_plain(source.format) || (source.exponents && source.col_stride == 1 && source.row_stride % block == 0);
  std::uint64_t down = 0, across = 0;
  return whole && source.row_stride >= 1 && source.col_stride >= 1 &&
         !__builtin_mul_overflow(source.rows - 1, source.row_stride, &down) &&
         !__builtin_mul_overflow(source.cols - 1, source.col_stride, &across) &&
         !__builtin_add_overflow(down, across, elements) && !__builtin_add_overflow(*elements, 1, elements);
}

}  // namespace

std::string shape_text(std::int64_t rows, std::int64_t cols) {
  return std::string("[").append(std::to_string(rows)).append(", ").append(std::to_string(cols)).append("]");
}

std::size_t size_inside(const TensorSource& source, std::uint64_t offset, std::int64_t block_bytes,
                        const SourceFile& file) {
  const FormatInfo& format = format_info(source.format);
  std::uint64_t elements = 0, bytes = 0;
  const bool inside = span_elements(source, &elements) &&
                      !__builtin_mul_overflow(elements / format.block_elements, block_bytes, &bytes) &&
                      bytes <= file.size() && offset <= file.size() - bytes;
  if (!inside) {
    const std::string blocks =
        is_plain(source.format) ? "" : ", blocks of " + std::to_string(format.block_elements) + " columns";
    throw Error(code::kInvalidModel, "tensor '" + source.name + "' (" + format.name + " " +
                                         shape_text(source.rows, source.cols) + blocks + " at byte " +
                                         std::to_string(offset) + ") does not lie inside '" + file.path() + "' (" +
                                         std::to_string(file.size()) + " bytes)");
  }
  return static_cast<std::size_t>(bytes);
}

}  // namespace hogwild
