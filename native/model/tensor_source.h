// Where the tensors of a model lie in its files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "core/int4.h"
#include "core/tensor.h"
#include "model/source_file.h"

namespace hogwild {

// Where a tensor lies: row-major, little-endian. A fused tensor of a file appears as several entries
// (slices of rows).
struct TensorSource {
  std::string name;  // its role, see weights.h
  std::string path;
  std::uint64_t offset = 0;  // bytes from the start of the file
  Format format = Format::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;  // vectors: rows = 1
  InterleavedHeads interleaved = {};

  // Distances in the file between neighbours in a column and in a row, in elements of a plain format; 0: rows lie one
  // after the other. So a matrix that is stored transposed is read, and one whose rows lie between another's.
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 0;

  struct Place {
    std::string path;
    std::uint64_t offset = 0;
  };

  // MXFP4 in two tensors: at `offset` the codes of blocks, 16 bytes in each, of which byte j has elements 2j and 2j +
  // 1; elsewhere their exponents [rows, cols / 32]. Rows of both are `row_stride` elements apart, col_stride is 1.
  std::optional<Place> exponents = std::nullopt;

  // int4_gN in several tensors, whose shapes and contents int4.h describes: at `offset` the codes. They have `outputs`
  // rows, of which the matrix is those from `first` on.
  struct Integers {
    Int4Layout layout = Int4Layout::kAwq;
    std::int64_t outputs = 0;
    std::int64_t first = 0;
    Place scales;
    Dtype scale_dtype = Dtype::kF16;
    std::optional<Place> zeros = std::nullopt;  // none: each is 8
    Int4Zeros zero_rule = Int4Zeros::kStored;
    std::optional<Place> groups = std::nullopt;  // none: columns are in order
  };
  std::optional<Integers> integers = std::nullopt;
};

std::string shape_text(std::int64_t rows, std::int64_t cols);

inline bool is_strided(const TensorSource& source) { return source.row_stride != 0 || source.col_stride != 0; }

// Bytes from the tensor's first to its last; throws kInvalidModel where they do not lie inside the file. `offset` and
// `block_bytes`: where the tensor begins, and of a block of its format, in this file.
std::size_t size_inside(const TensorSource& source, std::uint64_t offset, std::int64_t block_bytes,
                        const SourceFile& file);

}  // namespace hogwild
