#include "device/cpu/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <limits>
#include <string>

#include "core/error.h"

namespace hogwild {

Buffer map_memory(std::size_t bytes, const char* purpose) {
  void* data = MAP_FAILED;
  if (bytes <= static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max())) {
    data = mmap(nullptr, std::max<std::size_t>(bytes, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  if (data == MAP_FAILED) {
    throw Error(code::kOutOfMemory, "the system refused " + std::to_string(bytes) + " bytes of memory for " + purpose);
  }
  return Buffer(data, bytes,
                [](void* memory, std::size_t size, int) { munmap(memory, std::max<std::size_t>(size, 1)); });
}

void prefer_large_pages([[maybe_unused]] Buffer& buffer) {
#if defined(MADV_HUGEPAGE)
  if (buffer.bytes() > 0) madvise(buffer.data(), buffer.bytes(), MADV_HUGEPAGE);
#endif
}

std::byte* allocate_weight(std::size_t bytes, WeightStorage& storage) {
  constexpr std::size_t kAlignment = 64;
  constexpr std::size_t kBufferBytes = std::size_t{64} << 20;  // untouched pages behind the last weight cost nothing
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (storage.buffers.empty() || storage.buffers.back().bytes() - storage.used < bytes) {
    storage.buffers.push_back(map_memory(std::max(bytes, kBufferBytes), "weights"));
    storage.used = 0;
    prefer_large_pages(storage.buffers.back());
  }
  std::byte* data = storage.buffers.back().as<std::byte>() + storage.used;
  storage.used += bytes;
  return data;
}

}  // namespace hogwild
