#include "device/cuda/graphs.h"

#include <algorithm>
#include <exception>
#include <string>
#include <string_view>

#include "core/error.h"

namespace hogwild::cuda {
namespace {

constexpr std::size_t kMaxGraphs = 32;

}  // namespace

void GraphCache::replay(const std::function<CachedGraphKey()>& current_key, const std::function<void()>& ops) {
  if (!enabled_) return ops();
  const CachedGraphKey key = current_key();
  const auto found =
      std::find_if(graphs_.begin(), graphs_.end(), [&](const CachedGraph& cached) { return cached.key == key; });
  if (found == graphs_.end()) {
    ops();
    graphs_.push_front({.key = current_key(), .state = State::kSeen, .graph = GraphExec()});
    if (graphs_.size() > kMaxGraphs) graphs_.pop_back();
    return;
  }
  graphs_.splice(graphs_.begin(), graphs_, found);
#if defined(HOGWILD_SIMT)
  if (found->state == State::kCaptured && simt::card.checks_graphs) check_same_work(found->graph, ops);
#endif
  if (found->state == State::kSeen) {
    found->graph = capture(ops);
    if (found->graph.get() != nullptr) found->state = State::kCaptured;
  }
  if (found->state == State::kCaptured) {
    return check_cuda(cudaGraphLaunch(found->graph.get(), stream_), "launching a step");
  }
  ops();
  // Only now: ops that throw without a graph too say nothing about capturing.
  found->state = State::kUncapturable;
}

#if defined(HOGWILD_SIMT)
void GraphCache::check_same_work(const GraphExec& graph, const std::function<void()>& ops) {
  const GraphExec anew = capture(ops);
  if (anew.get() == nullptr) throw Error(code::kInternal, "a captured step can be captured no longer");
  const std::ptrdiff_t at = simt::first_difference(*graph.get(), *anew.get());
  if (at < 0) return;
  throw Error(code::kInternal,
              "a step has the key of a captured one, but differs from its piece of work " + std::to_string(at) + " on");
}
#endif

GraphExec GraphCache::capture(const std::function<void()>& ops) {
  const auto forget_error = [] { static_cast<void>(cudaGetLastError()); };
  if (cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
    forget_error();
    return {};
  }
  bool complete = true;
  std::exception_ptr abort;
  try {
    ops();
  } catch (const Error& error) {
    complete = false;
    if (std::string_view(error.code()) == code::kAborted) abort = std::current_exception();
  } catch (...) {
    abort = std::current_exception();
  }
  // Whatever happened, the stream must not go on capturing.
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  if (cudaStreamEndCapture(stream_, &graph) == cudaSuccess) {
    if (complete && cudaGraphInstantiate(&exec, graph, 0) != cudaSuccess) exec = nullptr;
    static_cast<void>(cudaGraphDestroy(graph));
  }
  forget_error();
  if (abort) std::rethrow_exception(abort);
  return GraphExec(exec);
}

}  // namespace hogwild::cuda
