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

  int threads() const { return static_cast<int>(shares_.size()); }

  // Calls body(begin, end, thread) for disjoint ranges that make up [0, n), n < 2^32, 0 <= thread < threads(), and
  // returns when all have returned. Each thread goes through a part of [0, n) from its front to its end, so that what
  // it works on lies side by side and can be brought ahead; one that has come to its end takes from the end of
  // another's. The ranges are large at first and small at the end. One run() at a time; `body` must not throw.
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

  // The section now running. Written before the shares hand out their first unit, and not again before `unfinished_`
  // has fallen to 0: so whoever has taken a unit may read them, a helper that comes late from the section before too.
  Call call_ = nullptr;
  void* context_ = nullptr;

  // Of each thread: what nobody has taken yet.
  struct alignas(64) Share {
    std::atomic<std::uint64_t> left{0};  // a range
  };
  std::vector<Share> shares_;
  alignas(64) std::atomic<std::uint32_t> unfinished_{0};
  alignas(64) std::atomic<std::uint32_t> section_{0};  // helpers wait for it to change
  std::atomic<bool> stop_{false};
};

}  // namespace hogwild
