#include "simt/cuda_api.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <unordered_set>
#include <utility>

namespace simt {

Card card;

namespace {

// What cudaMalloc gave out, by address.
struct Allocation {
  std::size_t bytes;
  int device;
};
std::mutex mutex;  // over all below, and the contexts of `card`
std::map<const std::byte*, Allocation> allocations;
std::unordered_set<Stream*> streams;

thread_local int current_device = 0;

constexpr std::size_t kAlignment = 256;  // that of cudaMalloc
// Before every allocation, so that what lies past the end of one is never taken for another.
constexpr std::size_t kGap = 4096;

bool is_default(Stream* stream) {
  return stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread;
}

bool is_capturing(Stream* stream) { return !is_default(stream) && stream->capturing != nullptr; }

// A context is made on the current card by the first call that needs one.
void need_context() {
  const std::scoped_lock lock(mutex);
  card.contexts.insert(current_device);
}

// What the thread that captures may not call meanwhile (cudaStreamCaptureModeThreadLocal): the graph is lost.
bool invalidates_a_capture() {
  const std::scoped_lock lock(mutex);
  bool any = false;
  for (Stream* stream : streams) {
    if (stream->capturing == nullptr || stream->capturing_thread != std::this_thread::get_id()) continue;
    stream->invalidated = any = true;
  }
  return any;
}

}  // namespace

std::unique_ptr<Grid> Launch::make_grid() const {
  const auto run = [](void* thread) { (*static_cast<const std::function<void()>*>(thread))(); };
  return std::make_unique<Grid>(grid, block, shared_bytes, follows, run,
                                const_cast<void*>(static_cast<const void*>(&thread)));
}

void enqueue(Stream* stream, Work work) {
  const bool is_kernel = work.kernel != nullptr;
  if (is_kernel && work.kernel->follows && (is_default(stream) || !stream->after_kernel)) {
    throw std::logic_error("a kernel that may overlap with the one before it comes after something else");
  }
  if (!is_default(stream)) stream->after_kernel = is_kernel;
  if (is_capturing(stream)) {
    stream->capturing->work.push_back(std::move(work));
  } else if (is_kernel) {
    work.kernel->make_grid()->finish();
  } else {
    work.run();
  }
}

namespace {

// Each kernel that may overlap runs up to its wait before the one that it follows does the rest of its work.
void run(const Graph& graph) {
  std::unique_ptr<Grid> begun, next;
  for (std::size_t i = 0; i < graph.work.size(); ++i, begun = std::move(next)) {
    if (options.overlap && i + 1 < graph.work.size()) {
      const Launch* const following = graph.work[i + 1].kernel.get();
      if (following != nullptr && following->follows) {
        next = following->make_grid();
        next->begin();
      }
    }
    const Work& work = graph.work[i];
    if (work.kernel == nullptr) {
      work.run();
    } else {
      if (begun == nullptr) begun = work.kernel->make_grid();
      begun->finish();
    }
  }
}

}  // namespace

std::ptrdiff_t first_difference(const Graph& one, const Graph& other) {
  const auto same = [](const Work& a, const Work& b) { return a.arguments == b.arguments; };
  const auto at = std::mismatch(one.work.begin(), one.work.end(), other.work.begin(), other.work.end(), same);
  if (at.first == one.work.end() && at.second == other.work.end()) return -1;
  return at.first - one.work.begin();
}

}  // namespace simt

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorCudartUnloading:
      return "cudaErrorCudartUnloading";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorNoKernelImageForDevice:
      return "cudaErrorNoKernelImageForDevice";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
  }
  return "unknown";
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaDriverGetVersion(int* version) {
  *version = simt::card.driver_version;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  if (simt::card.driver_version < 13000) return cudaErrorInsufficientDriver;
  *count = simt::card.count;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) {
  if (index < 0 || index >= simt::card.count) return cudaErrorInvalidDevice;
  simt::current_device = index;
  simt::need_context();
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int index) {
  if (index < 0 || index >= simt::card.count) return cudaErrorInvalidDevice;
  *properties = {};
  std::snprintf(properties->name, sizeof properties->name, "emulated GPU");
  properties->totalGlobalMem = simt::card.memory;
  properties->multiProcessorCount = simt::card.multiprocessors;
  properties->major = simt::card.compute_capability / 10;
  properties->minor = simt::card.compute_capability % 10;
  properties->l2CacheSize = 1 << 20;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  simt::need_context();
  if (!simt::card.has_kernels) return cudaErrorNoKernelImageForDevice;
  attributes->binaryVersion = simt::card.compute_capability;
  attributes->ptxVersion = std::min(simt::card.compute_capability, simt::card.compiled_for);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  const std::scoped_lock lock(simt::mutex);
  *total = simt::card.memory;
  *free = simt::card.memory - simt::card.allocated;
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const std::scoped_lock lock(simt::mutex);
  *attributes = {cudaMemoryTypeUnregistered, -1};
  const auto* at = static_cast<const std::byte*>(pointer);
  const auto after = simt::allocations.upper_bound(at);
  if (after == simt::allocations.begin()) return cudaSuccess;
  const auto& [begin, allocation] = *std::prev(after);
  if (at < begin + allocation.bytes) *attributes = {cudaMemoryTypeDevice, allocation.device};
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  simt::need_context();
  if (simt::invalidates_a_capture()) return cudaErrorStreamCaptureUnsupported;
  const std::scoped_lock lock(simt::mutex);
  if (bytes > simt::card.memory - simt::card.allocated) return cudaErrorMemoryAllocation;
  const std::size_t padded = (bytes + simt::kAlignment - 1) / simt::kAlignment * simt::kAlignment;
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(simt::kAlignment, simt::kGap + padded));
  if (memory == nullptr) return cudaErrorMemoryAllocation;
  ++simt::card.allocations;
  *data = memory + simt::kGap;
  simt::allocations[static_cast<std::byte*>(*data)] = {bytes, simt::current_device};
  simt::card.allocated += bytes;
  return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  if (data == nullptr) return cudaSuccess;
  simt::need_context();
  if (simt::invalidates_a_capture()) return cudaErrorStreamCaptureUnsupported;
  const std::scoped_lock lock(simt::mutex);
  const auto found = simt::allocations.find(static_cast<std::byte*>(data));
  if (found == simt::allocations.end()) return cudaErrorInvalidValue;
  simt::card.allocated -= found->second.bytes;
  simt::allocations.erase(found);
  std::free(static_cast<std::byte*>(data) - simt::kGap);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** data, std::size_t bytes) {
  if (simt::invalidates_a_capture()) return cudaErrorStreamCaptureUnsupported;
  ++simt::card.pinned_allocations;
  *data = std::malloc(bytes);
  return *data != nullptr ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void* data) {
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  ++simt::card.copies;
  if (simt::card.failing_copies > 0) {
    --simt::card.failing_copies;
    return simt::card.copy_error;
  }
  simt::enqueue(stream, {[=] { std::memcpy(to, from, bytes); }, simt::bytes_of(to, from, bytes)});
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  simt::enqueue(stream, {[=] { std::memset(to, value, bytes); }, simt::bytes_of(to, value, bytes)});
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  simt::need_context();
  *stream = new simt::Stream;
  const std::scoped_lock lock(simt::mutex);
  simt::streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const std::scoped_lock lock(simt::mutex);
  simt::streams.erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  ++simt::card.synchronizations;
  if (!simt::is_capturing(stream)) return cudaSuccess;
  stream->invalidated = true;
  return cudaErrorStreamCaptureUnsupported;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  const std::scoped_lock lock(simt::mutex);
  simt::card.waits.emplace_back(event->stream, stream);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = simt::is_capturing(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (simt::is_default(stream) || stream->capturing) return cudaErrorStreamCaptureUnsupported;
  const std::scoped_lock lock(simt::mutex);
  stream->capturing = std::make_unique<simt::Graph>();
  stream->capturing_thread = std::this_thread::get_id();
  stream->invalidated = stream->after_kernel = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::scoped_lock lock(simt::mutex);
  const std::unique_ptr<simt::Graph> captured = std::move(stream->capturing);
  *graph = nullptr;
  stream->after_kernel = false;
  if (captured == nullptr) return cudaErrorInvalidValue;
  if (stream->invalidated) return cudaErrorStreamCaptureInvalidated;
  *graph = new simt::Graph(*captured);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  if (simt::card.failing_instantiations > 0) {
    --simt::card.failing_instantiations;
    return cudaErrorMemoryAllocation;
  }
  *exec = new simt::Graph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  ++simt::card.graph_launches;
  simt::enqueue(stream, {[=] { simt::run(*exec); }, simt::bytes_of(exec)});
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  ++simt::card.timing_events;
  *event = new simt::Event;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = new simt::Event{.timing = flags != cudaEventDisableTiming};
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->stream = stream;
  const auto record = [=] {
    event->seconds = std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  };
  simt::enqueue(stream, {record, simt::bytes_of(event)});
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  if (!from->timing || !to->timing) return cudaErrorInvalidValue;
  *milliseconds = static_cast<float>((to->seconds - from->seconds) * 1e3);
  return cudaSuccess;
}
