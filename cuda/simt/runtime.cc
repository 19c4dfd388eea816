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

Machine& machine() {
  static thread_local Machine instance;
  return instance;
}

Machine::~Machine() {
  for (int i = 0; i < threads_made; ++i) delete threads[i];
  std::free(shared);
}

// ---- scheduling -------------------------------------------------------------------------------------

std::uint64_t random_number() {  // xorshift64 (Marsaglia 2003)
  std::uint64_t x = machine().random_state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return machine().random_state = x;
}

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

// Drops the grid; run_grid throws machine().error.
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
    if (!m.threads[i]->exited) set_ready(*m.threads[i]);
  }
  m.current_warp = pick_bit(m.warps_ready);
  m.barrier.arrived = 0;
  ++m.barrier.phase;
}

void exit_thread() {
  Machine& m = machine();
  Thread& thread = current_thread();
  if (thread.n_copies > 0) fail("a thread exits with cp.async copies in flight", thread.waits_at);
  thread.exited = true;
  m.warps[thread.warp].alive &= ~(1u << thread.lane);
  --m.alive;
  // A thread that exits no longer counts for a barrier (as since sm_70).
  if (m.alive > 0 && m.barrier.arrived == m.alive) release_block_barrier();
  SIMT_TSAN_ONLY(__tsan_release(&m.tsan_end);)
  schedule();
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

void set_ready(const Thread& thread) {
  Machine& m = machine();
  m.warps[thread.warp].ready |= 1u << thread.lane;
  m.warps_ready |= 1u << thread.warp;
}

void schedule() {
  Machine& m = machine();
  if (m.warps_ready == 0) {
    if (m.alive > 0) report_deadlock();
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

// The order in which blocks run: up, down, or by a random stride that reaches each once.
class BlockOrder {
 public:
  explicit BlockOrder(std::uint64_t n) : n_(n) {
    if (options.order != Order::kRandom || n < 2) return;
    first_ = random_number() % n;
    do {
      stride_ = 1 + random_number() % n;
    } while (greatest_common_divisor(stride_, n) != 1);
  }
  std::uint64_t operator[](std::uint64_t i) const {
    return options.order == Order::kReverse ? n_ - 1 - i : (first_ + i * stride_) % n_;
  }

 private:
  std::uint64_t n_;
  std::uint64_t first_ = 0;
  std::uint64_t stride_ = 1;
};

void run_block(dim3 grid, dim3 block, std::uint64_t number) {
  Machine& m = machine();
  if (m.shared != nullptr) std::memset(m.shared, kPoison, m.shared_bytes);
  for (Warp& warp : m.warps) {
    warp.ready = warp.alive = 0;
    warp.n_operations = 0;
  }
  m.barrier.arrived = 0;
  m.warps_ready = 0;
  m.alive = m.n_threads;
  for (int i = 0; i < m.n_threads; ++i) {
    Thread& thread = *m.threads[i];
    const auto u = static_cast<unsigned>(i);
    thread.thread_index = {u % block.x, u / block.x % block.y, u / (block.x * block.y)};
    thread.block_index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                          static_cast<unsigned>(number / grid.x / grid.y)};
    thread.block_dim = block;
    thread.grid_dim = grid;
    thread.linear = i;
    thread.lane = i % kWarpSize;
    thread.warp = i / kWarpSize;
    thread.exited = false;
    thread.n_copies = 0;
    thread.copy_group = 0;
    m.warps[thread.warp].alive |= 1u << thread.lane;
    set_ready(thread);
  }
  m.current_warp = pick_bit(m.warps_ready);
  SIMT_TSAN_ONLY(__tsan_release(&m.tsan_start);)
  current = &m.os_thread;
  schedule();
  SIMT_TSAN_ONLY(__tsan_acquire(&m.tsan_end);)
  ++stats.blocks;
}

}  // namespace

void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, void (*body)(void*), void* argument) {
  Machine& m = machine();
  const std::uint64_t n_threads = std::uint64_t{block.x} * block.y * block.z;
  const std::uint64_t n_blocks = std::uint64_t{grid.x} * grid.y * grid.z;
  if (n_threads < 1 || n_threads > kMaxThreads) throw std::runtime_error("a block has 1 to 1024 threads");
  if (n_blocks < 1) throw std::runtime_error("a grid has at least one block");
  if (shared_bytes > options.max_shared_memory) throw std::runtime_error("too much dynamic shared memory");
  if (current != nullptr) throw std::runtime_error("a kernel cannot launch kernels");

  for (; m.threads_made < static_cast<int>(n_threads); ++m.threads_made) {
    m.threads[m.threads_made] = new Thread(run_threads, m.threads_made);
  }
  m.n_threads = static_cast<int>(n_threads);
  m.body = body;
  m.argument = argument;
  m.error[0] = '\0';
  m.random_state = options.seed * 0x9e3779b97f4a7c15u | 1;
  // Exactly as much as was asked for, so that AddressSanitizer sees the first byte beyond it.
  std::free(m.shared);
  m.shared = nullptr;
  m.shared_bytes = shared_bytes;
  if (shared_bytes > 0) {
    void* memory = nullptr;
    if (::posix_memalign(&memory, 1024, shared_bytes) != 0) throw std::bad_alloc();
    m.shared = static_cast<unsigned char*>(memory);
  }

  const BlockOrder order(n_blocks);
  for (std::uint64_t i = 0; i < n_blocks && m.error[0] == '\0'; ++i) run_block(grid, block, order[i]);
  current = nullptr;
  if (m.error[0] != '\0') {
    for (int i = 0; i < m.threads_made; ++i) m.threads[i]->fiber.restart();
    throw std::runtime_error(m.error);
  }
}

}  // namespace simt
