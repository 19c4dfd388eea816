// Blocks of a cache as bytes, and back: what lib/session-file.ts puts into a file (docs/sessions.md).
//
// An index says how the blocks lie in pages: which slots of which pages hold their tokens, how they are rotated, who
// may write on in them. Data are the keys and values of these slots, layer after layer. Pages are numbered in the order
// in which the blocks name them, each once however many blocks share it, and rows stand in an order that is no device's
// own: equal blocks give equal bytes, whichever cache or device they were in.
//
// Everything is kept that decides how a block goes on: a block that may write behind its last token may do so in the
// cache it is brought to, so that its next tokens lie as they would have lain, to the last bit of what is computed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/kv_cache.h"

namespace hogwild {

struct SnapshotIndex {
  struct Page {
    std::uint64_t slots = 0;    // bit i: slot i holds a token of one of the blocks
    std::int64_t position = 0;  // at which slot 0 is rotated, or would be
    std::int32_t writer = -1;   // which of the blocks took the page; -1: none of them
    std::int32_t used = 0;      // as in PagePool::Page; where there is no writer, up to the last marked slot
    std::int32_t shared = 0;    // as in PagePool::Page; where there is no writer, as `used`
  };

  std::vector<Page> pages;
  std::vector<std::int32_t> tokens;          // of the marked slots, page after page
  std::vector<std::vector<Segment>> blocks;  // their segments; Segment::pages are indices of `pages`

  std::vector<std::byte> to_bytes() const;
  // Throws kInvalidSession for bytes that no cache could have given: cut short, contradictory, not canonical.
  static SnapshotIndex from_bytes(std::span<const std::byte> bytes);
};

// Data in pieces, each of whole (layer, page)s, of some megabytes: what is read, written and checked at once.
class SnapshotPieces {
 public:
  // Bytes of a piece, but where one page of one layer takes more.
  static constexpr std::int64_t kMaxBytes = std::int64_t{4} << 20;

  SnapshotPieces(const KvShape& shape, std::span<const SnapshotIndex::Page> pages);

  std::int64_t count() const { return static_cast<std::int64_t>(pieces_.size()); }
  std::int64_t bytes(std::int64_t piece) const { return pieces_[static_cast<std::size_t>(piece)].bytes; }

  // Calls visit(layer, first page, pages, offset in the piece) for each layer that a piece has pages of.
  template <typename Visit>
  void for_each_layer(std::int64_t piece, Visit visit) const {
    const Piece& its = pieces_[static_cast<std::size_t>(piece)];
    std::int64_t offset = 0;
    for (std::int64_t unit = its.first; unit < its.end;) {
      const std::int64_t first = unit % n_pages_;
      const std::int64_t n = std::min(n_pages_ - first, its.end - unit);
      visit(unit / n_pages_, first, n, offset);
      for (std::int64_t page = first; page < first + n; ++page) offset += page_bytes_[static_cast<std::size_t>(page)];
      unit += n;
    }
  }

 private:
  struct Piece {
    std::int64_t first = 0, end = 0;  // units: layer * pages + page
    std::int64_t bytes = 0;
  };

  std::int64_t n_pages_;
  std::vector<std::int64_t> page_bytes_;  // in one layer
  std::vector<Piece> pieces_;
};

// Reads blocks. The cache is in use until it ends: nobody changes them meanwhile.
class SnapshotReader {
 public:
  // Throws kBusy, kInvalidArgument (a block of another cache, or one that stands twice).
  SnapshotReader(std::shared_ptr<KvCache> cache, std::vector<std::shared_ptr<CacheBlock>> blocks);

  const SnapshotIndex& index() const { return index_; }
  const SnapshotPieces& pieces() const { return pieces_; }

  // On the device's thread. `to`: bytes of the piece. Throws kOutOfMemory.
  void read(std::int64_t piece, std::byte* to) const;

 private:
  std::shared_ptr<KvCache> cache_;
  KvCache::Lease lease_;
  std::vector<KvCopyParams::Page> pages_;  // in the order of the index
  SnapshotIndex index_;
  SnapshotPieces pieces_;
};

// Brings blocks into a cache, all or none. The cache is in use until it ends.
class SnapshotWriter {
 public:
  // Takes the pages. `budgets`: those of the blocks, and last that of pages which none of them took (PagePool::Budget);
  // empty: nobody's. Throws kBusy, kOutOfPages, kInvalidArgument.
  SnapshotWriter(std::shared_ptr<KvCache> cache, SnapshotIndex index, std::vector<std::int64_t> budgets = {});
  ~SnapshotWriter();  // gives back what was not committed
  SnapshotWriter(const SnapshotWriter&) = delete;
  SnapshotWriter& operator=(const SnapshotWriter&) = delete;

  const SnapshotPieces& pieces() const { return pieces_; }

  // Pieces come in order, each once, else kInvalidArgument. On the device's thread. Throws kOutOfMemory.
  void write(std::int64_t piece, std::span<std::byte> from);

  // The blocks, in the order of the index. Once only, after all pieces, else kInvalidArgument.
  std::vector<std::shared_ptr<CacheBlock>> commit();

 private:
  std::shared_ptr<KvCache> cache_;
  KvCache::Lease lease_;
  SnapshotIndex index_;
  SnapshotPieces pieces_;
  std::vector<std::int64_t> budgets_;      // one for each block, and one for pages of nobody's
  std::vector<std::int64_t> taken_;        // until the commit
  std::vector<KvCopyParams::Page> pages_;  // in the order of the index
  std::int64_t next_piece_ = 0;
};

}  // namespace hogwild
