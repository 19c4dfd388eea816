// The layer that runs CUDA source on the CPU: every wrapper does what its instruction is documented to
// do, in every schedule, and broken kernels are reported. The first part also compiles for a GPU
// (nvcc -x cu) and shows there that the wrappers' PTX is right.
#include "simt/simt.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../native/check.h"
#include "behind_kernel.h"
#include "core/float16.h"
#include "device_array.h"

namespace {

using simt::DeviceArray;

// Runs `body` in every schedule; on a GPU, once.
template <typename Body>
void in_every_schedule(Body&& body) {
#if SIMT_HOST
  for (const simt::Order order : {simt::Order::kForward, simt::Order::kReverse, simt::Order::kRandom}) {
    for (const simt::CopyTiming copies : {simt::CopyTiming::kEager, simt::CopyTiming::kLazy}) {
      simt::options = {.order = order, .copies = copies};
      body();
    }
  }
  simt::options = {};
#else
  body();
#endif
}

// ---- barriers and indices ---------------------------------------------------------------------------

// Each thread passes its number round the block through shared memory.
__global__ void rotate_block(int* out) {
  SIMT_SHARED_MEMORY(shared);
  int* numbers = reinterpret_cast<int*>(shared);
  const int n = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  const int i = static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
  const int block = static_cast<int>(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
  numbers[i] = block * n + i;
  __syncthreads();
  out[block * n + i] = numbers[(i + 1) % n];
}

TEST(barriers_order_shared_memory_and_indices_cover_the_grid) {
  in_every_schedule([] {
    const DeviceArray<int> out(std::vector<int>(2 * 3 * 2 * 90, -1));
    simt::check_launch(SIMT_LAUNCH(rotate_block, dim3(2, 3, 2), dim3(9, 5, 2), 90 * sizeof(int), nullptr, out.data()));
    const std::vector<int> got = out.to_host();
    bool good = true;
    for (int i = 0; i < static_cast<int>(got.size()); ++i) good &= got[i] == i / 90 * 90 + (i % 90 + 1) % 90;
    CHECK(good);
  });
}

// ---- shuffles and votes -----------------------------------------------------------------------------

__global__ void shuffle(int* out) {
  const unsigned lane = threadIdx.x % 32;
  int* to = out + threadIdx.x * 8;
  const unsigned all = 0xffffffffu;
  const int value = static_cast<int>(threadIdx.x) + 100;
  to[0] = __shfl_sync(all, value, 5);
  to[1] = __shfl_sync(all, value, 5, 8);
  to[2] = __shfl_xor_sync(all, value, 3);
  to[3] = __shfl_up_sync(all, value, 3, 16);
  to[4] = __shfl_down_sync(all, value, 3, 16);
  to[5] = static_cast<int>(__ballot_sync(all, lane % 3 == 0));
  to[6] = __any_sync(all, threadIdx.x == 40) + 2 * __all_sync(all, threadIdx.x >= 32);
  to[7] = 0;
  if (lane < 16) {  // half a warp may work alone
    to[7] = __shfl_xor_sync(0x0000ffffu, value, 8) + (__all_sync(0x0000ffffu, true) ? 1000 : 0);
  }
}

TEST(shuffles_and_votes) {
  in_every_schedule([] {
    const DeviceArray<int> out(std::vector<int>(64 * 8, -1));
    simt::check_launch(SIMT_LAUNCH(shuffle, dim3(1), dim3(64), 0, nullptr, out.data()));
    const std::vector<int> got = out.to_host();
    bool good = true;
    for (int t = 0; t < 64; ++t) {
      const int lane = t % 32, first = t - lane + 100;
      const int* row = got.data() + 8 * t;
      good &= row[0] == first + 5;
      good &= row[1] == first + lane / 8 * 8 + 5;
      good &= row[2] == first + (lane ^ 3);
      good &= row[3] == first + (lane % 16 < 3 ? lane : lane - 3);
      good &= row[4] == first + (lane % 16 > 12 ? lane : lane + 3);
      good &= static_cast<unsigned>(row[5]) == 0x49249249u;
      good &= row[6] == (t < 32 ? 0 : 3);
      good &= row[7] == (lane < 16 ? first + (lane ^ 8) + 1000 : 0);
    }
    CHECK(good);
  });
}

// ---- atomics ----------------------------------------------------------------------------------------

// The last block to finish adds up what all have left.
__global__ void last_block_adds(int* ticket, int* sum, const int* in, int* left, int* extremes) {
  left[blockIdx.x] = in[blockIdx.x];
  atomicMax(extremes, in[blockIdx.x]);
  atomicMin(extremes + 1, in[blockIdx.x]);
  __threadfence();
  if (atomicAdd(ticket, 1) != static_cast<int>(gridDim.x) - 1) return;
  __threadfence();
  int total = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) total += left[i];
  atomicExch(sum, total);
  atomicCAS(extremes + 2, 7, 8);
  atomicCAS(extremes + 3, 7, 8);
}

TEST(atomics_and_the_last_block) {
  in_every_schedule([] {
    const DeviceArray<int> ticket({0}), sum({0}), in({3, 1, 4, 1, 5, 9}), left(std::vector<int>(6));
    const DeviceArray<int> extremes({0, 100, 7, 6});
    simt::check_launch(SIMT_LAUNCH(last_block_adds, dim3(6), dim3(1), 0, nullptr, ticket.data(), sum.data(), in.data(),
                                   left.data(), extremes.data()));
    CHECK(sum.to_host()[0] == 23);
    CHECK((extremes.to_host() == std::vector<int>{9, 1, 8, 6}));
  });
}

// ---- numbers ----------------------------------------------------------------------------------------

template <typename T>
__global__ void convert(const float* in, std::uint32_t* packed, float2* unpacked) {
  const unsigned i = threadIdx.x;
  packed[i] = simt::pack2<T>(in[2 * i], in[2 * i + 1]);
  unpacked[i] = simt::unpack2<T>(packed[i]);
}

template <typename T>
void check_conversion(std::uint16_t (*narrow)(float), float (*widen)(std::uint16_t)) {
  std::vector<float> in = {0.f,     -0.f,    1.f,         -2.5f,       1e-8f,  3e-6f,
                           65504.f, 65519.f, 1.00390625f, 1.01171875f, 1e-30f, -3e4f};
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  while (in.size() < 512) in.push_back(normal(rng) * std::exp2(static_cast<float>(rng() % 30) - 20));
  const DeviceArray<float> from(in);
  const DeviceArray<std::uint32_t> packed(std::vector<std::uint32_t>(256));
  const DeviceArray<float2> unpacked(std::vector<float2>(256));
  simt::check_launch(
      SIMT_LAUNCH((convert<T>), dim3(1), dim3(256), 0, nullptr, from.data(), packed.data(), unpacked.data()));
  const std::vector<std::uint32_t> bits = packed.to_host();
  const std::vector<float2> back = unpacked.to_host();
  bool good = true;
  for (std::size_t i = 0; i < 256; ++i) {
    good &= static_cast<std::uint16_t>(bits[i]) == narrow(in[2 * i]);
    good &= bits[i] >> 16 == narrow(in[2 * i + 1]);
    good &= back[i].x == widen(narrow(in[2 * i])) && back[i].y == widen(narrow(in[2 * i + 1]));
  }
  CHECK(good);
}

TEST(pairs_of_16_bit_floats) {
  check_conversion<simt::bf16>(hogwild::f32_to_bf16, hogwild::bf16_to_f32);
  check_conversion<simt::f16>(hogwild::f32_to_f16, hogwild::f16_to_f32);
}

__global__ void compute_on_bits(const std::uint32_t* a, const std::uint32_t* b, std::uint32_t* sums,
                                std::uint32_t* bytes) {
  const unsigned i = threadIdx.x;
  sums[i] = simt::add_bf16x2(a[i], b[i]);
  bytes[i] = simt::select_bytes(a[i], b[i], (i * 0x1357u ^ i * 0x2461u) & 0x7777u);
}

TEST(sums_of_pairs_and_bytes_that_are_selected) {
  std::vector<std::uint32_t> a(256), b(256);
  std::mt19937 rng(4);
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto number = [&](float size) { return size * (static_cast<float>(rng() % 511) - 255); };
    a[i] = hogwild::f32_to_bf16(number(1)) | static_cast<std::uint32_t>(hogwild::f32_to_bf16(number(1))) << 16;
    b[i] = hogwild::f32_to_bf16(number(1)) | static_cast<std::uint32_t>(hogwild::f32_to_bf16(number(0.25f))) << 16;
  }
  const DeviceArray<std::uint32_t> device_a(a), device_b(b);
  const DeviceArray<std::uint32_t> device_sums(std::vector<std::uint32_t>(256)), device_bytes(a);
  simt::check_launch(SIMT_LAUNCH(compute_on_bits, dim3(1), dim3(256), 0, nullptr, device_a.data(), device_b.data(),
                                 device_sums.data(), device_bytes.data()));
  const std::vector<std::uint32_t> sums = device_sums.to_host(), bytes = device_bytes.to_host();
  bool good = true;
  for (unsigned i = 0; i < 256; ++i) {
    const auto sum = [&](int shift) {
      return hogwild::f32_to_bf16(hogwild::bf16_to_f32(static_cast<std::uint16_t>(a[i] >> shift)) +
                                  hogwild::bf16_to_f32(static_cast<std::uint16_t>(b[i] >> shift)));
    };
    good &= static_cast<std::uint16_t>(sums[i]) == sum(0) && static_cast<std::uint16_t>(sums[i] >> 16) == sum(16);
    for (unsigned byte = 0; byte < 4; ++byte) {
      const unsigned from = (i * 0x1357u ^ i * 0x2461u) >> 4 * byte & 7;
      good &= (bytes[i] >> 8 * byte & 0xff) == ((from < 4 ? a[i] : b[i]) >> 8 * (from % 4) & 0xff);
    }
  }
  CHECK(good);
}

__global__ void powers(const float* in, float* out) {
  out[2 * threadIdx.x] = simt::exp2_approx(in[threadIdx.x]);
  out[2 * threadIdx.x + 1] = simt::log2_approx(simt::load_constant(in + threadIdx.x));
}

TEST(exp2_and_log2) {
  const std::vector<float> in = {0.5f, 1.f, 3.25f, 20.f, 0.001f, 100.f, 7.f, -INFINITY};
  const DeviceArray<float> from(in), to(std::vector<float>(16));
  simt::check_launch(SIMT_LAUNCH(powers, dim3(1), dim3(8), 0, nullptr, from.data(), to.data()));
  const std::vector<float> out = to.to_host();
  for (std::size_t i = 0; i < 7; ++i) {
    CHECK(std::abs(out[2 * i] / std::exp2(in[i]) - 1) < 1e-6);
    CHECK(std::abs(out[2 * i + 1] - std::log2(in[i])) < 1e-6 * std::max(1.f, std::abs(std::log2(in[i]))));
  }
  CHECK(out[14] == 0);  // 2^-inf, on which masks rely
}

__global__ void reciprocals(const float* in, float* out) {
  out[threadIdx.x] = simt::reciprocal_approx(in[threadIdx.x]);
}

TEST(reciprocals_and_their_limits) {
  const std::vector<float> in = {0.5f, 1.f, -3.25f, 20.f, 1e-30f, 1e30f, INFINITY, -INFINITY};
  const DeviceArray<float> from(in), to(std::vector<float>(8));
  simt::check_launch(SIMT_LAUNCH(reciprocals, dim3(1), dim3(8), 0, nullptr, from.data(), to.data()));
  const std::vector<float> out = to.to_host();
  for (std::size_t i = 0; i < 6; ++i) CHECK(std::abs(out[i] * in[i] - 1) < 1e-6);
  CHECK(out[6] == 0 && out[7] == 0);  // on which soft caps rely
}

// Bytes of the pairs (i, i + 1), and the sum of the bf16s in words i and i + 1; words 4 t on by one load each.
__global__ void shuffle_bits(const std::uint32_t* in, std::uint32_t* bytes, std::uint32_t* sums, uint4* loaded) {
  const int i = static_cast<int>(threadIdx.x);
  simt::prefetch(in + 4 * i);
  bytes[i] = simt::select_bytes(in[i], in[i + 1], 0x4172);
  sums[i] = simt::add_bf16x2(in[i], in[i + 1]);
  if (i < 8) loaded[i] = simt::load_once(reinterpret_cast<const uint4*>(in) + i);
}

TEST(bytes_sums_and_words_of_16_bytes) {
  std::vector<std::uint32_t> in;
  for (std::uint32_t i = 0; i < 132; ++i) {  // whole numbers up to 255, whose sums are exact
    const auto bits = [&](std::uint32_t x) { return std::uint32_t{hogwild::f32_to_bf16(static_cast<float>(x))}; };
    in.push_back(bits(1 + 37 * i % 127) | bits(1 + 29 * i % 127) << 16);
  }
  const DeviceArray<std::uint32_t> from(in), bytes(std::vector<std::uint32_t>(32)),
      sums(std::vector<std::uint32_t>(32)), loaded(std::vector<std::uint32_t>(32));
  simt::check_launch(SIMT_LAUNCH(shuffle_bits, dim3(1), dim3(32), 0, nullptr, from.data(), bytes.data(), sums.data(),
                                 reinterpret_cast<uint4*>(loaded.data())));
  const std::vector<std::uint32_t> got = bytes.to_host(), sum = sums.to_host();
  bool good = true;
  for (std::size_t i = 0; i < 32; ++i) {
    const std::uint32_t a = in[i], b = in[i + 1];
    good &= got[i] == ((a >> 16 & 0xff) | (b >> 24) << 8 | (a >> 8 & 0xff) << 16 | (b & 0xff) << 24);
    for (const int half : {0, 16}) {
      const auto number = [half](std::uint32_t pair) {
        return hogwild::bf16_to_f32(static_cast<std::uint16_t>(pair >> half));
      };
      good &= number(sum[i]) == number(a) + number(b);
    }
  }
  CHECK(good);
  CHECK(loaded.to_host() == std::vector<std::uint32_t>(in.begin(), in.begin() + 32));
}

// ---- matrices ---------------------------------------------------------------------------------------

// d = a b + c with fragments taken from their documented places.
template <typename T>
__global__ void multiply(const float* a, const float* b, const float* c, float* d) {
  const int g = static_cast<int>(threadIdx.x) / 4;
  const int t = static_cast<int>(threadIdx.x) % 4;
  const auto a_pair = [&](int row, int k) { return simt::pack2<T>(a[row * 16 + k], a[row * 16 + k + 1]); };
  const auto b_pair = [&](int k) { return simt::pack2<T>(b[k * 8 + g], b[(k + 1) * 8 + g]); };
  const std::uint32_t fragment[4] = {a_pair(g, 2 * t), a_pair(g + 8, 2 * t), a_pair(g, 2 * t + 8),
                                     a_pair(g + 8, 2 * t + 8)};
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  simt::mma_m16n8k16<T>(sum, fragment, b_pair(2 * t), b_pair(2 * t + 8));
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

template <typename T>
void check_multiply() {
  std::mt19937 rng(4);
  const auto integers = [&](std::size_t n) {  // small: every sum is exact in any order
    std::vector<float> values(n);
    for (float& value : values) value = static_cast<float>(static_cast<int>(rng() % 17) - 8);
    return values;
  };
  const std::vector<float> a = integers(256), b = integers(128), c = integers(128);
  const DeviceArray<float> da(a), db(b), dc(c), dd(std::vector<float>(128));
  simt::check_launch(
      SIMT_LAUNCH((multiply<T>), dim3(1), dim3(32), 0, nullptr, da.data(), db.data(), dc.data(), dd.data()));
  const std::vector<float> got = dd.to_host();
  bool good = true;
  for (std::size_t m = 0; m < 16; ++m) {
    for (std::size_t n = 0; n < 8; ++n) {
      float sum = c[m * 8 + n];
      for (std::size_t k = 0; k < 16; ++k) sum += a[m * 16 + k] * b[k * 8 + n];
      good &= got[m * 8 + n] == sum;
    }
  }
  CHECK(good);
}

TEST(mma) {
  in_every_schedule([] {
    check_multiply<simt::bf16>();
    check_multiply<simt::f16>();
  });
}

__global__ void load_matrices(int* out) {
  SIMT_SHARED_MEMORY(shared);
  std::uint16_t* tile = reinterpret_cast<std::uint16_t*>(shared);  // [16][16]
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) tile[i] = static_cast<std::uint16_t>(i);
  __syncwarp();
  std::uint32_t plain[4], transposed[4];
  const void* row = tile + lane % 16 * 16 + lane / 16 * 8;
  simt::ldmatrix_x4(plain, row);
  simt::ldmatrix_x4_transposed(transposed, row);
  for (int m = 0; m < 4; ++m) {
    int* to = out + lane * 16 + 4 * m;
    to[0] = static_cast<int>(plain[m] & 0xffff);
    to[1] = static_cast<int>(plain[m] >> 16);
    to[2] = static_cast<int>(transposed[m] & 0xffff);
    to[3] = static_cast<int>(transposed[m] >> 16);
  }
}

TEST(ldmatrix) {
  in_every_schedule([] {
    const DeviceArray<int> out(std::vector<int>(32 * 16));
    simt::check_launch(SIMT_LAUNCH(load_matrices, dim3(1), dim3(32), 512, nullptr, out.data()));
    const std::vector<int> got = out.to_host();
    bool good = true;
    for (int lane = 0; lane < 32; ++lane) {
      for (int m = 0; m < 4; ++m) {
        for (int e = 0; e < 2; ++e) {
          const int row = m % 2 * 8, column = m / 2 * 8, g = lane / 4, t = 2 * (lane % 4) + e;
          good &= got[lane * 16 + 4 * m + e] == (row + g) * 16 + column + t;
          good &= got[lane * 16 + 4 * m + 2 + e] == (row + t) * 16 + column + g;
        }
      }
    }
    CHECK(good);
  });
}

// ---- asynchronous copies ----------------------------------------------------------------------------

// Two groups in flight; every third chunk is filled with zeros.
__global__ void copy_reversed(const uint4* in, uint4* out) {
  SIMT_SHARED_MEMORY(shared);
  uint4* chunks = reinterpret_cast<uint4*>(shared);  // [2][64]
  const int i = static_cast<int>(threadIdx.x);
  for (int group = 0; group < 2; ++group) {
    simt::cp_async_16(chunks + 64 * group + i, in + 64 * group + i, i % 3 != 0);
    simt::cp_async_commit();
  }
  simt::cp_async_wait<1>();
  __syncthreads();
  out[i] = chunks[63 - i];
  simt::cp_async_wait<0>();
  __syncthreads();
  out[64 + i] = chunks[64 + 63 - i];
}

TEST(cp_async) {
  in_every_schedule([] {
    std::vector<uint4> in(128);
    for (unsigned i = 0; i < 128; ++i) in[i] = make_uint4(i, i * i, 7, 9);
    const DeviceArray<uint4> from(in), to(std::vector<uint4>(128));
    simt::check_launch(SIMT_LAUNCH(copy_reversed, dim3(1), dim3(64), 2048, nullptr, from.data(), to.data()));
    const std::vector<uint4> got = to.to_host();
    bool good = true;
    for (unsigned i = 0; i < 128; ++i) {
      const unsigned source = i / 64 * 64 + 63 - i % 64;
      const uint4 expected = source % 64 % 3 != 0 ? in[source] : make_uint4(0, 0, 0, 0);
      good &= std::memcmp(&got[i], &expected, sizeof expected) == 0;
    }
    CHECK(good);
  });
}

// ---- kernels that overlap -----------------------------------------------------------------------------

// sums[i] += before the wait a number that nobody writes, after it those of a kernel that may still run then.
__global__ void add_late(const int* constants, const int* numbers, int* sums) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  simt::launch_dependents();
  const int constant = simt::load_constant(constants + i);
  simt::wait_for_preceding();
  sums[i] += constant + numbers[i];
}
// numbers[i] = i, after some time.
__global__ void write_slowly(int* numbers) {
  simt::launch_dependents();
  simt::wait_for_preceding();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  unsigned number = threadIdx.x;
  for (int round = 0; round < 2000; ++round) number = number * 1664525u + 1013904223u;
  numbers[i] = number == 0x12345678u ? -1 : i;  // it is not, but who knows
}

TEST(a_kernel_waits_for_those_before_it) {
  constexpr int kBlocks = 9, kThreads = 64, kN = kBlocks * kThreads;
  std::vector<int> ones(kN, 1);
  in_every_schedule([&] {
    const DeviceArray<int> constants(ones), numbers(std::vector<int>(kN, 0)), sums(std::vector<int>(kN, 7));
    simt::BehindKernel(numbers, sums).run([&](simt::KernelStream stream) {
      for (int i = 0; i < 3; ++i) {
        cudaError_t error = SIMT_LAUNCH(write_slowly, dim3(kBlocks), dim3(kThreads), 0, stream, numbers.data());
        if (error != cudaSuccess) return error;
        error = SIMT_LAUNCH(add_late, dim3(kBlocks), dim3(kThreads), 0, stream, constants.data(), numbers.data(),
                            sums.data());
        if (error != cudaSuccess) return error;
      }
      return cudaSuccess;
    });
    const std::vector<int> got = sums.to_host();
    bool good = true;
    for (int i = 0; i < kN; ++i) good &= got[i] == 7 + 3 * (i + 1);
    CHECK(good);
  });
}

// ---- broken kernels are reported (only the CPU can) -------------------------------------------------

// Not under ThreadSanitizer: these kernels have the very races that it looks for.
#if SIMT_HOST && !defined(__SANITIZE_THREAD__)

// What is reported for a block of `threads` that runs `body`, "" where nothing is.
template <typename Body>
std::string report(unsigned threads, Body body, std::size_t shared_bytes = 1024) {
  try {
    simt::launch(dim3(1), dim3(threads), shared_bytes, body);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

void check_report(const std::string& report, const std::string& part) {
  CHECK_MESSAGE(report.find(part) != std::string::npos, "'" + part + "' in '" + report + "'");
}

constexpr unsigned kAll = 0xffffffffu;

TEST(a_missing_barrier_shows_as_dependence_on_order) {
  const auto reverse = [](bool with_barrier, simt::Order order) {
    std::vector<int> out(64);
    simt::options = {.order = order};
    simt::launch(dim3(1), dim3(64), 256, [&] {
      SIMT_SHARED_MEMORY(shared);
      int* numbers = reinterpret_cast<int*>(shared);
      numbers[threadIdx.x] = static_cast<int>(threadIdx.x);
      if (with_barrier) __syncthreads();
      out[threadIdx.x] = numbers[63 - threadIdx.x];
    });
    simt::options = {};
    return out;
  };
  CHECK(reverse(true, simt::Order::kForward) == reverse(true, simt::Order::kReverse));
  CHECK(reverse(true, simt::Order::kForward) == reverse(true, simt::Order::kRandom));
  CHECK(reverse(false, simt::Order::kForward) != reverse(false, simt::Order::kReverse));
}

TEST(divergence_is_reported) {
  check_report(report(64,
                      [] {
                        if (threadIdx.x < 32) {
                          __syncthreads();
                        } else {
                          __syncthreads();
                        }
                      }),
               "divergent __syncthreads");
  check_report(report(32,
                      [] {
                        if (threadIdx.x % 2 == 0) {
                          __shfl_xor_sync(kAll, 1, 1);
                        } else {
                          __shfl_xor_sync(kAll, 1, 2);
                        }
                      }),
               "meet at different operations");
  check_report(report(32,
                      [] {
                        if (threadIdx.x % 2 == 0) {
                          __syncthreads();
                        } else {
                          __shfl_xor_sync(kAll, 1, 1);
                        }
                      }),
               "deadlock");
  check_report(report(64,
                      [] {
                        if (threadIdx.x % 32 >= 8) __syncwarp();
                      }),
               "lanes that exited");
  check_report(report(24, [] { __syncwarp(); }), "do not exist");
  check_report(report(32,
                      [] {
                        if (threadIdx.x >= 16) __shfl_sync(0xffffu, 1, 3);
                      }),
               "not in its own mask");
  check_report(report(32,
                      [] {
                        if (threadIdx.x < 16) __shfl_sync(0xffffu, 1, 20, 32);
                      }),
               "outside the mask");
  check_report(report(32, [] { __syncwarp(threadIdx.x < 16 ? kAll : 0xffff0000u); }), "disagree about the mask");
}

TEST(a_deadlock_says_who_waits_where) {
  const std::string text = report(64, [] {
    if (threadIdx.x == 5) __syncwarp(0x60u);  // with lane 6, which waits for it elsewhere
    __syncthreads();
  });
  check_report(text, "deadlock");
  check_report(text, "thread (5, 0, 0) and on: in __syncwarp at ");
  check_report(text, "simt_test.cc:");
}

TEST(wrong_addresses_and_sizes_are_reported) {
  static unsigned char global[256] = {};
  check_report(report(32,
                      [] {
                        std::uint32_t fragment[4];
                        simt::ldmatrix_x4(fragment, simt::shared_memory() + 8);
                      }),
               "not aligned to 16 bytes");
  check_report(report(32,
                      [] {
                        std::uint32_t fragment[4];
                        simt::ldmatrix_x4(fragment, simt::shared_memory() + 1024);
                      }),
               "not inside dynamic shared memory");
  check_report(report(1, [] { simt::cp_async_16(simt::shared_memory(), global + 4, true); }),
               "not aligned to 16 bytes");
  check_report(report(1, [] { simt::cp_async_16(global, simt::shared_memory(), true); }),
               "not inside dynamic shared memory");
  check_report(report(32, [] {}, 300 * 1024), "too much dynamic shared memory");
  check_report(report(1025, [] {}), "1 to 1024 threads");
}

TEST(missing_waits_are_seen) {
  alignas(16) static const std::uint32_t source[4] = {7, 7, 7, 7};
  check_report(report(32,
                      [] {
                        simt::cp_async_16(simt::shared_memory(), source, true);
                        simt::cp_async_commit();
                      }),
               "copies in flight");
  std::uint32_t seen = 0;
  CHECK(report(1, [&] {
          simt::cp_async_16(simt::shared_memory(), source, true);
          simt::cp_async_commit();
          seen = *reinterpret_cast<const std::uint32_t*>(simt::shared_memory());
          simt::cp_async_wait<0>();
        }).empty());
  CHECK(seen == 0xffffffffu);
  CHECK(report(1,
               [&] {  // a group that was not committed is not waited for
                 simt::cp_async_16(simt::shared_memory(), source, true);
                 simt::cp_async_wait<0>();
                 seen = *reinterpret_cast<const std::uint32_t*>(simt::shared_memory());
                 simt::cp_async_commit();
                 simt::cp_async_wait<0>();
               })
            .empty());
  CHECK(seen == 0xffffffffu);
}

TEST(shared_memory_begins_as_nan_in_every_block) {
  int poisoned = 0;
  simt::launch(dim3(3), dim3(1), 64, [&] {
    auto* words = reinterpret_cast<std::uint32_t*>(simt::shared_memory());
    for (int i = 0; i < 16; ++i) poisoned += words[i] == 0xffffffffu;
    for (int i = 0; i < 16; ++i) words[i] = 0;
  });
  CHECK(poisoned == 48);
}

TEST(bank_conflicts_and_bytes_are_counted) {
  const auto conflicts = [](int row_bytes) {
    simt::stats = {};
    simt::launch(dim3(1), dim3(32), 32 * 256, [=] {
      std::uint32_t fragment[4];
      simt::ldmatrix_x4(fragment, simt::shared_memory() + static_cast<int>(threadIdx.x) * row_bytes);
    });
    CHECK(simt::stats.ldmatrix == 4);
    return simt::stats.ldmatrix_conflicts;
  };
  CHECK(conflicts(16) == 0);
  CHECK(conflicts(80) == 0);
  CHECK(conflicts(32) == 4 * 1);
  CHECK(conflicts(128) == 4 * 7);
  CHECK(conflicts(0) == 0);  // one address is one access
}

// A graph of two kernels: the first writes 5 to all words, the second runs `body` and may begin before.
struct Overlapping {
  static constexpr int kWords = 64;
  alignas(16) int words[kWords] = {};

  template <typename Body>
  std::string report(unsigned blocks, unsigned threads, Body body) {
    std::fill_n(words, kWords, 1);
    cudaStream_t own = nullptr;
    CHECK(cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking) == cudaSuccess);
    bool after_kernel = false;
    const simt::KernelStream stream(own, &after_kernel);
    CHECK(cudaStreamBeginCapture(own, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
    const auto first = [this] { std::fill_n(words, kWords, 5); };
    CHECK(simt::launch_on(stream, dim3(1), dim3(1), 0, first) == cudaSuccess);
    CHECK(simt::launch_on(stream, dim3(blocks), dim3(threads), 1024, body) == cudaSuccess);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(own, &graph) == cudaSuccess);
    std::string text;
    try {
      CHECK(cudaGraphLaunch(graph, own) == cudaSuccess);
    } catch (const std::runtime_error& error) {
      text = error.what();
    }
    CHECK(cudaGraphDestroy(graph) == cudaSuccess && cudaStreamDestroy(own) == cudaSuccess);
    return text;
  }
};

TEST(what_is_read_before_the_wait_is_what_was_there_before) {
  Overlapping graph;
  const auto seen = [&](bool overlap, auto body) {
    simt::options.overlap = overlap;
    int sum = 0;
    const std::string text = graph.report(3, 2, [&] { body(sum); });
    simt::options = {};
    CHECK_MESSAGE(text.empty(), text);
    return sum;
  };
  const auto load_early = [&](int& sum) {
    simt::launch_dependents();
    const int early = graph.words[threadIdx.x];
    simt::wait_for_preceding();
    sum += early;
  };
  const auto load_late = [&](int& sum) {
    simt::follow_preceding();
    sum += graph.words[threadIdx.x];
  };
  const auto copy_early = [&](int& sum) {
    simt::launch_dependents();
    auto* shared = reinterpret_cast<int*>(simt::shared_memory()) + 4 * threadIdx.x;
    simt::cp_async_16(shared, graph.words, true);
    simt::wait_for_preceding();
    simt::cp_async_commit();
    simt::cp_async_wait<0>();
    sum += shared[1];
  };
  // With a barrier on each side, and threads that come to the wait one after another.
  const auto load_between = [&](int& sum) {
    simt::launch_dependents();
    __syncthreads();
    if (threadIdx.x == 1) simt::wait_for_preceding();
    const int between = graph.words[0];
    __syncthreads();
    simt::wait_for_preceding();
    sum += between;
  };
  CHECK(seen(true, load_late) == 6 * 5 && seen(false, load_late) == 6 * 5);
  CHECK(seen(true, load_early) == 6 * 1 && seen(false, load_early) == 6 * 5);
  CHECK(seen(true, copy_early) == 6 * 1 && seen(false, copy_early) == 6 * 5);
  CHECK(seen(true, load_between) == 3 * (1 + 5) && seen(false, load_between) == 6 * 5);
}

TEST(kernels_that_do_not_wait_are_reported) {
  Overlapping graph;
  for (const bool overlap : {true, false}) {
    simt::options.overlap = overlap;
    check_report(graph.report(2, 32, [] { simt::launch_dependents(); }), "has not waited for the kernel before");
    check_report(graph.report(2, 64,
                              [] {
                                if (threadIdx.x == 40) return;
                                simt::follow_preceding();
                              }),
                 "thread (40, 0, 0): a thread exits that has not waited");
    check_report(graph.report(2, 32, [] { simt::wait_for_preceding(); }), "without launch_dependents");
    check_report(graph.report(6, 32,
                              [] {
                                simt::follow_preceding();
                                if (threadIdx.x < 16) __syncthreads();
                                __syncwarp();
                              }),
                 "deadlock");
    CHECK(graph.report(6, 32, [] { simt::follow_preceding(); }).empty());
  }
  simt::options = {};
}

TEST(a_kernel_overlaps_with_a_kernel_only) {
  cudaStream_t own = nullptr;
  CHECK(cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking) == cudaSuccess);
  bool after_kernel = true;
  const auto kernel = [] { simt::follow_preceding(); };
  const auto launch = [&] {
    try {
      static_cast<void>(simt::launch_on(simt::KernelStream(own, &after_kernel), dim3(1), dim3(1), 0, kernel));
    } catch (const std::logic_error&) {
      return false;
    }
    return true;
  };
  CHECK(!launch());  // nothing is before it
  after_kernel = false;
  CHECK(launch() && after_kernel && launch());
  int word = 0;
  CHECK(cudaMemsetAsync(&word, 1, sizeof word, own) == cudaSuccess);
  CHECK(!launch());
  CHECK(cudaStreamDestroy(own) == cudaSuccess);
}

TEST(after_an_error_the_next_launch_is_clean) {
  for (int i = 0; i < 3; ++i) {
    CHECK(!report(96, [] {
             if (threadIdx.x > 7) __syncthreads();
             if (threadIdx.x == 40) __syncwarp();
             if (threadIdx.x < 8) __syncwarp();
           }).empty());
    int sum = 0;
    CHECK(report(96, [&] {
            __syncthreads();
            sum += __shfl_sync(kAll, static_cast<int>(threadIdx.x), 0) + 1;
            __syncthreads();
          }).empty());
    CHECK(sum == 96 + 32 * (32 + 64));
  }
}

#endif

}  // namespace

HOGWILD_TEST_MAIN
