// Passes: one step of an engine that brings its own model and hands over q, k and v layer by layer.
#include <napi.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <type_traits>

#include "addon/convert.h"
#include "addon/exports.h"
#include "addon/handles.h"
#include "cache/attention_plan.h"

namespace hogwild::addon {

// What a pass has on the device, used by one task at a time.
struct PassMemory {
  explicit PassMemory(ChunkedPlan its_plans) : plans(std::move(its_plans)) {}
  ChunkedPlan plans;
  Buffer k, v, q, out, lse, sinks;
};

// What the tasks of a pass share. Whoever holds the last reference (on the JavaScript thread) gives
// back what was not committed, then the cache.
struct OpenPass {
  CacheLease lease;
  std::shared_ptr<KvCache> cache;
  std::vector<std::vector<std::int32_t>> tokens;  // an engine's tokens have no ids: -1 each
  std::unique_ptr<StepReservation> reservation;
  std::shared_ptr<PassMemory> memory;  // ends on the device's thread

  OpenPass(const std::shared_ptr<CacheHandle>& handle, const std::vector<WorkerViewArguments>& views,
           const std::vector<std::int64_t>& n_tokens, const std::vector<std::int64_t>& n_drafts)
      : lease(handle, targets_of(views)), cache(handle->open()) {
    const KvCache::Stats stats = cache->stats();
    std::vector<WorkerView> workers;
    for (std::size_t i = 0; i < views.size(); i++) {
      if (n_tokens[i] > stats.pages * kPageSize) {
        throw Error(code::kOutOfPages, "workers[" + std::to_string(i) + "].tokens: " + std::to_string(n_tokens[i]) +
                                           " new tokens do not fit into a cache of " + std::to_string(stats.pages) +
                                           " pages of " + std::to_string(kPageSize) + " tokens");
      }
      tokens.emplace_back(static_cast<std::size_t>(n_tokens[i]), -1);
      workers.push_back(views[i].open());
      workers.back().tokens = tokens.back();
      workers.back().drafts = n_drafts[i];
    }
    reservation = std::make_unique<StepReservation>(*cache, std::move(workers));
    const auto disposer = handle->device()->disposer();
    memory = {new PassMemory({*reservation, cache->device(), {}, 0, reservation->n_tokens()}), disposer};
  }

  const std::vector<ChunkedPlan::Chunk>& chunks() const { return memory->plans.chunks(); }

  const DeviceStep& on_device(std::size_t chunk) {
    cache->allocate_pool();
    return memory->plans.on_device(chunk);
  }

  // A buffer that holds at least `values` floats.
  float* scratch(Buffer& buffer, std::int64_t values, const char* purpose) {
    const std::size_t bytes = static_cast<std::size_t>(values) * sizeof(float);
    if (buffer.bytes() < bytes) {
      buffer = Buffer();
      buffer = cache->device().allocate(bytes, purpose);
    }
    return buffer.as<float>();
  }

  const float* upload(Buffer& buffer, std::span<const float> values, const char* purpose) {
    float* data = scratch(buffer, static_cast<std::int64_t>(values.size()), purpose);
    cache->device().upload(data, values.data(), values.size_bytes());
    return data;
  }
};

class PassHandle {
 public:
  static constexpr const char* kKind = "pass";

  PassHandle(std::shared_ptr<CacheHandle> cache, std::shared_ptr<OpenPass> pass)
      : cache_(std::move(cache)), pass_(std::move(pass)) {}

  // Throws kClosed after commit or abort, and when the cache is closed.
  const std::shared_ptr<OpenPass>& open() const {
    if (!pass_) throw Error(code::kClosed, "the pass was committed or aborted before");
    cache_->open();
    return pass_;
  }

  // `kept`: how many tokens of each worker; none: all.
  void commit(const std::optional<std::vector<std::int64_t>>& kept) {
    if (open().use_count() > 1) throw Error(code::kBusy, "calls of this pass have not ended: wait for them");
    if (kept) {
      pass_->reservation->commit(*kept);
    } else {
      pass_->reservation->commit();
    }
    pass_.reset();
  }

  void abort() { pass_.reset(); }

  Napi::Promise schedule(std::unique_ptr<PromiseTask> task) { return cache_->device()->schedule(std::move(task)); }

 private:
  std::shared_ptr<CacheHandle> cache_;
  std::shared_ptr<OpenPass> pass_;  // null once committed or aborted
};

namespace {

class AppendTask : public PromiseTask {
 public:
  AppendTask(std::shared_ptr<OpenPass> pass, std::int64_t layer, std::vector<float> k, std::vector<float> v)
      : pass_(std::move(pass)), layer_(layer), k_(std::move(k)), v_(std::move(v)) {}

 protected:
  void execute(const std::atomic<bool>&) override {
    KvCache& cache = *pass_->cache;
    const float* k = pass_->upload(pass_->memory->k, k_, "new keys");
    const float* v = pass_->upload(pass_->memory->v, v_, "new values");
    const std::int64_t row = cache.shape().kv_heads * cache.shape().head_dim;
    for (std::size_t i = 0; i < pass_->chunks().size(); ++i) {
      const ChunkedPlan::Chunk chunk = pass_->chunks()[i];
      const DeviceStep& step = pass_->on_device(i);
      cache.device().kv_append(step, {.shape = cache.shape(),
                                      .layer = cache.layer(layer_),
                                      .first = 0,
                                      .rows = chunk.n,
                                      .k = k + chunk.first * row,
                                      .v = v + chunk.first * row});
    }
    cache.device().synchronize();
  }
  Napi::Value result(Napi::Env env) override { return env.Undefined(); }

 private:
  std::shared_ptr<OpenPass> pass_;
  std::int64_t layer_;
  std::vector<float> k_, v_;
};

// NativeAttendOptions of lib/native.ts.
struct AttendArguments {
  std::vector<float> q;
  AttentionParams params;  // pointers are filled in by the task
  std::vector<float> sinks;
  bool want_lse;
  std::optional<Napi::Float32Array> out, lse;  // the caller's, or none: new ones

  AttendArguments(const Argument& queries, const Argument& heads, const Argument& options, const OpenPass& pass) {
    // Where a soft cap and its inverse, and scores over it, are ordinary numbers.
    constexpr double kMinSoftcap = 1e-6, kMaxSoftcap = 1e6;
    params.shape = pass.cache->shape();
    params.query_heads = heads.integer(1, 1 << 16);
    if (params.query_heads % params.shape.kv_heads != 0) {
      heads.refuse("a multiple of " + std::to_string(params.shape.kv_heads) + " (kvHeads)");
    }
    const std::int64_t rows = pass.reservation->n_tokens() * params.query_heads;
    q = queries.floats(rows * params.shape.head_dim);
    params.scale = static_cast<float>(options.property("scale").number());
    if (const Argument cap = options.property("softcap"); !cap.is_null()) {
      params.softcap = static_cast<float>(cap.number(kMinSoftcap, kMaxSoftcap));
    }
    if (const Argument window = options.property("window"); !window.is_null()) params.window = window.size();
    if (const Argument given = options.property("sinks"); !given.is_null()) {
      sinks = given.floats(params.query_heads);
      for (const float sink : sinks) {
        if (!(sink < std::numeric_limits<float>::infinity())) given.refuse("finite numbers or -Infinity");
      }
    }
    want_lse = options.property("wantLse").boolean();
    if (const Argument array = options.property("out"); !array.is_null()) {
      out = array.float32_array(rows * params.shape.head_dim);
    }
    if (const Argument array = options.property("lse"); !array.is_null()) lse = array.float32_array(rows);
    // What the device cannot do is refused before anything is scheduled.
    AttentionParams wanted = params;
    wanted.sinks = sinks.empty() ? nullptr : sinks.data();
    pass.cache->device().check_attention(wanted);
  }
};

class AttendTask : public PromiseTask {
 public:
  AttendTask(Napi::Env env, std::shared_ptr<OpenPass> pass, std::int64_t layer, AttendArguments arguments)
      : pass_(std::move(pass)),
        layer_(layer),
        q_(std::move(arguments.q)),
        params_(arguments.params),
        sinks_(std::move(arguments.sinks)) {
    const std::int64_t rows = pass_->reservation->n_tokens() * params_.query_heads;
    auto result = Napi::Object::New(env);
    result.Set("out", out_.open(env, arguments.out, rows * params_.shape.head_dim));
    if (arguments.want_lse) {
      result.Set("lse", lse_.open(env, arguments.lse, rows));
    } else {
      result.Set("lse", env.Null());
    }
    keep(result);
  }

 protected:
  void execute(const std::atomic<bool>&) override {
    KvCache& cache = *pass_->cache;
    Device& device = cache.device();
    const std::int64_t heads = params_.query_heads, row = heads * params_.shape.head_dim;
    const ChunkedPlan::Chunk chunk = pass_->chunks()[next_chunk_];
    AttentionParams params = params_;
    params.layer = cache.layer(layer_);
    const std::span<const float> queries =
        std::span(q_).subspan(static_cast<std::size_t>(chunk.first * row), static_cast<std::size_t>(chunk.n * row));
    params.q = pass_->upload(pass_->memory->q, queries, "queries");
    if (!sinks_.empty()) params.sinks = pass_->upload(pass_->memory->sinks, sinks_, "attention sinks");
    params.out = pass_->scratch(pass_->memory->out, chunk.n * row, "attention output");
    if (lse_.data != nullptr) params.lse = pass_->scratch(pass_->memory->lse, chunk.n * heads, "log-sum-exp");
    device.attention(pass_->on_device(next_chunk_), params);
    device.download(out_.data + chunk.first * row, params.out, queries.size_bytes());
    if (params.lse != nullptr) {
      device.download(lse_.data + chunk.first * heads, params.lse,
                      static_cast<std::size_t>(chunk.n * heads) * sizeof(float));
    }
    ++next_chunk_;
  }
  bool done() const override { return next_chunk_ == pass_->chunks().size(); }
  Napi::Value result(Napi::Env) override {
    const Napi::Object result = kept();
    if (out_.is_callers() || lse_.is_callers()) {
      // Both or none.
      auto out = result.Get("out").As<Napi::Float32Array>();
      auto lse = lse_.is_callers() ? result.Get("lse").As<Napi::Float32Array>() : Napi::Float32Array();
      out_.check(out, "options.out");
      lse_.check(lse, "options.lse");
      out_.copy_to(out);
      lse_.copy_to(lse);
    }
    return result;
  }

 private:
  // One of the two results. A new array is filled where it lies; JavaScript might take the memory of a caller's away
  // meanwhile, so that one is filled at the end, on the JavaScript thread.
  struct Result {
    float* data = nullptr;  // null: not wanted
    std::vector<float> for_caller;

    Napi::Float32Array open(Napi::Env env, const std::optional<Napi::Float32Array>& callers, std::int64_t length) {
      Napi::Float32Array array = callers ? *callers : new_float32_array(env, length);
      if (callers) for_caller.resize(static_cast<std::size_t>(length));
      data = callers ? for_caller.data() : array.Data();
      return array;
    }
    bool is_callers() const { return !for_caller.empty(); }
    void check(const Napi::Float32Array& array, const char* name) const {
      if (!is_callers() || array.ElementLength() == for_caller.size()) return;
      throw Error(code::kInvalidArgument, std::string(name) +
                                              ": expected an array that keeps its memory until the call has ended; it "
                                              "was transferred or resized");
    }
    void copy_to(Napi::Float32Array& array) const {
      if (is_callers()) std::copy(for_caller.begin(), for_caller.end(), array.Data());
    }
  };

  std::shared_ptr<OpenPass> pass_;
  std::int64_t layer_;
  std::vector<float> q_;
  AttentionParams params_;
  std::vector<float> sinks_;
  Result out_, lse_;
  std::size_t next_chunk_ = 0;
};

// Device memory of the engine. The call comes back when the work is on the engine's stream: who waits for the
// stream, or goes on with it, sees the results. Without a stream it comes back when the work is done.
class ExternalTask : public PromiseTask {
 public:
  using Op = std::function<void(Device&, const DeviceStep&, const KvLayer&, const ChunkedPlan::Chunk&)>;

  ExternalTask(std::shared_ptr<OpenPass> pass, std::int64_t layer, const ExternalBuffers& buffers, Op op)
      : pass_(std::move(pass)), layer_(layer), has_stream_(buffers.stream != nullptr), op_(std::move(op)) {}

 protected:
  void execute(const std::atomic<bool>&) override {
    KvCache& cache = *pass_->cache;
    for (std::size_t i = 0; i < pass_->chunks().size(); ++i) {
      const DeviceStep& step = pass_->on_device(i);
      op_(cache.device(), step, cache.layer(layer_), pass_->chunks()[i]);
    }
    if (!has_stream_) cache.device().synchronize();
  }
  Napi::Value result(Napi::Env env) override { return env.Undefined(); }

 private:
  std::shared_ptr<OpenPass> pass_;
  std::int64_t layer_;
  bool has_stream_;
  Op op_;
};

// `data`, `elements` further.
template <typename Pointer>
Pointer advance(Pointer data, Dtype dtype, std::int64_t elements) {
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const std::byte, std::byte>;
  return static_cast<Byte*>(data) + elements * static_cast<std::int64_t>(dtype_size(dtype));
}

// What the engine hands over: addresses on the device of the pass's cache.
struct ExternalArguments {
  explicit ExternalArguments(const Argument& buffers, const OpenPass& pass) {
    if (pass.cache->device().own_memory() == 0) {
      throw Error(code::kUnsupported, buffers.path() + ": addresses of device memory need a cache on a CUDA device");
    }
    external = {
        .dtype = buffers.property("dtype").dtype(), .stream = stream(buffers.property("stream")), .is_external = true};
  }

  // Null: none, the device's own order.
  static void* stream(const Argument& argument) {
    constexpr std::uint64_t kLegacy = 1, kPerThread = 2;  // cudaStreamLegacy, cudaStreamPerThread
    if (argument.is_null()) return nullptr;
    const std::uint64_t handle = argument.uint64();
    if (handle == kPerThread) {
      argument.refuse(
          "a cudaStream_t, or 0n or 1n for the legacy default stream (calls run on a thread of their own, whose "
          "per-thread default stream is not the engine's)");
    }
    return reinterpret_cast<void*>(static_cast<std::uintptr_t>(handle == 0 ? kLegacy : handle));
  }

  // Null for 0n.
  static void* address(const Argument& buffers, const char* name) {
    return reinterpret_cast<void*>(static_cast<std::uintptr_t>(buffers.property(name).uint64()));
  }
  // Kernels read 16 bytes at a time.
  static void* buffer(const Argument& buffers, const char* name) {
    void* data = address(buffers, name);
    if (data == nullptr || reinterpret_cast<std::uintptr_t>(data) % 16 != 0) {
      buffers.property(name).refuse("an address that is a multiple of 16");
    }
    return data;
  }

  ExternalBuffers external;
};

}  // namespace

// ---- functions ------------------------------------------------------------------------------------

Napi::Value begin_pass(const Napi::CallbackInfo& info) {
  const auto cache = Argument(info, 0, "cache").handle<CacheHandle>();
  std::vector<std::int64_t> n_tokens, n_drafts;
  const auto views = Argument(info, 1, "workers").map([&](const Argument& worker) {
    n_tokens.push_back(worker.property("nTokens").size());
    const Argument drafts = worker.property("drafts");
    n_drafts.push_back(drafts.is_undefined() ? 0 : drafts.count());
    return WorkerViewArguments(worker);
  });
  auto pass = std::make_shared<OpenPass>(cache, views, n_tokens, n_drafts);
  return to_handle(info.Env(), std::make_shared<PassHandle>(cache, std::move(pass)));
}

Napi::Value pass_append(const Napi::CallbackInfo& info) {
  const auto pass = Argument(info, 0, "pass").handle<PassHandle>();
  const KvShape shape = pass->open()->cache->shape();
  const std::int64_t values = pass->open()->reservation->n_tokens() * shape.kv_heads * shape.head_dim;
  const std::int64_t layer = Argument(info, 1, "layer").integer(0, shape.layers - 1);
  std::vector<float> k = Argument(info, 2, "k").floats(values);
  std::vector<float> v = Argument(info, 3, "v").floats(values);
  return pass->schedule(std::make_unique<AppendTask>(pass->open(), layer, std::move(k), std::move(v)));
}

Napi::Value pass_attend(const Napi::CallbackInfo& info) {
  const auto pass = Argument(info, 0, "pass").handle<PassHandle>();
  const KvShape shape = pass->open()->cache->shape();
  const std::int64_t layer = Argument(info, 1, "layer").integer(0, shape.layers - 1);
  const std::shared_ptr<OpenPass> open = pass->open();  // whatever a getter does with the pass
  AttendArguments arguments({info, 2, "q"}, {info, 3, "queryHeads"}, {info, 4, "options"}, *open);
  return pass->schedule(std::make_unique<AttendTask>(info.Env(), pass->open(), layer, std::move(arguments)));
}

Napi::Value pass_append_device(const Napi::CallbackInfo& info) {
  const auto pass = Argument(info, 0, "pass").handle<PassHandle>();
  const std::shared_ptr<KvCache> cache = pass->open()->cache;
  const std::int64_t layer = Argument(info, 1, "layer").integer(0, cache->shape().layers - 1);
  const Argument buffers(info, 2, "buffers");
  const KvAppendParams params{.shape = cache->shape(),
                              .layer = {},
                              .first = 0,
                              .rows = pass->open()->reservation->n_tokens(),
                              .k = ExternalArguments::buffer(buffers, "k"),
                              .v = ExternalArguments::buffer(buffers, "v"),
                              .buffers = ExternalArguments(buffers, *pass->open()).external};
  const auto append = [params](Device& device, const DeviceStep& step, const KvLayer& storage,
                               const ChunkedPlan::Chunk& chunk) {
    const std::int64_t first = chunk.first * params.shape.kv_heads * params.shape.head_dim;
    KvAppendParams part = params;
    part.layer = storage;
    part.rows = chunk.n;
    part.k = advance(params.k, params.buffers.dtype, first);
    part.v = advance(params.v, params.buffers.dtype, first);
    device.kv_append(step, part);
  };
  return pass->schedule(std::make_unique<ExternalTask>(pass->open(), layer, params.buffers, append));
}

Napi::Value pass_attend_device(const Napi::CallbackInfo& info) {
  const auto pass = Argument(info, 0, "pass").handle<PassHandle>();
  const std::shared_ptr<KvCache> cache = pass->open()->cache;
  const std::int64_t layer = Argument(info, 1, "layer").integer(0, cache->shape().layers - 1);
  const Argument buffers(info, 2, "buffers");
  const Argument heads(info, 3, "queryHeads");
  const std::int64_t query_heads = heads.integer(1, 1 << 16);
  if (query_heads % cache->shape().kv_heads != 0) {
    heads.refuse("a multiple of " + std::to_string(cache->shape().kv_heads) + " (kvHeads)");
  }
  const ExternalBuffers external = ExternalArguments(buffers, *pass->open()).external;
  const AttentionParams params{.shape = cache->shape(),
                               .layer = {},
                               .query_heads = query_heads,
                               .scale = static_cast<float>(Argument(info, 4, "scale").number()),
                               .q = ExternalArguments::buffer(buffers, "q"),
                               .out = ExternalArguments::buffer(buffers, "out"),
                               .lse = static_cast<float*>(ExternalArguments::address(buffers, "lse")),
                               .buffers = external,
                               .out_dtype = external.dtype};
  const auto attend = [params](Device& device, const DeviceStep& step, const KvLayer& storage,
                               const ChunkedPlan::Chunk& chunk) {
    const std::int64_t first = chunk.first * params.query_heads * params.shape.head_dim;
    AttentionParams part = params;
    part.layer = storage;
    part.q = advance(params.q, params.buffers.dtype, first);
    part.out = advance(params.out, params.out_dtype, first);
    if (part.lse != nullptr) part.lse += chunk.first * params.query_heads;
    device.attention(step, part);
  };
  return pass->schedule(std::make_unique<ExternalTask>(pass->open(), layer, params.buffers, attend));
}

Napi::Value pass_commit(const Napi::CallbackInfo& info) {
  const auto pass = Argument(info, 0, "pass").handle<PassHandle>();
  std::optional<std::vector<std::int64_t>> kept;
  if (const Argument given(info, 1, "kept"); !given.is_undefined()) {
    const std::vector<std::int32_t> counts = given.int32s();
    kept.emplace(counts.begin(), counts.end());
  }
  pass->commit(kept);
  return info.Env().Undefined();
}

Napi::Value pass_abort(const Napi::CallbackInfo& info) {
  Argument(info, 0, "pass").handle<PassHandle>()->abort();
  return info.Env().Undefined();
}

}  // namespace hogwild::addon
