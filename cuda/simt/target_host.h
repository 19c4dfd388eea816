// The names of simt.h under a host compiler. Keep in step with target_cuda.h, where each is explained;
// test/cuda/simt_test.cc runs on both targets.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/float16.h"
#include "simt/cuda_api.h"
#include "simt/kernel_stream.h"
#include "simt/runtime.h"

#define SIMT_HOST 1
#define SIMT_DEVICE inline
#define SIMT_HOST_DEVICE inline
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

#define SIMT_SHARED_MEMORY(name) unsigned char* const name = simt::shared_memory()
#define SIMT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                           \
  simt::launch_on((stream), (grid), (block), (shared_bytes), [](auto... arguments) { kernel(arguments...); }, \
                  __VA_ARGS__)

#define SIMT_OCCUPANCY(kernel, threads, shared_bytes, ctas) simt::occupancy((threads), (shared_bytes), (ctas))

#define threadIdx (simt::current->thread_index)
#define blockIdx (simt::current->block_index)
#define blockDim (simt::current->block_dim)
#define gridDim (simt::current->grid_dim)

// ---- CUDA's vocabulary, as far as kernels here use it -----------------------------------------------

struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}

// A product that no sum takes in: the host's flags have no fused multiply-add.
inline float __fmul_rn(float a, float b) { return a * b; }

inline void __syncthreads(simt::Site site = simt::Site::current()) { simt::block_barrier(site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, simt::Site site = simt::Site::current()) {
  simt::warp_barrier(mask, site);
}
inline void __threadfence() { simt::memory_fence(); }

namespace simt {

// Shuffles move up to 8 bytes of any trivially copyable type.
template <typename T>
T warp_shuffle(unsigned mask, T value, int source_lane, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = warp_exchange(mask, bits, source_lane, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Atomic for the sake of ThreadSanitizer: kernels run on one OS thread.
template <typename T, typename Update>
T atomic_update(T* at, Update update) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  T expected, desired;
  __atomic_load(at, &expected, __ATOMIC_RELAXED);
  do {
    desired = update(expected);
  } while (!__atomic_compare_exchange(at, &expected, &desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return expected;
}

}  // namespace simt

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, simt::Site site = simt::Site::current()) {
  const int first = simt::current->lane & ~(width - 1);
  return simt::warp_shuffle(mask, value, first + (source & (width - 1)), site);
}
// A lane whose source lies outside its segment of `width` lanes keeps its own value.
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, simt::Site site = simt::Site::current()) {
  const int lane = simt::current->lane;
  const int source = lane ^ lane_mask;
  const bool beyond = (source & ~(width - 1)) > (lane | (width - 1));  // lower segments may be read
  return simt::warp_shuffle(mask, value, beyond ? lane : source, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, simt::Site site = simt::Site::current()) {
  const int lane = simt::current->lane;
  const int source = lane - static_cast<int>(delta);
  return simt::warp_shuffle(mask, value, source < (lane & ~(width - 1)) ? lane : source, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, simt::Site site = simt::Site::current()) {
  const int lane = simt::current->lane;
  const int source = lane + static_cast<int>(delta);
  return simt::warp_shuffle(mask, value, source > (lane | (width - 1)) ? lane : source, site);
}
inline unsigned __ballot_sync(unsigned mask, bool vote, simt::Site site = simt::Site::current()) {
  return simt::warp_ballot(mask, vote, site);
}
inline bool __any_sync(unsigned mask, bool vote, simt::Site site = simt::Site::current()) {
  return simt::warp_ballot(mask, vote, site) != 0;
}
inline bool __all_sync(unsigned mask, bool vote, simt::Site site = simt::Site::current()) {
  return simt::warp_ballot(mask, vote, site) == mask;
}

template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return simt::atomic_update(at, [&](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  return simt::atomic_update(at, [&](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  return simt::atomic_update(at, [&](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  return simt::atomic_update(at, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return simt::atomic_update(at, [&](T old) { return old == compare ? value : old; });
}

namespace simt {

// ---- launching --------------------------------------------------------------------------------------

// Its address tells one kernel from another.
template <typename Kernel>
inline constinit char identity_of = 0;

// Copies the arguments: a stream that captures a graph keeps the launch.
template <typename Kernel, typename... Arguments>
cudaError_t launch_on(const KernelStream& stream, dim3 grid, dim3 block, std::size_t shared_bytes, Kernel kernel,
                      Arguments... arguments) {
  const bool follows = stream.follows_kernel();
  ++card.kernel_launches;
  card.overlapping += follows;
  enqueue(stream.stream, {.run = nullptr,
                          .arguments = bytes_of(&identity_of<Kernel>, grid, block, shared_bytes, follows, arguments...),
                          .kernel = std::make_shared<const Launch>(
                              Launch{grid, block, shared_bytes, follows, [=] { kernel(arguments...); }})});
  stream.kernel_enqueued();
  return cudaSuccess;
}

// Registers are not modelled: threads and shared memory decide.
inline cudaError_t occupancy(int threads, std::size_t shared_bytes, int* ctas) {
  constexpr int kThreads = 2048;
  constexpr std::size_t kReserved = 1024;  // bytes of shared memory that the system takes for each CTA
  *ctas = std::min(kThreads / threads, static_cast<int>(card.shared_memory / (shared_bytes + kReserved)));
  return cudaSuccess;
}

// ---- kernels that overlap -----------------------------------------------------------------------------

inline void follow_preceding(Site site = Site::current()) {
  launch_dependents();
  wait_for_preceding(site);
}

// ---- numbers ----------------------------------------------------------------------------------------

struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

inline float exp2_approx(float x) { return std::exp2(x); }
inline float log2_approx(float x) { return std::log2(x); }
inline float reciprocal_approx(float x) { return 1 / x; }

template <typename T>
std::uint32_t pack2(float low, float high) {
  if constexpr (std::is_same_v<T, bf16>) {
    return hogwild::f32_to_bf16(low) | static_cast<std::uint32_t>(hogwild::f32_to_bf16(high)) << 16;
  } else {
    static_assert(std::is_same_v<T, f16>);
    return hogwild::f32_to_f16(low) | static_cast<std::uint32_t>(hogwild::f32_to_f16(high)) << 16;
  }
}

template <typename T>
constexpr WidenElement widen_element() {
  if constexpr (std::is_same_v<T, bf16>) return hogwild::bf16_to_f32;
  if constexpr (std::is_same_v<T, f16>) return hogwild::f16_to_f32;
}
template <typename T>
float2 unpack2(std::uint32_t packed) {
  constexpr WidenElement widen = widen_element<T>();
  return {widen(static_cast<std::uint16_t>(packed)), widen(static_cast<std::uint16_t>(packed >> 16))};
}

inline std::uint32_t multiply_bf16x2(std::uint32_t a, std::uint32_t b) {
  const float2 x = unpack2<bf16>(a), y = unpack2<bf16>(b);
  return pack2<bf16>(x.x * y.x + 0.f, x.y * y.y + 0.f);
}

inline std::uint32_t add_bf16x2(std::uint32_t a, std::uint32_t b) {
  const float2 x = unpack2<bf16>(a), y = unpack2<bf16>(b);
  return pack2<bf16>(x.x + y.x, x.y + y.y);
}

inline std::uint32_t and_or(std::uint32_t a, std::uint32_t mask, std::uint32_t bits) { return (a & mask) | bits; }

inline std::uint32_t select_bytes(std::uint32_t low, std::uint32_t high, std::uint32_t selectors) {
  const std::uint64_t all = low | static_cast<std::uint64_t>(high) << 32;
  std::uint32_t bytes = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t selector = selectors >> 4 * i & 15;
    const auto byte = static_cast<std::uint8_t>(all >> 8 * (selector & 7));
    // Above 7: the byte's sign, as the hardware has it.
    bytes |= static_cast<std::uint32_t>(selector < 8 ? byte : byte < 128 ? 0 : 255) << 8 * i;
  }
  return bytes;
}

// ---- loads, warp matrix operations, asynchronous copies ---------------------------------------------

template <typename T>
T load_constant(const T* from) {
  return *from;
}

inline uint4 load_once(const uint4* from) {
  count_loaded(sizeof *from);
  return *from;
}
// Touches the byte, so that sanitizers see what does not exist.
inline void prefetch(const void* at) { static_cast<void>(*static_cast<const volatile unsigned char*>(at)); }

// Only the addresses are exchanged. Each lane then loads its own words, so that sanitizers see who reads.
inline void ldmatrix_x4(std::uint32_t (&fragment)[4], const void* row, Site site = Site::current()) {
  const void* rows[32];
  warp_rows(row, rows, site);
  const int lane = current->lane;
  for (int m = 0; m < 4; ++m) fragment[m] = static_cast<const std::uint32_t*>(rows[8 * m + lane / 4])[lane % 4];
}
inline void ldmatrix_x4_transposed(std::uint32_t (&fragment)[4], const void* row, Site site = Site::current()) {
  const void* rows[32];
  warp_rows(row, rows, site);
  const int lane = current->lane;
  for (int m = 0; m < 4; ++m) {
    const auto* first = static_cast<const std::uint16_t*>(rows[8 * m + 2 * (lane % 4)]);
    const auto* second = static_cast<const std::uint16_t*>(rows[8 * m + 2 * (lane % 4) + 1]);
    fragment[m] = first[lane / 4] | static_cast<std::uint32_t>(second[lane / 4]) << 16;
  }
}

template <typename T>
void mma_m16n8k16(float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                  Site site = Site::current()) {
  warp_mma(d, a, b0, b1, widen_element<T>(), site);
}

inline void cp_async_16(void* to, const void* from, bool valid, Site site = Site::current()) {
  cp_async(to, from, valid, site);
}
inline void cp_async_commit() { cp_async_commit_group(); }
template <int kPending>
void cp_async_wait() {
  cp_async_wait_group(kPending);
}

}  // namespace simt
