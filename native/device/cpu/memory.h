// Memory of the CPU device: whole pages from the system, which cost nothing until they are touched.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/device.h"

namespace hogwild {

// Zero-filled. Throws kOutOfMemory with the size and `purpose` in the message.
Buffer map_memory(std::size_t bytes, const char* purpose);

// Advice only: fewer faults, and fewer misses of the address cache, where the system has large pages (2 MiB). Each is
// taken whole when one byte of it is first written.
void prefer_large_pages(Buffer& buffer);

// Memory for a model's weights: parts of large buffers in large pages, aligned to cache lines. Throws kOutOfMemory.
std::byte* allocate_weight(std::size_t bytes, WeightStorage& storage);

// Scratch memory aligned to cache lines that only grows.
class Scratch {
 public:
  template <typename T>
  T* get(std::int64_t n) {
    const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(T);
    if (bytes > buffer_.bytes()) buffer_ = map_memory(bytes, "scratch space");
    return buffer_.as<T>();
  }

 private:
  Buffer buffer_;
};

}  // namespace hogwild
