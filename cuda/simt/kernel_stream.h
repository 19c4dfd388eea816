// Where launchers enqueue kernels.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#elif defined(HOGWILD_SIMT)
#include "simt/cuda_api.h"
#else
#include <driver_types.h>
#endif

namespace simt {

// A stream, and whether kernels may overlap in it: one that is enqueued behind another may start before that has ended
// (programmatic dependent launch), and waits for it by itself (wait_for_preceding).
struct KernelStream {
  cudaStream_t stream = nullptr;
  // Whether what was enqueued last is a kernel. SIMT_LAUNCH reads and sets it; whoever enqueues anything else
  // clears it. Null: kernels do not overlap.
  bool* after_kernel = nullptr;

  KernelStream(cudaStream_t stream, bool* after_kernel = nullptr) : stream(stream), after_kernel(after_kernel) {}

  bool follows_kernel() const { return after_kernel != nullptr && *after_kernel; }
  void kernel_enqueued() const {
    if (after_kernel != nullptr) *after_kernel = true;
  }
};

}  // namespace simt
