// What the ops of a step share, in device memory.
#pragma once

#include <compare>
#include <cstdint>

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
  std::int64_t rows = 0, segments = 0, pages = 0, rope_rows = 0, rotary_half = 0;
  auto operator<=>(const StepLayout&) const = default;
};

// One step at a time: the last that was uploaded.
class StepMemory {
 public:
  StepMemory(DeviceMemory& memory, cudaStream_t stream) : memory_(memory), staged_(stream) {}

  // False where `step` is there already.
  bool upload(const StepView& step);

  // Of the host, as it was uploaded; empty before the first.
  const StepView& view() const { return view_; }
  const StepLayout& layout() const { return layout_; }

  // Device memory.
  const std::int32_t* tokens() const { return tokens_; }  // [rows]
  const AppendSlot* slots() const { return slots_; }      // [rows]; page -1 for rows beyond the step's
  const DevicePlan& plan() const { return plan_; }
  const RopeTable& rope() const { return rope_; }

 private:
  DeviceMemory& memory_;
  StagedArrays staged_;
  Buffer buffer_;
  StepView view_;
  StepLayout layout_;
  const std::int32_t* tokens_ = nullptr;
  const AppendSlot* slots_ = nullptr;
  DevicePlan plan_;
  RopeTable rope_;
};

}  // namespace hogwild::cuda
