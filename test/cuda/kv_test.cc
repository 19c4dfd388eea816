// Append, move and read against float64 and a second description of the pages, on random shapes: any head
// dim, rotary dim, padding, dtype and formats, slots left out, values that are not finite. Whole pools are compared, so
// that nothing else may be written. Under g++ each case runs under three schedules, which must agree bit for
// bit, and rotation must give the bits of the same formula in f32.
//
// Also compiles for a GPU (nvcc -x cu).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../native/check.h"
#include "behind_kernel.h"
#include "device_array.h"
#include "kernels.h"
#include "kv_shape.h"
#include "pages.h"
#include "simt/simt.h"

namespace hogwild::cuda {
namespace {

using Rng = std::mt19937_64;

// HOGWILD_TEST_CASES: random cases per test and head dim (default 3).
int n_cases() {
  const char* text = std::getenv("HOGWILD_TEST_CASES");
  return 32 * (text != nullptr ? std::atoi(text) : 3);
}

// ---- a random cache ---------------------------------------------------------------------------------

struct Pools {
  Pool keys, values;
  bool operator==(const Pools&) const = default;
};

struct Case {
  std::string name;
  Rng rng;
  KvShape shape;
  std::int64_t pages = 0;
  std::int64_t angles = 0;
  std::int64_t rotary_dim = 0;
  std::vector<float> cos, sin;  // [angles, R / 2]
  Pools pools;

  std::int64_t random(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(rng() % static_cast<std::uint64_t>(high - low + 1));
  }
  // Normal, now and then one that f16 or nobody can hold.
  float number() {
    std::normal_distribution<float> normal;
    const float infinity = std::numeric_limits<float>::infinity();
    const std::vector<float> others = {0.f,      -0.f,  1e-7f,     65519.f, 65520.f,
                                       infinity, 1e38f, -infinity, 6.0e-5f, std::numeric_limits<float>::quiet_NaN()};
    return random(0, 99) > 0 ? normal(rng) : others[random(0, static_cast<std::int64_t>(others.size()) - 1)];
  }
};

Case random_case(std::uint64_t seed) {
  Case c;
  c.rng.seed(seed);
  const std::int64_t head_dim = 8 * (1 + static_cast<std::int64_t>(seed) % 32);
  const std::int64_t least = kv_row_elements(head_dim);
  std::vector<std::int64_t> widths = row_widths();
  std::erase_if(widths, [&](std::int64_t width) { return width < least; });
  const std::int64_t width =
      c.random(0, 3) > 0 ? least : widths[c.random(0, static_cast<std::int64_t>(widths.size()) - 1)];
  const std::int64_t kv_heads = c.random(1, 4);
  constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kF16, KvFormat::kBF16, KvFormat::kInt8};
  const KvFormat key_format = kFormats[c.random(0, 3)];
  c.shape = {.layers = 1,
             .kv_heads = kv_heads,
             .head_dim = head_dim,
             .key_format = key_format,
             .value_format = c.random(0, 1) > 0 ? key_format : kFormats[c.random(0, 3)],
             .padding = width - head_dim};
  c.pages = c.random(2, 5);
  c.angles = c.random(1, 20);
  c.rotary_dim = c.random(0, 2) > 0 ? head_dim : 2 * c.random(0, head_dim / 2);
  for (std::int64_t i = 0; i < c.angles; ++i) {
    const double position = static_cast<double>(c.random(0, 100'000));
    for (std::int64_t u = 0; u < c.rotary_dim / 2; ++u) {
      const double angle = position * std::pow(1e6, -2.0 * static_cast<double>(u) / static_cast<double>(c.rotary_dim));
      c.cos.push_back(static_cast<float>(std::cos(angle)));
      c.sin.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  // Each element has its own bits, so that one that is written or moved by mistake shows.
  c.pools = {Pool(c.shape, c.shape.key_format, c.pages), Pool(c.shape, c.shape.value_format, c.pages)};
  for (Pool* pool : {&c.pools.keys, &c.pools.values}) {
    for (std::uint8_t& byte : pool->bytes) byte = static_cast<std::uint8_t>(c.rng());
  }
  c.name = "seed " + std::to_string(seed) + ", head dim " + std::to_string(head_dim) + " of " + std::to_string(width) +
           ", rotary dim " + std::to_string(c.rotary_dim) + ", " + kv_format_name(c.shape.key_format) + " and " +
           kv_format_name(c.shape.value_format) + ", " + std::to_string(c.shape.kv_heads) + " kv heads";
  return c;
}

// ---- the definition ---------------------------------------------------------------------------------

// An element that was converted to the cache's type, rounded once.
struct Converted {
  std::int64_t at = 0;  // byte of the pool
  double exact = 0;
  double magnitude = 0;  // of what was added: how far f32 may be off, in units of its own rounding
};

// What the pools must hold afterwards.
struct Expected {
  Pools pools;
  std::vector<Converted> keys, values;
};

// Element d of a row of keys, rotated, in arithmetic of type Real.
template <typename Real>
Real rotated(const Case& c, const float* row, std::int64_t angle, std::int64_t d) {
  const std::int64_t half = c.rotary_dim / 2;
  if (d >= 2 * half) return row[d];
  const Real cos = c.cos[angle * half + d % half];
  const Real sin = c.sin[angle * half + d % half];
  const Real x = row[d];
  const Real partner = row[d < half ? d + half : d - half];
  return d < half ? x * cos - partner * sin : x * cos + partner * sin;
}

// The codes and the scale of a row, as core/kv_format.h has them.
void expect_codes(const Case& c, const std::vector<float>& row, std::int64_t page, std::int64_t kv_head,
                  std::int64_t slot, Pool& pool) {
  float greatest = 0;
  bool is_finite = true;
  for (const float x : row) {
    is_finite &= std::isfinite(x);
    greatest = std::max(greatest, std::abs(x));
  }
  const bool is_zero = !is_finite || greatest < 0x1p-100f;
  const float scale = !is_finite ? std::numeric_limits<float>::quiet_NaN() : is_zero ? 0.f : greatest / 127;
  pool.set_scale(page, kv_head, slot, scale);
  for (std::int64_t d = 0; d < c.shape.row_elements(); ++d) {
    const bool has_code = d < c.shape.head_dim && !is_zero;
    pool.set_number(pool.at(page, kv_head, slot, d), has_code ? std::nearbyint(row[d] / scale) : 0);
  }
}

// A row as it goes into a pool: `exact` and `magnitude` of each element (Converted), and the same in f32.
struct NewRow {
  std::vector<float> in_f32;
  std::vector<double> exact, magnitude;
};

void expect_row(const Case& c, const NewRow& row, std::int64_t page, std::int64_t kv_head, std::int64_t slot,
                Pool& pool, std::vector<Converted>& converted) {
  if (pool.has_scales()) return expect_codes(c, row.in_f32, page, kv_head, slot, pool);
  for (std::int64_t d = 0; d < c.shape.row_elements(); ++d) {
    const std::int64_t at = pool.at(page, kv_head, slot, d);
    pool.set_number(at, d < c.shape.head_dim ? row.in_f32[d] : 0);
    if (d < c.shape.head_dim) converted.push_back({at, row.exact[d], row.magnitude[d]});
  }
}

NewRow rotated_row(const Case& c, const float* row, std::int64_t angle) {
  NewRow result;
  const std::int64_t half = c.rotary_dim / 2;
  for (std::int64_t d = 0; d < c.shape.head_dim; ++d) {
    const double partner = d >= 2 * half ? 0 : row[d < half ? d + half : d - half];
    result.in_f32.push_back(rotated<float>(c, row, angle, d));
    result.exact.push_back(rotated<double>(c, row, angle, d));
    result.magnitude.push_back(std::abs(row[d]) + std::abs(partner));
  }
  return result;
}

// Compares what was converted, and puts the expected bits in its place.
void check_converted(const Case& c, const std::vector<Converted>& all, const Pool& expected, Pool& result) {
  const Dtype dtype = dtype_of(expected.format);
  // Half of the least subnormal.
  const double least = dtype == Dtype::kF16 ? 0x1p-25 : dtype == Dtype::kBF16 ? 0x1p-134 : 0x1p-150;
  std::int64_t wrong = 0;
  for (const Converted& one : all) {
    const double got = result.number(one.at);
    const double tolerance = rounding_error(dtype) * std::abs(one.exact) + 0x1p-22 * one.magnitude + least;
    const bool close = std::abs(one.exact) < 65'000 ? std::abs(got - one.exact) <= tolerance
                                                    : !(std::abs(got) < 64'000);  // large, infinite or not a number
    bool same = true;
#if SIMT_HOST
    same = result.bits(one.at) == expected.bits(one.at) || (std::isnan(got) && std::isnan(expected.number(one.at)));
#endif
    wrong += !close || !same;
    result.copy_element_of(expected, one.at);
  }
  CHECK_MESSAGE(wrong == 0, c.name + ": " + std::to_string(wrong) + " of " + std::to_string(all.size()));
}

// Codes and scales that a GPU may round to the other side: a code is one off, a scale a few units in its last place.
void check_codes(const Case& c, const Pool& expected, Pool& result) {
#if !SIMT_HOST
  if (!expected.has_scales()) return;
  for (std::int64_t page = 0; page < c.pages; ++page) {
    for (std::int64_t h = 0; h < c.shape.kv_heads; ++h) {
      for (std::int64_t slot = 0; slot < kPageSize; ++slot) {
        const float wanted = expected.scale(page, h, slot), got = result.scale(page, h, slot);
        if (std::abs(got - wanted) <= 1e-6f * std::abs(wanted)) result.set_scale(page, h, slot, wanted);
        for (std::int64_t d = 0; d < c.shape.head_dim; ++d) {
          const std::int64_t at = expected.at(page, h, slot, d);
          if (std::abs(result.number(at) - expected.number(at)) <= 1) result.copy_element_of(expected, at);
        }
      }
    }
  }
#else
  static_cast<void>(c), static_cast<void>(expected), static_cast<void>(result);
#endif
}

void check_pools(const Case& c, const Expected& expected, Pools result) {
  check_converted(c, expected.keys, expected.pools.keys, result.keys);
  check_converted(c, expected.values, expected.pools.values, result.values);
  check_codes(c, expected.pools.keys, result.keys);
  check_codes(c, expected.pools.values, result.values);
  CHECK_MESSAGE(result.keys == expected.pools.keys, c.name);
  CHECK_MESSAGE(result.values == expected.pools.values, c.name);
}

// ---- running ----------------------------------------------------------------------------------------

// The result of `run`, which must be the same under every schedule.
template <typename Run>
auto run_all_schedules(const Case& c, const Run& run) {
#if SIMT_HOST
  simt::options = {.order = simt::Order::kForward};
  const auto result = run();
  for (const simt::Options& schedule :
       {simt::Options{.order = simt::Order::kReverse}, simt::Options{.order = simt::Order::kRandom, .seed = 5}}) {
    simt::options = schedule;
    CHECK_MESSAGE(run() == result, c.name);
  }
#else
  const auto result = run();
  CHECK_MESSAGE(run() == result, c.name);
#endif
  return result;
}

// Runs `launch(layer, rope, pools)` on copies of the pools and of the rope table. `pools` brings the former: the launch
// goes behind it.
template <typename Launch>
Pools run_on_pools(const Case& c, const Launch& launch) {
  return run_all_schedules(c, [&] {
    const simt::DeviceArray<std::uint8_t> keys(c.pools.keys.bytes), values(c.pools.values.bytes);
    const simt::DeviceArray<float> cos(c.cos), sin(c.sin);
    launch(KvLayer{.keys = keys.data(), .values = values.data()},
           RopeTable{.cos = cos.data(), .sin = sin.data(), .rotary_dim = c.rotary_dim},
           simt::BehindKernel(keys, values));
    Pools result = c.pools;
    result.keys.bytes = keys.to_host();
    result.values.bytes = values.to_host();
    return result;
  });
}

TEST(append_writes_rotated_keys_and_values) {
  for (int seed = 0; seed < n_cases(); ++seed) {
    Case c = random_case(seed);
    const Dtype dtype = std::vector<Dtype>{Dtype::kF32, Dtype::kBF16, Dtype::kF16}[c.random(0, 2)];
    std::vector<std::int64_t> places(c.pages * kPageSize);
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), c.rng);
    std::vector<AppendSlot> slots(c.random(0, 70));
    for (std::size_t t = 0; t < slots.size(); ++t) {
      slots[t] = {.page = c.random(0, 9) > 0 ? places[t] / kPageSize : -1,
                  .slot = static_cast<std::int32_t>(places[t] % kPageSize),
                  .rope_row = static_cast<std::int32_t>(c.random(0, c.angles - 1))};
    }
    const std::int64_t head_dim = c.shape.head_dim;
    std::vector<float> k(slots.size() * c.shape.kv_heads * head_dim), v(k.size());
    for (std::vector<float>* rows : {&k, &v}) {
      float factor = 1;  // some rows are next to nothing
      for (std::size_t i = 0; i < rows->size(); ++i) {
        if (i % static_cast<std::size_t>(head_dim) == 0) factor = c.random(0, 9) > 0 ? 1 : 1e-36f;
        (*rows)[i] = rounded(dtype, factor * c.number());
      }
    }

    const Pools result = run_on_pools(c, [&](const KvLayer& layer, const RopeTable& rope, simt::BehindKernel behind) {
      // Rows of the step before those that are appended: slots of no page, to be left alone.
      const std::int64_t first = c.random(0, 3);
      std::vector<AppendSlot> step_slots(static_cast<std::size_t>(first), {.page = -1, .slot = 0, .rope_row = 0});
      step_slots.insert(step_slots.end(), slots.begin(), slots.end());
      const simt::DeviceArray<AppendSlot> device_slots(step_slots);
      const simt::DeviceArray<std::uint8_t> device_k(to_bytes(dtype, k)), device_v(to_bytes(dtype, v));
      behind.bring(device_k);
      behind.bring(device_v);
      behind.run([&](KernelStream stream) {
        return launch_kv_append({.shape = c.shape,
                                 .layer = layer,
                                 .first = first,
                                 .rows = static_cast<std::int64_t>(slots.size()),
                                 .k = device_k.data(),
                                 .v = device_v.data(),
                                 .buffers = {.dtype = dtype}},
                                {.tokens = nullptr, .slots = device_slots.data(), .rope = rope, .plan = {}}, stream);
      });
    });

    Expected expected = {c.pools, {}, {}};
    for (std::size_t t = 0; t < slots.size(); ++t) {
      const AppendSlot& slot = slots[t];
      if (slot.page < 0) continue;
      for (std::int64_t h = 0; h < c.shape.kv_heads; ++h) {
        const std::int64_t row = (static_cast<std::int64_t>(t) * c.shape.kv_heads + h) * head_dim;
        expect_row(c, rotated_row(c, k.data() + row, slot.rope_row), slot.page, h, slot.slot, expected.pools.keys,
                   expected.keys);
        const std::vector<float> value(v.begin() + row, v.begin() + row + head_dim);
        const NewRow new_value = {value, std::vector<double>(value.begin(), value.end()),
                                  std::vector<double>(value.size())};
        expect_row(c, new_value, slot.page, h, slot.slot, expected.pools.values, expected.values);
      }
    }
    check_pools(c, expected, result);
  }
}

TEST(rebase_moves_tokens_and_turns_keys) {
  for (int seed = 1000; seed < 1000 + n_cases(); ++seed) {
    Case c = random_case(seed);
    const bool can_turn = kv_can_turn(c.shape.key_format);
    const std::int64_t first_target = c.random(1, c.pages - 1);  // pages before it are read, the others written
    std::vector<KvMoveParams::Move> moves;
    for (std::int64_t page = first_target; page < c.pages; ++page) {
      for (std::int64_t slot = c.random(0, 9); slot < kPageSize;) {
        const std::int64_t length = c.random(0, 3) > 0 ? c.random(0, kPageSize - slot) : kPageSize - slot;
        moves.push_back(
            {.from_page = c.random(0, first_target - 1),
             .to_page = page,
             .from_slot = static_cast<std::int32_t>(c.random(0, kPageSize - length)),
             .to_slot = static_cast<std::int32_t>(slot),
             .length = static_cast<std::int32_t>(length),
             .rope_row = static_cast<std::int32_t>(can_turn && c.random(0, 2) > 0 ? c.random(0, c.angles - 1) : -1)});
        slot += length + c.random(0, 2);
      }
    }

    const Pools result = run_on_pools(c, [&](const KvLayer& layer, const RopeTable& rope, simt::BehindKernel behind) {
      const simt::DeviceArray<KvMoveParams::Move> device_moves(moves);
      behind.run([&](KernelStream stream) {
        return launch_kv_move(
            {.shape = c.shape, .layer = layer, .rope = rope, .moves = {device_moves.data(), moves.size()}}, stream);
      });
    });

    Expected expected = {c.pools, {}, {}};
    for (const KvMoveParams::Move& move : moves) {
      for (std::int64_t h = 0; h < c.shape.kv_heads; ++h) {
        for (std::int64_t i = 0; i < move.length; ++i) {
          const std::int64_t from_slot = move.from_slot + i, to_slot = move.to_slot + i;
          std::vector<float> key;
          for (Pool* pool : {&expected.pools.keys, &expected.pools.values}) {
            for (std::int64_t d = 0; d < c.shape.row_elements(); ++d) {
              const std::int64_t from = pool->at(move.from_page, h, from_slot, d);
              pool->copy_element(pool->at(move.to_page, h, to_slot, d), from);
              if (pool == &expected.pools.keys) key.push_back(pool->number(from));
            }
            if (pool->has_scales()) {
              pool->set_scale(move.to_page, h, to_slot, pool->scale(move.from_page, h, from_slot));
            }
          }
          if (move.rope_row >= 0) {
            expect_row(c, rotated_row(c, key.data(), move.rope_row), move.to_page, h, to_slot, expected.pools.keys,
                       expected.keys);
          }
        }
      }
    }
    check_pools(c, expected, result);
  }
}

TEST(read_gives_what_is_stored) {
  for (int seed = 2000; seed < 2000 + n_cases(); ++seed) {
    Case c = random_case(seed);
    std::vector<AppendSlot> slots(c.random(0, 70));
    for (AppendSlot& slot : slots) {
      slot = {.page = c.random(0, c.pages - 1), .slot = static_cast<std::int32_t>(c.random(0, kPageSize - 1))};
    }
    const std::int64_t head_dim = c.shape.head_dim;
    const std::vector<float> nothing(slots.size() * c.shape.kv_heads * head_dim, 123.f);
    std::vector<float> k, v;
    for (std::size_t t = 0; t < slots.size(); ++t) {
      for (std::int64_t h = 0; h < c.shape.kv_heads; ++h) {
        for (std::int64_t d = 0; d < head_dim; ++d) {
          for (const auto& [pool, rows] : {std::pair(&c.pools.keys, &k), {&c.pools.values, &v}}) {
            rows->push_back(pool->number(pool->at(slots[t].page, h, slots[t].slot, d)) *
                            pool->scale(slots[t].page, h, slots[t].slot));
          }
        }
      }
    }
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                        [](float x, float y) { return x == y || (std::isnan(x) && std::isnan(y)); });
    };
    run_on_pools(c, [&](const KvLayer& layer, const RopeTable&, simt::BehindKernel behind) {
      const simt::DeviceArray<AppendSlot> device_slots(slots);
      const simt::DeviceArray<float> out_k(nothing), out_v(nothing);
      behind.bring(out_k);
      behind.bring(out_v);
      behind.run([&](KernelStream stream) {
        return launch_kv_read({.shape = c.shape,
                               .layer = layer,
                               .slots = {device_slots.data(), slots.size()},
                               .k = out_k.data(),
                               .v = out_v.data()},
                              stream);
      });
      CHECK_MESSAGE(same(out_k.to_host(), k), c.name);
      CHECK_MESSAGE(same(out_v.to_host(), v), c.name);
    });
  }
}

TEST(rows_are_gathered_and_scattered_on_the_host) {
  for (int seed = 3000; seed < 3000 + n_cases(); ++seed) {
    Case c = random_case(seed);
    const std::int64_t page = c.random(0, c.pages - 1);
    const std::uint64_t slots =
        c.random(0, 3) == 0 ? ~std::uint64_t{0} : static_cast<std::uint64_t>(c.random(1, INT64_MAX));
    const Pool& pool = c.pools.keys;
    const auto page_bytes = static_cast<std::size_t>(c.shape.page_bytes(pool.format));
    const std::uint8_t* stored = pool.bytes.data() + static_cast<std::size_t>(page) * page_bytes;
    Pool expected(c.shape, pool.format, 1, 7);  // what is not marked stays
    std::vector<std::uint8_t> rows, scales;
    const auto append = [&](std::vector<std::uint8_t>& to, std::int64_t at, std::int64_t size) {
      const std::int64_t in_page = at - page * static_cast<std::int64_t>(page_bytes);
      to.insert(to.end(), stored + in_page, stored + in_page + size);
      std::copy_n(stored + in_page, size, expected.bytes.begin() + in_page);
    };
    for (std::int64_t h = 0; h < c.shape.kv_heads; ++h) {
      for (std::int64_t slot = 0; slot < kPageSize; ++slot) {
        if ((slots >> slot & 1) == 0) continue;
        for (std::int64_t d = 0; d < c.shape.head_dim; ++d) append(rows, pool.at(page, h, slot, d), pool.size());
        if (pool.has_scales()) append(scales, pool.scale_at(page, h, slot), 4);
      }
    }
    rows.insert(rows.end(), scales.begin(), scales.end());
    std::vector<std::uint8_t> gathered(rows.size(), 9);
    gather_rows(c.shape, pool.format, reinterpret_cast<const std::byte*>(stored), slots,
                reinterpret_cast<std::byte*>(gathered.data()));
    CHECK_MESSAGE(gathered == rows, c.name);
    std::vector<std::uint8_t> scattered(page_bytes, 7);
    scatter_rows(c.shape, pool.format, reinterpret_cast<std::byte*>(scattered.data()), slots,
                 reinterpret_cast<const std::byte*>(rows.data()));
    CHECK_MESSAGE(scattered == expected.bytes, c.name);
  }
}

TEST(rows_are_as_wide_as_needed) {
  const std::pair<std::int64_t, std::int64_t> widths[] = {
      {8, 32},    {32, 32},   {40, 64},   {64, 64},   {72, 80}, {88, 96}, {104, 112}, {120, 128},
      {128, 128}, {136, 192}, {200, 256}, {256, 256}, {264, 0}, {20, 0},  {0, 0},     {-8, 0}};
  for (const auto& [head_dim, width] : widths) CHECK(kv_row_elements(head_dim) == width);
}

TEST(what_is_not_supported_is_refused) {
  KvAppendParams append;
  StepArrays step;
  append.shape = bf16_shape(1, 2, 72, 8);
  step.rope.rotary_dim = 64;
  KvMoveParams rebase;
  rebase.shape = append.shape;
  rebase.rope = step.rope;
  KvReadParams read;
  read.shape = append.shape;
  CHECK(launch_kv_append(append, step, nullptr) == cudaSuccess);  // nothing to do
  CHECK(launch_kv_move(rebase, nullptr) == cudaSuccess);
  CHECK(launch_kv_read(read, nullptr) == cudaSuccess);
  append.rows = 1;
  const KvMoveParams::Move move;
  rebase.moves = {&move, 1};
  const AppendSlot slot;
  read.slots = {&slot, 1};

  const auto refused = [&](const auto& change) {
    KvAppendParams changed_append = append;
    KvMoveParams changed_rebase = rebase;
    KvReadParams changed_read = read;
    change(changed_append);
    change(changed_rebase);
    change(changed_read);
    CHECK(launch_kv_append(changed_append, step, nullptr) == cudaErrorInvalidValue);
    CHECK(launch_kv_move(changed_rebase, nullptr) == cudaErrorInvalidValue);
    CHECK(launch_kv_read(changed_read, nullptr) == cudaErrorInvalidValue);
  };
  refused([](auto& launch) { launch.shape.padding = 0; });
  refused([](auto& launch) { launch.shape.padding = 16; });
  refused([](auto& launch) { launch.shape.padding = -8; });
  refused([](auto& launch) {
    launch.shape.head_dim = 68;
    launch.shape.padding = 12;
  });
  refused([](auto& launch) {
    launch.shape.head_dim = 264;
    launch.shape.padding = 0;
  });
  refused([](auto& launch) { launch.shape.kv_heads = 0; });
  refused([](auto& launch) { launch.shape.kv_heads = 65536; });
  refused([](auto& launch) { launch.layer.values = reinterpret_cast<void*>(8); });

  const auto both_refused = [&](const auto& change) {
    StepArrays changed_step = step;
    KvMoveParams changed_rebase = rebase;
    change(changed_step.rope);
    change(changed_rebase.rope);
    CHECK(launch_kv_append(append, changed_step, nullptr) == cudaErrorInvalidValue);
    CHECK(launch_kv_move(changed_rebase, nullptr) == cudaErrorInvalidValue);
  };
  both_refused([](RopeTable& rope) { rope.rotary_dim = 63; });
  both_refused([](RopeTable& rope) { rope.rotary_dim = 74; });
  both_refused([](RopeTable& rope) { rope.rotary_dim = -2; });
  both_refused([](RopeTable& rope) { rope.sin = reinterpret_cast<const float*>(4); });
  append.rows = -1;
  CHECK(launch_kv_append(append, step, nullptr) == cudaErrorInvalidValue);
  append.rows = std::int64_t{1} << 40;
  CHECK(launch_kv_append(append, step, nullptr) == cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hogwild::cuda

HOGWILD_TEST_MAIN
