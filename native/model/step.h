// One step of any number of workers with any number of new tokens each, in pieces of bounded work.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "model/decoder.h"
#include "model/outputs.h"

namespace hogwild {

// A forward pass (docs/semantics.md) of a decoder. In every layer all workers append before any attends.
//
// The device may work for other caches between two pieces. A piece is at most 512 rows in one layer, or, on a
// device that runs behind its callers, 512 rows in all layers. How a step is cut changes no bit of its
// result: attention is causal within a worker, so one worker's long input goes through all layers chunk by
// chunk; the inputs of several workers, which see each other's tokens of the same layer, go layer by layer.
//
// Memory, in floats, for T new tokens: 512 rows (one worker) or T (several) of hidden + Hq * D, beside
// scratch for 512 rows that all steps of the model share, and the plans (ChunkedPlan).
class Step {
 public:
  // Checks and reserves: throws before anything is changed. Both outlive the step. Another step of the same cache may
  // begin once this object is gone.
  Step(Decoder& decoder, KvCache& cache, std::vector<StepWorker> workers);
  ~Step();
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  // Does the next piece. True once all is done: then the new tokens are in their blocks, and not before; or once the
  // step waits for `choose`: once for each stage that the drafts of held workers come to. After a throw (kAborted once
  // `cancel` is set, looked at several times per layer; kInvalidModel where the model computes NaN or infinity) the
  // step cannot go on, and the cache is as it was.
  bool advance(const std::atomic<bool>& cancel);

  // Whether all is computed, and tokens of held workers are still to be chosen.
  bool waits() const;
  // Whether this one's is, at the stage that the step has come to.
  bool waits_for(std::size_t worker) const;
  std::int64_t stage() const;
  // Of all workers that edit theirs, in the order of workers, then of stages; while the step waits.
  const std::vector<EditedLogits>& edited() const;
  // What the tokens of this stage are chosen from, one for each worker of the step; `advance` then goes on. Throws
  // kInvalidArgument.
  void choose(std::vector<LogitsEdit> edits);

  // After the last piece.
  StepResult& result();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hogwild
