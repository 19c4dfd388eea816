// The step of a model: at once, or in two calls, between which JavaScript looks at the logits of held workers.
#include <napi.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <optional>
#include <utility>

#include "addon/convert.h"
#include "addon/exports.h"
#include "addon/handles.h"
#include "addon/sampler_arguments.h"
#include "model/transformer.h"

namespace hogwild::addon {
namespace {

constexpr std::int64_t kMaxTopLogprobs = 1024;

enum class Held : std::uint8_t { kNo, kYes, kWithLogits };

bool flag(const Argument& value) { return !value.is_undefined() && value.boolean(); }

// NativeStepWorker of lib/native.ts.
struct StepWorkerArguments {
  WorkerViewArguments view;
  std::vector<std::int32_t> tokens;
  std::int64_t drafts = 0;
  std::int64_t group = 0;
  std::vector<float> embeddings;
  LogitsWanted logits;
  std::optional<SamplerArguments> sampler;
  bool logprob;
  std::int64_t top_logprobs;
  std::vector<std::int32_t> bias_ids;
  std::vector<float> bias;
  Held held = Held::kNo;
  bool hidden;
  bool attention_mass;

  explicit StepWorkerArguments(const Argument& worker)
      : view(worker),
        tokens(worker.property("tokens").int32s()),
        logits(worker.property("logits").one_of<LogitsWanted>(
            {{"none", LogitsWanted::kNone}, {"last", LogitsWanted::kLast}, {"all", LogitsWanted::kAll}})),
        logprob(worker.property("logprob").boolean()),
        top_logprobs(worker.property("topLogprobs").integer(0, kMaxTopLogprobs)),
        hidden(flag(worker.property("hidden"))),
        attention_mass(flag(worker.property("attentionMass"))) {
    if (const Argument options = worker.property("sampler"); !options.is_null()) sampler.emplace(options);
    if (const Argument given = worker.property("drafts"); !given.is_undefined()) drafts = given.count();
    if (const Argument given = worker.property("group"); !given.is_undefined()) group = given.count();
    if (drafts > 0 && drafts >= std::ssize(tokens)) worker.property("drafts").refuse("fewer than there are tokens");
    if (const Argument given = worker.property("embeddings"); !given.is_undefined()) embeddings = given.floats();
    if (const Argument given = worker.property("logitBias"); !given.is_undefined()) {
      bias_ids = given.property("ids").int32s();
      bias = given.property("values").floats();
    }
    if (const Argument given = worker.property("held"); !given.is_undefined()) {
      held = given.one_of<Held>({{"no", Held::kNo}, {"yes", Held::kYes}, {"with-logits", Held::kWithLogits}});
    }
  }
};

std::vector<std::shared_ptr<BlockHandle>> targets_of(const std::vector<StepWorkerArguments>& workers) {
  std::vector<std::shared_ptr<BlockHandle>> targets;
  for (const StepWorkerArguments& worker : workers) targets.push_back(worker.view.target);
  return targets;
}

// A step, shared by its tasks. What it holds of the cache and the device goes on the runner's thread, whatever happens.
struct StepRun {
  // What a worker gets; the sizes of its arrays.
  struct Wanted {
    std::int64_t stages = 1, logits = 0, top = 0, hidden = 0, attention_mass = 0;
    bool logprob = false;
    bool held_logits = false;
  };

  std::shared_ptr<Transformer> transformer;
  std::shared_ptr<KvCache> cache;
  CacheLease lease;
  std::optional<Runner::Disposer> disposer;  // of a step that waits for JavaScript
  std::vector<StepWorker> workers;           // until the step begins
  std::vector<Wanted> wanted;                // one per worker
  std::unique_ptr<Step> step;

  StepRun(const ModelHandle& model, const std::shared_ptr<CacheHandle>& cache_handle,
          std::vector<StepWorkerArguments> arguments, bool waits)
      : transformer(model.open()), cache(cache_handle->open()), lease(cache_handle, targets_of(arguments)) {
    if (waits) disposer.emplace(model.device()->disposer());
    const std::int64_t vocab = transformer->config().vocab_size;
    workers.reserve(arguments.size());
    for (StepWorkerArguments& from : arguments) {
      StepWorker& worker = workers.emplace_back();
      worker.view = from.view.open();
      worker.tokens = std::move(from.tokens);
      worker.drafts = from.drafts;
      worker.group = from.group;
      worker.embeddings = std::move(from.embeddings);
      worker.logits = from.logits;
      worker.logprob = from.logprob;
      worker.bias_ids = std::move(from.bias_ids);
      worker.bias = std::move(from.bias);
      worker.held = from.held != Held::kNo;
      worker.hidden = from.hidden;
      worker.attention_mass = from.attention_mass;
      if (from.sampler) {
        worker.sampler = from.sampler->row;
        worker.forbidden = std::move(from.sampler->forbidden);
        worker.penalty_scope = from.sampler->scope;
        worker.penalty_last_n = from.sampler->last_n;
        worker.top_logprobs = std::min(from.top_logprobs, vocab);
      }
      Wanted& results = wanted.emplace_back();
      results.stages = worker.drafts + 1;
      if (worker.logits == LogitsWanted::kLast) results.logits = results.stages * vocab;
      if (worker.logits == LogitsWanted::kAll) results.logits = static_cast<std::int64_t>(worker.tokens.size()) * vocab;
      results.top = worker.top_logprobs;
      if (worker.hidden) results.hidden = transformer->config().hidden_size;
      if (worker.attention_mass) results.attention_mass = std::ssize(worker.view.entries);
      results.logprob = worker.logprob;
      results.held_logits = from.held == Held::kWithLogits;
    }
  }
  ~StepRun() {
    if (step && disposer) (*disposer)(step.release());
  }
  StepRun(const StepRun&) = delete;
  StepRun& operator=(const StepRun&) = delete;

  // Does the next piece; whether there is no more. On the runner's thread, as `end`.
  bool advance(const std::atomic<bool>& cancelled) {
    if (!step) step = transformer->begin(*cache, std::move(workers));
    return step->advance(cancelled);
  }
  void end() { step.reset(); }
};

// NativeStepResults of lib/native.ts: arrays that are filled where they lie. Of what nobody asked for there are none:
// each is an object with memory of its own, to be made and collected in every step.
class StepResults {
 public:
  Napi::Object open(Napi::Env env, const std::vector<StepRun::Wanted>& workers) {
    const auto floats = [&](Napi::Object& of, const char* name, std::int64_t length) -> float* {
      if (length == 0) return nullptr;
      auto array = new_float32_array(env, length);
      of.Set(name, array);
      return array.Data();
    };
    const auto ids = [&](Napi::Object& of, const char* name, std::int64_t length) -> std::int32_t* {
      if (length == 0) return nullptr;
      auto array = new_int32_array(env, length);
      of.Set(name, array);
      return array.Data();
    };
    std::int64_t stages = 0;
    for (const StepRun::Wanted& wanted : workers) stages += wanted.stages;
    auto results = Napi::Object::New(env);
    tokens_ = ids(results, "tokens", stages);
    logprobs_ = floats(results, "logprobs", stages);
    kept_ = ids(results, "kept", std::ssize(workers));
    auto extras = Napi::Array::New(env, workers.size());
    for (const StepRun::Wanted& wanted : workers) {
      auto extra = Napi::Object::New(env);
      workers_.push_back({.logits = floats(extra, "logits", wanted.logits),
                          .top_tokens = ids(extra, "topTokens", wanted.stages * wanted.top),
                          .top_logprobs = floats(extra, "topLogprobs", wanted.stages * wanted.top),
                          .hidden = floats(extra, "hidden", wanted.hidden),
                          .attention_mass = floats(extra, "attentionMass", wanted.attention_mass),
                          .stages = wanted.stages,
                          .top = wanted.top,
                          .logprob = wanted.logprob});
      extras.Set(static_cast<std::uint32_t>(workers_.size() - 1), extra);
    }
    results.Set("extras", extras);
    return results;
  }

  // On the runner's thread.
  void fill(const StepResult& output) {
    seconds_ = output.seconds;
    std::int32_t* tokens = tokens_;
    float* logprobs = logprobs_;
    for (std::size_t i = 0; i < workers_.size(); i++) {
      const StepResult::Worker& from = output.workers[i];
      const Worker& to = workers_[i];
      kept_[i] = static_cast<std::int32_t>(from.kept);
      std::copy(from.logits.begin(), from.logits.end(), to.logits);
      std::copy(from.hidden.begin(), from.hidden.end(), to.hidden);
      std::copy(from.attention_mass.begin(), from.attention_mass.end(), to.attention_mass);
      for (std::size_t stage = 0; stage < from.choices.size(); stage++) {
        const StepResult::Choice& choice = from.choices[stage];
        tokens[stage] = choice.token;
        logprobs[stage] = to.logprob ? choice.logprob : std::nanf("");
        const std::size_t first = stage * static_cast<std::size_t>(to.top);
        for (std::size_t rank = 0; rank < choice.top.size(); rank++) {
          to.top_tokens[first + rank] = choice.top[rank].token;
          to.top_logprobs[first + rank] = choice.top[rank].logprob;
        }
      }
      tokens += to.stages;
      logprobs += to.stages;
    }
  }

  Napi::Value finish(Napi::Env env, Napi::Object results) const {
    // Not enumerable: results are equal whatever time they took.
    results.DefineProperty(Napi::PropertyDescriptor::Value("seconds", Napi::Number::New(env, seconds_), napi_default));
    return results;
  }

 private:
  // Memory of the arrays of one worker; null where it did not ask for them.
  struct Worker {
    float* logits;
    std::int32_t* top_tokens;
    float* top_logprobs;
    float* hidden;
    float* attention_mass;
    std::int64_t stages;
    std::int64_t top;  // of each stage
    bool logprob;
  };

  std::int32_t* tokens_ = nullptr;
  float* logprobs_ = nullptr;
  std::int32_t* kept_ = nullptr;
  std::vector<Worker> workers_;
  double seconds_ = 0;
};

}  // namespace

// What the tokens of a step's first stage are chosen from, where JavaScript knows it before the step has come there:
// then the step need not wait for the event loop.
class EarlyEdits {
 public:
  static constexpr const char* kKind = "edits";

  void bring(std::vector<LogitsEdit> edits) {
    const std::lock_guard lock(mutex_);
    edits_ = std::move(edits);
  }
  // At most once.
  std::optional<std::vector<LogitsEdit>> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(edits_, std::nullopt);
  }

 private:
  std::mutex mutex_;
  std::optional<std::vector<LogitsEdit>> edits_;
};

// A step whose held workers wait for their tokens; the cache is busy. One that is collected is aborted.
class HeldStep {
 public:
  static constexpr const char* kKind = "step";

  HeldStep(std::shared_ptr<DeviceHandle> device, std::shared_ptr<StepRun> run)
      : device_(std::move(device)), run_(std::move(run)) {}

  const std::shared_ptr<DeviceHandle>& device() const { return device_; }
  // Throws kClosed at the second call.
  std::shared_ptr<StepRun> take() {
    if (!run_) throw Error(code::kClosed, "the step was finished or aborted before");
    return std::move(run_);
  }

 private:
  std::shared_ptr<DeviceHandle> device_;
  std::shared_ptr<StepRun> run_;
};

namespace {

// A step up to its end, or up to a stage at which held workers wait for edits that are not there yet.
class StepTask : public PromiseTask {
 public:
  // From its begin on. `early`: null where nobody is held.
  StepTask(Napi::Env env, std::shared_ptr<DeviceHandle> device, std::shared_ptr<StepRun> run,
           std::shared_ptr<EarlyEdits> early)
      : device_(std::move(device)), run_(std::move(run)), early_(std::move(early)) {
    keep_arrays(env, /*with_logits=*/true);
  }
  // What is left of one that waits.
  StepTask(Napi::Env env, std::shared_ptr<DeviceHandle> device, std::shared_ptr<StepRun> run,
           std::vector<LogitsEdit> edits)
      : PromiseTask(Begun{}), device_(std::move(device)), run_(std::move(run)), edits_(std::move(edits)) {
    keep_arrays(env, /*with_logits=*/false);
  }

 protected:
  void execute(const std::atomic<bool>& cancelled) override try {
    for (;;) {
      if (edits_) run_->step->choose(*std::exchange(edits_, std::nullopt));
      if (!run_->advance(cancelled)) return;
      if (!run_->step->waits()) {
        // The step has been committed: nothing may fail any more.
        results_.fill(run_->step->result());
        run_->end();
        return;
      }
      if (early_) edits_ = early_->take();
      if (!edits_) break;
    }
    waits_ = true;
    stage_ = run_->step->stage();
    for (std::size_t w = 0; w < run_->wanted.size(); w++) waiting_.push_back(run_->step->waits_for(w));
    for (const EditedLogits& edited : run_->step->edited()) {
      float* logits = logits_.empty() ? nullptr : logits_[edited.worker];
      if (logits == nullptr) continue;
      std::copy(edited.logits.begin(), edited.logits.end(), logits + edited.stage * std::ssize(edited.logits));
    }
  } catch (...) {
    run_->end();
    throw;
  }
  bool done() const override { return waits_ || !run_->step; }
  Napi::Value result(Napi::Env env) override {
    const auto arrays = kept().As<Napi::Array>();
    if (!waits_) return results_.finish(env, arrays.Get(kResults).As<Napi::Object>());
    auto waiting = Napi::Array::New(env, waiting_.size());
    for (std::uint32_t w = 0; w < waiting_.size(); w++) waiting.Set(w, static_cast<bool>(waiting_[w]));
    auto result = Napi::Object::New(env);
    result.Set("stage", static_cast<double>(stage_));
    result.Set("waiting", waiting);
    result.Set("logits", arrays.Get(kLogits));
    result.Set("step", to_handle(env, std::make_shared<HeldStep>(device_, run_)));
    return result;
  }

 private:
  static constexpr std::uint32_t kResults = 0, kLogits = 1;  // of kept()

  void keep_arrays(Napi::Env env, bool with_logits) {
    auto arrays = Napi::Array::New(env, 2);
    arrays.Set(kResults, results_.open(env, run_->wanted));
    auto logits = Napi::Array::New(env);
    const std::int64_t vocab = run_->transformer->config().vocab_size;
    const auto& wanted = run_->wanted;
    const bool any =
        std::any_of(wanted.begin(), wanted.end(), [](const StepRun::Wanted& worker) { return worker.held_logits; });
    for (std::size_t w = 0; with_logits && any && w < wanted.size(); w++) {
      auto array = new_float32_array(env, wanted[w].held_logits ? wanted[w].stages * vocab : 0);
      logits.Set(static_cast<std::uint32_t>(w), array);
      logits_.push_back(wanted[w].held_logits ? array.Data() : nullptr);
    }
    arrays.Set(kLogits, logits);
    keep(arrays);
  }

  std::shared_ptr<DeviceHandle> device_;
  std::shared_ptr<StepRun> run_;
  std::shared_ptr<EarlyEdits> early_;
  std::optional<std::vector<LogitsEdit>> edits_;
  bool waits_ = false;
  std::int64_t stage_ = 0;
  std::vector<bool> waiting_;
  StepResults results_;
  std::vector<float*> logits_;  // by worker, or empty: memory of the arrays in kept()
};

class AbortStepTask : public PromiseTask {
 public:
  explicit AbortStepTask(std::shared_ptr<StepRun> run) : PromiseTask(Begun{}), run_(std::move(run)) {}

 protected:
  void execute(const std::atomic<bool>&) override { run_->end(); }
  Napi::Value result(Napi::Env env) override { return env.Undefined(); }

 private:
  std::shared_ptr<StepRun> run_;
};

std::shared_ptr<Cancel> read_cancel(const Argument& cancel) {
  return cancel.is_null() ? nullptr : cancel.handle<Cancel>();
}

Napi::Value schedule(DeviceHandle& device, std::unique_ptr<PromiseTask> task, const std::shared_ptr<Cancel>& cancel) {
  if (cancel) cancel->add(task->cancel_flag());
  return device.schedule(std::move(task));
}

Napi::Value schedule_step(const Napi::CallbackInfo& info, bool waits) {
  const auto model = Argument(info, 0, "model").handle<ModelHandle>();
  const auto cache = Argument(info, 1, "cache").handle<CacheHandle>();
  const Argument workers_argument(info, 2, "workers");
  auto workers = workers_argument.map([](const Argument& worker) { return StepWorkerArguments(worker); });
  const auto cancel = read_cancel(Argument(info, 3, "cancel"));
  const auto early = waits ? Argument(info, 4, "edits").handle<EarlyEdits>() : nullptr;
  const bool any_held =
      std::any_of(workers.begin(), workers.end(), [](const auto& worker) { return worker.held != Held::kNo; });
  if (any_held != waits) workers_argument.refuse(waits ? "one that is held" : "none that is held");

  const std::shared_ptr<DeviceHandle>& device = model->device();
  if (device != cache->device()) throw Error(code::kInvalidArgument, "cache: expected one on the model's device");
  auto run = std::make_shared<StepRun>(*model, cache, std::move(workers), waits);
  return schedule(*device, std::make_unique<StepTask>(info.Env(), device, std::move(run), early), cancel);
}

LogitsEdit read_edit(const Argument& edit) {
  LogitsEdit result;
  if (const Argument logits = edit.property("logits"); !logits.is_null()) result.logits = logits.floats();
  if (const Argument allowed = edit.property("allowed"); !allowed.is_null()) result.allowed = allowed.int32s();
  return result;
}

}  // namespace

// ---- functions ------------------------------------------------------------------------------------

Napi::Value step(const Napi::CallbackInfo& info) { return schedule_step(info, false); }

Napi::Value create_edits(const Napi::CallbackInfo& info) {
  return to_handle(info.Env(), std::make_shared<EarlyEdits>());
}

Napi::Value bring_edits(const Napi::CallbackInfo& info) {
  const auto early = Argument(info, 0, "edits").handle<EarlyEdits>();
  early->bring(Argument(info, 1, "list").map(read_edit));
  return info.Env().Undefined();
}

Napi::Value hold_step(const Napi::CallbackInfo& info) { return schedule_step(info, true); }

Napi::Value finish_step(const Napi::CallbackInfo& info) {
  const auto held = Argument(info, 0, "step").handle<HeldStep>();
  std::vector<LogitsEdit> edits = Argument(info, 1, "edits").map(read_edit);
  const auto cancel = read_cancel(Argument(info, 2, "cancel"));
  const std::shared_ptr<DeviceHandle>& device = held->device();
  return schedule(*device, std::make_unique<StepTask>(info.Env(), device, held->take(), std::move(edits)), cancel);
}

Napi::Value abort_step(const Napi::CallbackInfo& info) {
  const auto held = Argument(info, 0, "step").handle<HeldStep>();
  return schedule(*held->device(), std::make_unique<AbortStepTask>(held->take()), nullptr);
}

}  // namespace hogwild::addon
