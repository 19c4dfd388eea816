#include "device/cpu/simd_dispatch.h"

#include <vector>

#include "core/error.h"
#include "device/device.h"

namespace hogwild {

// One object file each (CMakeLists.txt).
#if defined(HOGWILD_SIMD_NEON)
extern const CpuKernels kCpuKernels_neon;
#else
extern const CpuKernels kCpuKernels_baseline;
#endif
#if defined(HOGWILD_SIMD_X86)
extern const CpuKernels kCpuKernels_avx2;
extern const CpuKernels kCpuKernels_avx512;
extern const CpuKernels kCpuKernels_avx512bf16;
#endif

namespace {

// Those that this processor can run, best last.
std::vector<const CpuKernels*> available_kernels() {
#if defined(HOGWILD_SIMD_NEON)
  return {&kCpuKernels_neon};  // every aarch64 processor has it
#elif defined(HOGWILD_SIMD_X86)
  // (the compiler's table looks at XCR0 too: the system must save the wide registers)
  __builtin_cpu_init();
  std::vector<const CpuKernels*> kernels;
  if (!__builtin_cpu_supports("ssse3") || !__builtin_cpu_supports("sse4.2") || !__builtin_cpu_supports("popcnt")) {
    return kernels;
  }
  kernels.push_back(&kCpuKernels_baseline);
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c") ||
      !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2")) {
    return kernels;
  }
  kernels.push_back(&kCpuKernels_avx2);
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512cd")) {
    return kernels;
  }
  kernels.push_back(&kCpuKernels_avx512);
  if (__builtin_cpu_supports("avx512bf16")) kernels.push_back(&kCpuKernels_avx512bf16);
  return kernels;
#else
  return {&kCpuKernels_baseline};
#endif
}

}  // namespace

std::vector<std::string> available_simd_levels() {
  std::vector<std::string> names;
  for (const CpuKernels* kernels : available_kernels()) names.emplace_back(kernels->name);
  return names;
}

const CpuKernels& select_kernels(const std::string& name) {
  const std::vector<const CpuKernels*> available = available_kernels();
  if (available.empty()) throw Error(code::kUnsupported, "this processor lacks SSSE3, SSE4.2 or POPCNT");
  if (name.empty()) return *available.back();
  std::string names;
  for (const CpuKernels* kernels : available) {
    if (name == kernels->name) return *kernels;
    names += names.empty() ? "" : ", ";
    names += kernels->name;
  }
  throw Error(code::kUnsupported,
              "SIMD level \"" + name + "\" is not available on this processor; available: " + names);
}

}  // namespace hogwild
