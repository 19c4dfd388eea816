#include "device/device.h"

#include <utility>

namespace hogwild {

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      release_(std::exchange(other.release_, nullptr)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    if (release_) release_(data_, bytes_);
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    release_ = std::exchange(other.release_, nullptr);
  }
  return *this;
}

Buffer::~Buffer() {
  if (release_) release_(data_, bytes_);
}

CudaStatus cuda_status() {
  return {.compiled = false, .devices = 0, .reason = "this build of hogwild contains no CUDA kernels"};
}

}  // namespace hogwild
