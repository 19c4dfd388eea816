// Read-only weights, memory-mapped from safetensors files. lib/ parses the headers (text); this side
// is told where each tensor lies, checks that it lies inside its file, and maps it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "device/device.h"

namespace hogwild {

// Where a tensor lies. `name` is the canonical role ("embed", "layers.3.q_proj", "norm", ...: the
// list is in transformer.cc); a fused tensor of a file appears as several entries (slices of rows).
struct TensorSource {
  std::string name;
  std::string path;
  std::uint64_t offset = 0;  // bytes from the start of the file
  Dtype dtype = Dtype::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;  // vectors: rows = 1
};

class Weights {
 public:
  // Maps each file once. Throws kInvalidModel where a tensor does not lie inside its file, kOutOfMemory.
  // `dtype`: matrices are converted to it (rounded to nearest even) and kept in memory; those already
  // in it, and all of them with `keep`, stay in the file's pages. Vectors become f32.
  Weights(Device& device, const std::vector<TensorSource>& sources, const Dtype* convert_to);
  ~Weights();

  // Throws kInvalidModel, naming the tensor, where it is missing or has another shape.
  Matrix matrix(const std::string& name, std::int64_t rows, std::int64_t cols) const;
  const float* vector(const std::string& name, std::int64_t size) const;  // device memory, f32
  bool has(const std::string& name) const;

  std::int64_t bytes() const;  // of all matrices, as read by a step

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hogwild
