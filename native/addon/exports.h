// The functions of the binding, as lib/native.ts documents them.
#pragma once

#include <napi.h>

namespace hogwild::addon {

// device.cc
Napi::Value formats(const Napi::CallbackInfo& info);
Napi::Value probe(const Napi::CallbackInfo& info);
Napi::Value create_device(const Napi::CallbackInfo& info);
Napi::Value device_info(const Napi::CallbackInfo& info);
Napi::Value device_free_memory(const Napi::CallbackInfo& info);
Napi::Value device_read_bandwidth(const Napi::CallbackInfo& info);
Napi::Value device_profile(const Napi::CallbackInfo& info);
Napi::Value device_close(const Napi::CallbackInfo& info);

// model.cc
Napi::Value create_model(const Napi::CallbackInfo& info);
Napi::Value model_weight_bytes(const Napi::CallbackInfo& info);
Napi::Value model_close(const Napi::CallbackInfo& info);
Napi::Value create_progress(const Napi::CallbackInfo& info);
Napi::Value progress_bytes(const Napi::CallbackInfo& info);
Napi::Value create_cancel(const Napi::CallbackInfo& info);
Napi::Value cancel(const Napi::CallbackInfo& info);

// step.cc
Napi::Value step(const Napi::CallbackInfo& info);
Napi::Value create_edits(const Napi::CallbackInfo& info);
Napi::Value bring_edits(const Napi::CallbackInfo& info);
Napi::Value hold_step(const Napi::CallbackInfo& info);
Napi::Value finish_step(const Napi::CallbackInfo& info);
Napi::Value abort_step(const Napi::CallbackInfo& info);

// cache.cc
Napi::Value create_cache(const Napi::CallbackInfo& info);
Napi::Value cache_stats(const Napi::CallbackInfo& info);
Napi::Value cache_close(const Napi::CallbackInfo& info);
Napi::Value create_block(const Napi::CallbackInfo& info);
Napi::Value open_budget(const Napi::CallbackInfo& info);
Napi::Value budget_stats(const Napi::CallbackInfo& info);
Napi::Value close_budget(const Napi::CallbackInfo& info);
Napi::Value charge_budget(const Napi::CallbackInfo& info);
Napi::Value block_length(const Napi::CallbackInfo& info);
Napi::Value block_tokens(const Napi::CallbackInfo& info);
Napi::Value block_segments(const Napi::CallbackInfo& info);
Napi::Value block_append_from(const Napi::CallbackInfo& info);
Napi::Value block_insert(const Napi::CallbackInfo& info);
Napi::Value block_truncate(const Napi::CallbackInfo& info);
Napi::Value block_forget(const Napi::CallbackInfo& info);
Napi::Value block_clear(const Napi::CallbackInfo& info);
Napi::Value block_fork(const Napi::CallbackInfo& info);
Napi::Value block_compact(const Napi::CallbackInfo& info);
Napi::Value block_read(const Napi::CallbackInfo& info);
Napi::Value block_close(const Napi::CallbackInfo& info);

// pass.cc
Napi::Value begin_pass(const Napi::CallbackInfo& info);
Napi::Value pass_append(const Napi::CallbackInfo& info);
Napi::Value pass_attend(const Napi::CallbackInfo& info);
Napi::Value pass_append_device(const Napi::CallbackInfo& info);
Napi::Value pass_attend_device(const Napi::CallbackInfo& info);
Napi::Value pass_commit(const Napi::CallbackInfo& info);
Napi::Value pass_abort(const Napi::CallbackInfo& info);

// snapshot.cc
Napi::Value begin_export(const Napi::CallbackInfo& info);
Napi::Value export_index(const Napi::CallbackInfo& info);
Napi::Value export_pieces(const Napi::CallbackInfo& info);
Napi::Value export_read(const Napi::CallbackInfo& info);
Napi::Value export_end(const Napi::CallbackInfo& info);
Napi::Value begin_import(const Napi::CallbackInfo& info);
Napi::Value import_pieces(const Napi::CallbackInfo& info);
Napi::Value import_write(const Napi::CallbackInfo& info);
Napi::Value import_commit(const Napi::CallbackInfo& info);
Napi::Value import_abort(const Napi::CallbackInfo& info);

// file_lock.cc
Napi::Value try_lock(const Napi::CallbackInfo& info);

// ops.cc
Napi::Value op_device_memory(const Napi::CallbackInfo& info);
Napi::Value op_read_memory(const Napi::CallbackInfo& info);
Napi::Value op_embedding(const Napi::CallbackInfo& info);
Napi::Value op_rms_norm(const Napi::CallbackInfo& info);
Napi::Value op_matmul(const Napi::CallbackInfo& info);
Napi::Value op_gated_activation(const Napi::CallbackInfo& info);
Napi::Value op_sample(const Napi::CallbackInfo& info);

}  // namespace hogwild::addon
