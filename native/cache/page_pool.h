// Host-side bookkeeping of a page pool: reference counts of pages, used slots, and the
// token ids in them. Keys and values themselves lie in device memory (kv_cache.h).
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "cache/segment.h"

namespace hogwild {

// Every member function but size() is called with `mutex` held.
class PagePool {
 public:
  static constexpr std::int64_t kNoBudget = 0;

  struct Page {
    std::int64_t references = 0;      // places in segment lists that name this page; 0: free
    std::int64_t writer = 0;          // id of the block that took the page: nobody else ever writes in it
    std::int64_t next_free = 0;       // while free: the next free page
    std::int64_t used = 0;            // slots written, from slot 0 on
    std::int64_t shared = 0;          // slots, from slot 0 on, that more than one place in lists of segments ever named
    std::int64_t budget = kNoBudget;  // of the block that took the page
  };

  // How many pages some blocks together may have taken at once. A page counts for the budget of the block that took it
  // until it is free again, whoever shares it meanwhile. What others took may be charged to a budget as well.
  struct Budget {
    std::int64_t limit = 0;
    std::int64_t in_use = 0;   // with those charged
    std::int64_t charged = 0;  // until it is closed
    std::int64_t peak = 0;
    bool closed = false;  // goes once its pages are free
  };
  using TokenIds = std::array<std::int32_t, kPageSize>;

  explicit PagePool(std::int64_t pages) : size_(pages) {}

  std::mutex mutex;

  std::int64_t size() const { return size_; }
  std::int64_t in_use() const { return in_use_; }
  std::int64_t peak() const { return peak_; }
  const Page& page(std::int64_t id) const { return pages_[id]; }
  TokenIds& tokens(std::int64_t page) { return tokens_[page]; }
  const TokenIds& tokens(std::int64_t page) const { return tokens_[page]; }

  std::int64_t open_budget(std::int64_t limit);  // its id
  void close_budget(std::int64_t id) noexcept;
  const Budget& budget(std::int64_t id) const;  // throws kInvalidArgument
  // Counts `pages` that somebody else has taken. Throws kInvalidArgument, and kOutOfPages where there is no room for
  // them.
  void charge_budget(std::int64_t id, std::int64_t pages);

  // Throws kOutOfPages unless so many pages are free, of the pool and of the budget.
  void require_free(std::int64_t count) const;
  void require_free(std::int64_t count, std::int64_t budget) const;
  // So that `take` cannot fail for this many.
  void make_room(std::int64_t count);
  // Appends `count` of the free pages, with one reference each, to `taken`, which has room for them.
  void take(std::int64_t count, std::int64_t budget, std::vector<std::int64_t>& taken) noexcept;

  // One reference more, or less, for every page that the segments name, as often as they name it.
  void add_references(std::span<const Segment> segments) noexcept;
  void drop_references(std::span<const Segment> segments) noexcept;
  void drop_reference(std::int64_t page) noexcept;

  // Whether block `writer` may write on behind slot `end` - 1 of `page`, which ends its last segment: it
  // wrote the page's newest token and stands right behind it. Where this holds decides how a block lies in
  // storage, and so the last bit of logits. It follows from what was done to this block alone: not from other
  // workers of the step, nor from whether a block that shares the page was closed or collected meanwhile.
  bool writable(std::int64_t page, std::int64_t end, std::int64_t writer) const;

  // Records that `writer` has filled the page up to slot `used` - 1.
  void mark_used(std::int64_t page, std::int64_t used, std::int64_t writer) noexcept;
  // Records that several places may name these tokens from now on.
  void mark_shared(std::span<const Segment> segments) noexcept;
  // Records that `writer` has dropped what lies behind slot `end` - 1 of the page that ends its last
  // segment, so that it may write there again, but for slots that were ever shared.
  void mark_dropped(std::int64_t page, std::int64_t end, std::int64_t writer) noexcept;
  // Makes a page that nobody has named yet what it was in another pool. `tokens`: of its marked slots, ascending.
  void restore(std::int64_t id, const Page& page, std::uint64_t slots, const std::int32_t* tokens) noexcept;
  void record_peak() noexcept;

 private:
  static constexpr std::int64_t kNone = -1;

  std::int64_t size_;  // most pages there may be; `pages_` grows up to it as they are first taken
  std::int64_t in_use_ = 0;
  std::int64_t peak_ = 0;
  std::int64_t first_free_ = kNone;  // list through Page::next_free, last freed first
  std::int64_t next_budget_ = 1;
  std::unordered_map<std::int64_t, Budget> budgets_;
  std::vector<Page> pages_;
  std::vector<TokenIds> tokens_;  // beside pages_, so that counting references stays in few cache lines
};

// Room for new tokens behind several blocks at once, all or nothing. The books change at `commit`;
// without it the destructor gives the pages back.
class PageReservation {
 public:
  struct Request {
    const Segment* last = nullptr;  // the block's last segment, or null
    std::int64_t position = 0;      // rotated_at of a segment, should a new one begin
    std::int64_t writer = 0;        // id of the block
    std::int64_t budget = PagePool::kNoBudget;
    std::int64_t tokens = 0;  // how many, > 0
  };
  struct ReservedRange {
    Segment segment;         // last segment of the grown block
    bool replaces = false;   // it is the present last segment and more; else it comes behind that one
    std::int64_t first = 0;  // index in `segment` of the first new token
    std::int64_t writer = 0;
  };

  // Throws kOutOfPages. The blocks are distinct. Takes the mutex.
  PageReservation(PagePool& pool, std::span<const Request> requests);
  ~PageReservation();
  PageReservation(const PageReservation&) = delete;
  PageReservation& operator=(const PageReservation&) = delete;

  std::vector<ReservedRange>& ranges() { return ranges_; }
  const std::vector<ReservedRange>& ranges() const { return ranges_; }

  // With the mutex held. The references of the new pages now belong to whoever takes the segments. `kept`: how many of
  // each request's tokens stay, the first ones; the pages of the others are given back, and the ranges end before them.
  void commit(std::span<const std::int64_t> kept) noexcept;
  void commit() noexcept;  // all of them

 private:
  PagePool& pool_;
  std::vector<ReservedRange> ranges_;
  std::vector<std::int64_t> new_pages_;
};

}  // namespace hogwild
