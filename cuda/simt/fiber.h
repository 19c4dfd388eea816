// A stack to run on and the registers of where it stopped.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#define SIMT_UCONTEXT 1
#include <ucontext.h>
#endif

namespace simt {

class Fiber {
 public:
  // Runs `entry` (which must not return) on a stack of its own at the first switch to it. `number`
  // staggers the stacks, see fiber.cc. Throws std::bad_alloc.
  Fiber(void (*entry)(), int number);
  // Stands for the calling OS thread, on the stack that it has.
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Stops `from`, which must be running, and goes on with `to`.
  static void switch_to(Fiber& from, Fiber& to);
  // First thing that an `entry` does.
  static void entered();

  // Forgets where it stopped: the next switch runs `entry` again. Destructors on the abandoned stack
  // do not run.
  void restart();

  void* tsan_fiber() const { return tsan_fiber_; }

 private:
  void (*entry_)() = nullptr;
  char* mapping_ = nullptr;  // guard page and stack; null for the OS thread
  char* stack_ = nullptr;
  std::size_t stack_bytes_ = 0;
  std::size_t stagger_ = 0;
#if defined(SIMT_UCONTEXT)
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
  void* asan_fake_stack_ = nullptr;
  void* tsan_fiber_ = nullptr;
};

}  // namespace simt
