#include "device/cpu/simd_dispatch.h"

#if defined(HOGWILD_SIMD_X86)
#include <cpuid.h>
#endif

#include <cstdint>
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

#if defined(HOGWILD_SIMD_X86)
// CPUID and XGETBV, and not __builtin_cpu_supports: its table belongs to the compiler's runtime library, which not
// every toolchain has in a form that a shared object can link.
struct CpuId {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;

  CpuId(unsigned leaf, unsigned subleaf) {
    if (__get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx) == 0) *this = CpuId();
  }

 private:
  CpuId() = default;
};

constexpr bool has_all(unsigned flags, unsigned wanted) { return (flags & wanted) == wanted; }

// XCR0: the registers that the system saves when it switches threads.
std::uint64_t saved_registers() {
  std::uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return std::uint64_t{high} << 32 | low;
}
#endif

// Those that this processor can run, best last.
std::vector<const CpuKernels*> available_kernels() {
#if defined(HOGWILD_SIMD_NEON)
  return {&kCpuKernels_neon};  // every aarch64 processor has it
#elif defined(HOGWILD_SIMD_X86)
  std::vector<const CpuKernels*> kernels;
  const CpuId basic(1, 0), extended(7, 0), extended_1(7, 1);
  if (!has_all(basic.ecx, bit_SSSE3 | bit_SSE4_2 | bit_POPCNT)) return kernels;
  kernels.push_back(&kCpuKernels_baseline);

  constexpr std::uint64_t kYmm = 0x6, kZmm = 0xe6;  // SSE and AVX state; opmask and both halves of ZMM too
  const std::uint64_t saved = has_all(basic.ecx, bit_OSXSAVE) ? saved_registers() : 0;
  if ((saved & kYmm) != kYmm || !has_all(basic.ecx, bit_AVX | bit_FMA | bit_F16C) ||
      !has_all(extended.ebx, bit_AVX2 | bit_BMI | bit_BMI2)) {
    return kernels;
  }
  kernels.push_back(&kCpuKernels_avx2);
  if ((saved & kZmm) != kZmm ||
      !has_all(extended.ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL | bit_AVX512CD)) {
    return kernels;
  }
  kernels.push_back(&kCpuKernels_avx512);
  // Every processor with the former has the latter, but a virtual machine may hide it.
  if (has_all(extended_1.eax, bit_AVX512BF16) && has_all(extended.ecx, bit_AVX512VNNI)) {
    kernels.push_back(&kCpuKernels_avx512bf16);
  }
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
