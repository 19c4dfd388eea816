// Devices: the handle, its runner, what was found on this machine.
#include "device/device.h"

#include <napi.h>

#include <iterator>

#include "addon/convert.h"
#include "addon/exports.h"
#include "addon/handles.h"
#include "core/format.h"
#include "core/fragments.h"
#include "device/profile_device.h"

namespace hogwild::addon {

DeviceHandle::DeviceHandle(Napi::Env env, std::shared_ptr<Device> device) : runner_(env) {
  Device* const data = device.get();
  const std::shared_ptr<std::shared_ptr<Device>> owner(new std::shared_ptr<Device>(std::move(device)), disposer());
  device_ = {owner, data};
}

const std::shared_ptr<Device>& DeviceHandle::open() const {
  if (closed()) throw Error(code::kClosed, "the device is closed");
  return device_;
}

Device& DeviceHandle::idle() const {
  Device& device = *open();
  if (!runner_.idle()) throw Error(code::kBusy, "the device is computing: wait for the calls under way");
  return device;
}

void DeviceHandle::close() {
  runner_.close();
  device_.reset();
}

namespace {

class ReadBandwidthTask : public PromiseTask {
 public:
  ReadBandwidthTask(std::shared_ptr<Device> device, std::int64_t bytes) : device_(std::move(device)), bytes_(bytes) {}

 protected:
  void execute(const std::atomic<bool>&) override {
    bytes_per_second_ = device_->measure_read_bandwidth(static_cast<std::size_t>(bytes_));
  }
  Napi::Value result(Napi::Env env) override { return Napi::Number::New(env, bytes_per_second_); }

 private:
  std::shared_ptr<Device> device_;
  std::int64_t bytes_;
  double bytes_per_second_ = 0;
};

}  // namespace

Napi::Value formats(const Napi::CallbackInfo& info) {
  auto table = Napi::Array::New(info.Env(), std::size(kFormats));
  for (std::uint32_t i = 0; i < std::size(kFormats); i++) {
    auto format = Napi::Object::New(info.Env());
    format.Set("name", kFormats[i].name);
    format.Set("elements", static_cast<double>(kFormats[i].block_elements));
    format.Set("bytes", static_cast<double>(kFormats[i].block_bytes));
    const bool is_plain_format = is_plain(kFormats[i].format);
    const std::int64_t record = is_plain_format ? 0 : fragment_bytes(code_info(kFormats[i].format));
    format.Set("cardBytes", static_cast<double>(record / kFragmentOutputs));
    table.Set(i, format);
  }
  return table;
}

Napi::Value probe(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::vector<std::string> levels = available_simd_levels();
  auto simd = Napi::Array::New(env, levels.size());
  for (std::uint32_t i = 0; i < levels.size(); i++) simd.Set(i, levels[i]);
  const CudaStatus status = cuda_status();
  auto cuda = Napi::Object::New(env);
  auto cards = Napi::Array::New(env, status.cards.size());
  for (std::uint32_t i = 0; i < cards.Length(); i++) {
    const CudaCard& card = status.cards[i];
    auto about = Napi::Object::New(env);
    about.Set("name", card.name);
    about.Set("memory", static_cast<double>(card.memory));
    about.Set("computeCapability", card.compute_capability / 10.0);
    about.Set("reason", card.reason);
    cards.Set(i, about);
  }
  cuda.Set("compiled", status.compiled);
  cuda.Set("cards", cards);
  cuda.Set("reason", status.reason);
  auto found = Napi::Object::New(env);
  found.Set("version", HOGWILD_VERSION);
  found.Set("simd", simd);
  found.Set("threads", available_processors());
  found.Set("cuda", cuda);
  return found;
}

Napi::Value create_device(const Napi::CallbackInfo& info) {
  const Argument options(info, 0, "options");
  const bool is_cuda = options.property("type").one_of<bool>({{"cpu", false}, {"cuda", true}});
  const auto index = static_cast<int>(options.property("index").integer(0, INT32_MAX));
  CpuOptions cpu;
  cpu.threads = static_cast<int>(options.property("threads").integer(0, 1024));
  cpu.simd = options.property("simd").string();
  const bool profile = options.property("profile").boolean();
  const Argument asked = options.property("deterministic");
  const bool deterministic = !asked.is_undefined() && asked.boolean();
  std::shared_ptr<Device> device = is_cuda ? create_cuda_device(index, deterministic) : create_cpu_device(cpu);
  if (profile) device = std::make_shared<ProfileDevice>(std::move(device));
  return to_handle(info.Env(), std::make_shared<DeviceHandle>(info.Env(), std::move(device)));
}

Napi::Value device_info(const Napi::CallbackInfo& info) {
  const auto device = Argument(info, 0, "device").handle<DeviceHandle>();
  const DeviceInfo about = device->open()->info();
  auto result = Napi::Object::New(info.Env());
  result.Set("type", about.type);
  result.Set("name", about.name);
  result.Set("index", about.index);
  result.Set("simd", about.simd);
  result.Set("threads", about.threads);
  result.Set("deterministic", about.deterministic);
  return result;
}

Napi::Value device_free_memory(const Napi::CallbackInfo& info) {
  const auto device = Argument(info, 0, "device").handle<DeviceHandle>();
  return Napi::Number::New(info.Env(), static_cast<double>(device->open()->free_memory()));
}

Napi::Value device_read_bandwidth(const Napi::CallbackInfo& info) {
  const auto device = Argument(info, 0, "device").handle<DeviceHandle>();
  const std::int64_t bytes = Argument(info, 1, "bytes").integer(1 << 16, std::int64_t{1} << 36);
  return device->schedule(std::make_unique<ReadBandwidthTask>(device->open(), bytes));
}

Napi::Value device_profile(const Napi::CallbackInfo& info) {
  const Argument argument(info, 0, "device");
  auto* device = dynamic_cast<ProfileDevice*>(&argument.handle<DeviceHandle>()->idle());
  if (!device) argument.refuse("a device created with profile: true");
  const std::vector<OpProfile> ops = device->take_profile();
  auto result = Napi::Array::New(info.Env(), ops.size());
  for (std::uint32_t i = 0; i < ops.size(); i++) {
    auto op = Napi::Object::New(info.Env());
    op.Set("op", ops[i].op);
    op.Set("calls", static_cast<double>(ops[i].calls));
    op.Set("seconds", ops[i].seconds);
    op.Set("bytes", ops[i].bytes);
    result.Set(i, op);
  }
  return result;
}

Napi::Value device_close(const Napi::CallbackInfo& info) {
  Argument(info, 0, "device").handle<DeviceHandle>()->close();
  return info.Env().Undefined();
}

}  // namespace hogwild::addon
