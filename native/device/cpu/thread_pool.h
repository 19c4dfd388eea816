// Threads that share the work of one op at a time. A run() is one parallel section: some microseconds
// long, many per step. Helpers that have just worked spin for a moment in case the next section is
// near, then sleep; an idle pool takes no processor time.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace hogwild {

class ThreadPool {
 public:
  // `threads` >= 1 that compute, the caller of run() included. Throws kOutOfMemory or std::bad_alloc where the
  // system refuses a thread or the memory for it; those already started have ended then.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  // Calls body(begin, end, thread) for disjoint ranges that make up [0, n), 0 <= thread < threads(), and
  // returns when all have returned. The ranges are large at first and small at the end, so that the
  // threads end together; which thread gets which is left to chance. One run() at a time; `body` must
  // not throw.
  template <typename Body>
  void run(std::int64_t n, Body&& body) {
    if (n <= 1 || helpers_.empty()) {
      if (n > 0) body(std::int64_t{0}, n, 0);
      return;
    }
    using Target = std::remove_reference_t<Body>;
    const Call call = [](void* context, std::int64_t begin, std::int64_t end, int thread) {
      (*static_cast<Target*>(context))(begin, end, thread);
    };
    run_parallel(n, call, &body);
  }

 private:
  using Call = void (*)(void* context, std::int64_t begin, std::int64_t end, int thread);

  void run_parallel(std::int64_t n, Call call, void* context);
  void work(int thread);
  void help(int thread);
  void stop();

  std::vector<std::thread> helpers_;

  // The section now running. Written before `ticket_` hands out its first unit, and not again before
  // `unfinished_` has fallen to 0: so whoever holds a unit may read them.
  std::int64_t n_ = 0;
  Call call_ = nullptr;
  void* context_ = nullptr;

  // Number of the section (high half) and its units not yet handed out (low half), in one word: a
  // helper that comes late cannot take a unit of a section it knows nothing of.
  alignas(64) std::atomic<std::uint64_t> ticket_{0};
  alignas(64) std::atomic<std::uint32_t> unfinished_{0};
  alignas(64) std::atomic<std::uint32_t> section_{0};  // helpers wait for it to change
  std::atomic<bool> stop_{false};
};

}  // namespace hogwild
