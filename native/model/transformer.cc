#include "model/transformer.h"

#include <algorithm>
#include <set>
#include <span>
#include <string>
#include <utility>

#include "core/error.h"

namespace hogwild {
namespace {

// Rows that go through a layer's matrices together. Bounds the scratch memory of long inputs (the
// widest array is [kChunkRows, intermediate_size]) and is large enough that weights are re-read
// rarely: a chunk does 2 * 512 operations per weight.
constexpr std::int64_t kChunkRows = 512;

// Rows of logits in memory at once: [kLogitRows, V] is 38 MiB for a vocabulary of 152k.
constexpr std::int64_t kLogitRows = 64;

constexpr std::int64_t kMaxHeadDim = 256;
constexpr std::int64_t kHeadDimMultiple = 8;

void check_cancelled(const std::atomic<bool>& cancel) {
  if (cancel.load(std::memory_order_relaxed)) throw Error(code::kAborted, "the step was aborted");
}

void check_config(const ModelConfig& config) {
  // 2^31 - 1 each: products of two of them cannot overflow, and token ids fit 32 bits.
  const auto check_size = [](const char* name, std::int64_t value) {
    if (value < 1 || value > INT32_MAX) {
      throw Error(code::kInvalidModel, std::string(name) + ": expected 1 to " + std::to_string(INT32_MAX) + ", found " +
                                           std::to_string(value));
    }
  };
  check_size("vocab_size", config.vocab_size);
  check_size("hidden_size", config.hidden_size);
  check_size("intermediate_size", config.intermediate_size);
  check_size("layers", config.layers);
  check_size("query_heads", config.query_heads);
  check_size("kv_heads", config.kv_heads);
  if (config.query_heads % config.kv_heads != 0) {
    throw Error(code::kInvalidModel, "query_heads: expected a multiple of kv_heads (" +
                                         std::to_string(config.kv_heads) + "), found " +
                                         std::to_string(config.query_heads));
  }
  if (config.head_dim < kHeadDimMultiple || config.head_dim > kMaxHeadDim || config.head_dim % kHeadDimMultiple != 0) {
    throw Error(code::kUnsupported, "head_dim: supported are multiples of " + std::to_string(kHeadDimMultiple) +
                                        " up to " + std::to_string(kMaxHeadDim) + ", found " +
                                        std::to_string(config.head_dim));
  }
  if (config.rope.rotary_dim() > config.head_dim) {
    throw Error(code::kInvalidModel, "rope: expected at most head_dim / 2 = " + std::to_string(config.head_dim / 2) +
                                         " frequencies, found " +
                                         std::to_string(config.rope.inverse_frequencies.size()));
  }
  if (!(config.attention_scale > 0)) {
    throw Error(code::kInvalidModel,
                "attention_scale: expected a positive number, found " + std::to_string(config.attention_scale));
  }
}

// The part of a step's plan that concerns its tokens [first, first + n): what a chunk of a long input
// attends to. Token numbers start at 0 again; pages and angles stay those of the whole step.
class PlanSlice {
 public:
  PlanSlice(const AttentionPlanView& plan, std::int64_t first, std::int64_t n) : pages_(plan.pages) {
    const std::int64_t begin = plan.token_query_ranges_at[first];
    for (std::int64_t t = 0; t <= n; ++t)
      token_query_ranges_at_.push_back(plan.token_query_ranges_at[first + t] - begin);
    token_query_ranges_.resize(static_cast<std::size_t>(token_query_ranges_at_.back()));

    std::vector<std::int64_t> new_index(plan.query_ranges.size(), -1);
    for (const PlanSegment& segment : plan.segments) {
      const auto query_ranges = plan.query_ranges.subspan(segment.first_query_range, segment.n_query_ranges);
      const auto before = [](const QueryRange& range, std::int64_t token) { return range.token < token; };
      const auto from = std::lower_bound(query_ranges.begin(), query_ranges.end(), first, before);
      const auto to = std::lower_bound(from, query_ranges.end(), first + n, before);
      if (from == to) continue;
      PlanSegment part = segment;
      part.first_query_range = static_cast<std::int64_t>(query_ranges_.size());
      part.n_query_ranges = to - from;
      part.length = 0;  // as far as these tokens see it: what follows is not written yet
      for (auto range = from; range != to; ++range) {
        new_index[segment.first_query_range + (range - query_ranges.begin())] =
            static_cast<std::int64_t>(query_ranges_.size());
        part.length = std::max(part.length, range->limit);
        query_ranges_.push_back(*range);
        query_ranges_.back().token -= static_cast<std::int32_t>(first);
      }
      segments_.push_back(part);
    }
    for (std::size_t i = 0; i < token_query_ranges_.size(); ++i)
      token_query_ranges_[i] = new_index[plan.token_query_ranges[begin + i]];
  }

  AttentionPlanView view() const {
    AttentionPlanView view;
    view.n_tokens = static_cast<std::int64_t>(token_query_ranges_at_.size()) - 1;
    view.pages = pages_;
    view.segments = segments_;
    view.query_ranges = query_ranges_;
    view.token_query_ranges = token_query_ranges_;
    view.token_query_ranges_at = token_query_ranges_at_;
    return view;
  }

 private:
  std::span<const std::int64_t> pages_;
  std::vector<PlanSegment> segments_;
  std::vector<QueryRange> query_ranges_;
  std::vector<std::int64_t> token_query_ranges_;
  std::vector<std::int64_t> token_query_ranges_at_;
};

struct Layer {
  const float* input_norm = nullptr;           // [hidden]
  const float* post_attention_norm = nullptr;  // [hidden]
  Matrix q_proj, k_proj, v_proj, o_proj;
  const float* q_bias = nullptr;  // biases and head norms: null where the model has none
  const float* k_bias = nullptr;
  const float* v_bias = nullptr;
  const float* o_bias = nullptr;
  const float* q_norm = nullptr;  // [D]
  const float* k_norm = nullptr;  // [D]
  Matrix gate_proj, up_proj, down_proj;
  const float* gate_bias = nullptr;
  const float* up_bias = nullptr;
  const float* down_bias = nullptr;
};

// A new token whose logits somebody wants.
struct LogitsRow {
  std::int64_t row = 0;  // of the step
  std::size_t worker = 0;
  std::int64_t logits_at = -1;  // row of the worker's result that gets the logits, or -1
  bool sample = false;
};

std::vector<LogitsRow> logits_rows(const std::vector<StepWorker>& workers) {
  std::vector<LogitsRow> rows;
  std::int64_t end = 0;
  for (std::size_t w = 0; w < workers.size(); ++w) {
    const StepWorker& worker = workers[w];
    const auto n = static_cast<std::int64_t>(worker.tokens.size());
    end += n;
    if (worker.logits == LogitsWanted::kAll) {
      for (std::int64_t i = 0; i + 1 < n; ++i) rows.push_back({end - n + i, w, i, false});
    }
    const std::int64_t last_at = worker.logits == LogitsWanted::kAll    ? n - 1
                                 : worker.logits == LogitsWanted::kLast ? 0
                                                                        : -1;
    if (last_at >= 0 || worker.sampler) rows.push_back({end - 1, w, last_at, worker.sampler.has_value()});
  }
  return rows;
}

}  // namespace

struct Transformer::State {
  // Activations of some tokens of a step on their way through the layers.
  struct Pass {
    KvCache& cache;
    const std::atomic<bool>& cancel;
    std::int64_t rows = 0;       // tokens, as many as the device wants (Device::bucket_rows)
    bool output_wanted = false;  // somebody wants logits of one of them
  };

  const std::uint64_t id = next_id++;
  std::shared_ptr<Device> device;
  ModelConfig config;
  std::unique_ptr<Weights> weights;
  std::vector<Buffer> shifted_norms;  // copies with norm_offset added, where it is not 0
  std::set<std::string> used;         // names of tensors

  Matrix embed;
  Matrix lm_head;
  const float* norm = nullptr;
  std::vector<Layer> layers;

  // Scratch, grown when a step needs more and kept. n rows of a pass, c <= n of a chunk.
  Buffer x;                         // [n, hidden]: the residual stream
  Buffer q;                         // [n, Hq, D]
  Buffer attended;                  // [n, Hq, D]
  Buffer normed;                    // [c, hidden]
  Buffer passing;                   // scratch shared in turn by k and v, gate and up, and the logits
  std::uint64_t scratch_grown = 0;  // how often one of them moved

  static inline std::atomic<std::uint64_t> next_id = 1;

  std::int64_t q_size() const { return config.query_heads * config.head_dim; }
  std::int64_t kv_size() const { return config.kv_heads * config.head_dim; }

  float* k() const { return passing.as<float>(); }                                                // [c, Hkv, D]
  float* v(std::int64_t c) const { return passing.as<float>() + c * kv_size(); }                  // [c, Hkv, D]
  float* gate() const { return passing.as<float>(); }                                             // [c, intermediate]
  float* up(std::int64_t c) const { return passing.as<float>() + c * config.intermediate_size; }  // [c, intermediate]
  float* logits() const { return passing.as<float>(); }  // [kLogitRows, V] or less

  // ---- loading

  Matrix load_matrix(const std::string& name, std::int64_t rows, std::int64_t cols) {
    used.insert(name);
    return weights->matrix(name, rows, cols);
  }

  const float* load_vector(const std::string& name, std::int64_t size) {
    used.insert(name);
    return weights->vector(name, size);
  }

  const float* load_optional_vector(const std::string& name, std::int64_t size) {
    return weights->has(name) ? load_vector(name, size) : nullptr;
  }

  const float* load_norm(const std::string& name, std::int64_t size) {
    const float* weight = load_vector(name, size);
    if (config.norm_offset == 0) return weight;
    const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(float);
    std::vector<float> shifted(static_cast<std::size_t>(size));
    device->download(shifted.data(), weight, bytes);
    for (float& value : shifted) value += config.norm_offset;
    shifted_norms.push_back(device->allocate(bytes, "norms"));
    device->upload(shifted_norms.back().data(), shifted.data(), bytes);
    return shifted_norms.back().as<float>();
  }

  const float* load_optional_norm(const std::string& name, std::int64_t size) {
    return weights->has(name) ? load_norm(name, size) : nullptr;
  }

  Layer load_layer(std::int64_t index) {
    const std::string prefix = "layers." + std::to_string(index) + ".";
    const std::int64_t hidden = config.hidden_size;
    const std::int64_t intermediate = config.intermediate_size;
    Layer layer;
    layer.input_norm = load_norm(prefix + "input_norm", hidden);
    layer.post_attention_norm = load_norm(prefix + "post_attention_norm", hidden);
    layer.q_proj = load_matrix(prefix + "q_proj", q_size(), hidden);
    layer.k_proj = load_matrix(prefix + "k_proj", kv_size(), hidden);
    layer.v_proj = load_matrix(prefix + "v_proj", kv_size(), hidden);
    layer.o_proj = load_matrix(prefix + "o_proj", hidden, q_size());
    layer.q_bias = load_optional_vector(prefix + "q_bias", q_size());
    layer.k_bias = load_optional_vector(prefix + "k_bias", kv_size());
    layer.v_bias = load_optional_vector(prefix + "v_bias", kv_size());
    layer.o_bias = load_optional_vector(prefix + "o_bias", hidden);
    layer.q_norm = load_optional_norm(prefix + "q_norm", config.head_dim);
    layer.k_norm = load_optional_norm(prefix + "k_norm", config.head_dim);
    layer.gate_proj = load_matrix(prefix + "gate_proj", intermediate, hidden);
    layer.up_proj = load_matrix(prefix + "up_proj", intermediate, hidden);
    layer.down_proj = load_matrix(prefix + "down_proj", hidden, intermediate);
    layer.gate_bias = load_optional_vector(prefix + "gate_bias", intermediate);
    layer.up_bias = load_optional_vector(prefix + "up_bias", intermediate);
    layer.down_bias = load_optional_vector(prefix + "down_bias", hidden);
    return layer;
  }

  // ---- one step

  void check_cache(KvCache& cache) const {
    const KvShape& shape = cache.shape();
    if (shape.layers != config.layers || shape.kv_heads != config.kv_heads || shape.head_dim != config.head_dim) {
      const auto text = [](std::int64_t layers, std::int64_t kv_heads, std::int64_t head_dim) {
        return std::to_string(layers) + " layers, " + std::to_string(kv_heads) + " kv heads, head_dim " +
               std::to_string(head_dim);
      };
      throw Error(code::kInvalidArgument, "cache: expected " + text(config.layers, config.kv_heads, config.head_dim) +
                                              ", received " + text(shape.layers, shape.kv_heads, shape.head_dim));
    }
    if (cache.rope().inverse_frequencies != config.rope.inverse_frequencies ||
        cache.rope().attention_factor != config.rope.attention_factor) {
      throw Error(code::kInvalidArgument, "cache: its rotary frequencies are not those of the model");
    }
    if (&cache.device() != device.get()) {
      throw Error(code::kInvalidArgument, "cache: it is on another device than the model");
    }
  }

  void check_workers(const std::vector<StepWorker>& workers) const {
    if (workers.empty()) throw Error(code::kInvalidArgument, "workers: expected at least one");
    for (std::size_t w = 0; w < workers.size(); ++w) {
      const auto check_ids = [&](const char* what, const std::vector<std::int32_t>& ids, std::int32_t least) {
        for (const std::int32_t id : ids) {
          if (id >= least && id < config.vocab_size) continue;
          throw Error(code::kInvalidArgument, "workers[" + std::to_string(w) + "]." + what + ": expected ids in [0, " +
                                                  std::to_string(config.vocab_size) + "), received " +
                                                  std::to_string(id));
        }
      };
      if (workers[w].tokens.empty()) {
        throw Error(code::kInvalidArgument, "workers[" + std::to_string(w) + "].tokens: expected at least one token");
      }
      check_ids("tokens", workers[w].tokens, 0);
      check_ids("forbidden", workers[w].forbidden, 0);
      check_ids("seen", workers[w].seen, -1);  // -1: a token that an engine appended without an id
    }
  }

  void reserve(Buffer& buffer, std::int64_t floats, const char* purpose) {
    const std::size_t bytes = static_cast<std::size_t>(floats) * sizeof(float);
    if (buffer.bytes() >= bytes) return;
    ++scratch_grown;
    buffer = Buffer();  // first, so that old and new are not in memory together
    buffer = device->allocate(bytes, purpose);
  }

  void reserve_scratch(std::int64_t n) {
    const std::int64_t chunk = std::min(n, kChunkRows);
    reserve(x, n * config.hidden_size, "activations");
    reserve(q, n * q_size(), "queries");
    reserve(attended, n * q_size(), "attention output");
    reserve(normed, chunk * config.hidden_size, "activations");
    reserve(passing, chunk * 2 * std::max(kv_size(), config.intermediate_size), "activations");
  }

  void rms_norm(const float* in, const float* weight, std::int64_t rows, std::int64_t cols, float* out) {
    device->rms_norm({.x = in, .weight = weight, .eps = config.rms_norm_eps, .rows = rows, .cols = cols, .out = out});
  }

  // q, k, v of rows [first, first + n) of the pass; keys and values go to the cache.
  void project_and_append(const Pass& pass, std::int64_t index, std::int64_t first, std::int64_t n) {
    const Layer& layer = layers[index];
    float* queries = q.as<float>() + first * q_size();
    rms_norm(x.as<float>() + first * config.hidden_size, layer.input_norm, n, config.hidden_size, normed.as<float>());
    device->matmul({.x = normed.as<float>(),
                    .rows = n,
                    .k = config.hidden_size,
                    .n_outputs = 3,
                    .outputs = {{layer.q_proj, layer.q_bias, queries},
                                {layer.k_proj, layer.k_bias, k()},
                                {layer.v_proj, layer.v_bias, v(n)}}});
    if (layer.q_norm != nullptr) rms_norm(queries, layer.q_norm, n * config.query_heads, config.head_dim, queries);
    if (layer.k_norm != nullptr) {
      rms_norm(k(), layer.k_norm, n * config.kv_heads, config.head_dim, k());
    }
    device->kv_append({.shape = pass.cache.shape(),
                       .layer = pass.cache.layer(index),
                       .first = first,
                       .rows = n,
                       .k = k(),
                       .v = v(n)});
  }

  // Adds the attention's output, then the feed-forward network, to rows [first, first + n).
  void output_and_mlp(const Pass& pass, std::int64_t index, std::int64_t first, std::int64_t n) {
    const Layer& layer = layers[index];
    float* residual = x.as<float>() + first * config.hidden_size;
    device->matmul({.x = attended.as<float>() + first * q_size(),
                    .rows = n,
                    .k = q_size(),
                    .n_outputs = 1,
                    .outputs = {{layer.o_proj, layer.o_bias, residual, true}}});
    rms_norm(residual, layer.post_attention_norm, n, config.hidden_size, normed.as<float>());
    check_cancelled(pass.cancel);
    device->matmul({.x = normed.as<float>(),
                    .rows = n,
                    .k = config.hidden_size,
                    .n_outputs = 2,
                    .outputs = {{layer.gate_proj, layer.gate_bias, gate()}, {layer.up_proj, layer.up_bias, up(n)}}});
    device->gated_activation({.gate = gate(),
                              .up = up(n),
                              .n = n * config.intermediate_size,
                              .activation = config.activation,
                              .out = gate()});
    check_cancelled(pass.cancel);
    device->matmul({.x = gate(),
                    .rows = n,
                    .k = config.intermediate_size,
                    .n_outputs = 1,
                    .outputs = {{layer.down_proj, layer.down_bias, residual, true}}});
  }

  // Leaves the last layer's output in `x`. Ops only: a device may replay them (Device::replay).
  void run_layers(const Pass& pass) {
    device->embedding({.rows = pass.rows, .table = embed, .scale = config.embedding_scale, .out = x.as<float>()});
    for (std::int64_t index = 0; index < config.layers; ++index) {
      for (std::int64_t first = 0; first < pass.rows; first += kChunkRows) {
        check_cancelled(pass.cancel);
        project_and_append(pass, index, first, std::min(kChunkRows, pass.rows - first));
      }
      if (index + 1 == config.layers && !pass.output_wanted) break;  // only the keys and values were needed
      check_cancelled(pass.cancel);
      device->attention({.shape = pass.cache.shape(),
                         .layer = pass.cache.layer(index),
                         .query_heads = config.query_heads,
                         .scale = config.attention_scale,
                         .q = q.as<float>(),
                         .out = attended.as<float>()});
      for (std::int64_t first = 0; first < pass.rows; first += kChunkRows) {
        check_cancelled(pass.cancel);
        output_and_mlp(pass, index, first, std::min(kChunkRows, pass.rows - first));
      }
    }
  }

  // Logits of `rows` (at most kLogitRows, in ascending order) of a pass that began at `pass_first`.
  void finish_rows(std::span<const LogitsRow> rows, std::int64_t pass_first, const std::vector<StepWorker>& workers,
                   StepResult& result) {
    const auto n = static_cast<std::int64_t>(rows.size());
    const std::int64_t vocab = config.vocab_size;
    reserve(passing, n * vocab, "logits");
    for (std::int64_t i = 0, run = 0; i < n; i += run) {  // neighbours together
      for (run = 1; i + run < n && rows[i + run].row == rows[i].row + run; ++run) {
      }
      rms_norm(x.as<float>() + (rows[i].row - pass_first) * config.hidden_size, norm, run, config.hidden_size,
               normed.as<float>() + i * config.hidden_size);
    }
    device->matmul({.x = normed.as<float>(),
                    .rows = n,
                    .k = config.hidden_size,
                    .n_outputs = 1,
                    .outputs = {{lm_head, nullptr, logits()}}});

    std::vector<SampleParams::Row> draws;
    std::vector<std::size_t> drawn_for;
    bool want_logprobs = false;
    for (std::int64_t i = 0; i < n; ++i) {
      const StepWorker& worker = workers[rows[i].worker];
      if (rows[i].logits_at >= 0) {
        device->download(result.workers[rows[i].worker].logits.data() + rows[i].logits_at * vocab, logits() + i * vocab,
                         static_cast<std::size_t>(vocab) * sizeof(float));
      }
      if (!rows[i].sample) continue;
      SampleParams::Row draw = *worker.sampler;
      draw.logits_row = i;
      draw.seen = worker.seen;
      draw.forbidden = worker.forbidden;
      draws.push_back(draw);
      drawn_for.push_back(rows[i].worker);
      want_logprobs |= worker.logprob;
    }
    if (draws.empty()) return;

    std::vector<std::int32_t> tokens(draws.size());
    std::vector<float> logprobs(draws.size());
    device->sample({.logits = logits(),
                    .vocab = vocab,
                    .rows = draws,
                    .tokens = tokens.data(),
                    .logprobs = want_logprobs ? logprobs.data() : nullptr});
    for (std::size_t i = 0; i < draws.size(); ++i) {
      StepResult::Worker& out = result.workers[drawn_for[i]];
      out.token = tokens[i];
      if (workers[drawn_for[i]].logprob) out.logprob = logprobs[i];
    }
  }

  StepResult step(KvCache& cache, const std::vector<StepWorker>& workers, const std::atomic<bool>& cancel) {
    check_cancelled(cancel);
    check_cache(cache);
    check_workers(workers);

    StepResult result;
    std::vector<WorkerView> views;
    std::vector<std::int32_t> tokens;  // of all workers
    for (const StepWorker& worker : workers) {
      views.push_back(worker.view);
      views.back().tokens = worker.tokens;
      tokens.insert(tokens.end(), worker.tokens.begin(), worker.tokens.end());
    }
    cache.allocate_pool();
    const std::vector<LogitsRow> wanted = logits_rows(workers);
    StepReservation reservation(cache, std::move(views));
    for (const StepWorker& worker : workers) {
      const std::size_t rows = worker.logits == LogitsWanted::kAll    ? worker.tokens.size()
                               : worker.logits == LogitsWanted::kLast ? 1
                                                                      : 0;
      result.workers.emplace_back().logits.resize(rows * static_cast<std::size_t>(config.vocab_size));
    }

    // Nobody's tokens see later tokens of their own worker. So one worker's may pass through all layers
    // chunk by chunk; several workers see each other's tokens of the same layer and must go together.
    const auto total = static_cast<std::int64_t>(tokens.size());
    const std::int64_t pass_rows = workers.size() == 1 ? std::min(kChunkRows, total) : total;
    std::span<const LogitsRow> pending = wanted;
    for (std::int64_t first = 0; first < total; first += pass_rows) {
      const std::int64_t n = std::min(pass_rows, total - first);
      std::size_t n_wanted = 0;
      while (n_wanted < pending.size() && pending[n_wanted].row < first + n) ++n_wanted;

      std::optional<PlanSlice> slice;
      if (n < total) slice.emplace(reservation.plan(), first, n);
      const Pass pass = {
          .cache = cache, .cancel = cancel, .rows = device->bucket_rows(n), .output_wanted = n_wanted > 0};
      reserve_scratch(pass.rows);
      device->begin_step({.id = slice ? 0 : reservation.id(),
                          .plan = slice ? slice->view() : reservation.plan(),
                          .rope = reservation.rope(),
                          .slots = reservation.slots().subspan(first, n),
                          .tokens = std::span(tokens).subspan(first, n)});
      device->replay({.model = id,
                      .cache = cache.id(),
                      .buffers = scratch_grown,
                      .rows = pass.rows,
                      .output_wanted = pass.output_wanted},
                     [&] { run_layers(pass); });
      while (n_wanted > 0) {
        check_cancelled(cancel);
        const std::size_t group = std::min(n_wanted, static_cast<std::size_t>(kLogitRows));
        finish_rows(pending.first(group), first, workers, result);
        pending = pending.subspan(group);
        n_wanted -= group;
      }
    }
    device->synchronize();  // an error of the device must come before the tokens count
    reservation.commit();
    return result;
  }
};

Transformer::Transformer(std::shared_ptr<Device> device, ModelConfig config, std::unique_ptr<Weights> weights)
    : state_(std::make_unique<State>()) {
  check_config(config);
  State& state = *state_;
  state.device = std::move(device);
  state.config = std::move(config);
  state.weights = std::move(weights);

  const std::int64_t hidden = state.config.hidden_size;
  state.embed = state.load_matrix("embed", state.config.vocab_size, hidden);
  const bool tied = !state.weights->has("lm_head");
  state.lm_head = tied ? state.embed : state.load_matrix("lm_head", state.config.vocab_size, hidden);
  state.norm = state.load_norm("norm", hidden);
  for (std::int64_t i = 0; i < state.config.layers; ++i) state.layers.push_back(state.load_layer(i));

  for (const std::string& name : state.weights->names()) {
    if (!state.used.contains(name)) {
      throw Error(code::kUnsupported, "tensor '" + name + "' has no place in this architecture (Llama, Qwen2, Qwen3)");
    }
  }
}

Transformer::~Transformer() = default;

const ModelConfig& Transformer::config() const { return state_->config; }

Device& Transformer::device() const { return *state_->device; }

std::int64_t Transformer::weight_bytes() const {
  const Matrix& embed = state_->embed;
  const std::int64_t embed_bytes = embed.rows * embed.cols * static_cast<std::int64_t>(dtype_size(embed.dtype));
  return state_->weights->bytes() - (state_->weights->has("lm_head") ? embed_bytes : 0);
}

StepResult Transformer::step(KvCache& cache, std::vector<StepWorker>& workers, const std::atomic<bool>& cancel) {
  return state_->step(cache, workers, cancel);
}

}  // namespace hogwild
