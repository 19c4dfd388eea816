#include "simt/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SIMT_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace simt {
namespace {

constexpr std::size_t kGuardBytes = 4096;
constexpr std::size_t kStackBytes = 256 * 1024;

// Stacks start at multiples of the page size: with equal offsets the hot frames of all threads of a
// block would compete for the same few cache sets (3 times slower). An odd number of cache lines each.
constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kStagger = 23 * kCacheLine;
constexpr std::size_t kMaxStagger = 16 * 1024;

}  // namespace

#if !defined(SIMT_UCONTEXT)
// Saves the callee-saved registers of the System V ABI on the running stack, its pointer in *save, and
// restores those of `load`. (x87 and SSE control words are not changed by kernels.)
extern "C" void simt_switch_stack(void** save, void* load);
asm(R"(
.text
.type simt_switch_stack, @function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stack, .-simt_switch_stack
)");
constexpr int kSavedRegisters = 6;
#endif

#if defined(__SANITIZE_ADDRESS__)
namespace {
thread_local Fiber* arriving = nullptr;  // the target of the switch under way
}
#endif

Fiber::Fiber(void (*entry)(), int number)
    : entry_(entry), stack_bytes_(kStackBytes), stagger_(static_cast<std::size_t>(number) * kStagger % kMaxStagger) {
  void* mapping = ::mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<char*>(mapping);
  ::mprotect(mapping_, kGuardBytes, PROT_NONE);
  stack_ = mapping_ + kGuardBytes;
  restart();
}

Fiber::Fiber() {
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  void* lowest = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &lowest, &stack_bytes_);
  pthread_attr_destroy(&attributes);
  stack_ = static_cast<char*>(lowest);
#endif
#if defined(SIMT_TSAN)
  tsan_fiber_ = __tsan_get_current_fiber();
#endif
}

Fiber::~Fiber() {
  if (mapping_ == nullptr) return;
#if defined(SIMT_TSAN)
  __tsan_destroy_fiber(tsan_fiber_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, stack_bytes_);
#endif
  ::munmap(mapping_, kGuardBytes + kStackBytes);
}

void Fiber::restart() {
#if defined(SIMT_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = stack_bytes_ - stagger_;
  context_.uc_link = nullptr;
  makecontext(&context_, entry_, 0);
#else
  void** top = reinterpret_cast<void**>(stack_ + stack_bytes_ - stagger_);
  *--top = nullptr;  // so that the stack is aligned as after a call when `entry` begins
  *--top = reinterpret_cast<void*>(entry_);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  stack_pointer_ = top;
#endif
  asan_fake_stack_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, stack_bytes_);  // frames of what was abandoned
#endif
#if defined(SIMT_TSAN)
  if (tsan_fiber_ != nullptr) __tsan_destroy_fiber(tsan_fiber_);
  tsan_fiber_ = __tsan_create_fiber(0);
#endif
}

void Fiber::switch_to(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.asan_fake_stack_, to.stack_, to.stack_bytes_);
  arriving = &to;
#endif
#if defined(SIMT_TSAN)
  // A switch orders nothing: only barriers do, and say so themselves.
  __tsan_switch_to_fiber(to.tsan_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(SIMT_UCONTEXT)
  swapcontext(&from.context_, &to.context_);
#else
  simt_switch_stack(&from.stack_pointer_, to.stack_pointer_);
#endif
  entered();
}

void Fiber::entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(arriving->asan_fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace simt
