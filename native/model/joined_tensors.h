// Matrices that files keep in several tensors, as the rows of blocks that their format has elsewhere.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/source_file.h"
#include "model/tensor_source.h"

namespace hogwild {

struct JoinedTensor {
  HostArray rows;
  std::vector<std::int32_t> columns;  // Matrix::columns; empty: in order
};

inline bool is_joined(const TensorSource& source) { return source.exponents || source.integers; }

// `open` gives the file at a path. Throws kInvalidModel, naming the tensor, where a part does not lie inside its file,
// or parts do not fit together; kOutOfMemory.
JoinedTensor join_tensors(const TensorSource& source, const std::function<const SourceFile&(const std::string&)>& open);

}  // namespace hogwild
