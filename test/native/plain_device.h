// The cache's ops in plain double-precision loops, for tests of what stands above the device. Its pages
// are arranged [P, Hkv, D], unlike those of the CPU device: nothing above may rely on an arrangement.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "device/device.h"

namespace hogwild {

class PlainDevice : public Device {
 public:
  std::int64_t rebases_until_failure = -1;  // that many kv_move succeed, the next one throws; -1: none does

  DeviceInfo info() const override { return {.type = "plain", .name = "plain", .index = 0, .simd = "", .threads = 1}; }
  std::int64_t kv_first_page(const KvShape&, std::int64_t pages, std::int64_t layer) const override {
    return layer * pages;
  }

  Buffer allocate(std::size_t bytes, const char* purpose) override {
    // The sanitizers' allocators end the process where others return null.
    void* data = bytes <= std::size_t{1} << 38 ? std::calloc(1, bytes) : nullptr;
    if (data == nullptr) throw Error(code::kOutOfMemory, std::string("no memory for ") + purpose);
    return Buffer(data, bytes, [](void* memory, std::size_t, int) { std::free(memory); });
  }
  using Device::upload;
  void download(void* host, const void* device, std::size_t bytes) override { std::memcpy(host, device, bytes); }
  void upload(void* device, const void* host, std::size_t bytes) override { std::memcpy(device, host, bytes); }
  void copy(void* to, const void* from, std::size_t bytes) override { std::memcpy(to, from, bytes); }
  void synchronize() override {}

  void kv_append(const DeviceStep& step, const KvAppendParams& p) override {
    for (std::int64_t t = 0; t < p.rows; ++t) {
      const AppendSlot& slot = step.view().slots[p.first + t];
      for (std::int64_t i = 0; i < row(p.shape); i += p.shape.head_dim) {
        const std::int64_t to = at(p.shape, slot.page, slot.slot) + i;
        rotate(step.view().rope(p.layer), slot.rope_row, static_cast<const float*>(p.k) + t * row(p.shape) + i,
               p.shape.head_dim, keys(p.layer) + to);
        std::copy_n(static_cast<const float*>(p.v) + t * row(p.shape) + i, p.shape.head_dim, values(p.layer) + to);
      }
    }
  }

  void kv_move(const KvMoveParams& p) override {
    if (rebases_until_failure == 0) throw Error(code::kInternal, "the device failed");
    if (rebases_until_failure > 0) --rebases_until_failure;
    for (const KvMoveParams::Move& move : p.moves) {
      for (std::int64_t i = 0; i < move.length * row(p.shape); i += p.shape.head_dim) {
        const std::int64_t from = at(p.shape, move.from_page, move.from_slot) + i;
        const std::int64_t to = at(p.shape, move.to_page, move.to_slot) + i;
        if (move.rope_row < 0) {
          std::copy_n(keys(p.layer) + from, p.shape.head_dim, keys(p.layer) + to);
        } else {
          rotate(p.rope, move.rope_row, keys(p.layer) + from, p.shape.head_dim, keys(p.layer) + to);
        }
        std::copy_n(values(p.layer) + from, p.shape.head_dim, values(p.layer) + to);
      }
    }
  }

  void kv_read(const KvReadParams& p) override {
    for (std::size_t t = 0; t < p.slots.size(); ++t) {
      const std::int64_t from = at(p.shape, p.slots[t].page, p.slots[t].slot);
      std::copy_n(keys(p.layer) + from, row(p.shape), p.k + t * row(p.shape));
      std::copy_n(values(p.layer) + from, row(p.shape), p.v + t * row(p.shape));
    }
  }

  void kv_save(const KvCopyParams& p) override { copy_pages(p, false); }
  void kv_load(const KvCopyParams& p) override { copy_pages(p, true); }

  void attention(const DeviceStep& step, const AttentionParams& p) override {
    const std::int64_t dim = p.shape.head_dim;
    const AttentionPlanView& plan = step.view().plan;
    std::vector<const PlanSegment*> segment_of(plan.query_ranges.size());
    for (const PlanSegment& segment : plan.segments) {
      std::fill_n(segment_of.begin() + segment.first_query_range, segment.n_query_ranges, &segment);
    }
    for (std::int64_t t = 0; t < plan.n_tokens; ++t) {
      for (std::int64_t h = 0; h < p.query_heads; ++h) {
        const std::int64_t kv_head = h * p.shape.kv_heads / p.query_heads;
        double sum = 0;
        std::vector<double> out(dim);
        for (std::int64_t i = plan.token_query_ranges_at[t]; i < plan.token_query_ranges_at[t + 1]; ++i) {
          const QueryRange& range = plan.query_ranges[plan.token_query_ranges[i]];
          const PlanSegment& segment = *segment_of[plan.token_query_ranges[i]];
          float query[256];
          rotate(step.view().rope(p.layer), range.rope_row,
                 static_cast<const float*>(p.q) + (t * p.query_heads + h) * dim, dim, query);
          for (std::int64_t j = segment.first_slot; j < segment.first_slot + range.limit; ++j) {
            const std::int64_t page = plan.pages[segment.first_page + j / kPageSize];
            const std::int64_t key = at(p.shape, page, j % kPageSize) + kv_head * dim;
            double score = 0;
            for (std::int64_t d = 0; d < dim; ++d) score += double{query[d]} * keys(p.layer)[key + d];
            const double weight = std::exp(p.scale * score / range.temperature + range.bias);
            sum += weight;
            for (std::int64_t d = 0; d < dim; ++d) out[d] += weight * values(p.layer)[key + d];
          }
        }
        for (std::int64_t d = 0; d < dim; ++d) {
          static_cast<float*>(p.out)[(t * p.query_heads + h) * dim + d] =
              static_cast<float>(sum == 0 ? 0 : out[d] / sum);
        }
        if (p.lse != nullptr) p.lse[t * p.query_heads + h] = static_cast<float>(std::log(sum));
      }
    }
  }

  Matrix upload_weight(const WeightSource&, WeightStorage&) override { refuse(); }
  void embedding(const DeviceStep&, const EmbeddingParams&) override { refuse(); }
  void rms_norm(const RmsNormParams&) override { refuse(); }
  void matmul(const MatmulParams&) override { refuse(); }
  void gated_activation(const GatedActivationParams&) override { refuse(); }
  void add(const AddParams&) override { refuse(); }
  void softcap(const SoftcapParams&) override { refuse(); }
  void experts(const ExpertsParams&) override { refuse(); }
  void attention_mass(const AttentionMassParams&) override { refuse(); }
  void sample(const SampleParams&) override { refuse(); }
  double measure_read_bandwidth(std::size_t) override { refuse(); }

 private:
  [[noreturn]] static void refuse() { throw Error(code::kUnsupported, "the plain device has the cache's ops only"); }

  static std::int64_t row(const KvShape& shape) { return shape.kv_heads * shape.head_dim; }
  static std::int64_t at(const KvShape& shape, std::int64_t page, std::int64_t slot) {
    return (page * kPageSize + slot) * row(shape);
  }
  static float* keys(const KvLayer& layer) { return static_cast<float*>(layer.keys); }
  static float* values(const KvLayer& layer) { return static_cast<float*>(layer.values); }

  static void copy_pages(const KvCopyParams& p, bool to_page) {
    std::byte* rows = p.rows;
    const auto copy = [&](float* in_page) {
      const std::size_t bytes = p.shape.head_dim * sizeof(float);
      std::memcpy(to_page ? static_cast<void*>(in_page) : rows, to_page ? rows : static_cast<void*>(in_page), bytes);
      rows += bytes;
    };
    for (const KvCopyParams::Page& page : p.pages) {
      for (float* pool : {keys(p.layer), values(p.layer)}) {
        for (std::int64_t h = 0; h < p.shape.kv_heads; ++h) {
          for (std::int64_t slot = 0; slot < kPageSize; ++slot) {
            if (page.slots >> slot & 1) copy(pool + at(p.shape, page.page, slot) + h * p.shape.head_dim);
          }
        }
      }
    }
  }

  static void rotate(const RopeTable& rope, std::int64_t rope_row, const float* from, std::int64_t dim, float* to) {
    const std::int64_t half = rope.rotary_dim / 2;
    const float* cos = rope.cos + rope_row * half;
    const float* sin = rope.sin + rope_row * half;
    std::copy_n(from, dim, to);
    for (std::int64_t u = 0; u < half; ++u) {
      const double a = from[u], b = from[half + u];
      to[u] = static_cast<float>(a * cos[u] - b * sin[u]);
      to[half + u] = static_cast<float>(b * cos[u] + a * sin[u]);
    }
  }
};

}  // namespace hogwild
