// Mixtures of experts (ExpertsParams of device/ops.h) beside their products: which experts a row goes to, its copies
// side by side for each expert, and the weighted sum of what comes back.
#include <climits>
#include <cmath>
#include <limits>

#include "core/limits.h"
#include "dispatch.cuh"
#include "kernels.h"
#include "reduce.cuh"
#include "simt/simt.h"
#include "vector_load.cuh"

namespace hogwild::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// ---- choice -----------------------------------------------------------------------------------------

struct Choice {
  float logit;  // NaN counts as -infinity
  int expert;
};

// The order of select_experts (device/experts.h).
SIMT_DEVICE bool comes_before(const Choice& a, const Choice& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.expert < b.expert);
}

// A step may have fewer rows than it was captured for.
SIMT_DEVICE std::int64_t rows_of(const RoutingLaunch& p) {
  return p.n_rows == nullptr ? p.params.rows : min(p.params.rows, std::int64_t{simt::load_constant(p.n_rows)});
}

// A warp per row.
__global__ void __launch_bounds__(kThreads) choose_experts(const __grid_constant__ RoutingLaunch p, int n_experts) {
  simt::follow_preceding();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (row >= rows_of(p)) return;  // whole warps
  const int used = static_cast<int>(p.params.used);
  const float* logits = p.params.router_logits + row * n_experts;
  std::int32_t* chosen = p.experts + row * used;
  float* weights = p.weights + row * used;

  // The best of those behind the last one, again and again.
  Choice last = {kInfinity, -1};
  float max = 0;
  for (int j = 0; j < used; ++j) {
    Choice best = {-kInfinity, INT_MAX};
    for (int i = lane; i < n_experts; i += 32) {
      const float logit = logits[i];
      const Choice candidate = {logit == logit ? logit : -kInfinity, i};
      if (comes_before(last, candidate) && comes_before(candidate, best)) best = candidate;
    }
#pragma unroll
    for (int distance = 16; distance >= 1; distance /= 2) {
      const Choice other = {__shfl_xor_sync(0xffffffffu, best.logit, distance),
                            __shfl_xor_sync(0xffffffffu, best.expert, distance)};
      if (comes_before(other, best)) best = other;
    }
    if (lane == 0) chosen[j] = best.expert;
    if (j == 0) max = best.logit;
    last = best;
  }
  __syncwarp();

  float sum = 0;
  bool good = true;
  for (int i = lane; i < n_experts; i += 32) {
    const float logit = logits[i];
    good = good && logit < kInfinity;
    if (!p.params.normalized) sum += expf(logit - max);
  }
  if (p.params.normalized) {
    for (int j = lane; j < used; j += 32) sum += expf(logits[chosen[j]] - max);
  }
  good = __all_sync(0xffffffffu, good);
  sum = warp_sum(sum);
  for (int j = lane; j < used; j += 32) {
    const float weight = expf(logits[chosen[j]] - max) / sum;
    weights[j] = good ? weight : kNan;
  }
}

// ---- places -----------------------------------------------------------------------------------------

// The sum of the lanes before, and in `total` of all.
SIMT_DEVICE int sum_before(int value, int& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int sum = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, static_cast<unsigned>(distance));
    if (lane >= distance) sum += other;
  }
  total = __shfl_sync(0xffffffffu, sum, 31);
  return sum - value;
}

// One CTA. In which order the rows of an expert lie may differ from run to run: no row's result depends on it.
__global__ void __launch_bounds__(kThreads) place_pairs(const __grid_constant__ RoutingLaunch p, int n_experts) {
  simt::follow_preceding();
  SIMT_SHARED_MEMORY(shared);
  unsigned* next = reinterpret_cast<unsigned*>(shared);  // [E]: pairs, then the next free place
  const int pairs = static_cast<int>(rows_of(p) * p.params.used);
  for (int e = static_cast<int>(threadIdx.x); e < n_experts; e += kThreads) next[e] = 0;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kThreads) {
    atomicAdd(&next[p.experts[i]], 1u);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    int places = 0, runs = 0;
    for (int first = 0; first < n_experts; first += 32) {
      const int e = first + static_cast<int>(threadIdx.x);
      const int count = e < n_experts ? static_cast<int>(next[e]) : 0;
      const int own_runs = (count + p.run_rows - 1) / p.run_rows;
      int all_places, all_runs;
      const int place = places + sum_before(count, all_places);
      const int run = runs + sum_before(own_runs, all_runs);
      if (e < n_experts) next[e] = static_cast<unsigned>(place);
      for (int i = 0; i < own_runs; ++i) {
        p.runs[run + i] = {.expert = e,
                           .first = place + i * p.run_rows,
                           .rows = min(p.run_rows, count - i * p.run_rows),
                           .first_run = run,
                           .runs = own_runs};
      }
      places += all_places;
      runs += all_runs;
    }
    if (threadIdx.x == 0) *p.n_runs = runs;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < pairs; i += kThreads) {
    p.places[i] = static_cast<std::int32_t>(atomicAdd(&next[p.experts[i]], 1u));
  }
}

// One warp. An expert's runs are selected together, so that they lie side by side as before.
__global__ void __launch_bounds__(32)
    select_runs(const __grid_constant__ RoutingLaunch p, const __grid_constant__ SelectedRuns selected) {
  simt::follow_preceding();
  const int n = *p.n_runs;
  int count = 0;
  for (int first = 0; first < n; first += 32) {
    const int i = first + static_cast<int>(threadIdx.x);
    ExpertRun run = {};
    bool wanted = false;
    if (i < n) {
      run = p.runs[i];
      wanted = load_constant_32(selected.matrices + kExpertMatrices * run.expert).group == selected.group;
    }
    int more;
    const int at = count + sum_before(wanted ? 1 : 0, more);
    if (wanted) {
      run.first_run += at - i;
      selected.runs[at] = run;
    }
    count += more;
  }
  if (threadIdx.x == 0) *selected.n_runs = count;
}

// ---- rows to experts and back -----------------------------------------------------------------------

// Grid: (pairs; groups of kThreads times four columns). kWide: columns in their order, by fours.
template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    gather_rows_of_pairs(const __grid_constant__ RoutingLaunch p, const __grid_constant__ GatherParams gather) {
  simt::follow_preceding();
  const std::int64_t column = 4 * (static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x);
  if (column >= padded_cols(gather.cols)) return;
  const std::int64_t pair = blockIdx.x;
  if (pair >= rows_of(p) * p.params.used) return;
  const std::int64_t place = p.places[pair];
  const float* row = gather.x + (gather.at_places ? place : pair / p.params.used) * gather.cols;
  float4 values;
  if constexpr (kWide) {
    values = *reinterpret_cast<const float4*>(row + column);
  } else {
    const std::int32_t* columns = nullptr;
    if (gather.matrices != nullptr) {
      const std::int64_t expert = p.experts[pair];
      columns = load_constant_32(gather.matrices + kExpertMatrices * expert + gather.matrix).columns;
    }
    const auto value = [&](std::int64_t i) {
      if (i >= gather.cols) return 0.f;
      return row[columns == nullptr ? i : simt::load_constant(columns + i)];
    };
    values = make_float4(value(column), value(column + 1), value(column + 2), value(column + 3));
  }
  store_operands(static_cast<T*>(gather.out) + place * padded_cols(gather.cols) + column, values);
}

// Grid: (rows; groups of kThreads columns). In descending order of the logits, in f32.
__global__ void __launch_bounds__(kThreads) combine_pairs(const __grid_constant__ RoutingLaunch p, const float* y) {
  simt::follow_preceding();
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  const std::int64_t hidden = p.params.hidden;
  const std::int64_t row = blockIdx.x;
  if (column >= hidden || row >= rows_of(p)) return;
  float sum = 0;
  for (std::int64_t pair = row * p.params.used; pair < (row + 1) * p.params.used; ++pair) {
    const std::int64_t place = p.places[pair];
    sum += p.weights[pair] * y[place * hidden + column];
  }
  p.params.out[row * hidden + column] += sum;
}

}  // namespace

// ---- launchers --------------------------------------------------------------------------------------

namespace {

bool is_supported(const RoutingLaunch& launch) {
  constexpr std::int64_t kMaxPairs = std::int64_t{1} << 26;
  const ExpertsParams& p = launch.params;
  const std::int64_t n_experts = std::ssize(p.experts);
  return p.rows >= 1 && p.used >= 1 && p.used <= n_experts && n_experts <= kMaxExperts && launch.run_rows >= 1 &&
         p.rows <= kMaxPairs / p.used && p.hidden >= 1 && p.hidden <= INT_MAX;
}

dim3 grid_of(std::int64_t rows, std::int64_t threads) {
  return dim3(static_cast<unsigned>(rows), static_cast<unsigned>((threads + kThreads - 1) / kThreads));
}

}  // namespace

cudaError_t launch_routing(const RoutingLaunch& launch, KernelStream stream) {
  if (!is_supported(launch)) return cudaErrorInvalidValue;
  constexpr std::int64_t kRows = kThreads / 32;
  const int n_experts = static_cast<int>(std::ssize(launch.params.experts));
  const cudaError_t error =
      SIMT_LAUNCH(choose_experts, dim3(static_cast<unsigned>((launch.params.rows + kRows - 1) / kRows)), dim3(kThreads),
                  0, stream, launch, n_experts);
  if (error != cudaSuccess) return error;
  return SIMT_LAUNCH(place_pairs, dim3(1), dim3(kThreads), static_cast<std::size_t>(n_experts) * sizeof(unsigned),
                     stream, launch, n_experts);
}

cudaError_t launch_select_runs(const RoutingLaunch& launch, const SelectedRuns& selected, KernelStream stream) {
  if (!is_supported(launch)) return cudaErrorInvalidValue;
  return SIMT_LAUNCH(select_runs, dim3(1), dim3(32), 0, stream, launch, selected);
}

cudaError_t launch_gather(const RoutingLaunch& launch, const GatherParams& params, KernelStream stream) {
  if (!is_supported(launch) || params.cols < 1 || params.cols > INT_MAX || !are_aligned({params.out})) {
    return cudaErrorInvalidValue;
  }
  const bool wide = params.matrices == nullptr && params.cols % 8 == 0 && are_aligned({params.x});
  const dim3 grid = grid_of(launch.params.rows * launch.params.used, padded_cols(params.cols) / 4);
  return dispatch_dtype(params.dtype, [&]<typename T>() {
    return wide ? SIMT_LAUNCH((gather_rows_of_pairs<T, true>), grid, dim3(kThreads), 0, stream, launch, params)
                : SIMT_LAUNCH((gather_rows_of_pairs<T, false>), grid, dim3(kThreads), 0, stream, launch, params);
  });
}

cudaError_t launch_combine(const RoutingLaunch& launch, const float* y, KernelStream stream) {
  if (!is_supported(launch)) return cudaErrorInvalidValue;
  return SIMT_LAUNCH(combine_pairs, grid_of(launch.params.rows, launch.params.hidden), dim3(kThreads), 0, stream,
                     launch, y);
}

}  // namespace hogwild::cuda
