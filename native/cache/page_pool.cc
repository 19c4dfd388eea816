#include "cache/page_pool.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "core/error.h"

namespace hogwild {

void PagePool::require_free(std::int64_t count) const {
  const std::int64_t free = size_ - in_use_;
  if (count <= free) return;
  throw Error(code::kOutOfPages, "the cache is full: " + std::to_string(count) + " more pages of " +
                                     std::to_string(kPageSize) + " tokens are needed, " + std::to_string(free) +
                                     " of " + std::to_string(size_) + " are free");
}

void PagePool::require_free(std::int64_t count, std::int64_t budget) const {
  const auto found = budgets_.find(budget);
  if (found == budgets_.end()) return;
  const Budget& own = found->second;
  if (count <= own.limit - own.in_use) return;
  throw Error(code::kOutOfPages, "the budget is used up: " + std::to_string(count) + " more pages of " +
                                     std::to_string(kPageSize) + " tokens are needed, " +
                                     std::to_string(own.limit - own.in_use) + " of " + std::to_string(own.limit) +
                                     " are free");
}

std::int64_t PagePool::open_budget(std::int64_t limit) {
  budgets_.emplace(next_budget_, Budget{.limit = limit});
  return next_budget_++;
}

void PagePool::close_budget(std::int64_t id) noexcept {
  const auto found = budgets_.find(id);
  if (found == budgets_.end()) return;
  found->second.closed = true;
  found->second.in_use -= std::exchange(found->second.charged, 0);
  if (found->second.in_use == 0) budgets_.erase(found);
}

const PagePool::Budget& PagePool::budget(std::int64_t id) const {
  const auto found = budgets_.find(id);
  if (found == budgets_.end() || found->second.closed) refuse("there is no budget number " + std::to_string(id));
  return found->second;
}

void PagePool::charge_budget(std::int64_t id, std::int64_t pages) {
  budget(id);
  require_free(pages, id);
  Budget& own = budgets_.find(id)->second;
  own.in_use += pages;
  own.charged += pages;
  own.peak = std::max(own.peak, own.in_use);
}

void PagePool::make_room(std::int64_t count) {
  const auto known = static_cast<std::int64_t>(pages_.size());
  const std::int64_t recycled = known - in_use_;
  if (count <= recycled) return;
  tokens_.resize(known + count - recycled);
  pages_.resize(known + count - recycled);
  for (auto id = static_cast<std::int64_t>(pages_.size()) - 1; id >= known; --id) {
    pages_[id].next_free = first_free_;
    first_free_ = id;
  }
}

void PagePool::take(std::int64_t count, std::int64_t budget, std::vector<std::int64_t>& taken) noexcept {
  for (std::int64_t i = 0; i < count; ++i) {
    taken.push_back(first_free_);
    Page& page = pages_[first_free_];
    first_free_ = page.next_free;
    page = Page{.references = 1, .budget = budget};
  }
  in_use_ += count;
  if (const auto found = budgets_.find(budget); found != budgets_.end()) found->second.in_use += count;
}

void PagePool::add_references(std::span<const Segment> segments) noexcept {
  for (const Segment& segment : segments) {
    for (const std::int64_t page : segment.pages) ++pages_[page].references;
  }
}

void PagePool::drop_references(std::span<const Segment> segments) noexcept {
  for (const Segment& segment : segments) {
    for (const std::int64_t page : segment.pages) drop_reference(page);
  }
}

void PagePool::drop_reference(std::int64_t id) noexcept {
  Page& page = pages_[id];
  if (--page.references > 0) return;
  page.next_free = first_free_;
  first_free_ = id;
  --in_use_;
  const auto found = budgets_.find(page.budget);
  if (found != budgets_.end() && --found->second.in_use == 0 && found->second.closed) budgets_.erase(found);
}

bool PagePool::writable(std::int64_t id, std::int64_t end, std::int64_t writer) const {
  const Page& page = pages_[id];
  return page.writer == writer && page.used == end;
}

void PagePool::mark_used(std::int64_t id, std::int64_t used, std::int64_t writer) noexcept {
  pages_[id].used = used;
  pages_[id].writer = writer;
}

void PagePool::mark_shared(std::span<const Segment> segments) noexcept {
  for (const Segment& segment : segments) {
    for_each_run(segment, 0, segment.length, [&](std::int64_t id, std::int32_t slot, std::int64_t count, std::int64_t) {
      pages_[id].shared = std::max(pages_[id].shared, slot + count);
    });
  }
}

void PagePool::mark_dropped(std::int64_t id, std::int64_t end, std::int64_t writer) noexcept {
  Page& page = pages_[id];
  if (page.writer == writer) page.used = std::max(end, page.shared);
}

void PagePool::restore(std::int64_t id, const Page& page, std::uint64_t slots, const std::int32_t* tokens) noexcept {
  pages_[id].writer = page.writer;
  pages_[id].used = page.used;
  pages_[id].shared = page.shared;
  for (; slots != 0; slots &= slots - 1) tokens_[id][std::countr_zero(slots)] = *tokens++;
}

void PagePool::record_peak() noexcept {
  peak_ = std::max(peak_, in_use_);
  for (auto& [id, budget] : budgets_) budget.peak = std::max(budget.peak, budget.in_use);
}

PageReservation::PageReservation(PagePool& pool, std::span<const Request> requests) : pool_(pool) {
  const std::scoped_lock lock(pool.mutex);
  ranges_.reserve(requests.size());
  std::int64_t pages = 0;
  std::unordered_map<std::int64_t, std::int64_t> pages_of;  // by budget
  for (const Request& request : requests) {
    ReservedRange reserved;
    reserved.writer = request.writer;
    reserved.segment.rotated_at = request.position;
    if (request.last != nullptr) {
      const std::int64_t end = request.last->end_slot() % kPageSize;
      reserved.replaces = end == 0 || pool.writable(request.last->pages.back(), end, request.writer);
      if (reserved.replaces) reserved.segment = *request.last;
    }
    reserved.first = reserved.segment.length;
    reserved.segment.length += request.tokens;
    const std::int64_t needed = pages_for(reserved.segment.end_slot());
    const std::int64_t missing = needed - static_cast<std::int64_t>(reserved.segment.pages.size());
    pages += missing;
    pages_of[request.budget] += missing;
    ranges_.push_back(std::move(reserved));
  }
  // Asked for before memory is set aside for it: an absurd number of tokens is kOutOfPages as well.
  for (const auto& [budget, wanted] : pages_of) pool.require_free(wanted, budget);
  pool.require_free(pages);
  new_pages_.reserve(pages);
  for (ReservedRange& reserved : ranges_) reserved.segment.pages.reserve(pages_for(reserved.segment.end_slot()));
  pool.make_room(pages);
  for (std::size_t i = 0; i < ranges_.size(); ++i) {
    std::vector<std::int64_t>& list = ranges_[i].segment.pages;
    const auto first = std::ssize(new_pages_);
    pool.take(pages_for(ranges_[i].segment.end_slot()) - std::ssize(list), requests[i].budget, new_pages_);
    list.insert(list.end(), new_pages_.begin() + first, new_pages_.end());
  }
}

PageReservation::~PageReservation() {
  if (new_pages_.empty()) return;
  const std::scoped_lock lock(pool_.mutex);
  // Last taken, first given back: the free list is as it was.
  for (auto page = new_pages_.rbegin(); page != new_pages_.rend(); ++page) pool_.drop_reference(*page);
}

void PageReservation::commit(std::span<const std::int64_t> kept) noexcept {
  // Last taken, first given back.
  for (std::size_t i = ranges_.size(); i-- > 0;) {
    Segment& segment = ranges_[i].segment;
    segment.length = ranges_[i].first + kept[i];
    for (; std::ssize(segment.pages) > pages_for(segment.end_slot()); segment.pages.pop_back()) {
      pool_.drop_reference(segment.pages.back());
    }
  }
  commit();
}

void PageReservation::commit() noexcept {
  for (const ReservedRange& reserved : ranges_) {
    for_each_run(reserved.segment, reserved.first, reserved.segment.length,
                 [&](std::int64_t page, std::int32_t slot, std::int64_t count, std::int64_t) {
                   pool_.mark_used(page, slot + count, reserved.writer);
                 });
  }
  pool_.record_peak();
  new_pages_.clear();
}

}  // namespace hogwild
