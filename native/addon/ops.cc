// Single ops on host arrays, for tests and benchmarks. They run on the JavaScript thread, so they are
// refused (kBusy) while the device's runner has anything to do.
#include "device/ops.h"

#include <napi.h>

#include <algorithm>

#include "addon/convert.h"
#include "addon/exports.h"
#include "addon/handles.h"
#include "addon/sampler_arguments.h"
#include "core/format.h"
#include "core/limits.h"
#include "device/device.h"

namespace hogwild::addon {

struct DeviceMemory {
  static constexpr const char* kKind = "memory";

  DeviceMemory(std::shared_ptr<DeviceHandle> on, Buffer buffer, std::size_t size)
      : device(std::move(on)), data(std::move(buffer)), bytes(size) {}

  std::shared_ptr<DeviceHandle> device;
  Buffer data;
  std::size_t bytes;
};

namespace {

// Device memory for the arguments and results of one call.
class Scratch {
 public:
  explicit Scratch(Device& device) : device_(device) {}

  template <typename T>
  const T* upload(const std::vector<T>& values) {
    if (values.empty()) return nullptr;
    T* data = allocate<T>(values.size());
    device_.upload(data, values.data(), values.size() * sizeof(T));
    return data;
  }

  template <typename T>
  T* allocate(std::size_t n) {
    buffers_.push_back(device_.allocate(std::max<std::size_t>(n, 1) * sizeof(T), "an op's arrays"));
    return buffers_.back().as<T>();
  }

  void download(Napi::Float32Array to, const float* from) {
    if (to.ByteLength() > 0) device_.download(to.Data(), from, to.ByteLength());
  }

 private:
  Device& device_;
  std::vector<Buffer> buffers_;
};

std::shared_ptr<DeviceHandle> device_argument(const Napi::CallbackInfo& info) {
  return Argument(info, 0, "device").handle<DeviceHandle>();
}

// Raw little-endian elements of `format`, in rows of `cols`.
std::int64_t count_rows(const Argument& data, std::size_t bytes, Format format, std::int64_t cols) {
  const FormatInfo& info = format_info(format);
  const auto row = cols % info.block_elements == 0 ? static_cast<std::size_t>(row_bytes(format, cols)) : 0;
  if (row == 0 || bytes == 0 || bytes % row != 0) {
    data.refuse("whole rows of " + std::to_string(cols) + " elements of " + info.name);
  }
  return static_cast<std::int64_t>(bytes / row);
}

WeightSource weight_source(const std::vector<std::uint8_t>& bytes, Format format, std::int64_t rows,
                           std::int64_t cols) {
  return {.data = reinterpret_cast<const std::byte*>(bytes.data()), .format = format, .rows = rows, .cols = cols};
}

}  // namespace

// What an engine on the device would have: memory, filled, and its address.
Napi::Value op_device_memory(const Napi::CallbackInfo& info) {
  const auto handle = device_argument(info);
  const std::vector<std::uint8_t> bytes = Argument(info, 1, "bytes").bytes();
  Device& device = handle->idle();
  Buffer data = device.allocate(std::max<std::size_t>(bytes.size(), 1), "a test");
  device.upload(data.data(), bytes.data(), bytes.size());

  const auto address = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(data.data()));
  auto result = Napi::Object::New(info.Env());
  result.Set("address", Napi::BigInt::New(info.Env(), address));
  auto memory = std::make_shared<DeviceMemory>(handle, std::move(data), bytes.size());
  result.Set("memory", to_handle(info.Env(), std::move(memory)));
  return result;
}

Napi::Value op_read_memory(const Napi::CallbackInfo& info) {
  const auto memory = Argument(info, 0, "memory").handle<DeviceMemory>();
  auto copy = new_uint8_array(info.Env(), static_cast<std::int64_t>(memory->bytes));
  memory->device->idle().download(copy.Data(), memory->data.data(), memory->bytes);
  return copy;
}

Napi::Value op_embedding(const Napi::CallbackInfo& info) {
  const auto handle = device_argument(info);
  const Argument ids(info, 1, "tokens");
  const std::vector<std::int32_t> tokens = ids.int32s();
  const Argument table(info, 2, "table");
  const std::vector<std::uint8_t> bytes = table.bytes();
  const Format format = Argument(info, 3, "format").format();
  const std::int64_t cols = Argument(info, 4, "cols").size();
  const double scale = Argument(info, 5, "scale").number();
  const std::int64_t rows = count_rows(table, bytes.size(), format, cols);
  for (const std::int32_t token : tokens) {
    if (token < 0 || token >= rows) ids.refuse("ids from 0 to " + std::to_string(rows - 1));
  }
  const auto out = new_float32_array(info.Env(), static_cast<std::int64_t>(tokens.size()) * cols);

  Device& device = handle->idle();
  Scratch scratch(device);
  EmbeddingParams params;
  params.rows = static_cast<std::int64_t>(tokens.size());
  WeightStorage storage;
  params.table = device.upload_weight(weight_source(bytes, format, rows, cols), storage);
  params.scale = static_cast<float>(scale);
  params.out = scratch.allocate<float>(out.ElementLength());
  const auto step = device.upload({.plan = {}, .ropes = {}, .slots = {}, .tokens = tokens});
  device.embedding(*step, params);
  scratch.download(out, params.out);
  return out;
}

Napi::Value op_rms_norm(const Napi::CallbackInfo& info) {
  const auto handle = device_argument(info);
  const Argument input(info, 1, "x");
  const std::vector<float> x = input.floats();
  const std::vector<float> weight = Argument(info, 2, "weight").floats();
  const double eps = Argument(info, 3, "eps").number();
  if (weight.empty() || x.size() % weight.size() != 0) {
    input.refuse("whole rows of " + std::to_string(weight.size()) + " elements");
  }
  const auto out = new_float32_array(info.Env(), static_cast<std::int64_t>(x.size()));

  Device& device = handle->idle();
  Scratch scratch(device);
  RmsNormParams params;
  params.x = scratch.upload(x);
  params.weight = scratch.upload(weight);
  params.eps = static_cast<float>(eps);
  params.rows = static_cast<std::int64_t>(x.size() / weight.size());
  params.cols = static_cast<std::int64_t>(weight.size());
  float* result = scratch.allocate<float>(x.size());
  params.out = result;
  device.rms_norm(params);
  scratch.download(out, result);
  return out;
}

Napi::Value op_matmul(const Napi::CallbackInfo& info) {
  struct Weight {
    std::vector<std::uint8_t> data;
    Format format;
    std::int64_t rows;
    std::vector<float> bias;
  };

  const Napi::Env env = info.Env();
  const auto handle = device_argument(info);
  const Argument input(info, 1, "x");
  const std::vector<float> x = input.floats();
  const std::int64_t rows = Argument(info, 2, "rows").size();
  if (x.empty() || static_cast<std::int64_t>(x.size()) % rows != 0) input.refuse(std::to_string(rows) + " equal rows");
  const std::int64_t k = static_cast<std::int64_t>(x.size()) / rows;
  const Argument matrices(info, 3, "weights");
  const auto weights = matrices.map([k](const Argument& argument) {
    Weight weight;
    const Argument data = argument.property("data");
    weight.data = data.bytes();
    weight.format = argument.property("format").format();
    weight.rows = count_rows(data, weight.data.size(), weight.format, k);
    const Argument bias = argument.property("bias");
    if (!bias.is_null()) weight.bias = bias.floats(weight.rows);
    return weight;
  });
  if (weights.empty() || weights.size() > MatmulParams::kMaxOutputs) {
    matrices.refuse("1 to " + std::to_string(MatmulParams::kMaxOutputs) + " matrices");
  }
  std::vector<Napi::Float32Array> results;
  for (const Weight& weight : weights) results.push_back(new_float32_array(env, rows * weight.rows));

  Device& device = handle->idle();
  Scratch scratch(device);
  MatmulParams params;
  params.x = scratch.upload(x);
  params.rows = rows;
  params.k = k;
  params.n_outputs = static_cast<int>(weights.size());
  WeightStorage storage;
  for (std::size_t i = 0; i < weights.size(); i++) {
    const Weight& weight = weights[i];
    params.outputs[i].weight = device.upload_weight(weight_source(weight.data, weight.format, weight.rows, k), storage);
    params.outputs[i].bias = scratch.upload(weight.bias);
    params.outputs[i].y = scratch.allocate<float>(results[i].ElementLength());
  }
  device.matmul(params);
  auto array = Napi::Array::New(env, results.size());
  for (std::uint32_t i = 0; i < results.size(); i++) {
    scratch.download(results[i], params.outputs[i].y);
    array.Set(i, results[i]);
  }
  return array;
}

Napi::Value op_gated_activation(const Napi::CallbackInfo& info) {
  const auto handle = device_argument(info);
  const std::vector<float> gate = Argument(info, 1, "gate").floats();
  const std::vector<float> up = Argument(info, 2, "up").floats(static_cast<std::int64_t>(gate.size()));
  const Activation activation = read_activation(Argument(info, 3, "activation"));
  const auto out = new_float32_array(info.Env(), static_cast<std::int64_t>(gate.size()));

  Device& device = handle->idle();
  Scratch scratch(device);
  GatedActivationParams params;
  params.gate = scratch.upload(gate);
  params.up = scratch.upload(up);
  params.n = static_cast<std::int64_t>(gate.size());
  params.activation = activation;
  float* result = scratch.allocate<float>(gate.size());
  params.out = result;
  device.gated_activation(params);
  scratch.download(out, result);
  return out;
}

Napi::Value op_sample(const Napi::CallbackInfo& info) {
  struct Row {
    SamplerArguments sampler;
    std::vector<std::int32_t> seen, counts;
  };

  const Napi::Env env = info.Env();
  const auto handle = device_argument(info);
  const Argument input(info, 1, "logits");
  const std::vector<float> logits = input.floats();
  const std::int64_t vocab = Argument(info, 2, "vocab").integer(1, kMaxVocab);
  const auto arguments = Argument(info, 3, "rows").map([vocab](const Argument& row) {
    const auto check = [vocab](const Argument& ids, const std::vector<std::int32_t>& values) {
      for (const std::int32_t id : values) {
        if (id < 0 || id >= vocab) ids.refuse("ids from 0 to " + std::to_string(vocab - 1));
      }
    };
    Row read{SamplerArguments(row), row.property("seen").int32s(), row.property("counts").int32s()};
    check(row.property("seen"), read.seen);
    check(row.property("forbidden"), read.sampler.forbidden);
    return read;
  });
  if (static_cast<std::int64_t>(logits.size()) != static_cast<std::int64_t>(arguments.size()) * vocab) {
    input.refuse(std::to_string(arguments.size()) + " rows of " + std::to_string(vocab) + " elements");
  }
  auto tokens = new_int32_array(env, static_cast<std::int64_t>(arguments.size()));
  auto logprobs = new_float32_array(env, static_cast<std::int64_t>(arguments.size()));

  Device& device = handle->idle();
  Scratch scratch(device);
  std::vector<SampleParams::Row> rows;
  for (const Row& row : arguments) {
    rows.push_back(row.sampler.row);
    rows.back().logits_row = static_cast<std::int64_t>(rows.size()) - 1;
    rows.back().seen = row.seen;
    rows.back().counts = row.counts;
    rows.back().forbidden = row.sampler.forbidden;
  }
  SampleParams params;
  params.logits = scratch.upload(logits);
  params.vocab = vocab;
  params.rows = rows;
  params.tokens = tokens.Data();
  params.logprobs = logprobs.Data();
  device.sample(params);
  device.synchronize();

  auto result = Napi::Object::New(env);
  result.Set("tokens", tokens);
  result.Set("logprobs", logprobs);
  return result;
}

}  // namespace hogwild::addon
