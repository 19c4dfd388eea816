// Operations of a warp: the lanes of a mask meet, the last to arrive executes for all.
#include <cstdio>
#include <cstring>

#include "simt/machine.h"

namespace simt {
namespace {

bool same_site(Site a, Site b) {
  return a.line() == b.line() && a.column() == b.column() && a.file_name() == b.file_name();
}

void meet(unsigned mask, ExecuteForWarp execute, void* argument, const char* name, Site site) {
  Thread& thread = current_thread();
  Warp& warp = machine().warps[thread.warp];
  const unsigned lane_bit = 1u << thread.lane;
  ++stats.warp_operations;
  if ((mask & lane_bit) == 0) fail("warp operation: the calling lane is not in its own mask", site);

  int index = 0;
  for (; index < warp.n_operations; ++index) {
    if (warp.operations[index].mask == mask) break;
    if ((warp.operations[index].mask & mask) != 0) fail("warp operation: lanes disagree about the mask", site);
  }
  WarpOperation& operation = warp.operations[index];
  if (index == warp.n_operations) {
    if ((warp.alive & mask) != mask) fail("warp operation: the mask names lanes that exited or do not exist", site);
    if (index == kMaxWarpOperations) fail("warp operation: too many disjoint masks at once", site);
    ++warp.n_operations;
    operation.mask = mask;
    operation.arrived = 0;
    operation.execute = execute;
    operation.site = site;
  } else if (operation.execute != execute || !same_site(operation.site, site)) {
    char text[512];
    std::snprintf(text, sizeof text, "warp operation: lanes meet at different operations, others at %s:%u",
                  operation.site.file_name(), operation.site.line());
    fail(text, site);
  }

  operation.arguments[thread.lane] = argument;
  operation.arrived |= lane_bit;
  thread.waits_in = name;
  thread.waits_at = site;
  if (operation.arrived == mask) {
    execute(operation.arguments, mask);
    warp.ready |= mask;
    machine().warps_ready |= 1u << thread.warp;
    --warp.n_operations;
    if (index != warp.n_operations) operation = warp.operations[warp.n_operations];
  }
  schedule();
}

template <typename Visit>
void for_each_lane(unsigned mask, Visit visit) {
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) != 0) visit(lane);
  }
}

}  // namespace

void warp_barrier(unsigned mask, Site site) {
  [[maybe_unused]] Warp& warp = machine().warps[current->warp];
  [[maybe_unused]] const unsigned phase = warp.sync_phase & 1;
  SIMT_TSAN_ONLY(__tsan_release(&warp.tsan_sync[phase]);)
  meet(mask, [](void**, unsigned) { ++machine().warps[current->warp].sync_phase; }, nullptr, "__syncwarp", site);
  SIMT_TSAN_ONLY(__tsan_acquire(&warp.tsan_sync[phase]);)
}

std::uint64_t warp_exchange(unsigned mask, std::uint64_t value, int source_lane, Site site) {
  struct Argument {
    std::uint64_t value, received;
    int source_lane;
    Site site;
  };
  Argument argument{value, 0, source_lane, site};
  const auto execute = [](void** arguments, unsigned mask) {
    for_each_lane(mask, [&](int lane) {
      auto* receiver = static_cast<Argument*>(arguments[lane]);
      if ((mask >> receiver->source_lane & 1) == 0) {
        fail("shuffle: a lane reads a lane outside the mask", receiver->site);
      }
      receiver->received = static_cast<const Argument*>(arguments[receiver->source_lane])->value;
    });
  };
  meet(mask, execute, &argument, "a shuffle", site);
  return argument.received;
}

unsigned warp_ballot(unsigned mask, bool vote, Site site) {
  struct Argument {
    bool vote;
    unsigned result;
  };
  Argument argument{vote, 0};
  const auto execute = [](void** arguments, unsigned mask) {
    unsigned result = 0;
    for_each_lane(mask, [&](int lane) {
      if (static_cast<const Argument*>(arguments[lane])->vote) result |= 1u << lane;
    });
    for_each_lane(mask, [&](int lane) { static_cast<Argument*>(arguments[lane])->result = result; });
  };
  meet(mask, execute, &argument, "a vote", site);
  return argument.result;
}

// ---- ldmatrix ---------------------------------------------------------------------------------------

namespace {

// Shared memory serves 128 bytes at a time: a matrix takes one wavefront where its 8 rows of 16 bytes
// lie in 8 different bank groups. Rows with the same address count once.
unsigned extra_wavefronts(const void* const* rows) {
  unsigned in_group[8] = {};
  unsigned most = 1;
  for (int r = 0; r < 8; ++r) {
    bool repeated = false;
    for (int earlier = 0; earlier < r; ++earlier) repeated |= rows[earlier] == rows[r];
    const auto group = reinterpret_cast<std::uintptr_t>(rows[r]) / 16 % 8;
    if (!repeated && ++in_group[group] > most) most = in_group[group];
  }
  return most - 1;
}

}  // namespace

void warp_rows(const void* mine, const void* (&all)[32], Site site) {
  if (reinterpret_cast<std::uintptr_t>(mine) % 16 != 0) fail("ldmatrix: a row is not aligned to 16 bytes", site);
  if (!in_shared_memory(mine, 16)) fail("ldmatrix: a row is not inside dynamic shared memory", site);
  struct Argument {
    const void* mine;
    const void** all;
  };
  Argument argument{mine, all};
  const auto execute = [](void** arguments, unsigned) {
    const void* rows[kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane) rows[lane] = static_cast<const Argument*>(arguments[lane])->mine;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      std::memcpy(static_cast<Argument*>(arguments[lane])->all, rows, sizeof rows);
    }
    for (int matrix = 0; matrix < 4; ++matrix) stats.ldmatrix_conflicts += extra_wavefronts(rows + 8 * matrix);
    stats.ldmatrix += 4;
  };
  meet(kFullMask, execute, &argument, "ldmatrix", site);
}

// ---- mma --------------------------------------------------------------------------------------------

namespace {

// d += a b, k ascending. Products of two 16-bit floats are exact in f32, so it makes no difference
// whether the compiler fuses; tensor cores add in another order and cut low bits.
#if defined(__x86_64__) && defined(__linux__)
__attribute__((target_clones("avx2", "default")))
#endif
void multiply_accumulate(const float (&a)[16][16], const float (&b)[16][8], float (&d)[16][8]) {
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
}

}  // namespace

void warp_mma(float* d, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1, WidenElement to_f32, Site site) {
  struct Argument {
    float* d;
    const std::uint32_t* a;
    std::uint32_t b0, b1;
    WidenElement to_f32;
  };
  Argument argument{d, a, b0, b1, to_f32};
  const auto execute = [](void** arguments, unsigned) {
    alignas(32) float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const auto& from = *static_cast<const Argument*>(arguments[lane]);
      const auto low = [&](std::uint32_t pair) { return from.to_f32(static_cast<std::uint16_t>(pair)); };
      const auto high = [&](std::uint32_t pair) { return from.to_f32(static_cast<std::uint16_t>(pair >> 16)); };
      const int g = lane / 4;
      const int t = 2 * (lane % 4);
      for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i & 1);
        const int column = t + 8 * (i >> 1);
        a[row][column] = low(from.a[i]);
        a[row][column + 1] = high(from.a[i]);
      }
      b[t][g] = low(from.b0);
      b[t + 1][g] = high(from.b0);
      b[t + 8][g] = low(from.b1);
      b[t + 9][g] = high(from.b1);
      for (int i = 0; i < 4; ++i) d[g + 8 * (i >> 1)][t + (i & 1)] = from.d[i];
    }
    multiply_accumulate(a, b, d);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      float* to = static_cast<const Argument*>(arguments[lane])->d;
      for (int i = 0; i < 4; ++i) to[i] = d[lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)];
    }
    ++stats.mma;
  };
  meet(kFullMask, execute, &argument, "mma.sync", site);
}

}  // namespace simt
