#include "device/cuda/memory.h"

#include <bit>

#include "core/error.h"

namespace hogwild::cuda {
namespace {

// Errors after which every call of the process fails: the context is lost.
bool is_sticky(cudaError_t error) {
  switch (static_cast<int>(error)) {
    case 214:  // cudaErrorECCUncorrectable
    case 220:  // cudaErrorNvlinkUncorrectable
    case 700:  // cudaErrorIllegalAddress
    case 702:  // cudaErrorLaunchTimeout
    case 710:  // cudaErrorAssert
    case 714:  // cudaErrorHardwareStackError
    case 715:  // cudaErrorIllegalInstruction
    case 716:  // cudaErrorMisalignedAddress
    case 717:  // cudaErrorInvalidAddressSpace
    case 718:  // cudaErrorInvalidPc
    case 719:  // cudaErrorLaunchFailure
      return true;
    default:
      return false;
  }
}

// The runtime may be gone at the end of the process, and all memory with it.
void release(void* memory, std::size_t, int index) {
  if (cudaSetDevice(index) == cudaSuccess) static_cast<void>(cudaFree(memory));
}

}  // namespace

std::string describe(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
}

void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // not to be found by the next call
  std::string message = std::string("the GPU failed at ") + what + " (" + describe(error) + ")";
  if (is_sticky(error)) message += "; this process cannot use the GPU any more: start it anew";
  throw Error(code::kInternal, message);
}

void check_launch(cudaError_t error, const char* op) {
  if (error == cudaErrorInvalidValue) {
    throw Error(code::kUnsupported, std::string(op) + ": the CUDA device has no kernel for these sizes");
  }
  check_cuda(error, op);
}

Stream::Stream() { check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream"); }

Event::Event(Use use) {
  check_cuda(use == Use::kTiming ? cudaEventCreate(&event_) : cudaEventCreateWithFlags(&event_, cudaEventDisableTiming),
             "creating an event");
}

std::byte* PinnedBuffer::reserve(std::size_t bytes) {
  if (bytes <= bytes_) return data_;
  bytes = std::bit_ceil(bytes);  // so that steps that grow bit by bit seldom allocate
  cudaFreeHost(std::exchange(data_, nullptr));
  bytes_ = 0;
  void* data = nullptr;
  if (cudaMallocHost(&data, bytes) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    throw Error(code::kOutOfMemory, "the system refused " + std::to_string(bytes) + " bytes of pinned memory");
  }
  data_ = static_cast<std::byte*>(data);
  bytes_ = bytes;
  return data_;
}

Buffer DeviceMemory::allocate(std::size_t bytes, const char* purpose) const {
  check_cuda(cudaSetDevice(index_), "choosing the GPU");
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, std::max<std::size_t>(bytes, 1));
  if (error == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    std::size_t free = 0, total = 0;
    static_cast<void>(cudaMemGetInfo(&free, &total));
    throw Error(code::kOutOfMemory, "the GPU refused " + std::to_string(bytes) + " bytes for " + purpose + ": " +
                                        std::to_string(free) + " of its " + std::to_string(total) + " bytes are free");
  }
  check_cuda(error, "an allocation");
  Buffer buffer(data, bytes, release, index_);
  check_cuda(cudaMemsetAsync(data, 0, bytes, clearing_stream_), "clearing memory");
  check_cuda(cudaStreamSynchronize(clearing_stream_), "clearing memory");
  return buffer;
}

void DeviceMemory::reserve(Buffer& buffer, std::size_t bytes, const char* purpose) {
  if (bytes <= buffer.bytes()) return;
  ++moves_;
  buffer = Buffer();  // waits for what still uses it
  buffer = allocate(std::bit_ceil(bytes), purpose);
}

void StagedArrays::open(std::size_t bytes) {
  check_cuda(cudaEventSynchronize(copied_), "a copy");
  staging_ = buffer_.reserve(bytes);
  bytes_ = bytes;
}

void StagedArrays::copy_to(void* device) {
  check_cuda(cudaMemcpyAsync(device, staging_, bytes_, cudaMemcpyHostToDevice, stream_), "a copy");
  check_cuda(cudaEventRecord(copied_, stream_), "a copy");
}

}  // namespace hogwild::cuda
