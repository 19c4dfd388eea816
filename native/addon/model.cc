// Models and the step.
#include <napi.h>

#include <algorithm>
#include <cmath>

#include "addon/convert.h"
#include "addon/exports.h"
#include "addon/handles.h"
#include "addon/sampling.h"
#include "model/transformer.h"
#include "model/weights.h"

namespace hogwild::addon {

const std::shared_ptr<Transformer>& ModelHandle::open() const {
  if (!transformer_) throw Error(code::kClosed, "the model is closed");
  device_->open();
  return transformer_;
}

namespace {

// ---- loading --------------------------------------------------------------------------------------

ModelConfig read_config(const Argument& options) {
  ModelConfig config;
  config.vocab_size = options.property("vocabSize").integer(1, INT32_MAX);
  config.hidden_size = options.property("hiddenSize").integer(1, INT32_MAX);
  config.intermediate_size = options.property("intermediateSize").integer(1, INT32_MAX);
  config.layers = options.property("layers").integer(1, INT32_MAX);
  config.query_heads = options.property("queryHeads").integer(1, INT32_MAX);
  config.kv_heads = options.property("kvHeads").integer(1, INT32_MAX);
  config.head_dim = options.property("headDim").integer(1, INT32_MAX);
  config.rms_norm_eps = static_cast<float>(options.property("rmsNormEps").number());
  config.norm_offset = static_cast<float>(options.property("normOffset").number());
  config.embedding_scale = static_cast<float>(options.property("embeddingScale").number());
  config.attention_scale = static_cast<float>(options.property("attentionScale").number());
  config.activation = read_activation(options.property("activation"));
  config.rope = read_rope(options.property("inverseFrequencies"), options.property("attentionFactor"));
  return config;
}

TensorSource read_tensor(const Argument& tensor) {
  TensorSource source;
  source.name = tensor.property("name").string();
  source.path = tensor.property("path").string();
  source.offset = static_cast<std::uint64_t>(tensor.property("offset").count());
  source.dtype = tensor.property("dtype").dtype();
  source.rows = tensor.property("rows").size();
  source.cols = tensor.property("cols").size();
  return source;
}

// Bytes of tensors that a load has dealt with, written on the runner's thread and read by JavaScript.
struct Progress {
  static constexpr const char* kKind = "progress";
  static constexpr napi_type_tag kTag{0x686f6777696c6406, 0x9d5c1f0b7a3e4c06};
  std::atomic<std::int64_t> bytes{0};
};

class LoadTask : public PromiseTask {
 public:
  LoadTask(std::shared_ptr<DeviceHandle> device, ModelConfig config, std::vector<TensorSource> tensors,
           std::optional<Dtype> convert_to, std::shared_ptr<Progress> progress)
      : handle_(std::move(device)),
        device_(handle_->open()),
        config_(std::move(config)),
        tensors_(std::move(tensors)),
        convert_to_(convert_to),
        progress_(std::move(progress)) {}

 protected:
  void execute(const std::atomic<bool>& cancelled) override {
    const auto on_loaded = [&](std::int64_t bytes) {
      if (progress_) progress_->bytes += bytes;
      if (cancelled) throw Error(code::kAborted, "the loading was aborted");
    };
    auto weights = std::make_unique<Weights>(*device_, tensors_, convert_to_ ? &*convert_to_ : nullptr, on_loaded);
    transformer_ = std::make_shared<Transformer>(device_, std::move(config_), std::move(weights));
  }
  Napi::Value result(Napi::Env env) override {
    return to_handle(env, std::make_shared<ModelHandle>(handle_, std::move(transformer_)));
  }

 private:
  std::shared_ptr<DeviceHandle> handle_;
  std::shared_ptr<Device> device_;
  ModelConfig config_;
  std::vector<TensorSource> tensors_;
  std::optional<Dtype> convert_to_;
  std::shared_ptr<Progress> progress_;
  std::shared_ptr<Transformer> transformer_;
};

// ---- step -----------------------------------------------------------------------------------------

// NativeStepWorker of lib/native.ts.
struct StepWorkerArguments {
  WorkerViewArguments view;
  std::vector<std::int32_t> tokens;
  LogitsWanted logits;
  std::optional<SamplerArguments> sampler;
  bool logprob;

  explicit StepWorkerArguments(const Argument& worker)
      : view(worker),
        tokens(worker.property("tokens").int32s()),
        logits(worker.property("logits").one_of<LogitsWanted>(
            {{"none", LogitsWanted::kNone}, {"last", LogitsWanted::kLast}, {"all", LogitsWanted::kAll}})),
        logprob(worker.property("logprob").boolean()) {
    const Argument options = worker.property("sampler");
    if (!options.is_null()) sampler.emplace(options);
  }
};

class StepTask : public PromiseTask {
 public:
  StepTask(Napi::Env env, const ModelHandle& model, const std::shared_ptr<CacheHandle>& cache,
           std::vector<StepWorkerArguments> workers)
      : transformer_(model.open()), cache_(cache->open()), lease_(cache) {
    const std::int64_t vocab = transformer_->config().vocab_size;
    auto results = Napi::Array::New(env, workers.size());
    workers_.reserve(workers.size());
    for (StepWorkerArguments& from : workers) {
      StepWorker& worker = workers_.emplace_back();
      worker.view = from.view.open();
      worker.tokens = std::move(from.tokens);
      worker.view.tokens = worker.tokens;
      worker.logits = from.logits;
      worker.logprob = from.logprob;
      if (from.sampler) {
        worker.sampler = from.sampler->row;
        worker.forbidden = std::move(from.sampler->forbidden);
        worker.sampler->forbidden = worker.forbidden;
      }
      std::int64_t rows = 0;
      if (worker.logits == LogitsWanted::kLast) rows = 1;
      if (worker.logits == LogitsWanted::kAll) rows = static_cast<std::int64_t>(worker.tokens.size());
      auto logits = new_float32_array(env, rows * vocab);
      logits_.push_back(logits.Data());
      auto result = Napi::Object::New(env);
      result.Set("logits", logits);
      results.Set(static_cast<std::uint32_t>(workers_.size() - 1), result);
    }
    keep(results);
  }

 protected:
  void execute(const std::atomic<bool>& cancelled) override {
    for (StepWorker& worker : workers_) {
      if (!worker.sampler || worker.sampler->repetition_penalty == 1) continue;
      worker.seen = ids_in_view(worker);
      worker.sampler->seen = worker.seen;
    }
    output_ = transformer_->step(*cache_, workers_, cancelled);
    for (std::size_t i = 0; i < workers_.size(); i++) {
      std::copy(output_.workers[i].logits.begin(), output_.workers[i].logits.end(), logits_[i]);
    }
  }

  Napi::Value result(Napi::Env) override {
    const auto results = kept().As<Napi::Array>();
    for (std::uint32_t i = 0; i < workers_.size(); i++) {
      auto worker = results.Get(i).As<Napi::Object>();
      worker.Set("token", output_.workers[i].token);
      worker.Set("logprob", workers_[i].logprob ? output_.workers[i].logprob : std::nanf(""));
      worker.Set("seconds", seconds());
    }
    return results;
  }

 private:
  // The distinct token ids that the worker sees, the new ones of this step included, its own and others'.
  std::vector<std::int32_t> ids_in_view(const StepWorker& worker) const {
    std::vector<std::int32_t> ids;
    for (std::size_t i = 0; i < worker.view.blocks.size(); i++) {
      const auto& block = worker.view.blocks[i];
      if (!worker.view.bias.empty() && std::isinf(worker.view.bias[i])) continue;  // hidden
      const std::vector<std::int32_t> old = block->tokens();
      ids.insert(ids.end(), old.begin(), old.end());
      for (const StepWorker& other : workers_) {
        if (other.view.target == block) ids.insert(ids.end(), other.tokens.begin(), other.tokens.end());
      }
    }
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    // A block that an engine wrote without ids holds -1s, and another model's ids may lie outside this vocabulary.
    const auto vocab = static_cast<std::int32_t>(transformer_->config().vocab_size);
    std::erase_if(ids, [vocab](std::int32_t id) { return id < 0 || id >= vocab; });
    return ids;
  }

  std::shared_ptr<Transformer> transformer_;
  std::shared_ptr<KvCache> cache_;
  CacheLease lease_;
  std::vector<StepWorker> workers_;
  std::vector<float*> logits_;  // memory of the arrays in kept(), one per worker
  StepResult output_;
};

}  // namespace

// ---- functions ------------------------------------------------------------------------------------

Napi::Value create_model(const Napi::CallbackInfo& info) {
  auto device = Argument(info, 0, "device").handle<DeviceHandle>();
  ModelConfig config = read_config(Argument(info, 1, "config"));
  std::vector<TensorSource> tensors = Argument(info, 2, "tensors").map(read_tensor);
  const Argument dtype(info, 3, "convertTo");
  std::optional<Dtype> convert_to;
  if (!dtype.is_null()) convert_to = dtype.dtype();
  const Argument progress_argument(info, 4, "progress"), cancel_argument(info, 5, "cancel");
  const auto progress = progress_argument.is_null() ? nullptr : progress_argument.handle<Progress>();
  const auto cancel = cancel_argument.is_null() ? nullptr : cancel_argument.handle<Cancel>();
  auto task = std::make_unique<LoadTask>(device, std::move(config), std::move(tensors), convert_to, progress);
  if (cancel) cancel->add(task->cancel_flag());
  return device->schedule(std::move(task));
}

Napi::Value model_weight_bytes(const Napi::CallbackInfo& info) {
  const auto model = Argument(info, 0, "model").handle<ModelHandle>();
  return Napi::Number::New(info.Env(), static_cast<double>(model->open()->weight_bytes()));
}

Napi::Value model_close(const Napi::CallbackInfo& info) {
  Argument(info, 0, "model").handle<ModelHandle>()->close();
  return info.Env().Undefined();
}

Napi::Value create_progress(const Napi::CallbackInfo& info) {
  return to_handle(info.Env(), std::make_shared<Progress>());
}

Napi::Value progress_bytes(const Napi::CallbackInfo& info) {
  const auto progress = Argument(info, 0, "progress").handle<Progress>();
  return Napi::Number::New(info.Env(), static_cast<double>(progress->bytes.load()));
}

Napi::Value create_cancel(const Napi::CallbackInfo& info) { return to_handle(info.Env(), std::make_shared<Cancel>()); }

Napi::Value cancel(const Napi::CallbackInfo& info) {
  Argument(info, 0, "cancel").handle<Cancel>()->cancel();
  return info.Env().Undefined();
}

Napi::Value step(const Napi::CallbackInfo& info) {
  const auto model = Argument(info, 0, "model").handle<ModelHandle>();
  const auto cache = Argument(info, 1, "cache").handle<CacheHandle>();
  auto workers = Argument(info, 2, "workers").map([](const Argument& worker) { return StepWorkerArguments(worker); });
  const Argument cancel_argument(info, 3, "cancel");
  const auto cancel = cancel_argument.is_null() ? nullptr : cancel_argument.handle<Cancel>();

  if (model->device() != cache->device()) {
    throw Error(code::kInvalidArgument, "cache: expected one on the model's device");
  }
  auto task = std::make_unique<StepTask>(info.Env(), *model, cache, std::move(workers));
  if (cancel) cancel->add(task->cancel_flag());
  return model->device()->schedule(std::move(task));
}

}  // namespace hogwild::addon
