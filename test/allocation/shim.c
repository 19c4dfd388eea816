// Lets single allocations, mappings and thread starts of the addon fail: gcc -O2 -shared -fPIC -o shim.so shim.c -ldl,
// then LD_PRELOAD=shim.so and HOGWILD_FAIL=file of sizeof(struct control) bytes, which the test writes and reads
// while the process runs. Only calls from the addon's own code count; its C++ library is linked statically.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct control {
  _Atomic int64_t watch;      // not 0: the addon is loaded, its calls count
  _Atomic int64_t countdown;  // n > 0: the n-th call from now on fails
  _Atomic int64_t persist;    // not 0: so do all calls behind it
  _Atomic int64_t failed;     // calls that failed
  _Atomic int64_t live;       // pieces of memory and mappings that the addon holds, since `watch`
};
static struct control unused;
static struct control* control = &unused;

static atomic_uintptr_t addon_begin, addon_end;

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);
static void* (*real_mmap)(void*, size_t, int, int, int, off_t);
static int (*real_munmap)(void*, size_t);
static int (*real_pthread_create)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);

static void find_real(void) {
  if (real_mmap) return;
  real_munmap = (int (*)(void*, size_t))dlsym(RTLD_NEXT, "munmap");
  real_pthread_create = (int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*))dlsym(
      RTLD_NEXT, "pthread_create");
  real_mmap = (void* (*)(void*, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
}

__attribute__((constructor)) static void open_control(void) {
  find_real();
  const char* path = getenv("HOGWILD_FAIL");
  const int file = path ? open(path, O_RDWR) : -1;
  if (file < 0) return;
  void* shared = real_mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (shared != MAP_FAILED) control = shared;
  close(file);
}

static int find_addon(struct dl_phdr_info* info, size_t size, void* data) {
  (void)size, (void)data;
  if (!info->dlpi_name || !strstr(info->dlpi_name, "hogwild.node")) return 0;
  uintptr_t begin = UINTPTR_MAX, end = 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
    const uintptr_t from = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
    const uintptr_t to = from + info->dlpi_phdr[i].p_memsz;
    if (from < begin) begin = from;
    if (to > end) end = to;
  }
  addon_end = end;
  addon_begin = begin;
  return 1;
}

static int from_addon(void* caller) {
  if (!control->watch) return 0;
  if (!addon_begin) dl_iterate_phdr(find_addon, NULL);
  return (uintptr_t)caller >= addon_begin && (uintptr_t)caller < addon_end;
}

static int fails(void* caller) {
  if (control->countdown <= 0 || !from_addon(caller)) return 0;
  const int64_t left = atomic_fetch_sub(&control->countdown, 1);
  if (left > 1) return 0;
  if (left < 1) {  // another thread took the last one
    control->countdown = 0;
    return 0;
  }
  if (control->persist) control->countdown = 1;
  control->failed++;
  return 1;
}

// Addresses of what the addon holds. Who frees it is another matter: a destructor may end in a jump to free,
// and then the caller is whoever called the destructor.
enum { kHeld = 1 << 20 };
static void* held[kHeld];
static void* const kRemoved = (void*)1;
static atomic_flag held_lock = ATOMIC_FLAG_INIT;

static size_t slot_of(void* memory) { return (uintptr_t)memory * UINT64_C(0x9e3779b97f4a7c15) >> 44; }

static void* hold(void* memory, void* caller) {
  if (!memory || !from_addon(caller)) return memory;
  while (atomic_flag_test_and_set(&held_lock)) {
  }
  size_t slot = slot_of(memory);
  while (held[slot] && held[slot] != kRemoved) slot = (slot + 1) % kHeld;
  held[slot] = memory;
  control->live++;
  atomic_flag_clear(&held_lock);
  return memory;
}

static void give_back(void* memory) {
  if (!memory || !control->watch) return;
  while (atomic_flag_test_and_set(&held_lock)) {
  }
  size_t slot = slot_of(memory);
  while (held[slot] && held[slot] != memory) slot = (slot + 1) % kHeld;
  if (held[slot]) {
    held[slot] = kRemoved;
    control->live--;
  }
  atomic_flag_clear(&held_lock);
}

#define CALLER __builtin_return_address(0)

void* malloc(size_t size) {
  if (!fails(CALLER)) return hold(__libc_malloc(size), CALLER);
  errno = ENOMEM;
  return NULL;
}

void* calloc(size_t n, size_t size) {
  if (!fails(CALLER)) return hold(__libc_calloc(n, size), CALLER);
  errno = ENOMEM;
  return NULL;
}

void* realloc(void* old, size_t size) {
  if (fails(CALLER)) {
    errno = ENOMEM;
    return NULL;
  }
  give_back(old);
  return hold(__libc_realloc(old, size), CALLER);
}

void* aligned_alloc(size_t alignment, size_t size) {
  if (!fails(CALLER)) return hold(__libc_memalign(alignment, size), CALLER);
  errno = ENOMEM;
  return NULL;
}

int posix_memalign(void** memory, size_t alignment, size_t size) {
  if (fails(CALLER)) return ENOMEM;
  *memory = hold(__libc_memalign(alignment, size), CALLER);
  return *memory ? 0 : ENOMEM;
}

void free(void* memory) {
  give_back(memory);
  __libc_free(memory);
}

void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) {
  find_real();
  if (fails(CALLER)) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  void* memory = real_mmap(address, size, protection, flags, file, offset);
  if (memory != MAP_FAILED) hold(memory, CALLER);
  return memory;
}

int munmap(void* memory, size_t size) {
  find_real();
  give_back(memory);
  return real_munmap(memory, size);
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* data) {
  find_real();
  if (fails(CALLER)) return EAGAIN;
  return real_pthread_create(thread, attributes, start, data);
}
