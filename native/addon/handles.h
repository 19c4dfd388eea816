// What the handles stand for, and who may do what when. All of it belongs to the JavaScript thread:
// tasks hold shared_ptrs to the engine's own objects and touch these only in their destructors.
//
// Closing is explicit and idempotent; a handle that is collected closes what it stood for. Closed
// objects answer with kClosed. A cache in use by a step, a pass or a compaction answers with kBusy.
// Devices, models and caches die on the runner's thread (Runner::Disposer): closing costs microseconds.
#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>
#include <unordered_set>
#include <utility>
#include <vector>

#include "addon/convert.h"
#include "addon/promise_task.h"
#include "cache/attention_plan.h"
#include "cache/kv_cache.h"
#include "device/device.h"
#include "model/transformer.h"

namespace hogwild::addon {

class CacheHandle;

class DeviceHandle {
 public:
  static constexpr const char* kKind = "device";

  DeviceHandle(Napi::Env env, std::shared_ptr<Device> device);

  const std::shared_ptr<Device>& open() const;  // throws kClosed
  // For calls that compute on the JavaScript thread. Throws kClosed, or kBusy while tasks are scheduled:
  // a device computes for one thread at a time, and the event loop does not wait for a step.
  Device& idle() const;
  bool closed() const { return runner_.closed(); }
  Napi::Promise schedule(std::unique_ptr<PromiseTask> task) { return runner_.schedule(std::move(task)); }
  Runner::Disposer disposer() const { return Runner::Disposer(runner_); }
  void close();

 private:
  Runner runner_;
  std::shared_ptr<Device> device_;  // null once closed
};

class ModelHandle {
 public:
  static constexpr const char* kKind = "model";

  ModelHandle(std::shared_ptr<DeviceHandle> device, std::shared_ptr<Transformer> transformer)
      : device_(std::move(device)), transformer_(std::move(transformer)) {}

  const std::shared_ptr<DeviceHandle>& device() const { return device_; }
  const std::shared_ptr<Transformer>& open() const;  // throws kClosed
  void close() { transformer_.reset(); }

 private:
  std::shared_ptr<DeviceHandle> device_;
  std::shared_ptr<Transformer> transformer_;
};

class BlockHandle {
 public:
  static constexpr const char* kKind = "block";

  BlockHandle(std::shared_ptr<CacheHandle> cache, std::shared_ptr<CacheBlock> block);
  ~BlockHandle();
  BlockHandle(const BlockHandle&) = delete;
  BlockHandle& operator=(const BlockHandle&) = delete;

  const std::shared_ptr<CacheHandle>& cache() const { return cache_; }
  const std::shared_ptr<CacheBlock>& open() const;  // throws kClosed
  CacheBlock& idle() const;                         // throws kClosed, kBusy
  // In tokens. While a step writes the block: as before, although it may have ended already on its thread.
  std::int64_t length() const;
  void close();

 private:
  friend class CacheLease;

  std::shared_ptr<CacheHandle> cache_;
  std::shared_ptr<CacheBlock> block_;  // null once closed
  bool being_written_ = false;         // by the step or pass that has leased the cache
  std::int64_t length_before_ = 0;     // that
};

class CacheHandle {
 public:
  static constexpr const char* kKind = "cache";

  CacheHandle(std::shared_ptr<DeviceHandle> device, std::shared_ptr<KvCache> cache)
      : device_(std::move(device)), cache_(std::move(cache)) {}

  const std::shared_ptr<DeviceHandle>& device() const { return device_; }
  const std::shared_ptr<KvCache>& open() const;  // throws kClosed
  KvCache& idle() const;                         // throws kClosed, kBusy
  bool busy() const { return busy_; }
  // Closes all blocks. The pool is freed once the tasks that use it have ended.
  void close();

 private:
  friend class BlockHandle;
  friend class CacheLease;

  std::shared_ptr<DeviceHandle> device_;
  std::shared_ptr<KvCache> cache_;  // null once closed
  std::unordered_set<BlockHandle*> blocks_;
  bool busy_ = false;
};

// The exclusive use of a cache by a step, a pass or a compaction.
class CacheLease {
 public:
  // `targets`: blocks that will be written. Throws kClosed, kBusy.
  CacheLease(std::shared_ptr<CacheHandle> cache, std::vector<std::shared_ptr<BlockHandle>> targets);
  ~CacheLease();
  CacheLease(const CacheLease&) = delete;
  CacheLease& operator=(const CacheLease&) = delete;

  const CacheHandle& cache() const { return *cache_; }

 private:
  std::shared_ptr<CacheHandle> cache_;
  std::vector<std::shared_ptr<BlockHandle>> targets_;
};

// What a worker of a step or a pass brings: NativeWorkerView of lib/native.ts.
struct WorkerViewArguments {
  std::vector<std::shared_ptr<BlockHandle>> blocks;
  std::vector<ViewEntry> entries;  // of the blocks, without them; or none: all have their defaults
  std::shared_ptr<BlockHandle> target;

  explicit WorkerViewArguments(const Argument& worker);
  // The blocks themselves, without tokens. Throws kClosed where one is closed.
  WorkerView open() const;
};

std::vector<std::shared_ptr<BlockHandle>> targets_of(const std::vector<WorkerViewArguments>& views);

// Rope[] of lib/rope.ts.
std::vector<RopeSpec> read_ropes(const Argument& ropes);

}  // namespace hogwild::addon
