// From views to a plan: reserves room for a step's new tokens, then works out once what every layer
// does: where keys go, which token looks at which segment, and to which position its query is turned.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/kv_cache.h"

namespace hogwild {

// One worker's part of a step.
struct WorkerView {
  std::vector<std::shared_ptr<CacheBlock>> blocks;  // in view order; a block may occur twice
  std::vector<float> bias;                          // one per block, or empty: no bias
  std::shared_ptr<CacheBlock> target;               // one of `blocks`; the first occurrence counts
  std::span<const std::int32_t> tokens;             // new tokens; for engines without ids: all -1
};

// Room for the new tokens of a step. Until `commit` the blocks look to everybody as before; without
// it the destructor gives every slot back, so a refused or aborted step leaves no trace.
class StepReservation {
 public:
  // Throws before anything is changed: kWriteConflict (two workers write one block), kInvalidArgument
  // (no tokens, target not in view, blocks of another cache, bias not finite or +inf), kOutOfPages.
  // bias -inf hides the block.
  StepReservation(KvCache& cache, std::vector<WorkerView> workers);
  ~StepReservation();
  StepReservation(const StepReservation&) = delete;
  StepReservation& operator=(const StepReservation&) = delete;

  void commit();

  std::uint64_t id() const;  // of all reservations of the process; never 0
  // New tokens of all workers, worker after worker: row r of q, k, v.
  std::int64_t n_tokens() const;
  std::int64_t first_row(std::size_t worker) const;
  AttentionPlanView plan() const;
  RopeTable rope() const;                     // host memory
  std::span<const AppendSlot> slots() const;  // [T]
  std::int64_t view_position(std::int64_t row) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hogwild
