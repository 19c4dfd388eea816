// Which cards there are, and whether this build can use them.
#include <algorithm>
#include <string>

#include "core/error.h"
#include "device/cuda/cuda_device.h"
#include "device/cuda/memory.h"
#include "kernels.h"

namespace hogwild {
namespace {

// Compute capability 8.0 (Ampere): the first with bf16 tensor cores and cp.async.
constexpr int kMinCapability = 80;

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

// Asks only what needs no context: making one takes a card some 0.3 s and 400 MB.
CudaStatus cuda_status() {
  CudaStatus status{.compiled = true, .cards = {}, .reason = ""};
  int driver = 0, runtime = 0, count = 0;
  static_cast<void>(cudaDriverGetVersion(&driver));
  static_cast<void>(cudaRuntimeGetVersion(&runtime));
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    if (driver == 0) {
      status.reason = "no NVIDIA driver was found";
    } else if (driver < runtime) {
      status.reason = "the NVIDIA driver is too old: it supports CUDA " + version_text(driver) +
                      ", this build needs CUDA " + version_text(runtime);
    } else {
      status.reason = "no NVIDIA GPU can be used (" + cuda::describe(error) + ")";
    }
    return status;
  }
  if (count == 0) status.reason = "the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES may hide them)";
  for (int index = 0; index < count; ++index) {
    CudaCard& card = status.cards.emplace_back();
    cudaDeviceProp properties;
    if (const cudaError_t failure = cudaGetDeviceProperties(&properties, index); failure != cudaSuccess) {
      card.reason = cuda::describe(failure);
      continue;
    }
    card.name = properties.name;
    card.memory = static_cast<std::int64_t>(properties.totalGlobalMem);
    card.compute_capability = properties.major * 10 + properties.minor;
    if (card.compute_capability < kMinCapability) {
      card.reason = "its compute capability is " + std::to_string(properties.major) + "." +
                    std::to_string(properties.minor) + ", hogwild needs 8.0 or newer";
    }
  }
  const bool usable =
      std::any_of(status.cards.begin(), status.cards.end(), [](const CudaCard& card) { return card.reason.empty(); });
  if (!usable && status.reason.empty()) status.reason = status.cards[0].name + ": " + status.cards[0].reason;
  return status;
}

std::shared_ptr<Device> create_cuda_device(int index, bool deterministic) {
  const CudaStatus status = cuda_status();
  if (status.cards.empty()) throw Error(code::kUnsupported, "device 'cuda' cannot be used: " + status.reason);
  const auto n = static_cast<int>(status.cards.size());
  if (index < 0 || index >= n) {
    throw Error(code::kInvalidArgument,
                "there is no GPU " + std::to_string(index) + ": this machine has " + std::to_string(n));
  }
  const std::string& reason = status.cards[index].reason;
  if (!reason.empty()) {
    throw Error(code::kUnsupported, "GPU " + std::to_string(index) + " cannot be used: " + reason);
  }
  const auto refuse = [index](cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    static_cast<void>(cudaGetLastError());
    throw Error(code::kUnsupported,
                "GPU " + std::to_string(index) + " cannot be used: " + what + " (" + cuda::describe(error) + ")");
  };
  refuse(cudaSetDevice(index), "it gives this process no context");
  refuse(cuda::probe_kernels(), "this build has no kernels for it: rebuild hogwild on this machine");
  return std::make_shared<cuda::CudaDevice>(index, deterministic);
}

}  // namespace hogwild
