// cp.async groups. A lazy copy fills its target with NaN when it is issued
// and lands as late as its semantics allow, so that whoever reads without waiting reads NaN.
#include <cstring>

#include "simt/machine.h"

namespace simt {
namespace {

void read(CpAsync& copy) {
  if (copy.is_read) return;
  copy.is_read = true;
  SIMT_TSAN_ONLY(if (copy.valid) __tsan_read_range(const_cast<void*>(copy.from), kCpAsyncBytes);)
  if (copy.valid) {
    std::memcpy(copy.data, copy.from, kCpAsyncBytes);
  } else {
    std::memset(copy.data, 0, kCpAsyncBytes);
  }
}

void land(CpAsync& copy) {
  read(copy);
  SIMT_TSAN_ONLY(__tsan_write_range(copy.to, kCpAsyncBytes);)
  std::memcpy(copy.to, copy.data, kCpAsyncBytes);
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

  CpAsync copy{to, from, valid, thread.copy_group, false, {}};
  if (machine().before_wait) read(copy);  // what is there now
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

}  // namespace simt
