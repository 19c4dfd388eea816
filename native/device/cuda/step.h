// What the ops of a step share, in device memory.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <vector>

#include "device/cuda/memory.h"
#include "kernels.h"

namespace hogwild::cuda {

// Steps of at most so many rows are captured as graphs, one for each number of rows in kBucketRows.
inline constexpr std::int64_t kBucketRows[] = {1, 2, 4, 8, 16, 32, 64};
inline constexpr std::int64_t kMaxGraphRows = 64;

// Rows that the ops of a step of `rows` new tokens are called with (Device::bucket_rows).
std::int64_t bucket_rows(std::int64_t rows);

// Numbers of the parts of a step, which say where each lies in the memory that one copy fills. Steps that are
// captured have theirs rounded up, so that few layouts serve all.
struct StepLayout {
  std::int64_t rows = 0, segments = 0, pages = 0, rope_rows = 0;
  std::int64_t rope_pairs = 0;  // of a row of all rope tables
  bool has_temperatures = false;
  std::int64_t pieces = 0;  // of its segments, where attention is deterministic
  auto operator<=>(const StepLayout&) const = default;
};

struct CudaStep final : DeviceStep {
  using DeviceStep::DeviceStep;

  std::uint64_t id = 0;  // of all steps of the device
  StepLayout layout;
  StepArrays arrays;             // in `memory`; without a rope table
  std::vector<RopeTable> ropes;  // StepView::ropes in `memory`
  std::shared_ptr<const Buffer> memory;

  // For the ops of a layer, which turn by its table.
  StepArrays arrays_of(const KvLayer& layer) const {
    StepArrays result = arrays;
    if (view().has_rope(layer)) result.rope = ropes[static_cast<std::size_t>(layer.rope)];
    return result;
  }
};

// The memory of steps: that of an ended step is used again, the same one first, so that graphs which refer to it can be
// replayed.
class StepMemory {
 public:
  // `deterministic`: with what deterministic attention needs.
  StepMemory(DeviceMemory& memory, Stream& stream, bool deterministic)
      : memory_(memory), staged_(stream), deterministic_(deterministic) {}

  std::unique_ptr<CudaStep> upload(const StepView& view);

 private:
  std::shared_ptr<Buffer> take(std::size_t bytes);

  DeviceMemory& memory_;
  StagedArrays staged_;
  bool deterministic_;
  std::vector<std::shared_ptr<Buffer>> buffers_;  // those that nobody else holds are free
  std::uint64_t last_id_ = 0;
};

}  // namespace hogwild::cuda
