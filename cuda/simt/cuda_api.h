// The part of the CUDA runtime API that the device of native/device/cuda uses, on the CPU: cards whose memory
// is the host's. Work on a stream is done when it is enqueued, or recorded while the stream captures a graph,
// whichever thread enqueues it. Names, arguments and results are CUDA's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "simt/runtime.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorCudartUnloading = 4,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
};

namespace simt {

// A kernel with its arguments.
struct Launch {
  dim3 grid, block;
  std::size_t shared_bytes = 0;
  bool follows = false;  // it may begin before the kernel that was enqueued before it has ended
  std::function<void()> thread;

  std::unique_ptr<Grid> make_grid() const;
};

// What a stream is given to do, and with what: equal bytes for equal work. Those of a kernel tell which one it is, the
// grid and its arguments.
struct Work {
  std::function<void()> run;  // of a kernel: null
  std::vector<std::byte> arguments;
  std::shared_ptr<const Launch> kernel = nullptr;
};

// The bytes of some values, zero where their members leave room. Empty where the compiler cannot tell.
template <typename... Values>
std::vector<std::byte> bytes_of(Values... values) {
  static_assert((std::is_trivially_copyable_v<Values> && ...));
#if __has_builtin(__builtin_clear_padding)
  std::vector<std::byte> bytes((sizeof(Values) + ...));
  std::byte* to = bytes.data();
  const auto append = [&to]<typename Value>(Value& value) {
    __builtin_clear_padding(&value);
    std::memcpy(to, &value, sizeof value);
    to += sizeof value;
  };
  (append(values), ...);
  return bytes;
#else
  return {};
#endif
}

struct Graph {
  std::vector<Work> work;
};
struct Stream {
  std::unique_ptr<Graph> capturing;  // null: work is done at once
  std::thread::id capturing_thread;  // that began it
  bool invalidated = false;          // the capture: a call was made that no graph can hold
  bool after_kernel = false;         // what was enqueued last is a kernel
};
struct Event {
  bool timing = true;
  double seconds = 0;              // when it was recorded
  const Stream* stream = nullptr;  // on which it was
};

// Does `work` now, or puts it into the graph that `stream` captures. Null is the default stream, and so are the
// handles cudaStreamLegacy and cudaStreamPerThread. Throws where a kernel that may overlap with the one before it comes
// after something else.
void enqueue(Stream* stream, Work work);

// The emulated cards, for tests: all alike.
struct Card {
  int count = 1;
  int multiprocessors = 3;
  std::size_t memory = std::size_t{16} << 30;  // bytes; beyond, cudaMalloc fails
  std::size_t allocated = 0;
  std::size_t shared_memory = 228 * 1024;  // bytes, of a multiprocessor
  int compute_capability = 90;             // major * 10 + minor
  bool has_kernels = true;                 // this build's
  int compiled_for = 90;                   // what these are compiled for, or a later card's driver compiles them from
  int driver_version = 13000;              // as cudaDriverGetVersion gives it; 0: no driver
  std::set<int> contexts;                  // cards that a context was made on

  // Faults: that many calls fail.
  int failing_copies = 0;                          // of cudaMemcpyAsync, with
  cudaError_t copy_error = cudaErrorInvalidValue;  // this error
  int failing_instantiations = 0;                  // of cudaGraphInstantiate

  // Whether a step is captured anew whenever its graph is replayed: the same work must come out (GraphCache).
  bool checks_graphs = true;

  // What was asked for, counted.
  int graph_launches = 0;
  int kernel_launches = 0;  // into a graph that is captured too, out of one not
  int overlapping = 0;      // of them: those that may begin before the one before has ended
  int copies = 0;           // to, from and on cards
  int allocations = 0;
  int pinned_allocations = 0;
  int synchronizations = 0;  // of streams with the host
  int timing_events = 0;
  // Streams that wait for others: which one had what the other waits for. (Here the work is done already.)
  std::vector<std::pair<const Stream*, const Stream*>> waits;
};
extern Card card;

// The number of the first piece of work that is not the same in both, or -1.
std::ptrdiff_t first_difference(const Graph& one, const Graph& other);

}  // namespace simt

using cudaStream_t = simt::Stream*;
using cudaEvent_t = simt::Event*;
using cudaGraph_t = simt::Graph*;
using cudaGraphExec_t = simt::Graph*;

struct cudaDeviceProp {
  char name[256];
  std::size_t totalGlobalMem;
  int multiProcessorCount, major, minor, l2CacheSize;
};
struct cudaFuncAttributes {
  int binaryVersion, ptxVersion;
};

enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4
};
enum cudaMemoryType { cudaMemoryTypeUnregistered = 0, cudaMemoryTypeDevice = 2, cudaMemoryTypeManaged = 3 };
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeThreadLocal = 1 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDisableTiming = 2;
#define cudaStreamLegacy (reinterpret_cast<cudaStream_t>(std::uintptr_t{1}))
#define cudaStreamPerThread (reinterpret_cast<cudaStream_t>(std::uintptr_t{2}))

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int index);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int index);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer);

cudaError_t cudaMalloc(void** data, std::size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaMallocHost(void** data, std::size_t bytes);
cudaError_t cudaFreeHost(void* data);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);

cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to);
