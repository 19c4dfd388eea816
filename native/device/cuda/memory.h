// Memory, streams and events of a card: each owned by an object, each failure an Error.
#pragma once

#if !defined(HOGWILD_SIMT)
#include <cuda_runtime_api.h>
#else
#include "simt/cuda_api.h"
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "device/device.h"
#include "simt/kernel_stream.h"

namespace hogwild::cuda {

// Name and text of an error.
std::string describe(cudaError_t error);

// Throws kInternal: what the GPU failed at and, where it can be used no longer by this process, that too.
void check_cuda(cudaError_t error, const char* what);

// The same after a launcher of kernels.h. Throws kUnsupported where it refused its parameters.
void check_launch(cudaError_t error, const char* op);

class Stream {
 public:
  Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }

  // From now on kernels may begin before the ones before them have ended (KernelStream). Only where they wait by
  // themselves.
  void let_kernels_overlap() { kernels_overlap_ = true; }

  // For launchers of kernels.h ...
  operator simt::KernelStream() { return {stream_, kernels_overlap_ ? &after_kernel_ : nullptr}; }
  // ... and for all else, which no kernel behind it overlaps with.
  operator cudaStream_t() {
    after_kernel_ = false;
    return stream_;
  }

 private:
  cudaStream_t stream_ = nullptr;
  bool kernels_overlap_ = false;
  bool after_kernel_ = false;
};

class Event {
 public:
  enum class Use { kOrder, kTiming };
  explicit Event(Use use);
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(event_); }
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Host memory that the card copies from and to without a detour.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer() { cudaFreeHost(data_); }

  // At least `bytes`. Contents are lost when it grows.
  std::byte* reserve(std::size_t bytes);

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// The memory of one card.
class DeviceMemory {
 public:
  explicit DeviceMemory(int index) : index_(index) {}

  // Zero-filled. Throws kOutOfMemory with the sizes.
  Buffer allocate(std::size_t bytes, const char* purpose) const;

  // Makes `buffer` hold `bytes`; its contents are lost when it moves.
  void reserve(Buffer& buffer, std::size_t bytes, const char* purpose);

  // How often a reserved buffer has moved.
  std::uint64_t moves() const { return moves_; }

 private:
  int index_;
  std::uint64_t moves_ = 0;
  // Memory is cleared on a stream of its own: a cache may be made while a step is captured on the device's stream,
  // and what another thread enqueues there would become part of the graph.
  mutable Stream clearing_stream_;
};

// Places of arrays side by side in one piece of memory, each aligned for any access.
class ArrayLayout {
 public:
  // The offset of `n` elements behind those placed before.
  template <typename T>
  std::size_t place(std::size_t n) {
    const std::size_t at = bytes_;
    bytes_ = (bytes_ + n * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }
  std::size_t bytes() const { return bytes_; }

 private:
  static constexpr std::size_t kAlignment = 256;
  std::size_t bytes_ = 0;
};

// Arrays that one copy brings to the device: filled in pinned memory, which is used again once that copy is made.
class StagedArrays {
 public:
  explicit StagedArrays(Stream& stream) : stream_(stream), copied_(Event::Use::kOrder) {}

  // Makes room for `bytes` to fill. Waits for the copy before.
  void open(std::size_t bytes);
  template <typename T>
  T* host(std::size_t at) const {
    return reinterpret_cast<T*>(staging_ + at);
  }
  template <typename T>
  void put(std::size_t at, std::span<const T> values) const {
    std::copy(values.begin(), values.end(), host<T>(at));
  }

  // Enqueues the copy of what was opened to `device`.
  void copy_to(void* device);

 private:
  Stream& stream_;
  PinnedBuffer buffer_;
  std::byte* staging_ = nullptr;
  std::size_t bytes_ = 0;
  Event copied_;
};

}  // namespace hogwild::cuda
