// The names of simt.h under nvcc: PTX wrappers, one instruction each. Keep in step with target_host.h;
// test/cuda/simt_test.cc runs on both targets.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "simt/kernel_stream.h"

#define SIMT_HOST 0
#define SIMT_DEVICE __device__ __forceinline__
#define SIMT_HOST_DEVICE __host__ __device__ __forceinline__

// All of a block's dynamic shared memory. The only shared memory that kernels use.
#define SIMT_SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]

// Launches and evaluates to a cudaError_t. `kernel` in parentheses where it holds a comma; `stream`: a KernelStream.
#define SIMT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                   \
  ([&]() -> cudaError_t {                                                                             \
    auto* simt_kernel = &kernel;                                                                      \
    if (const cudaError_t error = simt::allow_shared_memory(simt_kernel, shared_bytes)) return error; \
    return simt::launch_on((stream), (grid), (block), (shared_bytes), simt_kernel, __VA_ARGS__);      \
  }())

// Sets *ctas to how many CTAs of the kernel a multiprocessor holds at once, and evaluates to a cudaError_t.
#define SIMT_OCCUPANCY(kernel, threads, shared_bytes, ctas)                                               \
  ([&]() -> cudaError_t {                                                                                 \
    auto* simt_kernel = &kernel;                                                                          \
    if (const cudaError_t error = simt::allow_shared_memory(simt_kernel, shared_bytes)) return error;     \
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor((ctas), simt_kernel, (threads), (shared_bytes)); \
  }())

namespace simt {

// ---- launching --------------------------------------------------------------------------------------

// More than 48 KiB of dynamic shared memory needs the kernel's consent.
template <typename Kernel>
cudaError_t allow_shared_memory(Kernel* kernel, std::size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

// Behind another kernel in a stream whose kernels overlap: may start before that one has ended.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_on(const KernelStream& stream, dim3 grid, dim3 block, std::size_t shared_bytes,
                      void (*kernel)(Parameters...), Arguments&&... arguments) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream.stream;
  config.attrs = &overlap;
  config.numAttrs = stream.follows_kernel() ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (error == cudaSuccess) {
    stream.kernel_enqueued();
  } else {
    static_cast<void>(cudaGetLastError());  // not to be found by the next call
  }
  return error;
}

// ---- kernels that overlap -----------------------------------------------------------------------------
//
// Where a kernel was launched so (KernelStream), it may run beside the one before it until it waits; and that one may
// itself have started early, and so on. What a kernel does before it waits is therefore limited to its own shared
// memory and to what no kernel of a step writes. Each thread waits, also one that has nothing to do: only then is all
// done that came before, once the last kernel is. On cards below 9.0 kernels do not overlap, and these do nothing.

// Lets the next kernel start as soon as each CTA has called this or ended.
SIMT_DEVICE void launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" : : : "memory");
#endif
}
// Waits until the kernel before has ended and what it has written can be read (but not by load_constant).
SIMT_DEVICE void wait_for_preceding() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" : : : "memory");
#endif
}
// What a kernel begins with that has nothing to do before.
SIMT_DEVICE void follow_preceding() {
  launch_dependents();
  wait_for_preceding();
}

// ---- numbers ----------------------------------------------------------------------------------------

struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

// 2^x, relative error about 2^-22; subnormal results become 0.
SIMT_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SIMT_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 / x, relative error about 2^-23.
SIMT_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two values rounded to nearest even, `low` in the lower half.
template <typename T>
SIMT_DEVICE std::uint32_t pack2(float low, float high);
template <>
SIMT_DEVICE std::uint32_t pack2<bf16>(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
template <>
SIMT_DEVICE std::uint32_t pack2<f16>(float low, float high) {
  std::uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// The lower and the upper half of a packed pair.
template <typename T>
SIMT_DEVICE float2 unpack2(std::uint32_t packed);
template <>
SIMT_DEVICE float2 unpack2<bf16>(std::uint32_t packed) {
  return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u));
}
template <>
SIMT_DEVICE float2 unpack2<f16>(std::uint32_t packed) {
  float2 pair;
  asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
      : "=f"(pair.x), "=f"(pair.y)
      : "r"(packed));
  return pair;
}

// Products of pairs of bf16, rounded to nearest even; subnormal numbers count.
SIMT_DEVICE std::uint32_t multiply_bf16x2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0u));
  return product;
}

// Sums of pairs of bf16, rounded to nearest even; sums whose addends are normal numbers.
SIMT_DEVICE std::uint32_t add_bf16x2(std::uint32_t a, std::uint32_t b) {
  std::uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
  return sum;
}

// (a & mask) | bits, one instruction.
SIMT_DEVICE std::uint32_t and_or(std::uint32_t a, std::uint32_t mask, std::uint32_t bits) {
  std::uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(a), "r"(mask), "r"(bits));
  return result;
}

// Byte i is that of (high, low), counted from the lowest of `low`, which nibble i of `selectors` names, each below 8.
SIMT_DEVICE std::uint32_t select_bytes(std::uint32_t low, std::uint32_t high, std::uint32_t selectors) {
  std::uint32_t bytes;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(low), "r"(high), "r"(selectors));
  return bytes;
}

// ---- loads ------------------------------------------------------------------------------------------

// ld.global.nc: only for data that no kernel of a step writes (weights, tables, the plan): it may be fetched before
// the kernel waits for the one before, or lie in a cache since.
template <typename T>
SIMT_DEVICE T load_constant(const T* from) {
  return __ldg(from);
}

// 16 bytes that are read once: they leave the first-level cache alone.
SIMT_DEVICE uint4 load_once(const uint4* from) {
  uint4 value;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}
// Asks for the line of 128 bytes that holds this address: it will be read soon.
SIMT_DEVICE void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" : : "l"(at)); }

// ---- warp matrix operations -------------------------------------------------------------------------

SIMT_DEVICE std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8x8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8 (16 bytes,
// aligned to 16) and receives of each matrix row l / 4, columns 2 (l % 4) and 2 (l % 4) + 1.
SIMT_DEVICE void ldmatrix_x4(std::uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same of the transposed matrices: rows 2 (l % 4) and 2 (l % 4) + 1, column l / 4.
SIMT_DEVICE void ldmatrix_x4_transposed(std::uint32_t (&fragment)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
}

// d [16, 8] f32 += a [16, 16] b [16, 8]. With g = lane / 4, t = lane % 4 a lane holds, pairs packed,
//   a0 (g, 2t..)  a1 (g + 8, 2t..)  a2 (g, 2t + 8..)  a3 (g + 8, 2t + 8..)   rows, columns of a
//   b0 (2t.., g)  b1 (2t + 8.., g)                                           rows, columns of b
//   d0, d1 (g, 2t..)  d2, d3 (g + 8, 2t..)                                   rows, columns of d
template <typename T>
SIMT_DEVICE void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1);
template <>
SIMT_DEVICE void mma_m16n8k16<bf16>(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
SIMT_DEVICE void mma_m16n8k16<f16>(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- asynchronous copies, global to shared memory ---------------------------------------------------

// 16 bytes, both addresses aligned to 16. Where `valid` is false it writes zeros and reads nothing.
SIMT_DEVICE void cp_async_16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
SIMT_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's committed groups are unfinished.
template <int kPending>
SIMT_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

}  // namespace simt
