#include "device/cpu/simd_dispatch.h"

#if defined(HOGWILD_SIMD_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(HOGWILD_SIMD_NEON) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdint>
#include <vector>

#include "core/error.h"
#include "device/device.h"

namespace hogwild {

// One object file each (CMakeLists.txt).
#if defined(HOGWILD_SIMD_NEON)
extern const CpuKernels kCpuKernels_neon;
extern const QuantKernels kQuantKernels_neon;
extern const QuantKernels kQuantKernels_neondot;
#else
extern const CpuKernels kCpuKernels_baseline;
extern const QuantKernels kQuantKernels_baseline;
#endif
#if defined(HOGWILD_SIMD_X86)
extern const CpuKernels kCpuKernels_avx2;
extern const CpuKernels kCpuKernels_avx512;
extern const CpuKernels kCpuKernels_avx512bf16;
extern const CpuKernels kCpuKernels_amx;
extern const QuantKernels kQuantKernels_avx2;
extern const QuantKernels kQuantKernels_avxvnni;
extern const QuantKernels kQuantKernels_avx512;
extern const QuantKernels kQuantKernels_avx512vnni;
extern const QuantKernels kQuantKernels_amx;
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

// Linux gives a process the registers of AMX when it asks for them, for all its threads. It refuses where a sandbox
// forbids the call, or a thread's stack for signals is too small to save them.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}
#endif

#if defined(HOGWILD_SIMD_NEON)
bool has_dot_products() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return true;  // every Apple processor since 2018, and no other runs macOS on this architecture
#endif
}
#endif

// Those that this processor can run, best last.
std::vector<SimdLevel> available_levels() {
#if defined(HOGWILD_SIMD_NEON)
  std::vector<SimdLevel> levels = {{"neon", &kCpuKernels_neon, &kQuantKernels_neon}};  // every aarch64 processor has it
  if (has_dot_products()) levels.push_back({"neondot", &kCpuKernels_neon, &kQuantKernels_neondot});
  return levels;
#elif defined(HOGWILD_SIMD_X86)
  std::vector<SimdLevel> levels;
  const CpuId basic(1, 0), extended(7, 0), extended_1(7, 1);
  if (!has_all(basic.ecx, bit_SSSE3 | bit_SSE4_2 | bit_POPCNT)) return levels;
  levels.push_back({"baseline", &kCpuKernels_baseline, &kQuantKernels_baseline});

  constexpr std::uint64_t kYmm = 0x6, kZmm = 0xe6;  // SSE and AVX state; opmask and both halves of ZMM too
  const std::uint64_t saved = has_all(basic.ecx, bit_OSXSAVE) ? saved_registers() : 0;
  if ((saved & kYmm) != kYmm || !has_all(basic.ecx, bit_AVX | bit_FMA | bit_F16C) ||
      !has_all(extended.ebx, bit_AVX2 | bit_BMI | bit_BMI2)) {
    return levels;
  }
  levels.push_back({"avx2", &kCpuKernels_avx2, &kQuantKernels_avx2});
  constexpr unsigned kAvxVnni = 1u << 4;  // not every <cpuid.h> names it
  if (has_all(extended_1.eax, kAvxVnni)) levels.push_back({"avxvnni", &kCpuKernels_avx2, &kQuantKernels_avxvnni});
  if ((saved & kZmm) != kZmm ||
      !has_all(extended.ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL | bit_AVX512CD)) {
    return levels;
  }
  levels.push_back({"avx512", &kCpuKernels_avx512, &kQuantKernels_avx512});
  if (!has_all(extended.ecx, bit_AVX512VNNI)) return levels;
  levels.push_back({"avx512vnni", &kCpuKernels_avx512, &kQuantKernels_avx512vnni});
  // Every processor with the one has the other.
  if (!has_all(extended_1.eax, bit_AVX512BF16)) return levels;
  levels.push_back({"avx512bf16", &kCpuKernels_avx512bf16, &kQuantKernels_avx512vnni});
  constexpr std::uint64_t kTiles = 0x60000;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;  // not every <cpuid.h> names them
  if ((saved & kTiles) == kTiles && has_all(extended.edx, kAmxBf16 | kAmxTile | kAmxInt8) &&
      has_all(extended.ecx, bit_GFNI) && may_use_tiles()) {
    levels.push_back({"amx", &kCpuKernels_amx, &kQuantKernels_amx});
  }
  return levels;
#else
  return {{"baseline", &kCpuKernels_baseline, &kQuantKernels_baseline}};
#endif
}

}  // namespace

std::vector<std::string> available_simd_levels() {
  std::vector<std::string> names;
  for (const SimdLevel& level : available_levels()) names.emplace_back(level.name);
  return names;
}

SimdLevel select_level(const std::string& name) {
  const std::vector<SimdLevel> available = available_levels();
  if (available.empty()) throw Error(code::kUnsupported, "this processor lacks SSSE3, SSE4.2 or POPCNT");
  if (name.empty()) return available.back();
  std::string names;
  for (const SimdLevel& level : available) {
    if (name == level.name) return level;
    names += names.empty() ? "" : ", ";
    names += level.name;
  }
  throw Error(code::kUnsupported,
              "SIMD level \"" + name + "\" is not available on this processor; available: " + names);
}

}  // namespace hogwild
