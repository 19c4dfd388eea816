// cp.async groups, mbarriers and bulk copies. A lazy copy fills its target with NaN when it is issued
// and lands as late as its semantics allow, so that whoever reads without waiting reads NaN.
#include <cstring>

#include "simt/machine.h"

namespace simt {
namespace {

constexpr std::size_t kCpAsyncBytes = 16;

void land(const CpAsync& copy) {
  SIMT_TSAN_ONLY(__tsan_write_range(copy.to, kCpAsyncBytes);
                 if (copy.valid) __tsan_read_range(const_cast<void*>(copy.from), kCpAsyncBytes);)
  if (copy.valid) {
    std::memcpy(copy.to, copy.from, kCpAsyncBytes);
  } else {
    std::memset(copy.to, 0, kCpAsyncBytes);
  }
}

// Ends the phase if everything due has come, and wakes who waits for that.
void check_phase(Mbarrier* barrier) {
  if (barrier->arrivals_due > 0 || barrier->bytes_due > 0) return;
  barrier->count_and_phase ^= 1;
  barrier->arrivals_due = barrier->count_and_phase >> 1;
  Machine& m = machine();
  for (int i = 0; i < m.n_threads; ++i) {
    Thread& thread = *m.threads[i];
    if (thread.waits_for == barrier && thread.waits_for_parity != (barrier->count_and_phase & 1)) {
      thread.waits_for = nullptr;
      set_ready(thread);
    }
  }
}

}  // namespace

void cp_async(void* to, const void* from, bool valid, Site site) {
  Thread& thread = current_thread();
  if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from)) % kCpAsyncBytes != 0) {
    fail("cp.async: an address is not aligned to 16 bytes", site);
  }
  if (!in_shared_memory(to, kCpAsyncBytes)) fail("cp.async: the target is not inside dynamic shared memory", site);
  if (thread.n_copies == kMaxCpAsync) fail("cp.async: too many copies in flight", site);
  thread.waits_at = site;
  (valid ? stats.bytes_copied : stats.bytes_zero_filled) += kCpAsyncBytes;

  const CpAsync copy{to, from, valid, thread.copy_group};
  if (options.copies == CopyTiming::kEager) {
    land(copy);
  } else {
    SIMT_TSAN_ONLY(__tsan_write_range(to, kCpAsyncBytes);)
    std::memset(to, kPoison, kCpAsyncBytes);
  }
  thread.copies[thread.n_copies++] = copy;
}

void cp_async_commit_group() { ++current_thread().copy_group; }

void cp_async_wait_group(int pending) {
  Thread& thread = current_thread();
  int landed = 0;
  while (landed < thread.n_copies && thread.copies[landed].group < thread.copy_group - pending) {
    if (options.copies == CopyTiming::kLazy) land(thread.copies[landed]);
    ++landed;
  }
  for (int i = landed; i < thread.n_copies; ++i) thread.copies[i - landed] = thread.copies[i];
  thread.n_copies -= landed;
}

// ---- mbarriers --------------------------------------------------------------------------------------

void mbarrier_init(Mbarrier* barrier, int count, Site site) {
  if (reinterpret_cast<std::uintptr_t>(barrier) % alignof(std::uint64_t) != 0 ||
      !in_shared_memory(barrier, sizeof *barrier)) {
    fail("mbarrier: not inside dynamic shared memory, or not aligned to 8 bytes", site);
  }
  constexpr int kMaxCount = (1 << 15) - 1;  // beside the phase in 16 bits; CUDA's limit is 2^20 - 1
  if (count < 1 || count > kMaxCount) fail("mbarrier: a count of 1 to 32767 is needed", site);
  barrier->bytes_due = 0;
  barrier->arrivals_due = static_cast<std::uint16_t>(count);
  barrier->count_and_phase = static_cast<std::uint16_t>(count << 1);
}

void mbarrier_arrive_expect(Mbarrier* barrier, int bytes, Site site) {
  SIMT_TSAN_ONLY(__tsan_release(barrier);)
  if (barrier->arrivals_due == 0) fail("mbarrier: more arrivals than its count", site);
  barrier->bytes_due += static_cast<std::uint32_t>(bytes);
  --barrier->arrivals_due;
  check_phase(barrier);
}

void mbarrier_arrive(Mbarrier* barrier, Site site) { mbarrier_arrive_expect(barrier, 0, site); }

void mbarrier_wait(Mbarrier* barrier, int parity, Site site) {
  Thread& thread = current_thread();
  thread.waits_in = "an mbarrier wait";
  thread.waits_at = site;
  if ((barrier->count_and_phase & 1) == parity) {  // that phase is still open
    thread.waits_for = barrier;
    thread.waits_for_parity = parity;
    schedule();
  }
  SIMT_TSAN_ONLY(__tsan_acquire(barrier);)
}

// ---- bulk copies ------------------------------------------------------------------------------------

void bulk_copy(void* to, const void* from, int bytes, Mbarrier* barrier, Site site) {
  Machine& m = machine();
  if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from) |
       static_cast<std::uintptr_t>(bytes)) %
              16 !=
          0 ||
      bytes <= 0) {
    fail("bulk copy: addresses and size must be multiples of 16", site);
  }
  if (!in_shared_memory(to, static_cast<std::size_t>(bytes))) {
    fail("bulk copy: the target is not inside dynamic shared memory", site);
  }
  if (m.n_bulk_copies == kMaxBulkCopies) fail("bulk copy: too many in flight", site);
  stats.bytes_copied += static_cast<std::uint64_t>(bytes);
  SIMT_TSAN_ONLY(__tsan_write_range(to, static_cast<unsigned long>(bytes));)
  std::memset(to, kPoison, static_cast<std::size_t>(bytes));
  SIMT_TSAN_ONLY(__tsan_release(&m.tsan_copies);)
  m.bulk_copies[m.n_bulk_copies++] = {to, from, bytes, barrier};
  if (options.copies == CopyTiming::kEager) finish_bulk_copy(m.n_bulk_copies - 1);
}

void finish_bulk_copy(int index) {
  Machine& m = machine();
  const BulkCopy copy = m.bulk_copies[index];
  m.bulk_copies[index] = m.bulk_copies[--m.n_bulk_copies];
#if defined(SIMT_TSAN)
  // The copy is an agent of its own: it runs after its issue and before those who wait for it.
  if (m.tsan_copy_engine == nullptr) m.tsan_copy_engine = __tsan_create_fiber(0);
  void* running = current_thread().fiber.tsan_fiber();
  __tsan_switch_to_fiber(m.tsan_copy_engine, __tsan_switch_to_fiber_no_sync);
  __tsan_acquire(&m.tsan_copies);
  __tsan_write_range(copy.to, static_cast<unsigned long>(copy.bytes));
  __tsan_read_range(const_cast<void*>(copy.from), static_cast<unsigned long>(copy.bytes));
#endif
  std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.bytes));
  SIMT_TSAN_ONLY(__tsan_release(copy.barrier); __tsan_switch_to_fiber(running, __tsan_switch_to_fiber_no_sync);)
  copy.barrier->bytes_due -= static_cast<std::uint32_t>(copy.bytes);
  check_phase(copy.barrier);
}

}  // namespace simt
