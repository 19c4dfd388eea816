// What the card itself can do: whether it runs this build's kernels, and how fast it reads its memory.
#include "kernels.h"
#include "simt/simt.h"

namespace hogwild::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kLoads = 4;  // under way at once in each thread

__global__ void __launch_bounds__(kThreads) read_memory(const uint4* data, std::int64_t n, std::uint32_t* result) {
  simt::follow_preceding();
  std::uint32_t sum = 0;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads * kLoads;
  for (std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kThreads * kLoads + threadIdx.x; first < n;
       first += step) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const std::int64_t at = first + static_cast<std::int64_t>(i) * kThreads;
      loaded[i] = at < n ? simt::load_constant(data + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) sum |= loaded[i].x | loaded[i].y | loaded[i].z | loaded[i].w;
  }
  if (sum != 0) atomicMax(result, sum);  // so that nothing of it can be left out
}

}  // namespace

cudaError_t launch_read(const void* data, std::size_t bytes, int multiprocessors, std::uint32_t* result,
                        KernelStream stream) {
  constexpr int kCtasPerMultiprocessor = 4;
  return SIMT_LAUNCH(read_memory, dim3(static_cast<unsigned>(multiprocessors * kCtasPerMultiprocessor)), dim3(kThreads),
                     0, stream, static_cast<const uint4*>(data), static_cast<std::int64_t>(bytes / sizeof(uint4)),
                     result);
}

namespace {

cudaError_t ask_for_kernels(cudaFuncAttributes* attributes) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(&read_memory));
}

}  // namespace

cudaError_t probe_kernels() {
  cudaFuncAttributes attributes;
  return ask_for_kernels(&attributes);
}

cudaError_t kernels_wait(bool* wait) {
  cudaFuncAttributes attributes;
  const cudaError_t error = ask_for_kernels(&attributes);
  // Of their source, whatever the card: a driver may have made them from the PTX of 8.0.
  if (error == cudaSuccess) *wait = attributes.ptxVersion >= 90;
  return error;
}

}  // namespace hogwild::cuda
