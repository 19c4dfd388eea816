#include "device/cpu/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <system_error>

#include "core/error.h"
#include "device/device.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace hogwild {
namespace {

// How long a thread spins before it sleeps: longer than what lies between two sections of a step (a
// norm, an activation), much shorter than anybody would notice.
constexpr std::chrono::microseconds kSpin{50};
constexpr int kPausesPerLook = 32;  // at the clock

// What is taken of a share at a time, of what is left of it.
constexpr std::uint32_t kPieces = 4;

// Units [begin, end), in one word.
struct Range {
  std::uint32_t begin, end;

  static Range of(std::uint64_t word) {
    return {static_cast<std::uint32_t>(word >> 32), static_cast<std::uint32_t>(word)};
  }
  std::uint64_t word() const { return std::uint64_t{begin} << 32 | end; }
  std::uint32_t size() const { return end - begin; }
};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns once `word` differs from `value`.
void wait_while(const std::atomic<std::uint32_t>& word, std::uint32_t value) {
  const auto until = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerLook; i++) {
      if (word.load(std::memory_order_acquire) != value) return;
      pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  word.wait(value, std::memory_order_acquire);
}

}  // namespace

int available_processors() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int threads) : shares_(static_cast<std::size_t>(threads)) {
  try {
    helpers_.reserve(threads - 1);
    for (int thread = 1; thread < threads; thread++) helpers_.emplace_back(&ThreadPool::help, this, thread);
  } catch (const std::system_error& error) {
    const std::size_t started = helpers_.size();
    stop();
    throw Error(code::kOutOfMemory, "the system refused thread " + std::to_string(started + 2) + " of " +
                                        std::to_string(threads) + ": " + error.what());
  } catch (...) {  // no memory
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_.store(true, std::memory_order_relaxed);
  section_.fetch_add(1, std::memory_order_release);
  section_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
  helpers_.clear();
}

void ThreadPool::run_parallel(std::int64_t n, Call call, void* context) {
  call_ = call;
  context_ = context;
  unfinished_.store(static_cast<std::uint32_t>(n), std::memory_order_relaxed);
  for (std::int64_t thread = 0; thread < threads(); thread++) {
    const Range range = {static_cast<std::uint32_t>(n * thread / threads()),
                         static_cast<std::uint32_t>(n * (thread + 1) / threads())};
    shares_[static_cast<std::size_t>(thread)].left.store(range.word(), std::memory_order_release);
  }
  section_.fetch_add(1, std::memory_order_release);
  section_.notify_all();

  work(0);
  while (const std::uint32_t left = unfinished_.load(std::memory_order_acquire)) wait_while(unfinished_, left);
}

void ThreadPool::work(int thread) {
  std::uint32_t done = 0;
  for (int i = 0; i < threads(); i++) {
    std::atomic<std::uint64_t>& share = shares_[static_cast<std::size_t>((thread + i) % threads())].left;
    std::uint64_t word = share.load(std::memory_order_acquire);
    for (Range left = Range::of(word); left.size() > 0; left = Range::of(word)) {
      const std::uint32_t take = std::max<std::uint32_t>(1, left.size() / kPieces);
      Range taken = left, rest = left;
      if (i == 0) {
        taken.end = rest.begin = left.begin + take;
      } else {
        taken.begin = rest.end = left.end - take;
      }
      if (!share.compare_exchange_weak(word, rest.word(), std::memory_order_acquire)) continue;
      call_(context_, taken.begin, taken.end, thread);
      done += take;
      word = share.load(std::memory_order_acquire);
    }
  }
  if (done != 0 && unfinished_.fetch_sub(done, std::memory_order_acq_rel) == done) unfinished_.notify_one();
}

void ThreadPool::help(int thread) {
  std::uint32_t seen = 0;
  for (;;) {
    wait_while(section_, seen);
    seen = section_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    work(thread);
  }
}

}  // namespace hogwild
