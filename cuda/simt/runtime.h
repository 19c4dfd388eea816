// Runs kernels on the CPU: what target_host.h maps CUDA's names to, and what tests control and read.
//
// One OS thread runs a grid. The threads of a block are fibers: each runs until it meets a barrier
// or a warp operation, then hands over to another thread that can run. Blocks run one after another. See
// README.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <type_traits>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace simt {

// ---- for tests --------------------------------------------------------------------------------------

// Which thread, warp and block runs next, of those that can.
enum class Order { kForward, kReverse, kRandom };
// When copies land: at once, or as late as the semantics allow.
enum class CopyTiming { kEager, kLazy };

struct Options {
  Order order = Order::kForward;
  CopyTiming copies = CopyTiming::kLazy;
  std::uint64_t seed = 1;                      // of Order::kRandom
  std::size_t max_shared_memory = 227 * 1024;  // per block; that of sm_90
  bool overlap = true;                         // kernels of a graph begin before those that they follow have ended
};

// Counted over all launches of this OS thread; tests reset it by assignment.
struct Stats {
  std::uint64_t blocks = 0;
  std::uint64_t barriers = 0;         // __syncthreads, per thread
  std::uint64_t warp_operations = 0;  // per lane
  std::uint64_t switches = 0;
  std::uint64_t mma = 0;                 // mma.sync, per warp
  std::uint64_t ldmatrix = 0;            // 8x8 matrices
  std::uint64_t ldmatrix_conflicts = 0;  // additional shared memory wavefronts
  std::uint64_t bytes_copied = 0;        // by cp.async, from global memory
  std::uint64_t bytes_zero_filled = 0;   // by cp.async
  std::uint64_t bytes_loaded = 0;        // by load_once, from global memory
};

extern constinit thread_local Options options;
extern constinit thread_local Stats stats;

// Adds to stats.bytes_loaded. Not inline: to ThreadSanitizer, which does not watch the runtime, threads of a kernel
// would race for the counter.
void count_loaded(std::size_t bytes);

// ---- launching --------------------------------------------------------------------------------------

struct Machine;

// A launch: `body(argument)` runs once per thread. Where something is wrong, begin and finish throw std::runtime_error
// with the first error that was found: which thread, what, and where in the source.
class Grid {
 public:
  // Plain pointers: the runtime takes no std:: types, see README.md on ThreadSanitizer. `follows`: the kernel may
  // begin before the one before has ended, so each of its threads must wait for that.
  Grid(dim3 grid, dim3 block, std::size_t shared_bytes, bool follows, void (*body)(void*), void* argument);
  ~Grid();
  Grid(const Grid&) = delete;
  Grid& operator=(const Grid&) = delete;

  // Runs some blocks up to their wait for the preceding kernel, which has not run yet. On the thread that calls finish.
  void begin();
  // Runs what is left.
  void finish();

 private:
  static constexpr int kMaxBegun = 4;  // blocks: a GPU has room for a few, too

  std::uint64_t block_at(std::uint64_t i) const;
  void start(Machine& machine, std::uint64_t number);
  void check(Machine& machine);

  dim3 grid_, block_;
  std::size_t shared_bytes_;
  bool follows_;
  void (*body_)(void*);
  void* argument_;
  std::uint64_t n_blocks_, n_started_ = 0;
  std::uint64_t first_ = 0, stride_ = 1;  // the order in which blocks run
  std::uint64_t random_state_;
  Machine* begun_[kMaxBegun] = {};
  int n_begun_ = 0;
};

template <typename Body>
void launch(dim3 grid, dim3 block, std::size_t shared_bytes, Body&& body) {
  Grid(
      grid, block, shared_bytes, false,
      [](void* argument) { (*static_cast<std::remove_reference_t<Body>*>(argument))(); },
      const_cast<void*>(static_cast<const void*>(std::addressof(body))))
      .finish();
}

// ---- for kernels, through target_host.h -------------------------------------------------------------

using Site = std::source_location;  // where a kernel calls

struct ThreadContext {
  uint3 thread_index, block_index;
  dim3 block_dim, grid_dim;
  int linear;  // number in the block: warp * 32 + lane
  int lane, warp;
};
extern constinit thread_local ThreadContext* current;

unsigned char* shared_memory();
[[noreturn]] void fail(const char* what, Site site);

void block_barrier(Site site);
void memory_fence();

void launch_dependents();
void wait_for_preceding(Site site = Site::current());

void warp_barrier(unsigned mask, Site site);
std::uint64_t warp_exchange(unsigned mask, std::uint64_t value, int source_lane, Site site);
unsigned warp_ballot(unsigned mask, bool vote, Site site);
// All 32 lanes of a warp: everybody's ldmatrix row address.
void warp_rows(const void* mine, const void* (&all)[32], Site site);
// All 32 lanes: d += a b on fragments (see mma_m16n8k16), elements widened by `to_f32`.
using WidenElement = float (*)(std::uint16_t);
void warp_mma(float* d, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1, WidenElement to_f32, Site site);

void cp_async(void* to, const void* from, bool valid, Site site);
void cp_async_commit_group();
void cp_async_wait_group(int pending);

}  // namespace simt
