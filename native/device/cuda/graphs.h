// Graphs captured from steps, and when they are replayed.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <list>
#include <utility>

#include "device/cuda/step.h"

namespace hogwild::cuda {

// What a graph refers to: what the caller of Device::replay names, where the parts of its step lie, and the device's
// memory.
struct CachedGraphKey {
  Device::GraphKey ops;
  const void* step_memory = nullptr;
  StepLayout layout;
  std::uint64_t memory_moves = 0;
  auto operator<=>(const CachedGraphKey&) const = default;
};

class GraphExec {
 public:
  GraphExec() = default;
  explicit GraphExec(cudaGraphExec_t exec) : exec_(exec) {}
  GraphExec(GraphExec&& other) noexcept : exec_(std::exchange(other.exec_, nullptr)) {}
  GraphExec& operator=(GraphExec&& other) noexcept {
    std::swap(exec_, other.exec_);
    return *this;
  }
  ~GraphExec() {
    if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
  }
  cudaGraphExec_t get() const { return exec_; }

 private:
  cudaGraphExec_t exec_ = nullptr;
};

class GraphCache {
 public:
  // `enabled`: else every call runs its ops.
  GraphCache(Stream& stream, bool enabled) : stream_(stream), enabled_(enabled) {}

  // The first call with a key runs the ops, which makes room for everything; the second captures and launches them;
  // later ones launch the graph. Where capturing fails, this and later calls with the key run the ops.
  // `current_key` is asked again after the first run, which may have moved memory.
  void replay(const std::function<CachedGraphKey()>& current_key, const std::function<void()>& ops);

 private:
  enum class State { kSeen, kCaptured, kUncapturable };
  struct CachedGraph {
    CachedGraphKey key;
    State state = State::kSeen;
    GraphExec graph;  // where captured
  };

#if defined(HOGWILD_SIMT)
  // The emulated card checks what the caller of Device::replay guarantees. Throws kInternal.
  void check_same_work(const GraphExec& graph, const std::function<void()>& ops);
#endif

  // An empty graph where it fails. Throws what `ops` throws if that is an abort.
  GraphExec capture(const std::function<void()>& ops);

  Stream& stream_;
  bool enabled_;
  std::list<CachedGraph> graphs_;  // the last used first
};

}  // namespace hogwild::cuda
