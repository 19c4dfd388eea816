// logits -> token: SampleParams of device/ops.h without sorting the vocabulary.
//
// A row's vocabulary is cut into *slices*, a CTA each, and the work into kernels one after another, so that all that
// CTAs tell each other passes through memory between two launches:
//
//   find_best    per slice: penalties and bans, the greatest logit, whether one is not a number
//   add_bins     per slice, up to six times: a histogram of the logits' next digit, for top-k, then for top-p
//   add_masses   per slice: what is left to draw from
//   draw         per row: the slice with the token, then the token
//
// A cut in the order of descending logits (equal ones by ascending id) is found by radix selection: logits as
// ordered 32-bit keys, a digit at a time, with a histogram of what has the digits chosen so far. Top-k counts
// tokens, top-p adds their weights. Weights are 24.40 fixed point where they are added: sums of integers do
// not depend on their order, so neither does the token.
#include <climits>
#include <cmath>

#include "core/limits.h"
#include "kernels.h"
#include "reduce.cuh"
#include "simt/simt.h"

namespace hogwild::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kSlice = 4096;  // tokens
// Said to the compiler, which would otherwise spill some registers for the sake of more CTAs.
constexpr int kCtasPerMultiprocessor = 2;

// Eleven bits spread a binade over four bins: few lanes of a warp meet in one.
constexpr int kRounds = 3;
constexpr int kBins = 1 << 11;
SIMT_HOST_DEVICE constexpr int round_shift(int round) { return round == 0 ? 21 : round == 1 ? 10 : 0; }
SIMT_HOST_DEVICE constexpr int round_bins(int round) { return round == 2 ? kBins / 2 : kBins; }

using Mass = unsigned long long;     // (the type that CUDA's atomics take)
constexpr float kOneMass = 0x1p40f;  // of the likeliest token
static_assert(kMaxVocab < (std::int64_t{1} << 24), "a sum of masses does not overflow");

// The cuts of a row: by top-k, then by top-p.
enum CutKind { kTopK, kTopP };
constexpr int kCuts = 2;

// How far the search for a cut has come before a round.
struct Progress {
  unsigned prefix;  // the digits of the cut's key so far
  Mass rest;        // what is still wanted of the tokens with just these digits
};

// A row's part of the workspace, before what each slice has.
struct RowWork {
  Mass bins[kCuts][kRounds][kBins];
  Progress progress[kCuts][kRounds];  // [.][0] unused: a search begins with nothing
};
struct SliceWork {
  Mass raw_best, best;  // Best::packed, before and behind the penalties
  int flags;            // kBadLogit, kBadPenalty
  Mass raw_mass;        // of all tokens, by the raw logits
  Mass mass;            // of those above the cut
  unsigned ties;        // tokens whose key is the cut's
};
constexpr int kBadLogit = 1, kBadPenalty = 2;  // NaN or +inf, of a model's raw logits also -inf

struct Arguments {
  SampleLaunch launch;
  int slices;
  RowWork* rows;     // [n]
  SliceWork* parts;  // [n, slices]
  float* adjusted;   // [n, V]: logits behind the penalties, of rows that have any
};

struct Shared {
  unsigned low[kBins], high[kBins];  // halves of masses: 64-bit additions to shared memory would be loops
  Mass scratch[kWarps];
  int flags[kWarps];
  Mass rest;  // what one thread found out for all
  unsigned bin;
  long long index;
  unsigned ties;
};

// Ordered like the values, -0 being 0.
SIMT_DEVICE unsigned ordered_key(float value) {
  const float normal = value + 0.f;
  unsigned bits;
  memcpy(&bits, &normal, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
SIMT_DEVICE float value_of(unsigned key) {
  const unsigned bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The first token of the order: the key above, the id, as lower is better, below.
SIMT_DEVICE Mass pack_best(float value, long long id) {
  return static_cast<Mass>(ordered_key(value)) << 32 | (0xffffffffu - static_cast<unsigned>(id));
}
SIMT_DEVICE long long best_id(Mass packed) { return 0xffffffffu - static_cast<unsigned>(packed); }
SIMT_DEVICE float best_value(Mass packed) { return value_of(static_cast<unsigned>(packed >> 32)); }

// Tokens that stay: those with a greater key, and the first `ties` with just this one, by ascending id.
struct Cut {
  unsigned key = 0;  // less than that of any number
  unsigned ties = 0;
};

// The tokens of a slice.
struct Range {
  long long begin, end;
};
SIMT_DEVICE Range slice_range(const Arguments& p, int slice) {
  const long long begin = static_cast<long long>(slice) * kSlice;
  return {begin, min(begin + kSlice, static_cast<long long>(p.launch.vocab))};
}

SIMT_DEVICE bool is_adjusted(const SampleRow& row) { return row.n_seen > 0 || row.n_forbidden > 0; }
SIMT_DEVICE bool has_cut(const Arguments& p, const SampleRow& row, int kind) {
  if (row.temperature <= 0.f) return false;
  return kind == kTopK ? row.top_k > 0 && row.top_k < p.launch.vocab : row.top_p < 1.f;
}

SIMT_DEVICE const float* raw_logits(const Arguments& p, const SampleRow& row) {
  return p.launch.logits + static_cast<std::size_t>(row.logits_row) * p.launch.vocab;
}
SIMT_DEVICE float* adjusted_logits(const Arguments& p) {
  return p.adjusted + static_cast<std::size_t>(blockIdx.x) * p.launch.vocab;
}
SIMT_DEVICE SliceWork* slices_of_row(const Arguments& p) {
  return p.parts + static_cast<std::size_t>(blockIdx.x) * p.slices;
}

// ---- find_best --------------------------------------------------------------------------------------

SIMT_DEVICE void adjust(const Arguments& p, const SampleRow& row, Range range) {
  const float* raw = raw_logits(p, row);
  float* logits = adjusted_logits(p);
  const auto inside = [range](int id) { return range.begin <= id && id < range.end; };
  for (long long id = range.begin + threadIdx.x; id < range.end; id += kThreads) logits[id] = raw[id];
  __syncthreads();
  // From the raw logit: an id that is listed twice is penalised once (whichever thread comes last). The product is
  // rounded before the difference is, as on the CPU.
  for (int i = static_cast<int>(threadIdx.x); i < row.n_seen; i += kThreads) {
    const SeenToken seen = p.launch.seen[row.first_seen + i];
    if (!inside(seen.id)) continue;
    const float logit = raw[seen.id];
    const float repeated = logit > 0.f ? logit / row.repetition_penalty : __fmul_rn(logit, row.repetition_penalty);
    atomicExch(&logits[seen.id], repeated - seen.subtracted);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < row.n_forbidden; i += kThreads) {
    const int id = p.launch.forbidden[row.first_forbidden + i];
    if (inside(id)) atomicExch(&logits[id], -INFINITY);
  }
}

SIMT_DEVICE Mass best_of(const float* logits, Range range, float least, Shared& shared, bool& is_bad) {
  Mass best = 0;
  int bad = 0;
  for (long long id = range.begin + threadIdx.x; id < range.end; id += kThreads) {
    const float value = logits[id];
    bad |= !(least <= value && value < INFINITY);
    best = max(best, pack_best(value, id));
  }
  is_bad = block_reduce<kThreads>(bad, shared.flags, [](int a, int b) { return a | b; }) != 0;
  return block_reduce<kThreads>(best, shared.scratch, [](Mass a, Mass b) { return max(a, b); });
}

__global__ void __launch_bounds__(kThreads, kCtasPerMultiprocessor) find_best(const __grid_constant__ Arguments p) {
  simt::follow_preceding();
  SIMT_SHARED_MEMORY(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const SampleRow row = p.launch.rows[blockIdx.x];
  const int slice = static_cast<int>(blockIdx.y);
  const Range range = slice_range(p, slice);
  // The histograms of the kernels to come.
  Mass* bins = &p.rows[blockIdx.x].bins[0][0][0];
  for (int bin = slice * kThreads + static_cast<int>(threadIdx.x); bin < kCuts * kRounds * kBins;
       bin += p.slices * kThreads) {
    bins[bin] = 0;
  }
  if (is_adjusted(row)) adjust(p, row, range);
  bool is_bad = false, is_overflow = false;
  const float least = p.launch.finite ? -3.4028235e38f : -INFINITY;
  // (Its barriers also order what is read next with what `adjust` has written.)
  const Mass raw_best = best_of(raw_logits(p, row), range, least, shared, is_bad);
  const Mass best = is_adjusted(row) ? best_of(adjusted_logits(p), range, -INFINITY, shared, is_overflow) : raw_best;
  if (threadIdx.x != 0) return;
  SliceWork& part = slices_of_row(p)[slice];
  part.raw_best = raw_best;
  part.best = best;
  part.flags = (is_bad ? kBadLogit : 0) | (is_overflow ? kBadPenalty : 0);
}

// What find_best found in all slices. In all threads.
struct RowBest {
  Mass raw, adjusted;
  SampleStatus status;
};
SIMT_DEVICE RowBest row_best(const Arguments& p, Shared& shared) {
  const SliceWork* parts = slices_of_row(p);
  RowBest best = {0, 0, SampleStatus::kOk};
  int flags = 0;
  for (int slice = static_cast<int>(threadIdx.x); slice < p.slices; slice += kThreads) {
    best.raw = max(best.raw, parts[slice].raw_best);
    best.adjusted = max(best.adjusted, parts[slice].best);
    flags |= parts[slice].flags;
  }
  const auto greater = [](Mass a, Mass b) { return max(a, b); };
  flags = block_reduce<kThreads>(flags, shared.flags, [](int a, int b) { return a | b; });
  best.raw = block_reduce<kThreads>(best.raw, shared.scratch, greater);
  __syncthreads();
  best.adjusted = block_reduce<kThreads>(best.adjusted, shared.scratch, greater);
  __syncthreads();
  if (flags & kBadLogit) {
    best.status = SampleStatus::kNotANumber;
  } else if (best_value(best.raw) == -INFINITY) {
    best.status = SampleStatus::kNothingFinite;
  } else if (flags & kBadPenalty) {
    best.status = SampleStatus::kPenaltyOverflows;
  } else if (best_value(best.adjusted) == -INFINITY) {
    best.status = SampleStatus::kAllForbidden;
  }
  return best;
}

// The probability of a token relative to that of the likeliest one.
struct Weights {
  float best, factor;

  SIMT_DEVICE Weights(const SampleRow& row, const RowBest& of)
      // (finite even where the quotient is not: infinity times the best logit's distance of 0 would be NaN)
      : best(best_value(of.adjusted)), factor(fminf(1.f / row.temperature, 3.4028235e38f)) {}
  SIMT_DEVICE float weight(float logit) const { return expf((logit - best) * factor); }
  SIMT_DEVICE Mass mass(float logit) const { return static_cast<Mass>(weight(logit) * kOneMass); }
};

// ---- cuts -------------------------------------------------------------------------------------------

// Of the bins from the greatest down: that in which the sum reaches `wanted`, and what of `wanted` is left for it.
// `wanted_of(total)`. In all threads.
template <typename WantedOf>
SIMT_DEVICE Progress select_bin(const Mass* bins, Shared& shared, WantedOf&& wanted_of) {
  constexpr int kPerThread = kBins / kThreads;
  const int first = kBins - 1 - static_cast<int>(threadIdx.x) * kPerThread;
  Mass own[kPerThread];
  Mass sum = 0;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) sum += own[i] = bins[first - i];
  Mass total;
  const Mass before = block_exclusive_sum<kThreads>(sum, shared.scratch, total);
  const Mass wanted = wanted_of(total);
  if (before < wanted && wanted <= before + sum) {
    Mass rest = wanted - before;
    bool is_found = false;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (!is_found && own[i] >= rest) {
        is_found = true;
        shared.bin = static_cast<unsigned>(first - i);
        shared.rest = rest;
      }
      rest -= own[i];
    }
  }
  __syncthreads();
  return {shared.bin, shared.rest};  // which the next call does not change before its barriers
}

// The progress before round `round`, from that before the round before and what the round before counted.
SIMT_DEVICE Progress advance(const Arguments& p, const SampleRow& row, int kind, int round, Shared& shared) {
  const RowWork& work = p.rows[blockIdx.x];
  const Progress before = round > 1 ? work.progress[kind][round - 1] : Progress{0, 0};
  const Progress selected = select_bin(work.bins[kind][round - 1], shared, [&](Mass total) {
    if (round > 1) return before.rest;
    if (kind == kTopK) return static_cast<Mass>(row.top_k);
    const Mass wanted = static_cast<Mass>(ceil(static_cast<double>(row.top_p) * static_cast<double>(total)));
    return max(Mass{1}, min(wanted, total));
  });
  const unsigned digits = static_cast<unsigned>(round_bins(round - 1));
  return {before.prefix * digits + selected.prefix, selected.rest};
}

// The cut that add_bins has found.
SIMT_DEVICE Cut find_cut(const Arguments& p, const SampleRow& row, int kind, const Weights& weights, Shared& shared) {
  const Progress end = advance(p, row, kind, kRounds, shared);
  const Mass each = kind == kTopK ? 1 : weights.mass(value_of(end.prefix));
  return {end.prefix, static_cast<unsigned>((end.rest + each - 1) / each)};
}

// One digit of the search for one cut. What has other digits before it is left out, and in the search for top-p what
// is behind the cut of top-k.
__global__ void __launch_bounds__(kThreads, kCtasPerMultiprocessor)
    add_bins(const __grid_constant__ Arguments p, int kind, int round) {
  simt::follow_preceding();
  SIMT_SHARED_MEMORY(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const SampleRow row = p.launch.rows[blockIdx.x];
  if (!has_cut(p, row, kind)) return;
  const RowBest best = row_best(p, shared);
  if (best.status != SampleStatus::kOk) return;
  const Weights weights(row, best);
  const int slice = static_cast<int>(blockIdx.y);
  const bool is_first = slice == 0 && threadIdx.x == 0;
  RowWork& work = p.rows[blockIdx.x];

  unsigned prefix = 0;
  if (round > 0) {
    const Progress progress = advance(p, row, kind, round, shared);
    if (is_first) work.progress[kind][round] = progress;
    prefix = progress.prefix;
  }
  Cut outer;
  if (kind == kTopP && has_cut(p, row, kTopK)) outer = find_cut(p, row, kTopK, weights, shared);

  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) shared.low[bin] = shared.high[bin] = 0;
  __syncthreads();
  const int shift = round_shift(round);
  const unsigned last_bin = static_cast<unsigned>(round_bins(round)) - 1;
  // (a shift by 32 is undefined: the first round has no prefix yet)
  const auto is_inside = [&](unsigned key) { return round == 0 || key >> (shift + (round == 1 ? 11 : 10)) == prefix; };
  const auto add = [&](unsigned key, Mass mass) {
    const unsigned bin = key >> shift & last_bin;
    const unsigned low = static_cast<unsigned>(mass);
    const unsigned carry = atomicAdd(&shared.low[bin], low) + low < low ? 1 : 0;
    const unsigned high = static_cast<unsigned>(mass >> 32) + carry;
    if (high > 0) atomicAdd(&shared.high[bin], high);
  };
  const float* logits = is_adjusted(row) ? adjusted_logits(p) : raw_logits(p, row);
  const Range range = slice_range(p, slice);
  for (long long id = range.begin + threadIdx.x; id < range.end; id += kThreads) {
    const unsigned key = ordered_key(logits[id]);
    if (key <= outer.key || !is_inside(key)) continue;
    const Mass mass = kind == kTopK ? 1 : weights.mass(logits[id]);
    if (mass > 0) add(key, mass);
  }
  // Which of the equal ones stay is the draw's business; how many do is known.
  if (is_first && outer.ties > 0 && is_inside(outer.key)) {
    atomicAdd(&work.bins[kind][round][outer.key >> shift & last_bin], outer.ties * weights.mass(value_of(outer.key)));
  }
  __syncthreads();
  for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) {
    const Mass mass = static_cast<Mass>(shared.high[bin]) << 32 | shared.low[bin];
    if (mass > 0) atomicAdd(&work.bins[kind][round][bin], mass);
  }
}

// ---- the draw ---------------------------------------------------------------------------------------

SIMT_DEVICE Cut last_cut(const Arguments& p, const SampleRow& row, const Weights& weights, Shared& shared) {
  if (has_cut(p, row, kTopP)) return find_cut(p, row, kTopP, weights, shared);
  if (has_cut(p, row, kTopK)) return find_cut(p, row, kTopK, weights, shared);
  return {};
}

// Of a token that is above the cut, or would be if it were.
SIMT_DEVICE Mass drawn_mass(const SampleRow& row, const Weights& weights, float logit) {
  const float weight = weights.weight(logit);
  return weight >= row.min_p ? static_cast<Mass>(weight * kOneMass) : 0;
}

__global__ void __launch_bounds__(kThreads, kCtasPerMultiprocessor) add_masses(const __grid_constant__ Arguments p) {
  simt::follow_preceding();
  SIMT_SHARED_MEMORY(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const SampleRow row = p.launch.rows[blockIdx.x];
  const RowBest best = row_best(p, shared);
  if (best.status != SampleStatus::kOk) return;
  const int slice = static_cast<int>(blockIdx.y);
  SliceWork& part = slices_of_row(p)[slice];
  const Range range = slice_range(p, slice);
  const float* raw = raw_logits(p, row);
  const float raw_best = best_value(best.raw);
  Mass raw_mass = 0;
  for (long long id = range.begin + threadIdx.x; id < range.end; id += kThreads) {
    raw_mass += static_cast<Mass>(expf(raw[id] - raw_best) * kOneMass);
  }
  raw_mass = block_sum<kThreads>(raw_mass, shared.scratch);
  if (threadIdx.x == 0) part.raw_mass = raw_mass;
  if (row.temperature <= 0.f) return;

  __syncthreads();
  const Weights weights(row, best);
  const Cut cut = last_cut(p, row, weights, shared);
  const float* logits = is_adjusted(row) ? adjusted_logits(p) : raw;
  Mass mass = 0;
  Mass ties = 0;
  for (long long id = range.begin + threadIdx.x; id < range.end; id += kThreads) {
    const unsigned key = ordered_key(logits[id]);
    if (key > cut.key) mass += drawn_mass(row, weights, logits[id]);
    if (key == cut.key) ++ties;
  }
  mass = block_sum<kThreads>(mass, shared.scratch);
  __syncthreads();
  ties = block_sum<kThreads>(ties, shared.scratch);
  if (threadIdx.x == 0) {
    part.mass = mass;
    part.ties = static_cast<unsigned>(ties);
  }
}

// Where in a row of items, in order, there is for the first time more mass than the target. An item has a mass of its
// own and ties; the first ties of all have a mass each.
struct Found {
  long long index;
  Mass rest;             // of the target, inside the item
  unsigned ties_before;  // those of earlier items
};
template <typename MassOf, typename TiesOf, typename TargetOf>
SIMT_DEVICE Found find_in_order(long long n, Cut cut, Mass tie_mass, Shared& shared, MassOf&& mass_of, TiesOf&& ties_of,
                                TargetOf&& target_of) {
  const long long piece = (n + kThreads - 1) / kThreads;
  const long long first = min(static_cast<long long>(threadIdx.x) * piece, n);
  const long long end = min(first + piece, n);
  Mass ties = 0;
  for (long long i = first; i < end; ++i) ties += ties_of(i);
  Mass all_ties;
  const Mass ties_before = block_exclusive_sum<kThreads>(ties, shared.scratch, all_ties);
  // Calls visit(item, its mass, the ties before it) for this thread's items until that returns true.
  const auto walk = [&](auto&& visit) {
    Mass seen = ties_before;
    for (long long i = first; i < end; ++i) {
      const Mass own = ties_of(i);
      const Mass kept = min(seen + own, static_cast<Mass>(cut.ties)) - min(seen, static_cast<Mass>(cut.ties));
      if (visit(i, mass_of(i) + kept * tie_mass, seen)) return;
      seen += own;
    }
  };
  Mass sum = 0;
  walk([&](long long, Mass mass, Mass) {
    sum += mass;
    return false;
  });
  Mass total;
  const Mass before = block_exclusive_sum<kThreads>(sum, shared.scratch, total);
  const Mass target = target_of(total);
  if (before <= target && target < before + sum) {
    Mass upto = before;
    walk([&](long long i, Mass mass, Mass seen) {
      if (target < upto + mass) {
        shared.index = i;
        shared.rest = target - upto;
        shared.ties = static_cast<unsigned>(seen);
        return true;
      }
      upto += mass;
      return false;
    });
  }
  __syncthreads();
  return {shared.index, shared.rest, shared.ties};  // which the next call does not change before its barriers
}

__global__ void __launch_bounds__(kThreads, kCtasPerMultiprocessor) draw(const __grid_constant__ Arguments p) {
  simt::follow_preceding();
  SIMT_SHARED_MEMORY(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const SampleRow row = p.launch.rows[blockIdx.x];
  SampledRow& sampled = p.launch.sampled[blockIdx.x];
  const RowBest best = row_best(p, shared);
  if (best.status != SampleStatus::kOk) {
    if (threadIdx.x == 0) sampled = {0, 0.f, best.status};
    return;
  }
  const SliceWork* parts = slices_of_row(p);
  const float* raw = raw_logits(p, row);
  long long token = best_id(best.adjusted);
  if (row.temperature > 0.f) {
    const float* logits = is_adjusted(row) ? adjusted_logits(p) : raw;
    const Weights weights(row, best);
    Cut cut = last_cut(p, row, weights, shared);
    const Mass tie_mass = cut.ties > 0 ? drawn_mass(row, weights, value_of(cut.key)) : 0;
    const Found slice = find_in_order(
        p.slices, cut, tie_mass, shared, [&](long long i) { return parts[i].mass; },
        [&](long long i) { return Mass{parts[i].ties}; },
        [&](Mass total) { return min(static_cast<Mass>(row.uniform * static_cast<double>(total)), total - 1); });
    cut.ties -= min(cut.ties, slice.ties_before);
    const Range range = slice_range(p, static_cast<int>(slice.index));
    const float* first = logits + range.begin;
    const Found found = find_in_order(
        range.end - range.begin, cut, tie_mass, shared,
        [&](long long i) { return ordered_key(first[i]) > cut.key ? drawn_mass(row, weights, first[i]) : Mass{0}; },
        [&](long long i) { return Mass{ordered_key(first[i]) == cut.key}; }, [&](Mass) { return slice.rest; });
    token = range.begin + found.index;
  }
  Mass raw_mass = 0;
  for (int slice = static_cast<int>(threadIdx.x); slice < p.slices; slice += kThreads)
    raw_mass += parts[slice].raw_mass;
  raw_mass = block_sum<kThreads>(raw_mass, shared.scratch);
  if (threadIdx.x == 0) {
    const float log_sum = logf(static_cast<float>(raw_mass) / kOneMass);
    sampled = {static_cast<std::int32_t>(token), raw[token] - best_value(best.raw) - log_sum, SampleStatus::kOk};
  }
}

}  // namespace

// ---- launchers --------------------------------------------------------------------------------------

namespace {

struct Workspace {
  std::size_t parts, adjusted, bytes;  // offsets from the rows, and the size of all
};

int slices_of(std::int64_t vocab) { return static_cast<int>((vocab + kSlice - 1) / kSlice); }

Workspace lay_out(std::int64_t rows, std::int64_t vocab) {
  const auto n = static_cast<std::size_t>(rows);
  Workspace workspace;
  workspace.parts = n * sizeof(RowWork);
  workspace.adjusted = workspace.parts + n * static_cast<std::size_t>(slices_of(vocab)) * sizeof(SliceWork);
  workspace.bytes = workspace.adjusted + n * static_cast<std::size_t>(vocab) * sizeof(float);
  return workspace;
}

}  // namespace

std::size_t sample_workspace_bytes(std::int64_t rows, std::int64_t vocab) { return lay_out(rows, vocab).bytes; }

cudaError_t launch_sample(const SampleLaunch& launch, KernelStream stream) {
  if (launch.vocab < 1 || launch.vocab > kMaxVocab || launch.n < 0 || launch.n > INT_MAX) return cudaErrorInvalidValue;
  if (launch.n == 0) return cudaSuccess;
  const Workspace workspace = lay_out(launch.n, launch.vocab);
  unsigned char* memory = static_cast<unsigned char*>(launch.workspace);
  Arguments p;
  p.launch = launch;
  p.slices = slices_of(launch.vocab);
  p.rows = reinterpret_cast<RowWork*>(memory);
  p.parts = reinterpret_cast<SliceWork*>(memory + workspace.parts);
  p.adjusted = reinterpret_cast<float*>(memory + workspace.adjusted);
  const dim3 each_row(static_cast<unsigned>(launch.n));
  const dim3 each_slice(static_cast<unsigned>(launch.n), static_cast<unsigned>(p.slices));
  const dim3 threads(kThreads);
  cudaError_t error = SIMT_LAUNCH(find_best, each_slice, threads, sizeof(Shared), stream, p);
  for (const int kind : {kTopK, kTopP}) {
    if (kind == kTopK ? !launch.any_top_k : !launch.any_top_p) continue;
    for (int round = 0; round < kRounds && error == cudaSuccess; ++round) {
      error = SIMT_LAUNCH(add_bins, each_slice, threads, sizeof(Shared), stream, p, kind, round);
    }
  }
  if (error == cudaSuccess) error = SIMT_LAUNCH(add_masses, each_slice, threads, sizeof(Shared), stream, p);
  if (error == cudaSuccess) error = SIMT_LAUNCH(draw, each_row, threads, sizeof(Shared), stream, p);
  return error;
}

}  // namespace hogwild::cuda
