// The export table. lib/native.ts types it; test/addon.test.ts compares the two.
#include <napi.h>

#include <memory>
#include <new>

#include "addon/convert.h"
#include "addon/exports.h"

namespace hogwild::addon {
namespace {

Napi::Value set_error_class(const Napi::CallbackInfo& info) {
  const Napi::Function error_class = Argument(info, 0, "errorClass").function();
  info.Env().GetInstanceData<EnvironmentData>()->error_class = Napi::Persistent(error_class);
  return info.Env().Undefined();
}

void add_callback(Napi::Object& exports, const char* name, napi_callback callback) {
  napi_value function = nullptr;
  const napi_status status = napi_create_function(exports.Env(), name, NAPI_AUTO_LENGTH, callback, nullptr, &function);
  if (status != napi_ok) throw Napi::Error::New(exports.Env());
  exports.Set(name, function);
}

template <Function kFunction>
void add(Napi::Object& exports, const char* name) {
  add_callback(exports, name, throwing<kFunction>);
}

template <Function kFunction>
void add_async(Napi::Object& exports, const char* name) {
  add_callback(exports, name, rejecting<kFunction>);
}

void set_environment_data(Napi::Env env) {
  auto data = std::make_unique<EnvironmentData>();
  const auto constructor = [global = env.Global()](const char* name) {
    return Napi::Persistent(global.Get(name).As<Napi::Function>());
  };
  data->uint8_array = constructor("Uint8Array");
  data->int32_array = constructor("Int32Array");
  data->float32_array = constructor("Float32Array");
  data->float64_array = constructor("Float64Array");
  env.SetInstanceData(data.get());
  data.release();  // deleted with the environment
}

}  // namespace

Napi::Object init(Napi::Env env, Napi::Object exports) {
  try {
    set_environment_data(env);
  } catch (const std::bad_alloc&) {
    throw to_error(env, current_failure());
  }

  add<set_error_class>(exports, "setErrorClass");
  add<probe>(exports, "probe");
  add<formats>(exports, "formats");

  add<create_device>(exports, "createDevice");
  add<device_info>(exports, "deviceInfo");
  add<device_free_memory>(exports, "deviceFreeMemory");
  add_async<device_read_bandwidth>(exports, "deviceReadBandwidth");
  add<device_profile>(exports, "deviceProfile");
  add<device_close>(exports, "deviceClose");

  add_async<create_model>(exports, "createModel");
  add<model_weight_bytes>(exports, "modelWeightBytes");
  add<model_close>(exports, "modelClose");

  add<create_cache>(exports, "createCache");
  add<cache_stats>(exports, "cacheStats");
  add<cache_close>(exports, "cacheClose");

  add<open_budget>(exports, "openBudget");
  add<budget_stats>(exports, "budgetStats");
  add<close_budget>(exports, "closeBudget");
  add<charge_budget>(exports, "chargeBudget");

  add<create_block>(exports, "createBlock");
  add<block_length>(exports, "blockLength");
  add<block_tokens>(exports, "blockTokens");
  add<block_segments>(exports, "blockSegments");
  add<block_append_from>(exports, "blockAppendFrom");
  add<block_insert>(exports, "blockInsert");
  add<block_truncate>(exports, "blockTruncate");
  add<block_forget>(exports, "blockForget");
  add<block_clear>(exports, "blockClear");
  add<block_fork>(exports, "blockFork");
  add_async<block_compact>(exports, "blockCompact");
  add<block_read>(exports, "blockRead");
  add<block_close>(exports, "blockClose");

  add<create_progress>(exports, "createProgress");
  add<progress_bytes>(exports, "progressBytes");
  add<create_cancel>(exports, "createCancel");
  add<cancel>(exports, "cancel");
  add_async<step>(exports, "step");
  add<create_edits>(exports, "createEdits");
  add<bring_edits>(exports, "bringEdits");
  add_async<hold_step>(exports, "holdStep");
  add_async<finish_step>(exports, "finishStep");
  add_async<abort_step>(exports, "abortStep");

  add<begin_pass>(exports, "beginPass");
  add_async<pass_append>(exports, "passAppend");
  add_async<pass_attend>(exports, "passAttend");
  add_async<pass_append_device>(exports, "passAppendDevice");
  add_async<pass_attend_device>(exports, "passAttendDevice");
  add<pass_commit>(exports, "passCommit");
  add<pass_abort>(exports, "passAbort");

  add<begin_export>(exports, "beginExport");
  add<export_index>(exports, "exportIndex");
  add<export_pieces>(exports, "exportPieces");
  add_async<export_read>(exports, "exportRead");
  add<export_end>(exports, "exportEnd");
  add<begin_import>(exports, "beginImport");
  add<import_pieces>(exports, "importPieces");
  add_async<import_write>(exports, "importWrite");
  add<import_commit>(exports, "importCommit");
  add<import_abort>(exports, "importAbort");

  add<try_lock>(exports, "tryLock");

  auto ops = Napi::Object::New(env);
  add<op_device_memory>(ops, "deviceMemory");
  add<op_read_memory>(ops, "readMemory");
  add<op_embedding>(ops, "embedding");
  add<op_rms_norm>(ops, "rmsNorm");
  add<op_matmul>(ops, "matmul");
  add<op_gated_activation>(ops, "gatedActivation");
  add<op_sample>(ops, "sample");
  exports.Set("ops", ops);
  return exports;
}

NODE_API_MODULE(hogwild, init)

}  // namespace hogwild::addon
