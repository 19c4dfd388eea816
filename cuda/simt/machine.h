// What the parts of the runtime share. A Machine runs one block at a time; an OS thread that launches kernels has one,
// and some more while blocks are stopped before the preceding kernel has ended.
//
// Under ThreadSanitizer this code is compiled without instrumentation (-DSIMT_TSAN) and tells the
// sanitizer itself what is ordered and what is accessed. Hence two rules: no std:: containers (the
// linker may take an instrumented copy of their code from a test), no allocation inside a fiber (its
// stack may be abandoned).
#pragma once

#include "simt/fiber.h"
#include "simt/runtime.h"

#if defined(SIMT_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read_range(void* from, unsigned long bytes);
extern "C" void __tsan_write_range(void* from, unsigned long bytes);
#define SIMT_TSAN_ONLY(...) __VA_ARGS__
#else
#define SIMT_TSAN_ONLY(...)
#endif

namespace simt {

inline constexpr int kWarpSize = 32;
inline constexpr int kMaxThreads = 1024;  // per block
inline constexpr int kMaxWarps = kMaxThreads / kWarpSize;
inline constexpr unsigned kFullMask = 0xffffffffu;

// Limits of the runtime, not of CUDA; exceeding one is reported.
inline constexpr int kMaxCpAsync = 512;       // in flight per thread
inline constexpr int kMaxWarpOperations = 8;  // under way in one warp, with disjoint masks

// What uninitialised shared memory and the target of an unfinished copy hold: NaN in every format.
inline constexpr unsigned char kPoison = 0xff;

inline constexpr std::size_t kCpAsyncBytes = 16;

struct CpAsync {
  void* to;
  const void* from;
  bool valid;
  int group;
  bool is_read;  // `data` is what the copy brings
  unsigned char data[kCpAsyncBytes];
};

struct Thread : ThreadContext {
  Thread() : ThreadContext{} {}  // the OS thread
  Thread(void (*entry)(), int number) : ThreadContext{}, fiber(entry, number) {}

  Fiber fiber;
  bool exited = true;
  bool has_waited = false;    // for the preceding kernel
  bool is_stopped = false;    // there
  const char* waits_in = "";  // for the report of a deadlock
  Site waits_at;
  CpAsync copies[kMaxCpAsync];
  int n_copies = 0;
  int copy_group = 0;  // the group that new copies belong to
};

// Executed by the last lane to arrive, for all lanes of the mask; `arguments` has what each lane left.
using ExecuteForWarp = void (*)(void** arguments, unsigned mask);

struct WarpOperation {
  unsigned mask = 0;
  unsigned arrived = 0;
  ExecuteForWarp execute = nullptr;
  Site site;
  void* arguments[kWarpSize];
};

struct Warp {
  unsigned ready = 0;  // lanes that can run
  unsigned alive = 0;  // lanes that have not exited
  int n_operations = 0;
  WarpOperation operations[kMaxWarpOperations];
  unsigned sync_phase = 0;
  char tsan_sync[2];  // happens-before of __syncwarp, alternating
};

struct BlockBarrier {
  int arrived = 0;
  Site site;
  unsigned phase = 0;
  char tsan_sync[2];
};

struct Machine {
  Machine() = default;
  ~Machine();

  Thread os_thread;
  Thread* threads[kMaxThreads] = {};
  int threads_made = 0;
  Warp warps[kMaxWarps];
  unsigned warps_ready = 0;  // warps with a ready lane
  BlockBarrier barrier;
  int n_threads = 0;  // of this launch
  int alive = 0;
  int stopped = 0;               // threads that wait for the preceding kernel
  bool follows = false;          // there is one that may still have been running when this one began
  bool before_wait = false;      // it still is
  bool lets_next_start = false;  // launch_dependents has been called
  int current_warp = 0;

  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  unsigned char* shared = nullptr;
  std::size_t shared_bytes = 0;

  char error[2048] = {};
  std::uint64_t random_state = 1;

  char tsan_start, tsan_end, tsan_fence;

  Machine* next_idle = nullptr;
};

// The one whose block runs.
Machine& machine();
inline Thread& current_thread() { return *static_cast<Thread*>(current); }

std::uint64_t random_number();
void set_ready(Machine& m, const Thread& thread);
// Goes on with some thread that can run, perhaps the caller; returns when it is the caller's turn.
void schedule();

bool in_shared_memory(const void* from, std::size_t bytes);

}  // namespace simt
