// The shared KV cache: a bounded pool of pages, and blocks that are lists of segments of pages.
//
// A segment is a run of tokens that lie one after the other in pages; it remembers at which
// position its first key was rotated (`rotated_at`), its i-th at rotated_at + i. Since a score
// depends only on a distance, the query is turned to meet a segment wherever the segment now stands
// in a block or in a view. So every operation on blocks re-arranges references to pages: it costs
// O(pages) and moves no key. Only `compact` moves keys, and only when asked.
//
// Pages are shared (`fork`, `append_from`, `insert`) and counted. A page is written by the block that took
// it and by no other: tokens that are written behind a fork, or behind what came from another block, start
// a page (a segment) of their own, whether the other block still lives or not. A slot once shared is never
// written again until the page is free.
//
// Threads: one at a time, except that `length`, `tokens` and `stats` may be read, and the last
// reference to a CacheBlock may be dropped, on any thread at any time. Whatever would change a block
// while a step is under way (a StepReservation exists) throws kBusy.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "cache/page_pool.h"
#include "cache/rope_rows.h"
#include "cache/segment.h"
#include "device/device.h"

namespace hogwild {

class CacheBlock;

class KvCache : public std::enable_shared_from_this<KvCache> {
 public:
  struct Stats {
    std::int64_t pages = 0;  // of the pool
    std::int64_t free_pages = 0;
    std::int64_t bytes_per_page = 0;   // keys and values with their scales, all layers
    std::int64_t key_bytes_moved = 0;  // by compact(), since creation
    std::int64_t peak_pages = 0;       // most pages in use at once
  };

  // `capacity` in tokens, rounded up to pages. Throws kInvalidArgument (shape, ropes, capacity),
  // kUnsupported (what the device cannot keep) or kOutOfMemory. `shape.padding` is the device's business.
  // May be called on any thread at any time: a device with memory of its own allocates the pool when it is first used.
  // `dispose` frees the cache when its last reference goes, on whatever thread that happens.
  using Dispose = std::function<void(KvCache*)>;
  static std::shared_ptr<KvCache> create(std::shared_ptr<Device> device, KvShape shape, LayerRopes ropes,
                                         std::int64_t capacity, Dispose dispose = std::default_delete<KvCache>());

  // Before the first op on the cache's layers, on the device's thread: makes sure that the pool has its memory.
  // Throws kOutOfMemory; a later call tries again.
  void allocate_pool();

  // `budget`: whose pages the block takes, and its forks; kInvalidArgument where there is none of that number.
  std::shared_ptr<CacheBlock> create_block(std::int64_t budget = PagePool::kNoBudget);

  // Budgets of pages (PagePool::Budget), by number. They may be opened, closed and read on any thread at any time.
  std::int64_t open_budget(std::int64_t limit);
  void close_budget(std::int64_t id) noexcept;
  void charge_budget(std::int64_t id, std::int64_t pages);
  PagePool::Budget budget(std::int64_t id) const;

  std::uint64_t id() const { return id_; }  // of all caches of the process
  const KvShape& shape() const { return shape_; }
  const LayerRopes& ropes() const { return ropes_; }
  Device& device() { return *device_; }
  KvLayer layer(std::int64_t index) const;
  Stats stats() const;
  const PagePool& pool() const { return pool_; }

 private:
  friend class CacheBlock;
  friend class SnapshotReader;
  friend class SnapshotWriter;
  friend class StepReservation;

  // Held while a step, a compaction or a snapshot is under way.
  class Lease {
   public:
    explicit Lease(KvCache& cache);  // throws kBusy
    ~Lease() { cache_.leased_.store(false); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

   private:
    KvCache& cache_;
  };

  KvCache(std::shared_ptr<Device> device, const KvShape& shape, LayerRopes ropes, std::int64_t pages);

  static inline std::atomic<std::uint64_t> next_id_ = 1;

  const std::uint64_t id_ = next_id_++;
  std::shared_ptr<Device> device_;
  KvShape shape_;
  LayerRopes ropes_;
  std::vector<RopeAngles> angles_;  // of ropes_.specs
  mutable PagePool pool_;
  Buffer keys_;    // [layers, N pages], each in its own format; empty before allocate_pool
  Buffer values_;  // [layers, N pages]
  std::atomic<std::int64_t> key_bytes_moved_ = 0;
  std::atomic<std::int64_t> next_block_id_ = 1;
  std::atomic<bool> leased_ = false;
};

// An ordered list of tokens with one writer (docs/semantics.md, "Blocks"): segment after segment. Every operation
// either takes place as a whole or throws and changes nothing. Blocks of different caches never mix
// (kInvalidArgument). Token ids are kept beside the keys; -1 where the caller gave none.
class CacheBlock {
 public:
  ~CacheBlock();  // gives its pages back
  CacheBlock(const CacheBlock&) = delete;
  CacheBlock& operator=(const CacheBlock&) = delete;

  KvCache& cache() const { return *cache_; }
  std::int64_t length() const { return length_.load(std::memory_order_acquire); }
  std::vector<std::int32_t> tokens() const;
  const std::vector<Segment>& segments() const { return segments_; }

  // `source` may be this block. insert: before local position `at`, 0 <= at <= length().
  void append_from(const CacheBlock& source);
  void insert(std::int64_t at, const CacheBlock& source);
  void truncate(std::int64_t length);                 // keeps the first `length`, 0 <= length <= length()
  void forget(std::int64_t begin, std::int64_t end);  // removes [begin, end), 0 <= begin <= end <= length()
  void clear();
  std::shared_ptr<CacheBlock> fork() const { return fork(0, length()); }
  std::shared_ptr<CacheBlock> fork(std::int64_t begin, std::int64_t end) const;  // of tokens [begin, end)

  // Joins the block's segments into one. The first segment stays where it is, but for the tokens of a
  // partly filled last page that the block may not write on in; what comes behind is copied there. Keys
  // are turned to their new position in f32 and rounded once (relative error of a key <= 2^-8 for bf16,
  // 2^-11 for f16, 2^-22 for f32, beside the rounding at append); those already turned to it, and all
  // values, are copied bit for bit. Keys of a format that may not be turned (kv_can_turn) are never rounded again:
  // of such a cache each run of segments whose rotation goes on from one to the next becomes one, and the
  // result has as many segments as there are runs.
  // Runs on the device. Throws kOutOfPages and changes nothing where the copy does not fit.
  struct CompactResult {
    std::int64_t segments_before = 0;
    std::int64_t segments_after = 0;
    std::int64_t tokens_moved = 0;
  };
  CompactResult compact();

  // Keys (as stored) and values of one layer, [length, Hkv, D] each, and the position at which each
  // key was rotated, [length]. For tests.
  void read(std::int64_t layer, float* k, float* v, std::int64_t* rotated_at) const;

 private:
  friend class KvCache;
  friend class SnapshotReader;
  friend class SnapshotWriter;
  friend class StepReservation;

  CacheBlock(std::shared_ptr<KvCache> cache, std::int64_t budget);

  void require_idle() const;
  void require_same_cache(const CacheBlock& other) const;
  // The block's tokens are now those of the segments. keep: parts of the present ones, in their order.
  // share: parts that other blocks have, or this one in another order.
  void keep_segments(std::vector<Segment> rest) noexcept;
  void share_segments(std::vector<Segment> next) noexcept;
  void replace_segments(std::vector<Segment> next) noexcept;  // with the mutex held

  std::shared_ptr<KvCache> cache_;
  std::int64_t id_;
  std::int64_t budget_;
  std::vector<Segment> segments_;  // changed with the pool's mutex held
  std::atomic<std::int64_t> length_ = 0;
};

}  // namespace hogwild
