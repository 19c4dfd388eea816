#include "simt/runtime.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "simt/machine.h"

namespace simt {

constinit thread_local Options options;
constinit thread_local Stats stats;
thread_local ThreadContext* current = nullptr;

void count_loaded(std::size_t bytes) { stats.bytes_loaded += bytes; }

Machine::~Machine() {
  for (int i = 0; i < threads_made; ++i) delete threads[i];
  std::free(shared);
}

namespace {

constinit thread_local Machine* running = nullptr;

// Those of this OS thread that run no block.
struct IdleMachines {
  Machine* first = nullptr;
  ~IdleMachines() {
    while (first != nullptr) delete take();
  }
  Machine* take() {
    Machine* taken = first;
    if (taken == nullptr) return new Machine;
    first = taken->next_idle;
    return taken;
  }
  void give_back(Machine* idle) {
    idle->next_idle = first;
    first = idle;
  }
};
thread_local IdleMachines idle_machines;

}  // namespace

Machine& machine() { return *running; }

// ---- scheduling -------------------------------------------------------------------------------------

namespace {

std::uint64_t next_random(std::uint64_t& x) {  // xorshift64 (Marsaglia 2003)
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x;
}

}  // namespace

std::uint64_t random_number() { return next_random(machine().random_state); }

namespace {

// True once in 2^`bits` calls, with Order::kRandom only.
bool now_and_then(int bits) {
  return options.order == Order::kRandom && (random_number() >> 33 & ((1u << bits) - 1)) == 0;
}

int pick_bit(unsigned bits) {
  switch (options.order) {
    case Order::kForward:
      return __builtin_ctz(bits);
    case Order::kReverse:
      return 31 - __builtin_clz(bits);
    case Order::kRandom:
      break;
  }
  // The first set bit from a random place on: not uniform, but each can win, and without a division.
  const int start = static_cast<int>(random_number() >> 32 & 31);
  const unsigned rotated = bits >> start | bits << ((32 - start) & 31);
  return (__builtin_ctz(rotated) + start) & 31;
}

void switch_to(Thread& to) {
  Thread& from = current_thread();
  if (&from == &to) return;
  ++stats.switches;
  current = &to;
  Fiber::switch_to(from.fiber, to.fiber);
}

// Drops the grid, which throws machine().error.
[[noreturn]] void abandon() {
  switch_to(machine().os_thread);
  std::abort();  // nobody switches back to an abandoned thread
}

int describe(char* text, std::size_t size, const Thread& thread) {
  return std::snprintf(text, size, "block (%u, %u, %u) thread (%u, %u, %u)", thread.block_index.x, thread.block_index.y,
                       thread.block_index.z, thread.thread_index.x, thread.thread_index.y, thread.thread_index.z);
}

[[noreturn]] void report_deadlock() {
  constexpr int kMaxShown = 8;
  constexpr std::size_t kLongestLine = 300;
  Machine& m = machine();
  const std::size_t size = sizeof m.error;
  std::size_t at = static_cast<std::size_t>(std::snprintf(m.error, size, "deadlock: no thread can run;"));
  const Thread* previous = nullptr;
  for (int i = 0, shown = 0; i < m.n_threads && at + kLongestLine < size; ++i) {
    const Thread& thread = *m.threads[i];
    if (thread.exited) continue;
    const bool same_place = previous != nullptr && previous->waits_at.line() == thread.waits_at.line() &&
                            previous->waits_at.column() == thread.waits_at.column();
    if (same_place) continue;  // the first of a run stands for all
    if (shown++ == kMaxShown) {
      std::snprintf(m.error + at, size - at, "\n  ...");
      break;
    }
    at += static_cast<std::size_t>(std::snprintf(m.error + at, size - at, "\n  "));
    at += static_cast<std::size_t>(describe(m.error + at, size - at, thread));
    at += static_cast<std::size_t>(std::snprintf(m.error + at, size - at, " and on: in %s at %.200s:%u",
                                                 thread.waits_in, thread.waits_at.file_name(), thread.waits_at.line()));
    previous = &thread;
  }
  abandon();
}

void release_block_barrier() {
  Machine& m = machine();
  for (int i = 0; i < m.n_threads; ++i) {
    if (!m.threads[i]->exited) set_ready(m, *m.threads[i]);
  }
  m.current_warp = pick_bit(m.warps_ready);
  m.barrier.arrived = 0;
  ++m.barrier.phase;
}

void exit_thread() {
  Machine& m = machine();
  Thread& thread = current_thread();
  if (thread.n_copies > 0) fail("a thread exits with cp.async copies in flight", thread.waits_at);
  if (m.follows && !thread.has_waited)
    fail("a thread exits that has not waited for the kernel before", thread.waits_at);
  if (m.follows && m.alive == 1 && !m.lets_next_start) fail("a block ends without launch_dependents", thread.waits_at);
  thread.exited = true;
  m.warps[thread.warp].alive &= ~(1u << thread.lane);
  --m.alive;
  // A thread that exits no longer counts for a barrier (as since sm_70).
  if (m.alive > 0 && m.barrier.arrived == m.alive) release_block_barrier();
  SIMT_TSAN_ONLY(__tsan_release(&m.tsan_end);)
  schedule();
}

// Abandons the threads that have not ended.
void restart(Machine& m) {
  for (int i = 0; i < m.threads_made; ++i) m.threads[i]->fiber.restart();
}

// What every fiber runs: one kernel thread after another.
void run_threads() {
  Fiber::entered();
  for (;;) {
    SIMT_TSAN_ONLY(__tsan_acquire(&machine().tsan_start);)
    machine().body(machine().argument);
    exit_thread();
  }
}

}  // namespace

void set_ready(Machine& m, const Thread& thread) {
  m.warps[thread.warp].ready |= 1u << thread.lane;
  m.warps_ready |= 1u << thread.warp;
}

void schedule() {
  Machine& m = machine();
  if (m.warps_ready == 0) {
    if (m.alive > 0 && m.stopped == 0) report_deadlock();
    switch_to(m.os_thread);
    return;
  }
  // Stays with a warp while it can: keeps its data in cache.
  if (m.warps[m.current_warp].ready == 0 || now_and_then(3)) m.current_warp = pick_bit(m.warps_ready);
  Warp& warp = m.warps[m.current_warp];
  const int lane = pick_bit(warp.ready);
  warp.ready &= ~(1u << lane);
  if (warp.ready == 0) m.warps_ready &= ~(1u << m.current_warp);
  switch_to(*m.threads[m.current_warp * kWarpSize + lane]);
}

void fail(const char* what, Site site) {
  Machine& m = machine();
  const int at = describe(m.error, sizeof m.error, current_thread());
  std::snprintf(m.error + at, sizeof m.error - static_cast<std::size_t>(at), ": %s [%s:%u]", what, site.file_name(),
                site.line());
  abandon();
}

// ---- block level ------------------------------------------------------------------------------------

unsigned char* shared_memory() { return machine().shared; }

bool in_shared_memory(const void* from, std::size_t bytes) {
  const Machine& m = machine();
  const auto* begin = static_cast<const unsigned char*>(from);
  return begin >= m.shared && begin + bytes <= m.shared + m.shared_bytes;
}

void block_barrier(Site site) {
  Machine& m = machine();
  BlockBarrier& barrier = m.barrier;
  Thread& thread = current_thread();
  ++stats.barriers;
  if (barrier.arrived == 0) {
    barrier.site = site;
  } else if (barrier.site.line() != site.line() || barrier.site.column() != site.column()) {
    char text[512];
    std::snprintf(text, sizeof text, "divergent __syncthreads: others wait at %s:%u", barrier.site.file_name(),
                  barrier.site.line());
    fail(text, site);
  }
  thread.waits_in = "__syncthreads";
  thread.waits_at = site;
  [[maybe_unused]] const unsigned phase = barrier.phase & 1;
  SIMT_TSAN_ONLY(__tsan_release(&barrier.tsan_sync[phase]);)
  if (++barrier.arrived == m.alive) release_block_barrier();
  schedule();
  SIMT_TSAN_ONLY(__tsan_acquire(&barrier.tsan_sync[phase]);)
}

void memory_fence() {
  // All fences in one order: each sees what happened before the earlier ones.
  SIMT_TSAN_ONLY(__tsan_release(&machine().tsan_fence); __tsan_acquire(&machine().tsan_fence);)
}

// ---- kernels that overlap -----------------------------------------------------------------------------

void launch_dependents() { machine().lets_next_start = true; }

void wait_for_preceding(Site site) {
  Machine& m = machine();
  Thread& thread = current_thread();
  thread.has_waited = true;
  thread.waits_at = site;
  if (!m.before_wait) return;
  thread.is_stopped = true;
  ++m.stopped;
  schedule();
  SIMT_TSAN_ONLY(__tsan_acquire(&machine().tsan_start);)
}

// ---- launching --------------------------------------------------------------------------------------

namespace {

std::uint64_t greatest_common_divisor(std::uint64_t a, std::uint64_t b) {
  while (b != 0) {
    const std::uint64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// Runs what can run: until all threads have ended, or wait for the preceding kernel.
void run_ready(Machine& m) {
  running = &m;
  m.current_warp = pick_bit(m.warps_ready);
  SIMT_TSAN_ONLY(__tsan_release(&m.tsan_start);)
  current = &m.os_thread;
  schedule();
  current = nullptr;
  SIMT_TSAN_ONLY(if (m.stopped == 0) __tsan_acquire(&m.tsan_end);)
  if (m.alive == 0) ++stats.blocks;
}

// The preceding kernel has ended.
void resume(Machine& m) {
  m.before_wait = false;
  m.stopped = 0;
  for (int i = 0; i < m.n_threads; ++i) {
    Thread& thread = *m.threads[i];
    if (!thread.is_stopped) continue;
    thread.is_stopped = false;
    set_ready(m, thread);
  }
  run_ready(m);
}

}  // namespace

Grid::Grid(dim3 grid, dim3 block, std::size_t shared_bytes, bool follows, void (*body)(void*), void* argument)
    : grid_(grid),
      block_(block),
      shared_bytes_(shared_bytes),
      follows_(follows),
      body_(body),
      argument_(argument),
      n_blocks_(std::uint64_t{grid.x} * grid.y * grid.z),
      random_state_(options.seed * 0x9e3779b97f4a7c15u | 1) {
  const std::uint64_t n_threads = std::uint64_t{block.x} * block.y * block.z;
  if (n_threads < 1 || n_threads > kMaxThreads) throw std::runtime_error("a block has 1 to 1024 threads");
  if (n_blocks_ < 1) throw std::runtime_error("a grid has at least one block");
  if (shared_bytes > options.max_shared_memory) throw std::runtime_error("too much dynamic shared memory");
  if (current != nullptr) throw std::runtime_error("a kernel cannot launch kernels");
  if (options.order != Order::kRandom || n_blocks_ < 2) return;
  // A random stride that reaches each once.
  first_ = next_random(random_state_) % n_blocks_;
  do {
    stride_ = 1 + next_random(random_state_) % n_blocks_;
  } while (greatest_common_divisor(stride_, n_blocks_) != 1);
}

Grid::~Grid() {
  for (int i = 0; i < n_begun_; ++i) {
    if (begun_[i]->alive > 0) restart(*begun_[i]);
    idle_machines.give_back(begun_[i]);
  }
}

std::uint64_t Grid::block_at(std::uint64_t i) const {
  return options.order == Order::kReverse ? n_blocks_ - 1 - i : (first_ + i * stride_) % n_blocks_;
}

void Grid::start(Machine& m, std::uint64_t number) {
  const int n_threads = static_cast<int>(block_.x * block_.y * block_.z);
  for (; m.threads_made < n_threads; ++m.threads_made) {
    m.threads[m.threads_made] = new Thread(run_threads, m.threads_made);
  }
  m.n_threads = m.alive = n_threads;
  m.body = body_;
  m.argument = argument_;
  m.error[0] = '\0';
  m.random_state = next_random(random_state_);
  // Exactly as much as was asked for, so that AddressSanitizer sees the first byte beyond it.
  if (m.shared == nullptr || m.shared_bytes != shared_bytes_) {
    std::free(m.shared);
    m.shared = nullptr;
    m.shared_bytes = shared_bytes_;
    void* memory = nullptr;
    if (shared_bytes_ > 0 && ::posix_memalign(&memory, 1024, shared_bytes_) != 0) throw std::bad_alloc();
    m.shared = static_cast<unsigned char*>(memory);
  }
  if (m.shared != nullptr) std::memset(m.shared, kPoison, m.shared_bytes);
  for (Warp& warp : m.warps) {
    warp.ready = warp.alive = 0;
    warp.n_operations = 0;
  }
  m.barrier.arrived = 0;
  m.warps_ready = 0;
  m.stopped = 0;
  m.follows = follows_;
  m.lets_next_start = false;
  for (int i = 0; i < m.n_threads; ++i) {
    Thread& thread = *m.threads[i];
    const auto u = static_cast<unsigned>(i);
    thread.thread_index = {u % block_.x, u / block_.x % block_.y, u / (block_.x * block_.y)};
    thread.block_index = {static_cast<unsigned>(number % grid_.x), static_cast<unsigned>(number / grid_.x % grid_.y),
                          static_cast<unsigned>(number / grid_.x / grid_.y)};
    thread.block_dim = block_;
    thread.grid_dim = grid_;
    thread.linear = i;
    thread.lane = i % kWarpSize;
    thread.warp = i / kWarpSize;
    thread.exited = thread.has_waited = thread.is_stopped = false;
    thread.n_copies = 0;
    thread.copy_group = 0;
    m.warps[thread.warp].alive |= 1u << thread.lane;
    set_ready(m, thread);
  }
}

void Grid::check(Machine& m) {
  if (m.error[0] == '\0') return;
  restart(m);
  throw std::runtime_error(m.error);
}

void Grid::begin() {
  while (n_begun_ < kMaxBegun && n_started_ < n_blocks_) {
    Machine& m = *(begun_[n_begun_++] = idle_machines.take());
    m.before_wait = true;
    start(m, block_at(n_started_++));
    run_ready(m);
    check(m);
  }
}

void Grid::finish() {
  for (int i = 0; i < n_begun_; ++i) {
    if (begun_[i]->stopped > 0) resume(*begun_[i]);
    check(*begun_[i]);
  }
  const struct Taken {
    Machine& machine = *idle_machines.take();
    ~Taken() { idle_machines.give_back(&machine); }
  } taken;
  taken.machine.before_wait = false;
  while (n_started_ < n_blocks_) {
    start(taken.machine, block_at(n_started_++));
    run_ready(taken.machine);
    check(taken.machine);
  }
}

}  // namespace simt
