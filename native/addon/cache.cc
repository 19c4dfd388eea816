// Caches and blocks. Block operations are O(pages) and run at once; compaction moves keys, so it runs
// on the device's runner.
#include <napi.h>

#include <algorithm>
#include <cmath>

#include "addon/convert.h"
#include "addon/exports.h"
#include "addon/handles.h"
#include "cache/kv_cache.h"

namespace hogwild::addon {

// ---- handles --------------------------------------------------------------------------------------

BlockHandle::BlockHandle(std::shared_ptr<CacheHandle> cache, std::shared_ptr<CacheBlock> block)
    : cache_(std::move(cache)), block_(std::move(block)) {
  cache_->blocks_.insert(this);
}

BlockHandle::~BlockHandle() { cache_->blocks_.erase(this); }

const std::shared_ptr<CacheBlock>& BlockHandle::open() const {
  cache_->open();
  if (!block_) throw Error(code::kClosed, "the block is closed");
  return block_;
}

CacheBlock& BlockHandle::idle() const {
  CacheBlock& block = *open();
  cache_->idle();
  return block;
}

std::int64_t BlockHandle::length() const {
  const CacheBlock& block = *open();
  return being_written_ ? length_before_ : block.length();
}

void BlockHandle::close() { block_.reset(); }

const std::shared_ptr<KvCache>& CacheHandle::open() const {
  if (!cache_) throw Error(code::kClosed, "the cache is closed");
  device_->open();
  return cache_;
}

KvCache& CacheHandle::idle() const {
  KvCache& cache = *open();
  if (busy_) throw Error(code::kBusy, "the cache is in use by a step, pass or compaction that has not ended");
  return cache;
}

void CacheHandle::close() {
  for (BlockHandle* block : blocks_) block->close();
  cache_.reset();
}

CacheLease::CacheLease(std::shared_ptr<CacheHandle> cache, std::vector<std::shared_ptr<BlockHandle>> targets)
    : cache_(std::move(cache)), targets_(std::move(targets)) {
  cache_->idle();
  for (const auto& target : targets_) {
    target->length_before_ = target->open()->length();
    target->being_written_ = true;
  }
  cache_->busy_ = true;
}

CacheLease::~CacheLease() {
  for (const auto& target : targets_) target->being_written_ = false;
  cache_->busy_ = false;
}

// ---- arguments ------------------------------------------------------------------------------------

namespace {

// NativeWorkerView.fields of lib/native.ts.
std::vector<ViewEntry> read_fields(const Argument& argument, std::size_t n_entries) {
  constexpr std::size_t kFields = 4;
  const std::vector<double> fields = argument.doubles();
  if (fields.size() != kFields * n_entries) {
    argument.refuse("a Float64Array of length " + std::to_string(kFields * n_entries));
  }
  std::vector<ViewEntry> entries(n_entries);
  for (std::size_t i = 0; i < n_entries; i++) {
    const double at = fields[kFields * i], lag = fields[kFields * i + 1];
    if (!(at >= -1 && at <= static_cast<double>(kMaxViewPosition)) || at != std::floor(at)) {
      argument.refuse("starts from 0 to 2^24, or -1");
    }
    if (lag != 0 && lag != 1) argument.refuse("lags of 0 or 1");
    if (at >= 0) entries[i].at = static_cast<std::int64_t>(at);
    entries[i].lag = lag == 1;
    // Their ranges are looked at where a step begins.
    entries[i].temperature = static_cast<float>(fields[kFields * i + 2]);
    entries[i].bias = static_cast<float>(fields[kFields * i + 3]);
  }
  return entries;
}

}  // namespace

WorkerViewArguments::WorkerViewArguments(const Argument& worker)
    : blocks(worker.property("view").map([](const Argument& block) { return block.handle<BlockHandle>(); })),
      target(worker.property("target").handle<BlockHandle>()) {
  const Argument fields = worker.property("fields");
  if (!fields.is_null()) entries = read_fields(fields, blocks.size());
}

std::vector<std::shared_ptr<BlockHandle>> targets_of(const std::vector<WorkerViewArguments>& views) {
  std::vector<std::shared_ptr<BlockHandle>> targets;
  for (const WorkerViewArguments& view : views) targets.push_back(view.target);
  return targets;
}

WorkerView WorkerViewArguments::open() const {
  WorkerView view{.entries = entries, .target = target->open(), .tokens = {}};
  view.entries.resize(blocks.size());
  for (std::size_t i = 0; i < blocks.size(); i++) view.entries[i].block = blocks[i]->open();
  return view;
}

namespace {

RopeSpec read_rope(const Argument& argument) {
  RopeSpec rope;
  const Argument inverse_frequencies = argument.property("inverseFrequencies");
  rope.inverse_frequencies = inverse_frequencies.doubles();
  for (const double frequency : rope.inverse_frequencies) {
    if (!std::isfinite(frequency)) inverse_frequencies.refuse("finite inverse frequencies");
  }
  rope.attention_factor = argument.property("attentionFactor").number();
  return rope;
}

}  // namespace

std::vector<RopeSpec> read_ropes(const Argument& ropes) { return ropes.map(read_rope); }

// ---- functions ------------------------------------------------------------------------------------

namespace {

std::shared_ptr<BlockHandle> block_argument(const Napi::CallbackInfo& info, std::size_t index, const char* name) {
  return Argument(info, index, name).handle<BlockHandle>();
}

class CompactTask : public PromiseTask {
 public:
  explicit CompactTask(const BlockHandle& block) : block_(block.open()), lease_(block.cache(), {}) {}

 protected:
  void execute(const std::atomic<bool>&) override { moved_ = block_->compact(); }

  Napi::Value result(Napi::Env env) override {
    auto moved = Napi::Object::New(env);
    moved.Set("segmentsBefore", static_cast<double>(moved_.segments_before));
    moved.Set("segmentsAfter", static_cast<double>(moved_.segments_after));
    moved.Set("tokensMoved", static_cast<double>(moved_.tokens_moved));
    return moved;
  }

 private:
  std::shared_ptr<CacheBlock> block_;
  CacheLease lease_;
  CacheBlock::CompactResult moved_;
};

}  // namespace

Napi::Value create_cache(const Napi::CallbackInfo& info) {
  const auto device = Argument(info, 0, "device").handle<DeviceHandle>();
  const Argument options(info, 1, "shape");
  KvShape shape;
  shape.layers = options.property("layers").size();
  shape.kv_heads = options.property("kvHeads").size();
  shape.head_dim = options.property("headDim").size();
  shape.key_format = options.property("keyFormat").kv_format();
  shape.value_format = options.property("valueFormat").kv_format();
  const std::int64_t capacity = options.property("capacity").size();
  LayerRopes ropes(read_ropes(options.property("ropes")), {});
  for (const std::int32_t rope : options.property("layerRopes").int32s()) ropes.layers.push_back(rope);
  if (std::ssize(ropes.layers) != shape.layers) options.property("layerRopes").refuse("one number for each layer");
  auto cache = KvCache::create(device->open(), shape, std::move(ropes), capacity, device->disposer());
  return to_handle(info.Env(), std::make_shared<CacheHandle>(device, std::move(cache)));
}

Napi::Value cache_stats(const Napi::CallbackInfo& info) {
  const auto cache = Argument(info, 0, "cache").handle<CacheHandle>();
  const KvCache::Stats stats = cache->open()->stats();
  auto result = Napi::Object::New(info.Env());
  result.Set("pageSize", static_cast<double>(kPageSize));
  result.Set("pages", static_cast<double>(stats.pages));
  result.Set("freePages", static_cast<double>(stats.free_pages));
  result.Set("peakPages", static_cast<double>(stats.peak_pages));
  result.Set("bytesPerPage", static_cast<double>(stats.bytes_per_page));
  result.Set("keyBytesMoved", static_cast<double>(stats.key_bytes_moved));
  return result;
}

Napi::Value cache_close(const Napi::CallbackInfo& info) {
  Argument(info, 0, "cache").handle<CacheHandle>()->close();
  return info.Env().Undefined();
}

Napi::Value create_block(const Napi::CallbackInfo& info) {
  const auto cache = Argument(info, 0, "cache").handle<CacheHandle>();
  const Argument budget(info, 1, "budget");
  const std::int64_t number = budget.is_undefined() ? PagePool::kNoBudget : budget.size();
  return to_handle(info.Env(), std::make_shared<BlockHandle>(cache, cache->idle().create_block(number)));
}

Napi::Value open_budget(const Napi::CallbackInfo& info) {
  const auto cache = Argument(info, 0, "cache").handle<CacheHandle>();
  const std::int64_t pages = Argument(info, 1, "pages").size();
  return Napi::Number::New(info.Env(), static_cast<double>(cache->open()->open_budget(pages)));
}

Napi::Value budget_stats(const Napi::CallbackInfo& info) {
  const auto cache = Argument(info, 0, "cache").handle<CacheHandle>();
  const PagePool::Budget budget = cache->open()->budget(Argument(info, 1, "budget").size());
  auto result = Napi::Object::New(info.Env());
  result.Set("pages", static_cast<double>(budget.limit));
  result.Set("usedPages", static_cast<double>(budget.in_use));
  result.Set("peakPages", static_cast<double>(budget.peak));
  return result;
}

Napi::Value close_budget(const Napi::CallbackInfo& info) {
  const auto cache = Argument(info, 0, "cache").handle<CacheHandle>();
  cache->open()->close_budget(Argument(info, 1, "budget").size());
  return info.Env().Undefined();
}

Napi::Value charge_budget(const Napi::CallbackInfo& info) {
  const auto cache = Argument(info, 0, "cache").handle<CacheHandle>();
  const std::int64_t budget = Argument(info, 1, "budget").size();
  cache->open()->charge_budget(budget, Argument(info, 2, "pages").count());
  return info.Env().Undefined();
}

Napi::Value block_length(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(block_argument(info, 0, "block")->length()));
}

Napi::Value block_tokens(const Napi::CallbackInfo& info) {
  const auto block = block_argument(info, 0, "block");
  const std::vector<std::int32_t> tokens = block->open()->tokens();
  const std::int64_t length = block->length();
  auto result = new_int32_array(info.Env(), length);
  std::copy_n(tokens.begin(), length, result.Data());
  return result;
}

Napi::Value block_segments(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto block = block_argument(info, 0, "block");
  const std::vector<Segment>& segments = block->idle().segments();
  auto result = Napi::Array::New(env, segments.size());
  for (std::uint32_t i = 0; i < segments.size(); i++) {
    auto segment = Napi::Object::New(env);
    segment.Set("length", static_cast<double>(segments[i].length));
    segment.Set("rotatedAt", static_cast<double>(segments[i].rotated_at));
    segment.Set("pages", static_cast<double>(segments[i].pages.size()));
    result.Set(i, segment);
  }
  return result;
}

Napi::Value block_append_from(const Napi::CallbackInfo& info) {
  const auto target = block_argument(info, 0, "target");
  const auto source = block_argument(info, 1, "source");
  target->idle().append_from(source->idle());
  return info.Env().Undefined();
}

Napi::Value block_insert(const Napi::CallbackInfo& info) {
  const auto target = block_argument(info, 0, "target");
  const std::int64_t at = Argument(info, 1, "at").count();
  const auto source = block_argument(info, 2, "source");
  target->idle().insert(at, source->idle());
  return info.Env().Undefined();
}

Napi::Value block_truncate(const Napi::CallbackInfo& info) {
  const auto block = block_argument(info, 0, "block");
  const std::int64_t length = Argument(info, 1, "length").count();
  block->idle().truncate(length);
  return info.Env().Undefined();
}

Napi::Value block_forget(const Napi::CallbackInfo& info) {
  const auto block = block_argument(info, 0, "block");
  const std::int64_t begin = Argument(info, 1, "begin").count();
  const std::int64_t end = Argument(info, 2, "end").count();
  block->idle().forget(begin, end);
  return info.Env().Undefined();
}

Napi::Value block_clear(const Napi::CallbackInfo& info) {
  block_argument(info, 0, "block")->idle().clear();
  return info.Env().Undefined();
}

Napi::Value block_fork(const Napi::CallbackInfo& info) {
  const auto block = block_argument(info, 0, "block");
  const CacheBlock& source = block->idle();
  const Argument begin(info, 1, "begin");
  auto fork = begin.is_undefined() ? source.fork() : source.fork(begin.count(), Argument(info, 2, "end").count());
  return to_handle(info.Env(), std::make_shared<BlockHandle>(block->cache(), std::move(fork)));
}

Napi::Value block_compact(const Napi::CallbackInfo& info) {
  const auto block = block_argument(info, 0, "block");
  return block->cache()->device()->schedule(std::make_unique<CompactTask>(*block));
}

Napi::Value block_read(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto handle = block_argument(info, 0, "block");
  const KvShape shape = handle->cache()->open()->shape();
  const std::int64_t layer = Argument(info, 1, "layer").integer(0, shape.layers - 1);
  const std::int64_t length = handle->idle().length();
  auto k = new_float32_array(env, length * shape.kv_heads * shape.head_dim);
  auto v = new_float32_array(env, length * shape.kv_heads * shape.head_dim);
  auto positions = new_float64_array(env, length);

  const CacheBlock& block = handle->idle();
  handle->cache()->device()->idle();
  std::vector<std::int64_t> rotated_at(static_cast<std::size_t>(length));
  block.read(layer, k.Data(), v.Data(), rotated_at.data());
  std::copy(rotated_at.begin(), rotated_at.end(), positions.Data());

  auto result = Napi::Object::New(env);
  result.Set("k", k);
  result.Set("v", v);
  result.Set("rotatedAt", positions);
  return result;
}

Napi::Value block_close(const Napi::CallbackInfo& info) {
  block_argument(info, 0, "block")->close();
  return info.Env().Undefined();
}

}  // namespace hogwild::addon
