// Launches as kernels of a step are launched: behind a kernel, in a graph, where they may begin before it has ended.
#pragma once

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <vector>

#include "device_array.h"
#include "simt/simt.h"

namespace simt {

struct BroughtPiece {
  const unsigned char* from;
  unsigned char* to;
  long long bytes;
};

// One block.
__global__ void bring_pieces(const BroughtPiece* pieces, int n) {
  follow_preceding();
  for (int i = 0; i < n; ++i) {
    const BroughtPiece piece = pieces[i];
    const long long words = piece.bytes / 16;
    for (long long at = threadIdx.x; at < words; at += blockDim.x) {
      reinterpret_cast<uint4*>(piece.to)[at] = reinterpret_cast<const uint4*>(piece.from)[at];
    }
    for (long long at = 16 * words + threadIdx.x; at < piece.bytes; at += blockDim.x) piece.to[at] = piece.from[at];
  }
}

// Whether kernels that are compiled as these are may overlap on this card.
inline bool kernels_overlap() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&bring_pieces)) == cudaSuccess &&
         attributes.ptxVersion >= 90;
}

// A kernel that brings what arrays hold: until it has run they hold NaN, and what is written there before is lost.
// Takes all arrays that kernels of a step write.
class BehindKernel {
 public:
  template <typename... T>
  explicit BehindKernel(const DeviceArray<T>&... arrays) {
    (bring(arrays), ...);
  }

  template <typename T>
  void bring(const DeviceArray<T>& array) {
    if (array.bytes() > 0) arrays_.push_back({reinterpret_cast<unsigned char*>(array.data()), array.bytes()});
  }

  // Runs that kernel, and behind it what `launch(KernelStream)` launches. Throws where that returns an error.
  template <typename Launch>
  void run(Launch&& launch) const {
    struct Stream {
      cudaStream_t stream = nullptr;
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t exec = nullptr;
      ~Stream() {
        if (exec != nullptr) cudaGraphExecDestroy(exec);
        if (graph != nullptr) cudaGraphDestroy(graph);
        if (stream != nullptr) cudaStreamDestroy(stream);
      }
    } own;
    // (check_launch waits for the card, which nobody may while a graph is captured.)
    const auto check = [](cudaError_t error) {
      if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
    };
    check(cudaStreamCreateWithFlags(&own.stream, cudaStreamNonBlocking));
    std::vector<std::unique_ptr<DeviceArray<unsigned char>>> contents;
    std::vector<BroughtPiece> pieces;
    for (const Array& array : arrays_) {
      contents.push_back(std::make_unique<DeviceArray<unsigned char>>(std::vector<unsigned char>(array.bytes)));
      pieces.push_back({contents.back()->data(), array.data, static_cast<long long>(array.bytes)});
      check(cudaMemcpyAsync(contents.back()->data(), array.data, array.bytes, cudaMemcpyDeviceToDevice, own.stream));
      check(cudaMemsetAsync(array.data, 0xff, array.bytes, own.stream));
    }
    check(cudaStreamSynchronize(own.stream));
    const DeviceArray<BroughtPiece> device_pieces(pieces);
    bool after_kernel = false;
    const KernelStream stream(own.stream, kernels_overlap() ? &after_kernel : nullptr);
    check(cudaStreamBeginCapture(own.stream, cudaStreamCaptureModeThreadLocal));
    cudaError_t error =
        SIMT_LAUNCH(bring_pieces, dim3(1), dim3(32), 0, stream, device_pieces.data(), static_cast<int>(pieces.size()));
    if (error == cudaSuccess) error = launch(stream);
    check(cudaStreamEndCapture(own.stream, &own.graph));
    check(error);
    check(cudaGraphInstantiate(&own.exec, own.graph, 0));
    check(cudaGraphLaunch(own.exec, own.stream));
    check(cudaStreamSynchronize(own.stream));
  }

 private:
  struct Array {
    unsigned char* data;
    std::size_t bytes;
  };
  std::vector<Array> arrays_;
};

}  // namespace simt
