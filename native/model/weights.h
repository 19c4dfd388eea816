// Read-only weights from model files, memory-mapped or read into memory. lib/ parses the headers
// (text); this side is told where each tensor lies and checks that it lies inside its file.
//
// Names are roles, the same for every family (lib/roles.ts); lib/sources/ maps the names of files to them.
// V vocabulary, H hidden size, F intermediate size, Q = Hq * D, K = Hkv * D, i a layer, of which a LayerSpec says
// what is there beside its matrices:
//
//   embed                             [V, H]
//   lm_head                           [V, H]  absent where `embed` is used instead (tied)
//   norm                              [H]
//   layers.i.input_norm               [H]
//   layers.i.q_proj                   [Q, H]  and q_bias [Q]
//   layers.i.k_proj, v_proj           [K, H]  and k_bias, v_bias [K]
//   layers.i.q_norm, k_norm           [D]: RMSNorm of each head; or [Q], [K]: of the whole row
//   layers.i.sinks                    [Hq]
//   layers.i.o_proj                   [H, Q]  and o_bias [H]
//   layers.i.attention_output_norm    [H]
//   layers.i.mlp_norm                 [H]
//   layers.i.gate_proj, up_proj       [F, H]  and gate_bias, up_bias [F]
//   layers.i.down_proj                [H, F]  and down_bias [H]
//   layers.i.mlp_output_norm          [H]
// In the place of the last three but the norm, for E experts:
//   layers.i.router                   [E, H]  and router_bias [E]
//   layers.i.experts.e.gate_proj ...  as those of the layer, biases too
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "device/device.h"
#include "model/tensor_source.h"

namespace hogwild {

// What becomes of the tensors of files.
struct WeightOptions {
  // Matrices are converted to it (rounded to nearest even) and kept in memory; those already in it, and all of them
  // where there is none, keep their format. Vectors become f32.
  std::optional<Dtype> convert_to = std::nullopt;
  // Each file is mapped once, and matrices that are neither converted nor reordered nor repacked stay in its pages.
  // Such a file must not change while the object lives: a process that reads behind the end of a shortened file gets
  // SIGBUS. Else everything is read into memory.
  bool mapped = true;
  // A device may repack quantised matrices, which takes memory of the process for each but makes products fast. Else
  // they stay as the files have them, which processes share where the files are mapped.
  bool repack = true;
};

class Weights {
 public:
  // Throws kInvalidModel (naming tensor and file) where a tensor does not lie inside its file, has parts of blocks or
  // of heads, a name occurs twice or a value does not fit `convert_to`; kUnsupported for a format that the device does
  // not have; kOutOfMemory.
  // `on_loaded`: called after each tensor with its bytes in the file; what it throws ends the loading.
  Weights(
      Device& device, const std::vector<TensorSource>& sources, const WeightOptions& options = {},
      const std::function<void(std::int64_t bytes)>& on_loaded = [](std::int64_t) {});
  ~Weights();

  // Throws kInvalidModel, naming the tensor, where it is missing or has another shape.
  Matrix matrix(const std::string& name, std::int64_t rows, std::int64_t cols) const;
  const float* vector(const std::string& name, std::int64_t size) const;  // device memory, f32
  bool has(const std::string& name) const;

  // Throws kInvalidModel where a file that is still mapped has another size or time of change than it had.
  void check_unchanged() const;

  // `what`, with the first tensor that holds NaN or infinity. Reads all weights.
  std::string blame(Device& device, const std::string& what) const;

  std::vector<std::string> names() const;
  std::int64_t bytes() const;  // of all matrices, as a step reads them

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hogwild
