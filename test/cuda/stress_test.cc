// The device as a whole, and what only a real card shows: all multiprocessors at once, many launches of the same work
// (races between CTAs), captured graphs, other threads and streams, pools beyond 4 GiB. Runs on a GPU and, smaller, on
// the emulated card.
#if !defined(HOGWILD_SIMT)
#include <cuda_runtime_api.h>
#endif

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../native/check.h"
#include "core/float16.h"
#include "device/device.h"
#include "kernels.h"
#include "worker_step.h"

namespace hogwild {
namespace {

#if defined(HOGWILD_SIMT)
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

std::mt19937_64 rng(3);

std::vector<float> floats(std::int64_t n, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = normal(rng);
  return values;
}
// Evenly spread, with deviation `scale`: hundreds of millions a second.
std::vector<std::uint16_t> halves(std::int64_t n, float scale = 1) {
  static std::uint64_t state = 88172645463325252ull;
  std::vector<std::uint16_t> bits(static_cast<std::size_t>(n));
  for (std::uint16_t& value : bits) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    value = f32_to_bf16(static_cast<float>(static_cast<std::int32_t>(state >> 32)) * (scale * 1.732f / 2147483648.f));
  }
  return bits;
}

struct Gpu {
  std::shared_ptr<Device> device = create_cuda_device(0);
  std::vector<Buffer> buffers;

  template <typename T>
  T* upload(const std::vector<T>& values) {
    buffers.push_back(device->allocate(values.size() * sizeof(T) + 16, "a test"));
    device->upload(buffers.back().data(), values.data(), values.size() * sizeof(T));
    return buffers.back().as<T>();
  }
  float* zeros(std::int64_t n) {
    buffers.push_back(device->allocate(static_cast<std::size_t>(n) * sizeof(float), "a test"));
    return buffers.back().as<float>();
  }
  std::vector<float> download(const float* from, std::int64_t n) {
    std::vector<float> values(static_cast<std::size_t>(n));
    device->download(values.data(), from, values.size() * sizeof(float));
    return values;
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// ---- matrix products at the sizes of models, all multiprocessors at work -------------------------------

void check_matmul(std::int64_t rows, std::int64_t k, const std::vector<std::int64_t>& outputs, int repeats) {
  Gpu gpu;
  const std::string name =
      std::to_string(rows) + " rows, k " + std::to_string(k) + ", " + std::to_string(outputs.size()) + " matrices";
  const std::vector<float> x = floats(rows * k);
  MatmulParams params{.x = gpu.upload(x), .rows = rows, .k = k, .n_outputs = static_cast<int>(outputs.size())};
  std::vector<std::vector<std::uint16_t>> weights;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    weights.push_back(halves(outputs[i] * k, 0.05f));
    params.outputs[i] = {{gpu.upload(weights[i]), Format::kBF16, outputs[i], k}, nullptr, gpu.zeros(rows * outputs[i])};
  }
  gpu.device->matmul(params);
  std::vector<std::vector<float>> first;
  for (std::size_t i = 0; i < outputs.size(); ++i)
    first.push_back(gpu.download(params.outputs[i].y, rows * outputs[i]));
  double worst = 0;
  for (std::size_t m = 0; m < outputs.size(); ++m) {
    for (int n = 0; n < 2000; ++n) {  // samples
      const std::int64_t row = static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(rows));
      const std::int64_t output = static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(outputs[m]));
      double exact = 0, magnitude = 0;
      for (std::int64_t i = 0; i < k; ++i) {
        const double product =
            static_cast<double>(bf16_to_f32(f32_to_bf16(x[row * k + i]))) * bf16_to_f32(weights[m][output * k + i]);
        exact += product;
        magnitude += std::abs(product);
      }
      const double error = std::abs(first[m][row * outputs[m] + output] - exact) / (1e-5 * magnitude + 1e-6);
      worst = std::max(worst, std::isnan(error) ? 1e9 : error);
    }
  }
  CHECK_MESSAGE(worst <= 1, name + ": " + std::to_string(worst));
  int different = 0;
  for (int i = 0; i < repeats; ++i) {
    for (int j = 0; j < 5; ++j) gpu.device->matmul(params);  // back to back: counters must be as they were
    for (std::size_t m = 0; m < outputs.size(); ++m) {
      different += !same_bits(gpu.download(params.outputs[m].y, rows * outputs[m]), first[m]);
    }
  }
  CHECK_MESSAGE(different == 0, name + ": other bits " + std::to_string(different) + " times");
  std::printf("  %s: error / tolerance %.3f\n", name.c_str(), worst);
}

TEST(matmul_on_all_multiprocessors) {
  if (kEmulated) return check_matmul(3, 256, {128, 64, 64}, 2);
  for (const std::int64_t rows : {1, 4, 8, 13, 16, 32, 64, 65, 512}) check_matmul(rows, 5120, {5120, 1024, 1024}, 20);
  check_matmul(4, 27648, {5120}, 20);
  check_matmul(4, 1536, {8960, 8960}, 20);
  check_matmul(5, 8, {8}, 20);
  check_matmul(7, 1024, {151936}, 5);
}

// ---- steps ---------------------------------------------------------------------------------------------

constexpr std::int64_t kHeads = kEmulated ? 2 : 8, kDim = 128, kQueryHeads = 5 * kHeads;

KvShape shape() { return {.layers = 1, .kv_heads = kHeads, .head_dim = kDim, .dtype = Dtype::kBF16}; }

// One "layer": append, attend, a product with split tiles. Everything a captured step has.
struct Layer {
  Gpu& gpu;
  std::int64_t rows;
  KvLayer kv;
  float *q, *k, *v, *out, *y;
  Matrix weight;

  Layer(Gpu& gpu, std::int64_t rows, KvLayer kv) : gpu(gpu), rows(rows), kv(kv) {
    q = gpu.upload(floats(rows * kQueryHeads * kDim));
    k = gpu.upload(floats(rows * kHeads * kDim));
    v = gpu.upload(floats(rows * kHeads * kDim));
    out = gpu.zeros(rows * kQueryHeads * kDim);
    y = gpu.zeros(rows * 512);
    weight = {gpu.upload(halves(512 * kQueryHeads * kDim, 0.02f)), Format::kBF16, 512, kQueryHeads * kDim};
  }
  void run(const DeviceStep& step, const ExternalBuffers& buffers = {}) const {
    Device& device = *gpu.device;
    device.kv_append(step,
                     {.shape = shape(), .layer = kv, .first = 0, .rows = rows, .k = k, .v = v, .buffers = buffers});
    device.attention(step, {.shape = shape(),
                            .layer = kv,
                            .query_heads = kQueryHeads,
                            .scale = 0.088f,
                            .q = q,
                            .out = out,
                            .lse = nullptr,
                            .buffers = buffers});
    if (buffers.stream != nullptr) return;
    device.matmul({.x = out, .rows = rows, .k = kQueryHeads * kDim, .n_outputs = 1, .outputs = {{weight, nullptr, y}}});
  }
  std::vector<float> results(std::int64_t workers) const {
    std::vector<float> all = gpu.download(out, workers * kQueryHeads * kDim);
    const std::vector<float> more = gpu.download(y, workers * 512);
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};

KvLayer random_pool(Gpu& gpu, std::int64_t pages) {
  const std::int64_t n = pages * shape().page_elements();
  return {.keys = gpu.upload(halves(n)), .values = gpu.upload(halves(n))};
}

TEST(captured_steps_equal_direct_ones) {
  Gpu gpu;
  const std::int64_t longest = kEmulated ? 300 : 6000;
  const KvLayer kv = random_pool(gpu, longest / kPageSize + 40);
  for (const std::int64_t workers : {1, 3, 4, 7}) {
    const Layer layer(gpu, gpu.device->bucket_rows(workers), kv);
    int wrong = 0;
    for (int i = 0; i < (kEmulated ? 5 : 40); ++i) {
      const WorkerStep step(workers, 100 + static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(longest - 200)),
                            1 + static_cast<std::int64_t>(rng() % 100), 0);
      layer.run(*gpu.device->upload(step.view()));
      const std::vector<float> direct = layer.results(workers);
      for (int again = 0; again < 3; ++again) {
        const auto on_device = gpu.device->upload(step.view());
        gpu.device->replay(
            {.model = 9, .cache = 9, .buffers = 1000 + static_cast<std::uint64_t>(workers), .rows = layer.rows},
            *on_device, [&] { layer.run(*on_device); });
        wrong += !same_bits(layer.results(workers), direct);
      }
    }
    CHECK_MESSAGE(wrong == 0, std::to_string(workers) + " workers: " + std::to_string(wrong) + " differ");
  }
}

// The host goes on while the card computes: a step's plan must not overwrite that of the step before.
TEST(steps_in_flight_keep_their_own_plans) {
  Gpu gpu;
  const std::int64_t longest = kEmulated ? 300 : 6000;
  const KvLayer kv = random_pool(gpu, longest / kPageSize + 40);
  std::vector<Layer> layers;
  std::vector<WorkerStep> steps;
  std::vector<std::vector<float>> alone;
  for (int i = 0; i < 6; ++i) {
    layers.emplace_back(gpu, 4, kv);
    steps.emplace_back(4, longest - 100 - 29 * i, 20 + 3 * i, 0);
  }
  for (int round = 0; round < 2;
       ++round) {  // they write into each other's tokens: the second round is like all after it
    alone.clear();
    for (int i = 0; i < 6; ++i) {
      layers[i].run(*gpu.device->upload(steps[i].view()));
      alone.push_back(layers[i].results(4));
    }
  }
  int wrong = 0;
  for (int again = 0; again < (kEmulated ? 1 : 20); ++again) {
    for (int i = 0; i < 6; ++i) {
      layers[i].run(*gpu.device->upload(steps[i].view()));
    }
    for (int i = 0; i < 6; ++i) wrong += !same_bits(layers[i].results(4), alone[i]);
  }
  CHECK_MESSAGE(wrong == 0, std::to_string(wrong));
}

// addon/cache.cc: createCache allocates on the JavaScript thread, whatever the runner's thread is doing.
TEST(memory_allocated_while_a_step_is_captured_stays_as_it_is_written) {
  Gpu gpu;
  const KvLayer kv = random_pool(gpu, 20);
  const Layer layer(gpu, gpu.device->bucket_rows(2), kv);
  const WorkerStep step(2, 200, 30, 0);
  Buffer other;
  int calls = 0;
  const auto ops = [&](const DeviceStep& on_device) {
    layer.run(on_device);
    if (++calls == 2) {  // being captured
      std::thread([&] { other = gpu.device->allocate(1 << 20, "another cache"); }).join();
    }
  };
  const std::vector<float> pattern = floats(1 << 18);
  for (int i = 0; i < 4; ++i) {
    if (i == 2) gpu.device->upload(other.data(), pattern.data(), pattern.size() * sizeof(float));
    const auto on_device = gpu.device->upload(step.view());
    gpu.device->replay({.model = 8, .cache = 8, .buffers = 8, .rows = layer.rows}, *on_device,
                       [&] { ops(*on_device); });
  }
  CHECK(calls == (kEmulated ? 4 : 2));  // the emulated card captures anew before it replays
  CHECK_MESSAGE(same_bits(gpu.download(other.as<float>(), 1 << 18), pattern),
                "clearing memory became part of the graph");
}

TEST(an_engines_stream_gives_the_same) {
  Gpu gpu;
  const KvLayer kv = random_pool(gpu, kEmulated ? 8 : 60);
  const std::int64_t workers = 4;
  const Layer layer(gpu, workers, kv);
  const WorkerStep step(workers, kEmulated ? 200 : 3000, 30, 0);
  cudaStream_t stream = nullptr;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  layer.run(*gpu.device->upload(step.view()));
  const std::vector<float> own = gpu.download(layer.out, workers * kQueryHeads * kDim);
  int wrong = 0;
  for (int i = 0; i < (kEmulated ? 2 : 20); ++i) {
    std::vector<float> host(static_cast<std::size_t>(workers * kQueryHeads * kDim));
    const auto on_device = gpu.device->upload(step.view());
    CHECK(cudaMemsetAsync(layer.out, 0xff, host.size() * sizeof(float), stream) == cudaSuccess);
    layer.run(*on_device, {.dtype = Dtype::kF32, .stream = stream, .is_external = true});
    CHECK(cudaMemcpyAsync(host.data(), layer.out, host.size() * sizeof(float), cudaMemcpyDeviceToHost, stream) ==
          cudaSuccess);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    wrong += !same_bits(host, own);
  }
  CHECK_MESSAGE(wrong == 0, std::to_string(wrong));
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

// ---- attention over a whole card's worth of tokens ------------------------------------------------------

TEST(long_attention_equals_the_definition) {
  Gpu gpu;
  const std::int64_t common = kEmulated ? 500 : 65'000, own = 70;
  for (const std::int64_t workers : {1, 4, 8}) {
    const WorkerStep step(workers, common, own, 0);
    const std::int64_t elements = std::ssize(step.pages) * shape().page_elements();
    const std::vector<std::uint16_t> keys = halves(elements), values = halves(elements);
    const KvLayer kv = {.keys = gpu.upload(keys), .values = gpu.upload(values)};
    const std::vector<float> q = floats(workers * kQueryHeads * kDim, 1.5f);
    const float* device_q = gpu.upload(q);
    float* out = gpu.zeros(workers * kQueryHeads * kDim);
    const AttentionParams params{
        .shape = shape(), .layer = kv, .query_heads = kQueryHeads, .scale = 0.088f, .q = device_q, .out = out};
    const auto on_device = gpu.device->upload(step.view());
    gpu.device->attention(*on_device, params);
    const std::vector<float> first = gpu.download(out, workers * kQueryHeads * kDim);
    int different = 0;
    for (int i = 0; i < (kEmulated ? 2 : 30); ++i) {
      gpu.device->attention(*on_device, params);
      different += !same_bits(gpu.download(out, workers * kQueryHeads * kDim), first);
    }
    CHECK_MESSAGE(different == 0,
                  std::to_string(workers) + " workers: other bits " + std::to_string(different) + " times");

    // page.cuh: chunk c of row r lies at c ^ (r % 8) for rows of 16 chunks.
    const auto element = [&](const PlanSegment& segment, std::int64_t token, std::int64_t head, std::int64_t d) {
      const std::int64_t slot = token % kPageSize, page = step.pages[segment.first_page + token / kPageSize];
      return ((page * kHeads + head) * kPageSize + slot) * kDim + ((d / 8) ^ (slot % 8)) * 8 + d % 8;
    };
    double worst = 0;
    for (const auto& [worker, head] : std::vector<std::pair<std::int64_t, std::int64_t>>{
             {0, 0}, {workers - 1, kQueryHeads - 1}, {workers / 2, kQueryHeads / 2}}) {
      std::vector<double> scores, mean(kDim);
      std::vector<std::int64_t> at;
      for (std::size_t s = 0; s < step.segments.size(); ++s) {
        const QueryRange& range =
            step.query_ranges[s * static_cast<std::size_t>(workers) + static_cast<std::size_t>(worker)];
        std::vector<double> rotated(kDim);
        for (std::int64_t u = 0; u < kDim / 2; ++u) {
          const float* row = q.data() + (worker * kQueryHeads + head) * kDim;
          const double c = step.cos[range.rope_row * kDim / 2 + u], si = step.sin[range.rope_row * kDim / 2 + u];
          rotated[u] = row[u] * c - row[u + kDim / 2] * si;
          rotated[u + kDim / 2] = row[u + kDim / 2] * c + row[u] * si;
        }
        for (double& x : rotated) x = bf16_to_f32(f32_to_bf16(static_cast<float>(x * 0.088 * 1.4426950408889634)));
        for (std::int64_t t = 0; t < range.limit; ++t) {
          double score = range.bias * 1.4426950408889634;
          for (std::int64_t d = 0; d < kDim; ++d)
            score += rotated[d] * bf16_to_f32(keys[element(step.segments[s], t, head / 5, d)]);
          scores.push_back(score);
          at.push_back(element(step.segments[s], t, head / 5, 0));
        }
      }
      const double greatest = *std::max_element(scores.begin(), scores.end());
      double total = 0;
      for (std::size_t i = 0; i < scores.size(); ++i) {
        const double weight = std::exp2(scores[i] - greatest);
        total += weight;
        const std::int64_t slot = at[i] / kDim % kPageSize;  // element(.., 0) has chunk slot % 8
        const std::int64_t row = at[i] / kDim * kDim;
        for (std::int64_t d = 0; d < kDim; ++d)
          mean[d] += weight * bf16_to_f32(values[row + ((d / 8) ^ (slot % 8)) * 8 + d % 8]);
      }
      for (std::int64_t d = 0; d < kDim; ++d) {
        const double error = std::abs(first[(worker * kQueryHeads + head) * kDim + d] - mean[d] / total);
        worst = std::max(worst, std::isnan(error) ? 1e9 : error);
      }
    }
    CHECK_MESSAGE(worst < 0.006, std::to_string(workers) + " workers: " + std::to_string(worst));
    std::printf("  %lld workers: largest error %.5f\n", static_cast<long long>(workers), worst);
    gpu.buffers.clear();
  }
}

// Pages whose bytes lie beyond 2^32 and whose elements beyond 2^31 (of a pool that is not filled: its memory is zero).
TEST(pages_beyond_four_gigabytes) {
  if (kEmulated) return;
  Gpu gpu;
  const std::int64_t pages = 50'000;  // 6.55 GB of keys
  KvLayer big;
  for (void** pool : {&big.keys, &big.values}) {
    gpu.buffers.push_back(gpu.device->allocate(static_cast<std::size_t>(pages * shape().page_bytes()), "a large pool"));
    *pool = gpu.buffers.back().data();
  }
  const std::int64_t first_page = pages - 12;
  const KvLayer small = random_pool(gpu, 12);
  for (const auto& [to, from] : {std::pair{big.keys, small.keys}, std::pair{big.values, small.values}}) {
    const std::size_t bytes = static_cast<std::size_t>(12 * shape().page_bytes());
    std::vector<std::uint8_t> host(bytes);
    gpu.device->download(host.data(), from, bytes);
    gpu.device->upload(static_cast<std::byte*>(to) + first_page * shape().page_bytes(), host.data(), bytes);
  }
  const WorkerStep low(3, 300, 100, 0), high(3, 300, 100, first_page);
  Layer layer(gpu, 3, small);
  layer.run(*gpu.device->upload(low.view()));
  const std::vector<float> expected = layer.results(3);
  layer.kv = big;
  layer.run(*gpu.device->upload(high.view()));
  CHECK(same_bits(layer.results(3), expected));
  std::vector<float> k(3 * kHeads * kDim), k_low(k.size());
  gpu.device->kv_read({.shape = shape(), .layer = big, .slots = high.slots, .k = layer.k, .v = layer.v});
  k = gpu.download(layer.k, std::ssize(k));
  gpu.device->kv_read({.shape = shape(), .layer = small, .slots = low.slots, .k = layer.k, .v = layer.v});
  k_low = gpu.download(layer.k, std::ssize(k));
  CHECK(same_bits(k, k_low));
}

// Two handles on one card in two threads, as two worker_threads of Node have them.
TEST(two_devices_in_two_threads) {
  if (kEmulated) return;
  std::atomic<int> wrong = 0;
  std::vector<std::vector<float>> seeds = {floats(4), floats(4)};
  const auto run = [&wrong](std::int64_t workers) {
    Gpu gpu;
    std::vector<std::uint16_t> data(static_cast<std::size_t>(60 * shape().page_elements()));
    for (std::size_t i = 0; i < data.size(); ++i)
      data[i] = f32_to_bf16(static_cast<float>(static_cast<int>(i * 7919 % 2001) - 1000) * 1e-3f);
    const KvLayer kv = {.keys = gpu.upload(data), .values = gpu.upload(data)};
    float* q = gpu.upload(std::vector<float>(static_cast<std::size_t>(4 * kQueryHeads * kDim), 0.3f));
    float* out = gpu.zeros(4 * kQueryHeads * kDim);
    const WorkerStep step(workers, 3000, 40, 0);
    const auto ops = [&](const DeviceStep& on_device) {
      gpu.device->attention(
          on_device, {.shape = shape(), .layer = kv, .query_heads = kQueryHeads, .scale = 0.088f, .q = q, .out = out});
    };
    ops(*gpu.device->upload(step.view()));
    const std::vector<float> first = gpu.download(out, workers * kQueryHeads * kDim);
    for (int i = 0; i < 100; ++i) {
      if (i % 10 == 0) static_cast<void>(gpu.device->allocate(std::size_t{1} << 24, "comes and goes"));
      const auto on_device = gpu.device->upload(step.view());
      gpu.device->replay({.model = 7, .cache = 7, .buffers = 7 + static_cast<std::uint64_t>(i / 20), .rows = 4},
                         *on_device, [&] { ops(*on_device); });
      wrong += !same_bits(gpu.download(out, workers * kQueryHeads * kDim), first);
    }
  };
  const auto work = [&](std::int64_t workers) {
    try {
      run(workers);
    } catch (const std::exception& error) {
      std::printf("  %s\n", error.what());
      ++wrong;
    }
  };
  std::thread one(work, 2), two(work, 3);
  one.join();
  two.join();
  CHECK_MESSAGE(wrong == 0, std::to_string(wrong.load()));
}

}  // namespace
}  // namespace hogwild

HOGWILD_TEST_MAIN
