// Device copies of host arrays, for the tests of kernels; failures are exceptions.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <vector>

#include "simt/simt.h"

#if SIMT_HOST
#include <cstring>
#include <new>
#endif

namespace simt {

#if SIMT_HOST

inline void check_launch(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error("invalid value");
}

// A copy of exactly its size, so that AddressSanitizer sees every access beyond its end.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& host)
      : data_(static_cast<T*>(::operator new(host.size() * sizeof(T), kAlignment))), size_(host.size()) {
    if (size_ > 0) std::memcpy(static_cast<void*>(data_), host.data(), size_ * sizeof(T));
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { ::operator delete(data_, kAlignment); }

  T* data() const { return data_; }
  std::size_t bytes() const { return size_ * sizeof(T); }
  std::vector<T> to_host() const { return std::vector<T>(data_, data_ + size_); }

 private:
  static constexpr std::align_val_t kAlignment{256};  // that of cudaMalloc
  T* data_;
  std::size_t size_;
};

#else

inline void check_launch(cudaError_t error) {
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& host) : size_(host.size()) {
    check_launch(cudaMalloc(&data_, size_ * sizeof(T) + 1));
    check_launch(cudaMemcpy(data_, host.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(data_); }

  T* data() const { return data_; }
  std::size_t bytes() const { return size_ * sizeof(T); }
  std::vector<T> to_host() const {
    std::vector<T> host(size_);
    check_launch(cudaMemcpy(host.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};

#endif

}  // namespace simt
