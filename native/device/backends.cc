#include <utility>

#include "core/error.h"
#include "device/device.h"

namespace hogwild {

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      release_(std::exchange(other.release_, nullptr)),
      index_(other.index_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    if (release_) release_(data_, bytes_, index_);
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    release_ = std::exchange(other.release_, nullptr);
    index_ = other.index_;
  }
  return *this;
}

Buffer::~Buffer() {
  if (release_) release_(data_, bytes_, index_);
}

#if !defined(HOGWILD_CUDA)
CudaStatus cuda_status() {
  return {.compiled = false, .cards = {}, .reason = "this build of hogwild contains no CUDA kernels"};
}

std::shared_ptr<Device> create_cuda_device(int, bool) {
  throw Error(code::kUnsupported, "device 'cuda' cannot be used: " + cuda_status().reason);
}
#endif

}  // namespace hogwild
