// Models.
#include <napi.h>

#include "addon/convert.h"
#include "addon/exports.h"
#include "addon/handles.h"
#include "addon/sampler_arguments.h"
#include "model/transformer.h"
#include "model/weights.h"

namespace hogwild::addon {

const std::shared_ptr<Transformer>& ModelHandle::open() const {
  if (!transformer_) throw Error(code::kClosed, "the model is closed");
  device_->open();
  return transformer_;
}

// Bytes of tensors that a load has dealt with, written on the runner's thread and read by JavaScript.
struct Progress {
  static constexpr const char* kKind = "progress";
  std::atomic<std::int64_t> bytes{0};
};

namespace {

// ---- loading --------------------------------------------------------------------------------------

LayerSpec read_layer(const Argument& options) {
  LayerSpec layer;
  const Argument norms = options.property("norms");
  layer.input_norm = norms.property("input").boolean();
  layer.attention_output_norm = norms.property("attentionOutput").boolean();
  layer.mlp_norm = norms.property("mlp").boolean();
  layer.mlp_output_norm = norms.property("mlpOutput").boolean();
  layer.qk_norm = options.property("qkNorm").one_of<QkNorm>(
      {{"none", QkNorm::kNone}, {"head", QkNorm::kHead}, {"row", QkNorm::kRow}});
  const Argument biases = options.property("biases");
  layer.qkv_biases = biases.property("qkv").boolean();
  layer.o_bias = biases.property("o").boolean();
  layer.mlp_biases = biases.property("mlp").boolean();
  layer.sinks = options.property("sinks").boolean();
  layer.rope = static_cast<std::int32_t>(options.property("rope").integer(-1, INT32_MAX));
  layer.window = options.property("window").integer(0, INT32_MAX);
  layer.softcap = static_cast<float>(options.property("softcap").number());
  const Argument mlp = options.property("mlp");
  layer.intermediate_size = mlp.property("intermediateSize").integer(1, INT32_MAX);
  if (mlp.property("type").one_of<bool>({{"dense", false}, {"experts", true}})) {
    layer.experts = {.count = mlp.property("count").integer(1, INT32_MAX),
                     .used = mlp.property("used").integer(1, INT32_MAX),
                     .normalized = mlp.property("normalized").boolean(),
                     .router_bias = mlp.property("routerBias").boolean()};
  }
  return layer;
}

ModelConfig read_config(const Argument& options) {
  ModelConfig config;
  config.vocab_size = options.property("vocabSize").integer(1, INT32_MAX);
  config.hidden_size = options.property("hiddenSize").integer(1, INT32_MAX);
  config.query_heads = options.property("queryHeads").integer(1, INT32_MAX);
  config.kv_heads = options.property("kvHeads").integer(1, INT32_MAX);
  config.head_dim = options.property("headDim").integer(1, INT32_MAX);
  config.rms_norm_eps = static_cast<float>(options.property("rmsNormEps").number());
  config.norm_offset = static_cast<float>(options.property("normOffset").number());
  config.activation = read_activation(options.property("activation"));
  config.embedding_scale = static_cast<float>(options.property("embeddingScale").number());
  config.attention_scale = static_cast<float>(options.property("attentionScale").number());
  config.residual_scale = static_cast<float>(options.property("residualScale").number());
  config.logit_scale = static_cast<float>(options.property("logitScale").number());
  config.logit_softcap = static_cast<float>(options.property("logitSoftcap").number());
  config.ropes = options.property("ropes").map(read_ropes);
  config.layers = options.property("layers").map(read_layer);
  return config;
}

TensorSource::Place read_place(const Argument& place) {
  return {.path = place.property("path").string(),
          .offset = static_cast<std::uint64_t>(place.property("offset").count())};
}

TensorSource::Integers read_integers(const Argument& integers) {
  TensorSource::Integers read;
  read.layout = integers.property("layout").one_of<Int4Layout>(
      {{"awq", Int4Layout::kAwq}, {"gptq", Int4Layout::kGptq}, {"compressed-tensors", Int4Layout::kCompressedTensors}});
  read.outputs = integers.property("outputs").size();
  read.first = integers.property("first").count();
  const Argument scales = integers.property("scales");
  read.scales = read_place(scales);
  read.scale_dtype = scales.property("dtype").dtype();
  const Argument zeros = integers.property("zeros");
  if (!zeros.is_undefined()) {
    read.zeros = read_place(zeros);
    read.zero_rule = zeros.property("rule").one_of<Int4Zeros>({{"stored", Int4Zeros::kStored},
                                                               {"lessOne", Int4Zeros::kLessOne},
                                                               {"storedOr8", Int4Zeros::kStoredOr8},
                                                               {"lessOneOr8", Int4Zeros::kLessOneOr8}});
  }
  const Argument groups = integers.property("groups");
  if (!groups.is_undefined()) read.groups = read_place(groups);
  return read;
}

TensorSource read_tensor(const Argument& tensor) {
  TensorSource source;
  source.name = tensor.property("name").string();
  source.path = tensor.property("path").string();
  source.offset = static_cast<std::uint64_t>(tensor.property("offset").count());
  source.format = tensor.property("format").format();
  source.rows = tensor.property("rows").size();
  source.cols = tensor.property("cols").size();
  const Argument interleaved = tensor.property("interleaved");
  if (!interleaved.is_undefined()) {
    source.interleaved = {.head_dim = interleaved.property("headDim").size(),
                          .rotary_dim = interleaved.property("rotaryDim").size()};
  }
  const Argument strides = tensor.property("strides");
  if (!strides.is_undefined()) {
    source.row_stride = strides.property("row").size();
    source.col_stride = strides.property("col").size();
  }
  const Argument exponents = tensor.property("exponents");
  if (!exponents.is_undefined()) source.exponents = read_place(exponents);
  const Argument integers = tensor.property("integers");
  if (!integers.is_undefined()) source.integers = read_integers(integers);
  return source;
}

class LoadTask : public PromiseTask {
 public:
  LoadTask(std::shared_ptr<DeviceHandle> device, ModelConfig config, std::vector<TensorSource> tensors,
           const WeightOptions& options, std::shared_ptr<Progress> progress)
      : handle_(std::move(device)),
        device_(handle_->open()),
        disposer_(handle_->disposer()),
        config_(std::move(config)),
        tensors_(std::move(tensors)),
        options_(options),
        progress_(std::move(progress)) {}

 protected:
  void execute(const std::atomic<bool>& cancelled) override {
    const auto on_loaded = [&](std::int64_t bytes) {
      if (progress_) progress_->bytes += bytes;
      if (cancelled) throw Error(code::kAborted, "the loading was aborted");
    };
    auto weights = std::make_unique<Weights>(*device_, tensors_, options_, on_loaded);
    transformer_ = {new Transformer(device_, std::move(config_), std::move(weights)), disposer_};
  }
  Napi::Value result(Napi::Env env) override {
    return to_handle(env, std::make_shared<ModelHandle>(handle_, std::move(transformer_)));
  }

 private:
  std::shared_ptr<DeviceHandle> handle_;
  std::shared_ptr<Device> device_;
  Runner::Disposer disposer_;
  ModelConfig config_;
  std::vector<TensorSource> tensors_;
  WeightOptions options_;
  std::shared_ptr<Progress> progress_;
  std::shared_ptr<Transformer> transformer_;
};

}  // namespace

// ---- functions ------------------------------------------------------------------------------------

Napi::Value create_model(const Napi::CallbackInfo& info) {
  auto device = Argument(info, 0, "device").handle<DeviceHandle>();
  ModelConfig config = read_config(Argument(info, 1, "config"));
  std::vector<TensorSource> tensors = Argument(info, 2, "tensors").map(read_tensor);
  const Argument dtype(info, 3, "convertTo");
  WeightOptions options;
  if (!dtype.is_null()) options.convert_to = dtype.dtype();
  const Argument progress_argument(info, 4, "progress"), cancel_argument(info, 5, "cancel");
  options.mapped = Argument(info, 6, "mapped").boolean();
  const Argument repack(info, 7, "repack");
  options.repack = repack.is_undefined() || repack.boolean();
  const auto progress = progress_argument.is_null() ? nullptr : progress_argument.handle<Progress>();
  const auto cancel = cancel_argument.is_null() ? nullptr : cancel_argument.handle<Cancel>();
  auto task = std::make_unique<LoadTask>(device, std::move(config), std::move(tensors), options, progress);
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

}  // namespace hogwild::addon
