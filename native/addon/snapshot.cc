// Blocks out of a cache as bytes and into one, piece by piece. What calls this writes and reads the file: the device
// computes for others while a disk is slow.
#include "cache/snapshot.h"

#include <napi.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "addon/convert.h"
#include "addon/exports.h"
#include "addon/handles.h"

namespace hogwild::addon {

// What the tasks of an export or import share. Whoever holds the last reference (on the JavaScript thread) gives back
// what was not committed, then the cache.
template <typename Work>
struct OpenSnapshot {
  CacheLease lease;
  Work work;

  template <typename... Arguments>
  OpenSnapshot(const std::shared_ptr<CacheHandle>& cache, Arguments&&... arguments)
      : lease(cache, {}), work(cache->open(), std::forward<Arguments>(arguments)...) {}
};

template <typename Work>
class SnapshotHandle {
 public:
  using Open = std::shared_ptr<OpenSnapshot<Work>>;

  SnapshotHandle(std::shared_ptr<CacheHandle> cache, Open open) : cache_(std::move(cache)), open_(std::move(open)) {}

  // Throws kClosed after the end, and when the cache is closed.
  const Open& open() const {
    if (!open_) throw Error(code::kClosed, "the export or import has ended before");
    cache_->open();
    return open_;
  }
  // The same for calls that end it. Throws kBusy.
  const Open& idle() const {
    if (open().use_count() > 1) throw Error(code::kBusy, "calls of this import have not ended: wait for them");
    return open_;
  }
  void end() { open_.reset(); }

  const std::shared_ptr<CacheHandle>& cache() const { return cache_; }
  Napi::Promise schedule(std::unique_ptr<PromiseTask> task) { return cache_->device()->schedule(std::move(task)); }

 private:
  std::shared_ptr<CacheHandle> cache_;
  Open open_;  // null once ended
};

class ExportHandle : public SnapshotHandle<SnapshotReader> {
 public:
  static constexpr const char* kKind = "export";
  using SnapshotHandle::SnapshotHandle;
};

class ImportHandle : public SnapshotHandle<SnapshotWriter> {
 public:
  static constexpr const char* kKind = "import";
  using SnapshotHandle::SnapshotHandle;
};

namespace {

class ReadTask : public PromiseTask {
 public:
  ReadTask(Napi::Env env, ExportHandle::Open open, std::int64_t piece) : open_(std::move(open)), piece_(piece) {
    auto bytes = new_uint8_array(env, open_->work.pieces().bytes(piece));
    data_ = reinterpret_cast<std::byte*>(bytes.Data());
    keep(bytes);
  }

 protected:
  void execute(const std::atomic<bool>&) override { open_->work.read(piece_, data_); }
  Napi::Value result(Napi::Env) override { return kept(); }

 private:
  ExportHandle::Open open_;
  std::int64_t piece_;
  std::byte* data_;  // of kept()
};

class WriteTask : public PromiseTask {
 public:
  WriteTask(ImportHandle::Open open, std::int64_t piece, std::vector<std::uint8_t> bytes)
      : open_(std::move(open)), piece_(piece), bytes_(std::move(bytes)) {}

 protected:
  void execute(const std::atomic<bool>&) override {
    open_->work.write(piece_, std::as_writable_bytes(std::span(bytes_)));
  }
  Napi::Value result(Napi::Env env) override { return env.Undefined(); }

 private:
  ImportHandle::Open open_;
  std::int64_t piece_;
  std::vector<std::uint8_t> bytes_;
};

Napi::Value piece_sizes(Napi::Env env, const SnapshotPieces& pieces) {
  auto sizes = new_float64_array(env, pieces.count());
  for (std::int64_t i = 0; i < pieces.count(); ++i)
    sizes[static_cast<std::size_t>(i)] = static_cast<double>(pieces.bytes(i));
  return sizes;
}

}  // namespace

Napi::Value begin_export(const Napi::CallbackInfo& info) {
  const auto cache = Argument(info, 0, "cache").handle<CacheHandle>();
  const auto handles =
      Argument(info, 1, "blocks").map([](const Argument& block) { return block.handle<BlockHandle>(); });
  std::vector<std::shared_ptr<CacheBlock>> blocks;
  for (const auto& handle : handles) blocks.push_back(handle->open());
  auto open = std::make_shared<OpenSnapshot<SnapshotReader>>(cache, std::move(blocks));
  return to_handle(info.Env(), std::make_shared<ExportHandle>(cache, std::move(open)));
}

Napi::Value export_index(const Napi::CallbackInfo& info) {
  const auto handle = Argument(info, 0, "export").handle<ExportHandle>();
  const std::vector<std::byte> index = handle->open()->work.index().to_bytes();
  auto result = new_uint8_array(info.Env(), std::ssize(index));
  std::copy(index.begin(), index.end(), reinterpret_cast<std::byte*>(result.Data()));
  return result;
}

Napi::Value export_pieces(const Napi::CallbackInfo& info) {
  return piece_sizes(info.Env(), Argument(info, 0, "export").handle<ExportHandle>()->open()->work.pieces());
}

Napi::Value export_read(const Napi::CallbackInfo& info) {
  const auto handle = Argument(info, 0, "export").handle<ExportHandle>();
  const std::int64_t n_pieces = handle->open()->work.pieces().count();
  const std::int64_t piece = Argument(info, 1, "piece").integer(0, n_pieces - 1);
  return handle->schedule(std::make_unique<ReadTask>(info.Env(), handle->open(), piece));
}

Napi::Value export_end(const Napi::CallbackInfo& info) {
  Argument(info, 0, "export").handle<ExportHandle>()->end();
  return info.Env().Undefined();
}

Napi::Value begin_import(const Napi::CallbackInfo& info) {
  const auto cache = Argument(info, 0, "cache").handle<CacheHandle>();
  const std::vector<std::uint8_t> bytes = Argument(info, 1, "index").bytes();
  std::vector<std::int64_t> budgets =
      Argument(info, 2, "budgets").map([](const Argument& budget) { return budget.count(); });
  SnapshotIndex index = SnapshotIndex::from_bytes(std::as_bytes(std::span(bytes)));
  auto open = std::make_shared<OpenSnapshot<SnapshotWriter>>(cache, std::move(index), std::move(budgets));
  return to_handle(info.Env(), std::make_shared<ImportHandle>(cache, std::move(open)));
}

Napi::Value import_pieces(const Napi::CallbackInfo& info) {
  return piece_sizes(info.Env(), Argument(info, 0, "import").handle<ImportHandle>()->open()->work.pieces());
}

Napi::Value import_write(const Napi::CallbackInfo& info) {
  const auto handle = Argument(info, 0, "import").handle<ImportHandle>();
  const std::int64_t piece = Argument(info, 1, "piece").count();
  std::vector<std::uint8_t> bytes = Argument(info, 2, "bytes").bytes();
  return handle->schedule(std::make_unique<WriteTask>(handle->open(), piece, std::move(bytes)));
}

Napi::Value import_commit(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const auto handle = Argument(info, 0, "import").handle<ImportHandle>();
  auto blocks = handle->idle()->work.commit();
  handle->end();
  auto result = Napi::Array::New(env, blocks.size());
  for (std::uint32_t i = 0; i < blocks.size(); i++) {
    result.Set(i, to_handle(env, std::make_shared<BlockHandle>(handle->cache(), std::move(blocks[i]))));
  }
  return result;
}

Napi::Value import_abort(const Napi::CallbackInfo& info) {
  Argument(info, 0, "import").handle<ImportHandle>()->end();
  return info.Env().Undefined();
}

}  // namespace hogwild::addon
