// Embedding, RMS norm, gated activation, and what sampling and measuring need. Part of kernels.cc.
#pragma once

namespace hogwild {
namespace {

template <typename T>
void embedding_typed(const T* table, int64_t hidden, const int32_t* tokens, int64_t n, float scale, float* out) {
  for (int64_t t = 0; t < n; t++) {
    const T* row = table + tokens[t] * hidden;
    int64_t i = 0;
    for (; i + kLanes <= hidden; i += kLanes) store(out + t * hidden + i, load(row + i) * scale);
    for (; i < hidden; i++) out[t * hidden + i] = to_f32(row[i]) * scale;
  }
}

void embedding(const Matrix& table, const int32_t* tokens, int64_t n, float scale, float* out) {
  switch (table.format) {
    case Format::kF32:
      return embedding_typed((const float*)table.data, table.cols, tokens, n, scale, out);
    case Format::kF16:
      return embedding_typed((const F16*)table.data, table.cols, tokens, n, scale, out);
    case Format::kBF16:
      return embedding_typed((const Bf16*)table.data, table.cols, tokens, n, scale, out);
    default:
      return;  // the device has refused it
  }
}

void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t cols, float* out) {
  for (int64_t r = 0; r < rows; r++, x += cols, out += cols) {
    Vec squares = {};
    int64_t i = 0;
    for (; i + kLanes <= cols; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
    if (i < cols) {
      const Vec rest = load_partial(x + i, cols - i);
      squares = fma(rest, rest, squares);
    }
    const float scale = 1 / sqrtf(sum(squares) / cols + eps);
    for (i = 0; i + kLanes <= cols; i += kLanes) store(out + i, load(x + i) * scale * load(weight + i));
    for (; i < cols; i++) out[i] = x[i] * scale * weight[i];
  }
}

// x * sigmoid(x)
HOGWILD_INLINE Vec silu(Vec x) { return x / (exp(-x) + 1.0f); }

// 0.5 x (1 + tanh(u)) = x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3): Hendrycks and Gimpel 2016,
// arXiv 1606.08415.
HOGWILD_INLINE Vec gelu_tanh(Vec x) {
  const Vec u = x * 0.797884560802865f * fma(x * 0.044715f, x, broadcast(1));
  return x / (exp(u * -2.0f) + 1.0f);
}

HOGWILD_INLINE Vec gate_silu(Vec gate, Vec up) { return silu(gate) * up; }
HOGWILD_INLINE Vec gate_gelu_tanh(Vec gate, Vec up) { return gelu_tanh(gate) * up; }

// NaN stays NaN: comparisons with it are false.
HOGWILD_INLINE Vec gate_clamped_swiglu(Vec gate, Vec up) {
  const Vec limit = broadcast(kSwigluLimit);
  gate = gate > limit ? limit : gate;
  up = up > limit ? limit : up;
  up = up < -limit ? -limit : up;
  return gate / (exp(gate * -kSwigluAlpha) + 1.0f) * (up + 1.0f);
}

template <Vec (*kGate)(Vec, Vec)>
void gated(const float* gate, const float* up, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, kGate(load(gate + i), load(up + i)));
  if (i < n) store_partial(out + i, kGate(load_partial(gate + i, n - i), load_partial(up + i, n - i)), n - i);
}

void gated_activation(const float* gate, const float* up, int64_t n, Activation activation, float* out) {
  switch (activation) {
    case Activation::kSilu:
      return gated<gate_silu>(gate, up, n, out);
    case Activation::kGeluTanh:
      return gated<gate_gelu_tanh>(gate, up, n, out);
    case Activation::kClampedSwiglu:
      return gated<gate_clamped_swiglu>(gate, up, n, out);
  }
}

void add(float* x, const float* y, int64_t n, float scale) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, fma(broadcast(scale), load(y + i), load(x + i)));
  if (i < n) store_partial(x + i, fma(broadcast(scale), load_partial(y + i, n - i), load_partial(x + i, n - i)), n - i);
}

void softcap(float* x, int64_t n, float scale, float cap) {
  const auto capped = [&](Vec v) __attribute__((always_inline)) {
    return cap == 0 ? v * scale : tanh(v * (scale / cap)) * cap;
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, capped(load(x + i)));
  if (i < n) store_partial(x + i, capped(load_partial(x + i, n - i)), n - i);
}

void add_weighted(const float* x, const int64_t* rows, const float* weights, int64_t n_rows, int64_t cols, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= cols; i += kLanes) {
    Vec total = {};
    for (int64_t j = 0; j < n_rows; j++) total = fma(broadcast(weights[j]), load(x + rows[j] * cols + i), total);
    store(out + i, load(out + i) + total);
  }
  const int64_t rest = cols - i;
  if (rest == 0) return;
  Vec total = {};
  for (int64_t j = 0; j < n_rows; j++) {
    total = fma(broadcast(weights[j]), load_partial(x + rows[j] * cols + i, rest), total);
  }
  store_partial(out + i, load_partial(out + i, rest) + total, rest);
}

bool find_max(const float* x, int64_t n, float* max_value, int64_t* index) {
  Vec best = broadcast(-INFINITY);
  IntVec finite = ~IntVec{};  // or -inf
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vec v = load(x + i);
    best = max(best, v);
    finite &= v < INFINITY;
  }
  float greatest = max_lane(best);
  bool all_finite = true;
  for (int lane = 0; lane < kLanes; lane++) all_finite &= finite[lane] != 0;
  for (; i < n; i++) {
    greatest = x[i] > greatest ? x[i] : greatest;
    all_finite &= x[i] < INFINITY;
  }
  if (!all_finite) return false;
  *max_value = greatest;
  int64_t first = 0;
  while (first < n && x[first] != greatest) first++;
  *index = first;
  return true;
}

double sum_exp(const float* x, int64_t n, float max_value, float scale, float* terms) {
  constexpr int64_t kRun = 256 * kLanes;  // summed in f32, then in double
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = begin + kRun < n ? begin + kRun : n;
    Vec partial = {};
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const Vec e = exp((load(x + i) - max_value) * scale);
      if (terms) store(terms + i, e);
      partial += e;
    }
    total += sum(partial);
    if (i < end) {
      const Vec e = exp((load_partial(x + i, end - i) - max_value) * scale);
      if (terms) store_partial(terms + i, e, end - i);
      for (int lane = 0; lane < end - i; lane++) total += e[lane];
    }
  }
  return total;
}

float read(const float* data, int64_t n) {
  constexpr int kStreams = 8;
  Vec acc[kStreams] = {};
  int64_t i = 0;
  for (; i + kStreams * kLanes <= n; i += kStreams * kLanes) {
    for (int s = 0; s < kStreams; s++) acc[s] += load(data + i + s * kLanes);
  }
  Vec all = {};
  for (int s = 0; s < kStreams; s++) all += acc[s];
  float total = sum(all);
  for (; i < n; i++) total += data[i];
  return total;
}

}  // namespace
}  // namespace hogwild
