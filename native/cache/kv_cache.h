// The shared KV cache: a bounded pool of pages, and blocks that are lists of segments of pages.
//
// A segment is a run of tokens that lie one after the other in pages; it remembers at which
// position its first key was rotated (`rotated_at`), its i-th at rotated_at + i. Since a score
// depends only on a distance, the query is turned to meet a segment wherever the segment now stands
// in a block or in a view. So every operation on blocks re-arranges references to pages: it costs
// O(pages) and moves no key. Only `compact` moves keys, and only when asked.
//
// Pages are shared (`fork`, `append_from`, `insert`) and counted. A page's slots are handed out in
// order; a slot once written is never written again while anybody can see it. A block may go on
// writing behind its last token in a shared page only if that slot has not been handed out yet;
// otherwise its next tokens start a new page (a new segment): copy on write without the copy.
//
// Threads: one at a time (the addon refuses a call with kBusy while a step runs), except that the
// last reference to a CacheBlock may be dropped on any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "device/device.h"

namespace hogwild {

struct RopeSpec {
  std::vector<double> inverse_frequencies;  // [R / 2], radians per position
  double attention_factor = 1;              // `a` of SEMANTICS: once through q, once through k

  std::int64_t rotary_dim() const { return 2 * static_cast<std::int64_t>(inverse_frequencies.size()); }
};

class CacheBlock;

class KvCache : public std::enable_shared_from_this<KvCache> {
 public:
  struct Stats {
    std::int64_t pages = 0;            // of the pool
    std::int64_t free_pages = 0;
    std::int64_t bytes_per_page = 0;   // keys and values, all layers
    std::int64_t key_bytes_moved = 0;  // by compact(), since creation
    std::int64_t peak_pages = 0;       // most pages in use at once
  };

  // `capacity` in tokens, rounded up to pages. Throws kInvalidArgument (shape) or kOutOfMemory.
  static std::shared_ptr<KvCache> create(std::shared_ptr<Device> device, const KvShape& shape, RopeSpec rope,
                                         std::int64_t capacity);

  std::shared_ptr<CacheBlock> create_block();

  const KvShape& shape() const { return shape_; }
  const RopeSpec& rope() const { return rope_; }
  Device& device() { return *device_; }
  KvLayer layer(std::int64_t index) const;
  Stats stats() const;

 private:
  friend class CacheBlock;
  // (pool bookkeeping: see kv_cache.cc)
  std::shared_ptr<Device> device_;
  KvShape shape_;
  RopeSpec rope_;
};

// A run of tokens in storage. pages[0] holds the first token at `first_slot`.
struct Segment {
  std::vector<std::int64_t> pages;
  std::int32_t first_slot = 0;
  std::int64_t length = 0;
  std::int64_t rotated_at = 0;
};

// An ordered list of tokens with one writer (SEMANTICS, "Objects"). Every operation either takes
// place as a whole or throws and changes nothing. Blocks of different caches never mix
// (kInvalidArgument). Token ids are kept beside the keys; -1 where the caller gave none.
class CacheBlock {
 public:
  ~CacheBlock();  // gives its pages back

  KvCache& cache() const { return *cache_; }
  std::int64_t length() const;
  std::vector<std::int32_t> tokens() const;
  const std::vector<Segment>& segments() const;

  void append_from(const CacheBlock& source);                 // source may be this block
  void insert(std::int64_t at, const CacheBlock& source);     // source's tokens before local position `at`, 0 <= at <= length
  void truncate(std::int64_t length);                         // keeps the first `length`, 0 <= length <= length()
  void forget(std::int64_t begin, std::int64_t end);          // removes [begin, end)
  void clear();
  std::shared_ptr<CacheBlock> fork() const;

  // Joins the block's segments into one. Leading full pages stay where they are; keys behind them are
  // turned to their new position in f32 and rounded once (relative error of a key <= 2^-9 for bf16,
  // 2^-12 for f16, 2^-24 for f32, beside the rounding at append); values are copied bit for bit.
  // Runs on the device. Throws kOutOfPages and changes nothing where the copy does not fit.
  struct CompactResult {
    std::int64_t segments_before = 0;
    std::int64_t segments_after = 0;
    std::int64_t tokens_moved = 0;
  };
  CompactResult compact();

  // Keys (as stored) and values of one layer, [length, Hkv, D] each, and the position at which each
  // key was rotated, [length]. For tests and for saving.
  void read(std::int64_t layer, float* k, float* v, std::int64_t* rotated_at) const;

 private:
  friend class KvCache;
  friend class StepReservation;
  std::shared_ptr<KvCache> cache_;
};

}  // namespace hogwild
