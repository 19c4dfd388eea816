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

// A range is this share of what is left, per thread.
constexpr std::uint32_t kRangesPerThread = 4;

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

ThreadPool::ThreadPool(int threads) {
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
  n_ = n;
  call_ = call;
  context_ = context;
  const std::uint32_t section = section_.load(std::memory_order_relaxed) + 1;
  unfinished_.store(static_cast<std::uint32_t>(n), std::memory_order_relaxed);
  ticket_.store(std::uint64_t{section} << 32 | static_cast<std::uint32_t>(n), std::memory_order_release);
  section_.store(section, std::memory_order_release);
  section_.notify_all();

  work(0);
  while (const std::uint32_t left = unfinished_.load(std::memory_order_acquire)) wait_while(unfinished_, left);
}

void ThreadPool::work(int thread) {
  std::uint32_t done = 0;
  std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (const std::uint32_t left = static_cast<std::uint32_t>(ticket)) {
    const std::uint32_t share = kRangesPerThread * static_cast<std::uint32_t>(threads());
    const std::uint32_t take = std::max<std::uint32_t>(1, left / share);
    if (!ticket_.compare_exchange_weak(ticket, ticket - take, std::memory_order_acquire)) continue;
    const std::int64_t begin = n_ - left;
    call_(context_, begin, begin + take, thread);
    done += take;
    ticket = ticket_.load(std::memory_order_acquire);
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
