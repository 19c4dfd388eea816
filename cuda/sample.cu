// logits -> token, one CTA per row: SampleParams of device/ops.h without sorting the vocabulary.
//
// A cut in the order of descending logits (equal ones by ascending id) is found by radix selection: logits as
// ordered 32-bit keys, eight bits at a time, with a histogram of what has the bits chosen so far. Top-k counts
// tokens, top-p adds their weights. Weights are 24.40 fixed point where they are added: sums of integers do
// not depend on their order, so neither does the token.
#include <climits>
#include <cmath>

#include "kernels.h"
#include "reduce.cuh"
#include "simt/simt.h"

namespace hogwild::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
// Said to the compiler, which would otherwise spill some registers for the sake of more.
constexpr int kCtasPerMultiprocessor = 2;
constexpr int kRadixBits = 8;
constexpr int kBins = 1 << kRadixBits;

using Mass = unsigned long long;     // (the type that CUDA's atomics take)
constexpr float kOneMass = 0x1p40f;  // of the likeliest token; 2^24 of them do not overflow

struct Shared {
  Mass bins[kBins];
  Mass masses[kThreads];  // of threads, or of warps
  int flags[kWarps];
  Mass rest;  // what one thread found out for all
  unsigned key;
  long long id;
};

struct Best {
  float value;
  long long id;
};

// Ordered like the values, -0 being 0.
SIMT_DEVICE unsigned ordered_key(float value) {
  const float normal = value + 0.f;
  unsigned bits;
  memcpy(&bits, &normal, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The last token that stays, see SampleRow.
struct Cut {
  unsigned key = 0;
  long long id = LLONG_MAX;

  SIMT_DEVICE bool keeps(unsigned other, long long other_id) const {
    return other > key || (other == key && other_id <= id);
  }
};

// The first token of the order and whether NaN or +inf was met. In all threads.
SIMT_DEVICE Best find_best(const float* logits, long long vocab, Shared& shared, bool& is_bad) {
  Mass best = 0;  // the key above, the id, as lower is better, below
  int bad = 0;
  for (long long id = threadIdx.x; id < vocab; id += kThreads) {
    const float value = logits[id];
    bad |= !(value < INFINITY);
    best = max(best, static_cast<Mass>(ordered_key(value)) << 32 | (0xffffffffu - static_cast<unsigned>(id)));
  }
  __syncthreads();
  best = block_reduce<kThreads>(best, shared.masses, [](Mass a, Mass b) { return max(a, b); });
  is_bad = block_reduce<kThreads>(bad, shared.flags, [](int a, int b) { return a | b; }) != 0;
  const long long id = 0xffffffffu - static_cast<unsigned>(best);
  return {logits[id], id};
}

// Sum of mass_of(id) over the vocabulary, in all threads.
template <typename MassOf>
SIMT_DEVICE Mass total_mass(long long vocab, Shared& shared, MassOf&& mass_of) {
  Mass sum = 0;
  for (long long id = threadIdx.x; id < vocab; id += kThreads) sum += mass_of(id);
  __syncthreads();
  return block_sum<kThreads>(sum, shared.masses);
}

// The least id up to which, in ascending order, there is more mass than `target`, which is less than the
// total. In all threads.
template <typename MassOf>
SIMT_DEVICE long long find_in_order(long long vocab, Mass target, Shared& shared, MassOf&& mass_of) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // First a run of ids for each warp ...
  const long long run = (vocab + kWarps - 1) / kWarps;
  const long long run_end = min((warp + 1) * run, vocab);
  Mass sum = 0;
  for (long long id = warp * run + lane; id < run_end; id += 32) sum += mass_of(id);
  sum = warp_sum(sum);
  __syncthreads();
  if (lane == 0) shared.masses[warp] = sum;
  __syncthreads();
  Mass before = 0;
  int found = 0;
  while (found < kWarps - 1 && before + shared.masses[found] <= target) before += shared.masses[found++];
  __syncthreads();
  // ... then in the one with the token a piece for each thread ...
  const long long first = found * run;
  const long long end = min(first + run, vocab);
  const long long piece = (run + kThreads - 1) / kThreads;
  const long long piece_first = first + threadIdx.x * piece;
  const long long piece_end = min(piece_first + piece, end);
  sum = 0;
  for (long long id = piece_first; id < piece_end; ++id) sum += mass_of(id);
  shared.masses[threadIdx.x] = sum;
  __syncthreads();
  for (int distance = 1; distance < kThreads; distance *= 2) {  // inclusive scan (Hillis and Steele 1986)
    const Mass lower = threadIdx.x >= static_cast<unsigned>(distance) ? shared.masses[threadIdx.x - distance] : 0;
    __syncthreads();
    shared.masses[threadIdx.x] += lower;
    __syncthreads();
  }
  // ... and the thread that has it walks.
  Mass upto = before + shared.masses[threadIdx.x] - sum;
  if (upto <= target && target < upto + sum) {
    long long id = piece_first;
    while ((upto += mass_of(id)) <= target) ++id;
    shared.id = id;
  }
  __syncthreads();
  return shared.id;
}

// The cut behind the least number of tokens that together have the mass `wanted`, 1 <= wanted <= total.
template <typename MassOf>
SIMT_DEVICE Cut find_cut(const float* logits, long long vocab, Mass wanted, Shared& shared, MassOf&& mass_of) {
  unsigned prefix = 0;  // the bits of the cut's key so far
  Mass rest = wanted;   // of those with just these bits
  for (int shift = 32 - kRadixBits; shift >= 0; shift -= kRadixBits) {
    __syncthreads();
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) shared.bins[bin] = 0;
    __syncthreads();
    for (long long id = threadIdx.x; id < vocab; id += kThreads) {
      const unsigned key = ordered_key(logits[id]);
      // (a shift by 32 is undefined: the first round has no prefix yet)
      if (shift + kRadixBits < 32 && key >> (shift + kRadixBits) != prefix) continue;
      const Mass mass = mass_of(id);
      if (mass > 0) atomicAdd(&shared.bins[key >> shift & (kBins - 1)], mass);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int bin = kBins - 1;
      while (bin > 0 && shared.bins[bin] < rest) rest -= shared.bins[bin--];
      shared.key = prefix << kRadixBits | static_cast<unsigned>(bin);
      shared.rest = rest;
    }
    __syncthreads();
    prefix = shared.key;
    rest = shared.rest;
  }
  // Of tokens with the same logit those with the lowest ids stay, as many as it takes.
  const long long last = find_in_order(
      vocab, rest - 1, shared, [&](long long id) { return ordered_key(logits[id]) == prefix ? mass_of(id) : Mass{0}; });
  return {prefix, last};
}

SIMT_DEVICE bool is_penalised(const SampleRow& row) { return row.repetition_penalty != 1.f && row.n_seen > 0; }

// Where a row's logits lie: the raw ones, or its copy with penalties in the workspace.
SIMT_DEVICE const float* raw_logits(const SampleLaunch& p, const SampleRow& row) {
  return p.logits + static_cast<std::size_t>(row.logits_row) * p.vocab;
}
SIMT_DEVICE float* adjusted_logits(const SampleLaunch& p) {
  return static_cast<float*>(p.workspace) + static_cast<std::size_t>(blockIdx.x) * p.vocab;
}

// A kernel of its own: a division in the other one would cost all of it registers.
__global__ void __launch_bounds__(kThreads, kCtasPerMultiprocessor)
    penalize_rows(const __grid_constant__ SampleLaunch p) {
  const SampleRow row = p.rows[blockIdx.x];
  if (!is_penalised(row) && row.n_forbidden == 0) return;
  const float* raw = raw_logits(p, row);
  float* logits = adjusted_logits(p);
  for (long long id = threadIdx.x; id < p.vocab; id += kThreads) logits[id] = raw[id];
  __syncthreads();
  if (is_penalised(row)) {
    // From the raw logit: an id that was seen twice is penalised once (whichever thread comes last).
    for (int i = static_cast<int>(threadIdx.x); i < row.n_seen; i += kThreads) {
      const int id = p.ids[row.first_seen + i];
      atomicExch(&logits[id], raw[id] > 0.f ? raw[id] / row.repetition_penalty : raw[id] * row.repetition_penalty);
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < row.n_forbidden; i += kThreads) {
    atomicExch(&logits[p.ids[row.first_forbidden + i]], -INFINITY);
  }
}

__global__ void __launch_bounds__(kThreads, kCtasPerMultiprocessor)
    sample_rows(const __grid_constant__ SampleLaunch p) {
  SIMT_SHARED_MEMORY(memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const SampleRow row = p.rows[blockIdx.x];
  SampledRow& sampled = p.sampled[blockIdx.x];
  const float* raw = raw_logits(p, row);
  const auto refuse = [&sampled](SampleStatus status) {
    if (threadIdx.x == 0) sampled = {0, 0.f, status};
  };

  bool is_bad;
  const Best raw_best = find_best(raw, p.vocab, shared, is_bad);
  if (is_bad) return refuse(SampleStatus::kNotANumber);
  if (raw_best.value == -INFINITY) return refuse(SampleStatus::kNothingFinite);
  const float* logits = is_penalised(row) || row.n_forbidden > 0 ? adjusted_logits(p) : raw;
  const Best best = logits == raw ? raw_best : find_best(logits, p.vocab, shared, is_bad);
  if (is_bad) return refuse(SampleStatus::kPenaltyOverflows);
  if (best.value == -INFINITY) return refuse(SampleStatus::kAllForbidden);

  long long token = best.id;
  if (row.temperature > 0.f) {
    // (finite even where the quotient is not: infinity times the best logit's distance of 0 would be NaN)
    const float factor = fminf(1.f / row.temperature, 3.4028235e38f);
    const auto weight_of = [&](long long id) { return expf((logits[id] - best.value) * factor); };
    const auto mass_of = [&](long long id) { return static_cast<Mass>(weight_of(id) * kOneMass); };
    Cut cut;
    if (row.top_k > 0 && row.top_k < p.vocab) {
      cut = find_cut(logits, p.vocab, static_cast<Mass>(row.top_k), shared, [](long long) { return Mass{1}; });
    }
    const auto kept_mass_of = [&](long long id) {
      return cut.keeps(ordered_key(logits[id]), id) ? mass_of(id) : Mass{0};
    };
    if (row.top_p < 1.f) {
      const Mass total = total_mass(p.vocab, shared, kept_mass_of);
      const Mass wanted = static_cast<Mass>(ceil(static_cast<double>(row.top_p) * static_cast<double>(total)));
      const Cut shorter = find_cut(logits, p.vocab, max(Mass{1}, min(wanted, total)), shared, kept_mass_of);
      cut = shorter;
    }
    const auto drawn_mass_of = [&](long long id) { return weight_of(id) >= row.min_p ? kept_mass_of(id) : Mass{0}; };
    const Mass total = total_mass(p.vocab, shared, drawn_mass_of);
    const Mass target = min(static_cast<Mass>(row.uniform * static_cast<double>(total)), total - 1);
    token = find_in_order(p.vocab, target, shared, drawn_mass_of);
  }
  const Mass sum = total_mass(
      p.vocab, shared, [&](long long id) { return static_cast<Mass>(expf(raw[id] - raw_best.value) * kOneMass); });
  if (threadIdx.x == 0) {
    const float log_sum = logf(static_cast<float>(sum) / kOneMass);
    sampled = {static_cast<std::int32_t>(token), raw[token] - raw_best.value - log_sum, SampleStatus::kOk};
  }
}

}  // namespace

// ---- launchers --------------------------------------------------------------------------------------

std::size_t sample_workspace_bytes(std::int64_t rows, std::int64_t vocab) {
  return static_cast<std::size_t>(rows) * static_cast<std::size_t>(vocab) * sizeof(float);
}

cudaError_t launch_sample(const SampleLaunch& launch, cudaStream_t stream) {
  // 2^24 weights of at most 1 fit a Mass.
  if (launch.vocab < 1 || launch.vocab > 1 << 24 || launch.n < 0 || launch.n > INT_MAX) return cudaErrorInvalidValue;
  if (launch.n == 0) return cudaSuccess;
  const cudaError_t error =
      SIMT_LAUNCH(penalize_rows, dim3(static_cast<unsigned>(launch.n)), dim3(kThreads), 0, stream, launch);
  if (error != cudaSuccess) return error;
  return SIMT_LAUNCH(sample_rows, dim3(static_cast<unsigned>(launch.n)), dim3(kThreads), sizeof(Shared), stream,
                     launch);
}

}  // namespace hogwild::cuda
