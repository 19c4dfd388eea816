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

}  // namespace hogwild
