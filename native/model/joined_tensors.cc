#include "model/joined_tensors.h"

#include <utility>

#include "core/error.h"
#include "core/format.h"
#include "core/quant.h"

namespace hogwild {
namespace {

using Open = std::function<const SourceFile&(const std::string&)>;

[[noreturn]] void refuse_parts(const TensorSource& source, const std::string& what) {
  throw Error(code::kInvalidModel, "tensor '" + source.name + "' (" + format_name(source.format) + " " +
                                       shape_text(source.rows, source.cols) + ") of '" + source.path + "': " + what);
}

// Bytes of a file, for as long as they are needed.
class Part {
 public:
  Part(const SourceFile& file, std::uint64_t offset, std::size_t bytes, const std::string& tensor)
      : file_(file), offset_(offset), bytes_(bytes), data_(file.bytes_at(offset, bytes, tensor, held_)) {}
  ~Part() { file_.let_go(offset_, bytes_); }
  Part(const Part&) = delete;
  Part& operator=(const Part&) = delete;

  const std::byte* data() const { return data_; }

 private:
  const SourceFile& file_;
  std::uint64_t offset_;
  std::size_t bytes_;
  HostArray held_;
  const std::byte* data_;
};

// ---- mxfp4 ----------------------------------------------------------------------------------------

// Bytes of the codes of a block; its exponent is one more.
constexpr std::int64_t kMxfp4Codes = 16;

// Each block its exponent, then codes j and j + 16 in byte j.
JoinedTensor join_mxfp4(const TensorSource& source, const Open& open) {
  const SourceFile& code_file = open(source.path);
  const SourceFile& exponent_file = open(source.exponents->path);
  const auto part = [&](const SourceFile& file, std::uint64_t offset, std::int64_t block_bytes) {
    return Part(file, offset, size_inside(source, offset, block_bytes, file), source.name);
  };
  const Part codes = part(code_file, source.offset, kMxfp4Codes);
  const Part exponents = part(exponent_file, source.exponents->offset, 1);

  const std::int64_t blocks = source.cols / format_info(Format::kMXFP4).block_elements;
  const std::int64_t row_blocks =
      is_strided(source) ? source.row_stride / format_info(Format::kMXFP4).block_elements : blocks;
  JoinedTensor joined;
  joined.rows =
      allocate_host(static_cast<std::size_t>(source.rows * row_bytes(source.format, source.cols)), source.name);
  std::byte* to = joined.rows.get();
  for (std::int64_t row = 0; row < source.rows; ++row) {
    for (std::int64_t block = row * row_blocks; block < row * row_blocks + blocks; ++block) {
      const std::byte* from = codes.data() + block * kMxfp4Codes;
      const auto code = [from](std::int64_t i) { return from[i / 2] >> (i % 2 * 4) & std::byte{15}; };
      *to++ = exponents.data()[block];
      for (std::int64_t j = 0; j < kMxfp4Codes; ++j) *to++ = code(j) | code(j + kMxfp4Codes) << 4;
    }
  }
  return joined;
}

// ---- int4 -----------------------------------------------------------------------------------------

constexpr std::int64_t kWord = 8;  // integers in a word of 32 bits

bool is_int4(Format format) { return !is_plain(format) && code_info(format).scales == Scales::kF32Zero; }

// One of the tensors, [rows, cols] of so many bytes.
std::unique_ptr<const Part> int4_part(const TensorSource& source, const TensorSource::Place& place, const char* what,
                                      std::int64_t rows, std::int64_t cols, std::size_t element, const Open& open) {
  const SourceFile& file = open(place.path);
  std::uint64_t bytes = 0;
  const bool inside = !__builtin_mul_overflow(rows, cols, &bytes) && !__builtin_mul_overflow(bytes, element, &bytes) &&
                      bytes <= file.size() && place.offset <= file.size() - bytes;
  if (!inside) {
    refuse_parts(source, std::string("its ") + what + " at byte " + std::to_string(place.offset) +
                             " do not lie inside '" + file.path() + "' (" + std::to_string(file.size()) + " bytes)");
  }
  return std::make_unique<Part>(file, place.offset, static_cast<std::size_t>(bytes), source.name);
}

JoinedTensor join_int4(const TensorSource& source, const Open& open) {
  const TensorSource::Integers& integers = *source.integers;
  const std::int64_t group = format_info(source.format).block_elements;
  const bool whole = source.rows >= 1 && source.rows % kWord == 0 && integers.first >= 0 &&
                     integers.first % kWord == 0 && integers.outputs >= 1 && integers.outputs % kWord == 0 &&
                     integers.outputs - integers.first >= source.rows && source.cols >= 1 && source.cols <= INT32_MAX &&
                     source.cols % group == 0;
  if (!whole || is_strided(source)) {
    refuse_parts(source, "expected whole groups of " + std::to_string(group) + " columns, and eights of outputs");
  }
  const std::int64_t groups = source.cols / group, outputs = integers.outputs;
  const auto part = [&](const TensorSource::Place& place, const char* what, std::int64_t rows, std::int64_t cols,
                        std::size_t element) { return int4_part(source, place, what, rows, cols, element, open); };
  constexpr std::size_t kWordBytes = sizeof(std::uint32_t);
  const auto codes = part({source.path, source.offset}, "codes", outputs, source.cols / kWord, kWordBytes);
  const auto scales = part(integers.scales, "scales", outputs, groups, dtype_size(integers.scale_dtype));
  const auto zeros = integers.zeros ? part(*integers.zeros, "zeros", outputs / kWord, groups, kWordBytes) : nullptr;
  JoinedTensor joined;
  if (integers.groups) {
    const auto order = part(*integers.groups, "groups", 1, source.cols, sizeof(std::int32_t));
    std::optional<std::vector<std::int32_t>> columns = sort_columns(order->data(), source.cols, group);
    if (!columns) {
      refuse_parts(source, "its columns are not in " + std::to_string(groups) + " groups of " + std::to_string(group));
    }
    joined.columns = std::move(*columns);
  }
  joined.rows =
      allocate_host(static_cast<std::size_t>(source.rows * row_bytes(source.format, source.cols)), source.name);
  write_int4_rows({.layout = integers.layout,
                   .outputs = outputs,
                   .cols = source.cols,
                   .group = group,
                   .codes = codes->data(),
                   .scales = scales->data(),
                   .scale_dtype = integers.scale_dtype,
                   .zeros = zeros ? zeros->data() : nullptr,
                   .zero_rule = integers.zero_rule},
                  integers.first, source.rows, joined.columns, joined.rows.get());
  return joined;
}

}  // namespace

JoinedTensor join_tensors(const TensorSource& source, const Open& open) {
  if (source.exponents && source.format != Format::kMXFP4) {
    refuse_parts(source, "only mxfp4 has exponents of their own");
  }
  if (source.integers && !is_int4(source.format)) refuse_parts(source, "only int4 has integers of their own");
  return source.integers ? join_int4(source, open) : join_mxfp4(source, open);
}

}  // namespace hogwild
