#include "model/step.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/finite.h"
#include "model/attention_mass.h"

namespace hogwild {
namespace {

// A layer's work on some rows has three parts, with about as much to do in each.
enum class Part : std::uint8_t { kProject, kAttend, kOutput };
constexpr std::int64_t kParts = 3;

// Rows, counted once for each part, after which a piece ends: 512 rows in one layer. Decode steps are one piece.
constexpr std::int64_t kPieceRows = kParts * 512;

// Adds the time of its life to `seconds`.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count(); }

 private:
  double& seconds_;
  std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
};

void check_cache(const Decoder& decoder, KvCache& cache) {
  const KvShape& shape = cache.shape();
  const ModelConfig& config = decoder.config();
  if (shape.layers != config.n_layers() || shape.kv_heads != config.kv_heads || shape.head_dim != config.head_dim) {
    const auto text = [](std::int64_t layers, std::int64_t kv_heads, std::int64_t head_dim) {
      return std::to_string(layers) + " layers, " + std::to_string(kv_heads) + " kv heads, head_dim " +
             std::to_string(head_dim);
    };
    refuse("cache: expected " + text(config.n_layers(), config.kv_heads, config.head_dim) + ", received " +
           text(shape.layers, shape.kv_heads, shape.head_dim));
  }
  std::vector<std::int32_t> layer_ropes;
  for (const LayerSpec& layer : config.layers) layer_ropes.push_back(layer.rope);
  const bool has_ropes = std::any_of(config.ropes.begin(), config.ropes.end(), [&](const std::vector<RopeSpec>& ropes) {
    return cache.ropes().same(LayerRopes(ropes, layer_ropes), config.n_layers());
  });
  if (!has_ropes) {
    refuse("cache: its rotary frequencies are not those of the model");
  }
  if (&cache.device() != &decoder.device()) refuse("cache: it is on another device than the model");
}

// [tokens, hidden] numbers, and no ids beside them.
void check_embeddings(const StepWorker& worker, std::int64_t hidden, const std::string& name) {
  if (worker.embeddings.size() != worker.tokens.size() * static_cast<std::size_t>(hidden)) {
    refuse(name + "embeddings: expected " + std::to_string(hidden) + " for each of " +
           std::to_string(worker.tokens.size()) + " tokens, received " + std::to_string(worker.embeddings.size()));
  }
  if (!all_finite(worker.embeddings)) refuse(name + "embeddings: expected finite numbers");
  if (std::any_of(worker.tokens.begin(), worker.tokens.end(), [](std::int32_t id) { return id != -1; })) {
    refuse(name + "tokens: expected -1 for each embedding");
  }
}

void check_bias(const StepWorker& worker, const std::string& name) {
  if (worker.bias_ids.size() != worker.bias.size()) refuse(name + "bias: expected one number for each id");
  for (const float bias : worker.bias) {
    if (std::isnan(bias) || bias == std::numeric_limits<float>::infinity()) {
      refuse(name + "bias: expected finite numbers or -Infinity, received " + std::to_string(bias));
    }
  }
}

void check_drafts(const StepWorker& worker, std::int64_t n_workers, const std::string& name) {
  if (worker.group < 0 || worker.group >= n_workers) {
    refuse(name + "group: expected one below the number of workers, received " + std::to_string(worker.group));
  }
  if (worker.drafts < 0 || worker.drafts >= std::ssize(worker.tokens)) {
    refuse(name + "drafts: expected fewer than its " + std::to_string(worker.tokens.size()) + " tokens, received " +
           std::to_string(worker.drafts));
  }
  if (worker.drafts == 0) return;
  if (!worker.sampler) refuse(name + "sampler: expected one, as there are drafts");
  if (!worker.embeddings.empty() || worker.hidden || worker.attention_mass) {
    refuse(name + "drafts: expected none beside embeddings, hidden and attentionMass");
  }
}

void check_workers(const std::vector<StepWorker>& workers, const ModelConfig& config) {
  const std::int64_t vocab = config.vocab_size;
  if (workers.empty()) refuse("workers: expected at least one");
  for (std::size_t w = 0; w < workers.size(); ++w) {
    const std::string name = "workers[" + std::to_string(w) + "].";
    const auto check_ids = [&](const char* what, const std::vector<std::int32_t>& ids) {
      for (const std::int32_t id : ids) {
        if (id >= 0 && id < vocab) continue;
        refuse(name + what + ": expected ids in [0, " + std::to_string(vocab) + "), received " + std::to_string(id));
      }
    };
    if (workers[w].tokens.empty()) refuse(name + "tokens: expected at least one token");
    if (workers[w].embeddings.empty()) {
      check_ids("tokens", workers[w].tokens);
    } else {
      check_embeddings(workers[w], config.hidden_size, name);
    }
    check_ids("forbidden", workers[w].forbidden);
    check_ids("bias", workers[w].bias_ids);
    check_bias(workers[w], name);
    check_drafts(workers[w], std::ssize(workers), name);
    if (!workers[w].sampler && (workers[w].held || !workers[w].bias_ids.empty())) {
      refuse(name + "sampler: expected one, as its logits are to be edited");
    }
  }
}

std::vector<WorkerView> views_of(const std::vector<StepWorker>& workers) {
  std::vector<WorkerView> views;
  for (const StepWorker& worker : workers) {
    views.push_back(worker.view);
    views.back().tokens = worker.tokens;
    views.back().drafts = worker.drafts;
  }
  return views;
}

// The last new token of a worker that wants more of it than logits.
struct LastRow {
  std::int64_t row = 0;  // of the step
  std::size_t worker = 0;
};

template <typename Wants>
std::vector<LastRow> last_rows(const std::vector<StepWorker>& workers, Wants&& wants) {
  std::vector<LastRow> rows;
  std::int64_t end = 0;
  for (std::size_t w = 0; w < workers.size(); ++w) {
    end += static_cast<std::int64_t>(workers[w].tokens.size());
    if (wants(workers[w])) rows.push_back({.row = end - 1, .worker = w});
  }
  return rows;
}

[[noreturn]] void refuse_numbers() { throw Error(code::kInvalidModel, "the model computes NaN or infinity"); }

}  // namespace

struct Step::State {
  // Rows that go through the layers together, chunk by chunk: a chunk of one worker's input, or all there are.
  struct Pass {
    std::int64_t first = 0;  // row of the step
    std::int64_t n = 0;
    ChunkedPlan plans;
    const DeviceStep* step = nullptr;  // of the chunk
    std::vector<std::int64_t> rows;    // of each chunk, as many as the device wants (Device::bucket_rows)
    bool output_wanted = false;        // somebody wants logits of one of them
    std::int64_t layer = 0;            // what comes next, up to layers()
    Part part = Part::kProject;
    std::size_t chunk = 0;
  };

  State(Decoder& its_decoder, KvCache& its_cache, std::vector<StepWorker> its_workers)
      : decoder(its_decoder),
        device(its_decoder.device()),
        cache(its_cache),
        workers(std::move(its_workers)),
        reservation(its_cache, views_of(workers)),
        wanted(logits_rows(workers)),
        hidden_rows(last_rows(workers, [](const StepWorker& worker) { return worker.hidden; })),
        listeners(last_rows(workers, [](const StepWorker& worker) { return worker.attention_mass; })),
        pending(wanted),
        pending_hidden(hidden_rows) {}

  ~State() {
    if (activations == nullptr) return;
    for (EditedLogits& row : edited) {
      for (std::vector<float>* memory : {&row.logits, &row.raw}) {
        if (!memory->empty()) activations->spare_rows.push_back(std::move(*memory));
      }
    }
    activations->in_use = false;
  }

  std::int64_t layers() const { return decoder.config().n_layers(); }
  ChunkedPlan::Chunk chunk() const { return pass->plans.chunks()[pass->chunk]; }
  Rows rows(const std::atomic<bool>& cancel) const {
    return {cache, *activations, *pass->step, chunk().first - pass->first, pass->rows[pass->chunk], cancel};
  }

  void prepare_results();
  void begin_pass();
  void do_part(const std::atomic<bool>& cancel);
  void put_embeddings();
  void attend(const std::atomic<bool>& cancel);
  void go_on();
  template <typename Check>
  void check_last_rows(std::int64_t first, std::int64_t n, Check&& check) const;
  void check_appended() const;
  void check_residual() const;
  std::int64_t do_layers(const std::atomic<bool>& cancel);
  void do_hidden();
  bool do_outputs();
  bool waits_for(std::size_t worker) const;
  bool waits() const;
  void choose(std::vector<LogitsEdit> edits);
  void sample();
  bool keep_next_stage();
  bool finish();
  bool advance(const std::atomic<bool>& cancel);

  Decoder& decoder;
  Device& device;
  KvCache& cache;
  const std::vector<StepWorker> workers;
  StepReservation reservation;
  const std::vector<LogitsRow> wanted;
  const std::vector<LastRow> hidden_rows;
  const std::vector<LastRow> listeners;  // for AttentionMass
  std::span<const LogitsRow> pending;    // of `wanted`
  std::span<const LastRow> pending_hidden;
  SeenByStage seen;                  // empty lists where nobody asks
  std::vector<std::int32_t> tokens;  // of all workers; 0 where an embedding stands in the place of an id
  bool has_embeddings = false;
  std::optional<AttentionMass> attention_mass;
  Buffer lse;  // [chunk, Hq], where somebody listens
  std::vector<EditedLogits> edited;
  std::int64_t stage = 0;       // whose tokens are chosen
  std::vector<bool> has_stage;  // by worker: its tokens of the stage stay
  bool has_edits = false;       // of held workers, for the stage
  StepResult result;
  Activations* activations = nullptr;
  std::int64_t next_row = 0;  // first of the next pass
  std::optional<Pass> pass;
};

void Step::State::prepare_results() {
  seen.resize(workers.size());
  has_stage.resize(workers.size(), true);
  for (std::size_t w = 0; w < workers.size(); ++w) {
    const StepWorker& worker = workers[w];
    if (worker.embeddings.empty()) {
      tokens.insert(tokens.end(), worker.tokens.begin(), worker.tokens.end());
    } else {
      tokens.resize(tokens.size() + worker.tokens.size());
      has_embeddings = true;
    }
    const std::size_t n_logits = worker.logits == LogitsWanted::kAll    ? worker.tokens.size()
                                 : worker.logits == LogitsWanted::kLast ? static_cast<std::size_t>(worker.drafts) + 1
                                                                        : 0;
    StepResult::Worker& out = result.workers.emplace_back();
    out.choices.resize(static_cast<std::size_t>(worker.drafts) + 1);
    seen[w].resize(out.choices.size());
    out.logits.resize(n_logits * static_cast<std::size_t>(decoder.config().vocab_size));
    if (worker.hidden) out.hidden.resize(static_cast<std::size_t>(decoder.config().hidden_size));
    if (worker.attention_mass) out.attention_mass.resize(worker.view.entries.size());
    if (!worker.sampler) continue;
    if (has_penalty(*worker.sampler)) {
      for (std::int64_t s = 0; s <= worker.drafts; ++s) {
        seen[w][static_cast<std::size_t>(s)] = seen_ids(workers, w, decoder.config().vocab_size, s);
      }
    }
  }
}

void Step::State::begin_pass() {
  const std::int64_t left = reservation.n_tokens() - next_row;
  const std::int64_t n = workers.size() == 1 ? std::min(ChunkedPlan::chunk_rows(reservation), left) : left;
  pass.emplace(
      Pass{.first = next_row, .n = n, .plans = ChunkedPlan(reservation, device, tokens, next_row, n), .rows = {}});
  std::int64_t all_rows = 0;
  for (const ChunkedPlan::Chunk& chunk : pass->plans.chunks()) {
    pass->rows.push_back(device.bucket_rows(chunk.n));
    all_rows = chunk.first - pass->first + pass->rows.back();
  }
  pass->output_wanted = (!pending.empty() && pending.front().row < next_row + n) ||
                        (!pending_hidden.empty() && pending_hidden.front().row < next_row + n) ||
                        std::any_of(listeners.begin(), listeners.end(), [&](const LastRow& listener) {
                          return listener.row >= next_row && listener.row < next_row + n;
                        });
  if (activations == nullptr) {  // no later pass is larger
    activations = &decoder.take_activations(all_rows, *std::max_element(pass->rows.begin(), pass->rows.end()));
  }
}

// Ops only, unless somebody brings embeddings or listens: a device may replay them (Device::replay).
void Step::State::do_part(const std::atomic<bool>& cancel) {
  check_cancelled(cancel);
  switch (pass->part) {
    case Part::kProject:
      if (pass->layer == 0) {
        decoder.embed(rows(cancel));
        if (has_embeddings) put_embeddings();
      }
      decoder.project_and_append(pass->layer, rows(cancel));
      break;
    case Part::kAttend:
      attend(cancel);
      break;
    case Part::kOutput:
      decoder.output_and_mlp(pass->layer, rows(cancel));
      break;
  }
}

// Over what stands for the ids of the chunk's rows.
void Step::State::put_embeddings() {
  const std::int64_t hidden = decoder.config().hidden_size;
  const std::int64_t begin = chunk().first, end = begin + chunk().n;
  std::int64_t first = 0;  // of the worker's rows
  for (const StepWorker& worker : workers) {
    const auto n = static_cast<std::int64_t>(worker.tokens.size());
    const std::int64_t from = std::max(begin, first), to = std::min(end, first + n);
    if (!worker.embeddings.empty() && from < to) {
      decoder.put_embeddings(*activations, from - pass->first,
                             std::span(worker.embeddings)
                                 .subspan(static_cast<std::size_t>((from - first) * hidden),
                                          static_cast<std::size_t>((to - from) * hidden)));
    }
    first += n;
  }
}

void Step::State::attend(const std::atomic<bool>& cancel) {
  std::vector<AttentionMass::Listener> listening;
  for (std::size_t i = 0; i < listeners.size(); ++i) {
    const std::int64_t row = listeners[i].row;
    if (row < chunk().first || row >= chunk().first + chunk().n) continue;
    listening.push_back({.token = row - chunk().first, .listener = i});
  }
  if (listening.empty()) return decoder.attend(pass->layer, rows(cancel));
  if (!attention_mass) {
    std::vector<std::vector<std::int32_t>> entries;
    for (const auto& [row, worker] : listeners) entries.push_back(reservation.entries_of_last_token(worker));
    attention_mass.emplace(std::move(entries));
  }
  const std::size_t bytes =
      static_cast<std::size_t>(pass->rows[pass->chunk] * decoder.config().query_heads) * sizeof(float);
  if (lse.bytes() < bytes) lse = device.allocate(bytes, "attention mass");
  decoder.attend(pass->layer, rows(cancel), lse.as<float>());
  attention_mass->add(device, *pass->step, decoder.attention(pass->layer, rows(cancel), lse.as<float>()), listening);
}

// To the next part: the projections of all chunks, then for each chunk attention and output.
void Step::State::go_on() {
  const bool last_chunk = pass->chunk + 1 == pass->plans.chunks().size();
  switch (pass->part) {
    case Part::kProject:
      pass->chunk = last_chunk ? 0 : pass->chunk + 1;
      if (!last_chunk) break;
      if (pass->layer + 1 == layers() && !pass->output_wanted) {
        pass->layer = layers();  // only the keys and values were needed
      } else {
        pass->part = Part::kAttend;
      }
      break;
    case Part::kAttend:
      pass->part = Part::kOutput;
      break;
    case Part::kOutput:
      pass->chunk = last_chunk ? 0 : pass->chunk + 1;
      pass->part = last_chunk ? Part::kProject : Part::kAttend;
      if (last_chunk) ++pass->layer;
      break;
  }
}

// Calls check(worker, row) for the last row in [first, first + n) of each worker that has one there. What is
// not finite in an earlier row of a worker reaches this one through the keys and values of some layer.
template <typename Check>
void Step::State::check_last_rows(std::int64_t first, std::int64_t n, Check&& check) const {
  std::int64_t begin = 0;
  for (const StepWorker& worker : workers) {
    const std::int64_t end = begin + static_cast<std::int64_t>(worker.tokens.size());
    if (begin < first + n && end > first) check(worker, std::min(end, first + n) - 1);
    begin = end;
  }
}

// For a pass without outputs, behind the last layer's projections of a chunk: damaged weights must not fill the cache.
void Step::State::check_appended() const {
  const std::int64_t size = decoder.config().kv_size();
  std::vector<float> values(static_cast<std::size_t>(size));
  check_last_rows(chunk().first, chunk().n, [&](const StepWorker&, std::int64_t row) {
    const std::int64_t at = (row - chunk().first) * size;
    for (const float* from : {decoder.keys() + at, decoder.values(pass->rows[pass->chunk]) + at}) {
      device.download(values.data(), from, values.size() * sizeof(float));
      if (!all_finite(values)) refuse_numbers();
    }
  });
}

// Behind the last layer of a pass with outputs, for the workers that want none.
void Step::State::check_residual() const {
  std::vector<float> values(static_cast<std::size_t>(decoder.config().hidden_size));
  check_last_rows(pass->first, pass->n, [&](const StepWorker& worker, std::int64_t row) {
    if (worker.logits != LogitsWanted::kNone || worker.sampler) return;
    const float* from = activations->x.as<float>() + (row - pass->first) * decoder.config().hidden_size;
    device.download(values.data(), from, values.size() * sizeof(float));
    if (!all_finite(values)) refuse_numbers();
  });
}

// Returns the rows that went through a part. The pass's layers may not be done yet.
std::int64_t Step::State::do_layers(const std::atomic<bool>& cancel) {
  if (device.prefers_whole_passes() && pass->plans.chunks().size() == 1) {
    pass->step = &pass->plans.on_device(pass->chunk);
    const auto ops = [&] {
      for (; pass->layer < layers(); go_on()) do_part(cancel);
    };
    if (has_embeddings || !listeners.empty()) {
      ops();
      if (!pass->output_wanted) check_appended();
      return kPieceRows;
    }
    device.replay({.model = decoder.id(),
                   .cache = cache.id(),
                   .buffers = activations->version,
                   .rows = pass->rows.front(),
                   .output_wanted = pass->output_wanted},
                  *pass->step, ops);
    pass->layer = layers();  // also where a graph did it
    if (!pass->output_wanted) check_appended();
    return kPieceRows;
  }
  std::int64_t done = 0;
  while (pass->layer < layers() && done < kPieceRows) {
    pass->step = &pass->plans.on_device(pass->chunk);
    do_part(cancel);
    done += chunk().n;
    if (pass->layer + 1 == layers() && !pass->output_wanted) check_appended();
    go_on();
  }
  return done;
}

// The outputs of the last layer in the pass that somebody wants as they are.
void Step::State::do_hidden() {
  for (; !pending_hidden.empty() && pending_hidden.front().row < pass->first + pass->n;
       pending_hidden = pending_hidden.subspan(1)) {
    std::vector<float>& to = result.workers[pending_hidden.front().worker].hidden;
    device.download(to.data(), decoder.hidden(*activations, pending_hidden.front().row - pass->first),
                    to.size() * sizeof(float));
    if (!all_finite(to)) refuse_numbers();
  }
}

// The next logits of the pass. Whether there are no more.
bool Step::State::do_outputs() {
  std::size_t count = 0;
  while (count < pending.size() && pending[count].row < pass->first + pass->n) ++count;
  const auto group = pending.first(std::min(count, static_cast<std::size_t>(Decoder::kMaxLogitRows)));
  if (group.empty()) return true;
  const float* logits = decoder.logits(*activations, group, pass->first);
  collect_outputs(device, logits, decoder.config().vocab_size, group, workers, seen, activations->spare_rows, result,
                  edited);
  pending = pending.subspan(group.size());
  return group.size() == count;
}

bool Step::State::advance(const std::atomic<bool>& cancel) {
  check_cancelled(cancel);
  if (next_row == reservation.n_tokens()) return finish();
  if (!pass) begin_pass();
  if (pass->layer < layers()) {
    const std::int64_t done = do_layers(cancel);
    if (pass->layer < layers()) {
      device.synchronize();  // so that what comes between does not wait for more than this piece
      return false;
    }
    if (pass->output_wanted) check_residual();
    if (pass->n > Decoder::kMaxLogitRows && done >= kPieceRows && pass->output_wanted) return false;
  }
  check_cancelled(cancel);
  do_hidden();
  if (!do_outputs()) return false;
  next_row += pass->n;
  pass.reset();
  device.synchronize();  // an error of the device must come before the tokens count
  return next_row == reservation.n_tokens() && (waits() || finish());
}

bool Step::State::waits_for(std::size_t worker) const {
  return next_row == reservation.n_tokens() && !has_edits && has_stage[worker] && workers[worker].held;
}

bool Step::State::waits() const {
  for (std::size_t w = 0; w < workers.size(); ++w) {
    if (waits_for(w)) return true;
  }
  return false;
}

void Step::State::choose(std::vector<LogitsEdit> edits) {
  require(edits.size() == workers.size(), "edits: expected one for each worker");
  for (EditedLogits& row : edited) {
    if (row.stage == stage && waits_for(row.worker)) edit(row, workers[row.worker], std::move(edits[row.worker]));
  }
  has_edits = true;
}

// From edited logits: a held worker's tokens stage by stage, those of others with the first.
void Step::State::sample() {
  std::vector<const EditedLogits*> rows;
  for (EditedLogits& row : edited) {
    const StepWorker& worker = workers[row.worker];
    if (worker.held && row.stage > stage) {
      result.workers[row.worker].choices[static_cast<std::size_t>(row.stage)].token = row.known.token;
    } else if (worker.held ? row.stage == stage && has_stage[row.worker] : stage == 0) {
      if (!worker.held) edit(row, worker, {});
      rows.push_back(&row);
    }
  }
  for (std::span<const EditedLogits* const> rest = rows; !rest.empty();) {
    const auto group = rest.first(std::min(rest.size(), static_cast<std::size_t>(Decoder::kMaxLogitRows)));
    sample_edited(device, decoder.put_logits(group), decoder.config().vocab_size, group, workers, seen, result);
    rest = rest.subspan(group.size());
  }
}

// Goes to the next stage, with the groups all of whose drafts in it were chosen. Whether there are any.
bool Step::State::keep_next_stage() {
  std::vector<bool> goes_on(workers.size(), true);  // by group
  ++stage;
  for (std::size_t w = 0; w < workers.size(); ++w) {
    if (workers[w].drafts < stage) continue;
    const auto before = static_cast<std::size_t>(stage - 1);
    if (has_stage[w] && result.workers[w].choices[before].token == workers[w].draft(stage)) continue;
    goes_on[static_cast<std::size_t>(workers[w].group)] = false;
  }
  bool any = false;
  for (std::size_t w = 0; w < workers.size(); ++w) {
    has_stage[w] = workers[w].drafts >= stage && goes_on[static_cast<std::size_t>(workers[w].group)];
    result.workers[w].kept += has_stage[w] ? 1 : 0;
    any |= has_stage[w];
  }
  return any;
}

// All is computed, and nobody waits at this stage. Goes on to the next one at which somebody does, or to the end.
bool Step::State::finish() {
  do {
    sample();
    has_edits = false;
    if (!keep_next_stage()) break;
  } while (!waits());
  if (waits()) return true;
  device.synchronize();
  const auto values = static_cast<float>(layers() * decoder.config().query_heads);
  for (std::size_t i = 0; i < listeners.size(); ++i) {
    std::vector<float>& shares = result.workers[listeners[i].worker].attention_mass;
    attention_mass->add_to(device, i, shares);
    for (float& mass : shares) mass /= values;
  }
  std::vector<std::int64_t> kept;
  for (std::size_t w = 0; w < workers.size(); ++w) {
    kept.push_back(std::ssize(workers[w].tokens) - workers[w].drafts + result.workers[w].kept);
  }
  reservation.commit(kept);
  return true;
}

Step::Step(Decoder& decoder, KvCache& cache, std::vector<StepWorker> workers) {
  double seconds = 0;
  {
    const Stopwatch stopwatch(seconds);
    check_cache(decoder, cache);
    check_workers(workers, decoder.config());
    decoder.weights().check_unchanged();
    cache.allocate_pool();
    state_ = std::make_unique<State>(decoder, cache, std::move(workers));
    state_->prepare_results();
  }
  state_->result.seconds = seconds;
}

Step::~Step() = default;

bool Step::advance(const std::atomic<bool>& cancel) {
  const Stopwatch stopwatch(state_->result.seconds);
  try {
    return state_->advance(cancel);
  } catch (const Error& error) {
    if (error.code() != std::string_view(code::kInvalidModel)) throw;
    throw Error(code::kInvalidModel, state_->decoder.weights().blame(state_->device, error.what()));
  }
}

bool Step::waits() const { return state_->waits(); }

bool Step::waits_for(std::size_t worker) const { return state_->waits_for(worker); }

std::int64_t Step::stage() const { return state_->stage; }

const std::vector<EditedLogits>& Step::edited() const { return state_->edited; }

void Step::choose(std::vector<LogitsEdit> edits) { state_->choose(std::move(edits)); }

StepResult& Step::result() { return state_->result; }

}  // namespace hogwild
