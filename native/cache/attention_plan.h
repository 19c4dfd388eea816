// From views to plans: reserves room for a step's new tokens, then works out once for all layers where
// keys go, which token looks at which segment, and to which position its query is turned.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "cache/kv_cache.h"

namespace hogwild {

// The largest position in a view, and the largest start of an entry.
inline constexpr std::int64_t kMaxViewPosition = std::int64_t{1} << 24;

// Of an entry: scores, and scores over it, are ordinary numbers.
inline constexpr float kMinTemperature = 1e-6f, kMaxTemperature = 1e6f;

// A block in a view (docs/semantics.md, "Entries of a view").
struct ViewEntry {
  std::shared_ptr<CacheBlock> block;
  std::optional<std::int64_t> at = {};  // view position of its first token; none: where the entry before ends
  bool lag = false;                     // what others append in this step is not there yet
  float temperature = 1;                // divides the scores of its keys
  float bias = 0;                       // then added to them; -inf hides the block, which keeps its places
};

// One worker's part of a step.
struct WorkerView {
  std::vector<ViewEntry> entries;        // in view order; a block may occur twice
  std::shared_ptr<CacheBlock> target;    // of one of `entries`: the first that has it is written
  std::span<const std::int32_t> tokens;  // new tokens, read at commit; for engines without ids: all -1
  std::int64_t drafts = 0;               // how many of the last of them are drafts, fewer than all (StepReservation)

  std::size_t write_entry() const;  // index of the entry that is written; entries.size() where there is none
};

// Of a worker's `n` new tokens, `drafts` among them, those that it has once `stage` steps behind this one are over; -1:
// before this one.
constexpr std::int64_t tokens_at_stage(std::int64_t n, std::int64_t drafts, std::int64_t stage) {
  return stage < 0 ? 0 : n - std::max(drafts - stage, std::int64_t{0});
}

// What every layer does for some consecutive rows (new tokens) of a step. Memory: 48 bytes for each pair of a
// token and a segment that it sees, and 4 R (of all rope tables) for each distinct position to which a query or a key
// is turned: at most one for each such pair and each new token. Where no entry says where it starts, these are at most
// twice the longest view.
class AttentionPlan {
 public:
  // Token numbers start at 0. `tokens`: the ids of these rows, for a device that looks up embeddings.
  StepView view(std::span<const std::int32_t> tokens = {}) const;

 private:
  friend class StepReservation;

  AttentionPlan() = default;

  std::int64_t n_tokens_ = 0;
  RopeRows rope_;
  std::vector<AppendSlot> slots_;  // [n]
  std::vector<std::int64_t> pages_;
  std::vector<PlanSegment> segments_;
  std::vector<QueryRange> query_ranges_;
  std::vector<std::int64_t> token_query_ranges_;
  std::vector<std::int64_t> token_query_ranges_at_;  // [n + 1]
};

// Room for the new tokens of a step. Until `commit` the blocks look to everybody as before; without
// it the destructor gives every slot back, so a refused or aborted step leaves no trace.
//
// Drafts stand for the steps to come: the i-th of each worker belong to the i-th step behind this one, in which those
// workers take part that have one. So a draft sees what others append up to its own step and nothing of their later
// drafts, and stands where it would stand then.
class StepReservation {
 public:
  // Throws before anything is changed: kWriteConflict (two workers write one block), kInvalidArgument
  // (no tokens, target not in view, blocks of another cache, a field of an entry out of its range, a token to be seen
  // beyond kMaxViewPosition), kOutOfPages.
  StepReservation(KvCache& cache, std::vector<WorkerView> workers);
  ~StepReservation();
  StepReservation(const StepReservation&) = delete;
  StepReservation& operator=(const StepReservation&) = delete;

  // `kept`: how many of each worker's new tokens stay, the first ones.
  void commit(std::span<const std::int64_t> kept);
  void commit();  // all of them

  // New tokens of all workers, worker after worker: row r of q, k, v.
  std::int64_t n_tokens() const;

  // Of rows [first, first + n). Throws kUnsupported where it needs more than 2^31 - 1 rows of the rope tables.
  AttentionPlan plan(std::int64_t first, std::int64_t n) const;

  std::int64_t most_segments() const;  // that one worker sees

  // Of which entry of its view each query range of a worker's last new token is, in the plan's order.
  std::vector<std::int32_t> entries_of_last_token(std::size_t worker) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The plans of rows [first, first + n) of a step, chunk by chunk, so that their memory is bounded: by 2^20 pairs
// of a token and a segment, or 64 tokens. They are made and brought to the device when they are first asked for, and
// all kept where they stay within that bound together; else only the last one is.
class ChunkedPlan {
 public:
  // Of a chunk: 512, fewer (down to 64) where views have thousands of segments.
  static std::int64_t chunk_rows(const StepReservation& step);

  struct Chunk {
    std::int64_t first = 0;  // row of the step
    std::int64_t n = 0;
  };

  // `tokens`: the ids of all of the step's rows, for a device that looks up embeddings; or none. What is handed over
  // outlives this object.
  ChunkedPlan(const StepReservation& step, Device& device, std::span<const std::int32_t> tokens, std::int64_t first,
              std::int64_t n);

  const std::vector<Chunk>& chunks() const { return chunks_; }
  const DeviceStep& on_device(std::size_t chunk);  // token numbers start at 0; valid until the next call

 private:
  struct Made {
    explicit Made(AttentionPlan its_plan) : plan(std::move(its_plan)) {}
    AttentionPlan plan;
    std::unique_ptr<DeviceStep> on_device;
  };

  const StepReservation& step_;
  Device& device_;
  std::span<const std::int32_t> tokens_;
  bool keeps_all_;
  std::vector<Chunk> chunks_;
  std::vector<std::unique_ptr<Made>> made_;
};

}  // namespace hogwild
