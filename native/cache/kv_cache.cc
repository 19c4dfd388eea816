#include "cache/kv_cache.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/limits.h"

namespace hogwild {
namespace {

// The product of positive numbers, or the largest std::int64_t where it does not fit.
std::int64_t saturating_product(std::initializer_list<std::int64_t> factors) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();
  std::int64_t product = 1;
  for (const std::int64_t factor : factors) {
    if (product > kMax / factor) return kMax;
    product *= factor;
  }
  return product;
}

void check_shape(const KvShape& shape) {
  if (shape.layers < 1) refuse("layers must be at least 1, received " + std::to_string(shape.layers));
  if (shape.kv_heads < 1) refuse("kv_heads must be at least 1, received " + std::to_string(shape.kv_heads));
  if (!is_supported_head_dim(shape.head_dim)) {
    refuse("head_dim must be a multiple of 8 from 8 to " + std::to_string(kMaxHeadDim) + ", received " +
           std::to_string(shape.head_dim));
  }
}

void check_rope(const RopeSpec& rope, const KvShape& shape) {
  if (rope.rotary_dim() < 2 || rope.rotary_dim() > shape.head_dim) {
    refuse("rope needs 1 to head_dim / 2 = " + std::to_string(shape.head_dim / 2) + " inverse frequencies, received " +
           std::to_string(rope.inverse_frequencies.size()));
  }
  for (const double frequency : rope.inverse_frequencies) {
    if (!std::isfinite(frequency)) refuse("inverse frequencies of rope must be finite");
  }
  if (!std::isfinite(rope.attention_factor) || rope.attention_factor <= 0) {
    refuse("attention_factor of rope must be positive and finite, received " + std::to_string(rope.attention_factor));
  }
}

void check_ropes(const LayerRopes& ropes, const KvShape& shape) {
  for (const RopeSpec& rope : ropes.specs) check_rope(rope, shape);
  if (!ropes.layers.empty() && std::ssize(ropes.layers) != shape.layers) {
    refuse("ropes: expected one for each of " + std::to_string(shape.layers) + " layers, received " +
           std::to_string(ropes.layers.size()));
  }
  // Where no list says otherwise all layers are alike, and a shape that has not been checked may promise any number.
  const std::int64_t layers = ropes.layers.empty() ? std::min<std::int64_t>(shape.layers, 1) : shape.layers;
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    if (ropes.of(layer) >= -1 && ropes.of(layer) < std::ssize(ropes.specs)) continue;
    refuse("ropes: layer " + std::to_string(layer) + " has number " + std::to_string(ropes.of(layer)) + " of " +
           std::to_string(ropes.specs.size()));
  }
}

// What compaction makes one segment each: all of them or, where keys may not be turned, runs of those whose rotation
// goes on from one to the next.
std::vector<std::span<const Segment>> runs_to_join(std::span<const Segment> segments, bool can_turn) {
  std::vector<std::span<const Segment>> runs;
  for (std::size_t first = 0, next = 0; first < segments.size(); first = next) {
    std::int64_t position = segments[first].rotated_at;
    while (next < segments.size() && (can_turn || segments[next].rotated_at == position)) {
      position += segments[next++].length;
    }
    runs.push_back(segments.subspan(first, next - first));
  }
  return runs;
}

std::string range_message(const char* what, std::int64_t value, std::int64_t low, std::int64_t high) {
  return std::string(what) + " must be from " + std::to_string(low) + " to " + std::to_string(high) + ", received " +
         std::to_string(value);
}

}  // namespace

KvCache::Lease::Lease(KvCache& cache) : cache_(cache) {
  if (cache.leased_.exchange(true))
    throw Error(code::kBusy, "a step, a compaction or a snapshot is under way on this cache");
}

std::shared_ptr<KvCache> KvCache::create(std::shared_ptr<Device> device, KvShape shape, LayerRopes ropes,
                                         std::int64_t capacity, Dispose dispose) {
  check_shape(shape);
  check_ropes(ropes, shape);
  if (capacity < 1) refuse("capacity must be at least 1 token, received " + std::to_string(capacity));
  shape.padding = device->kv_padding(shape);
  const std::int64_t pages = pages_for(capacity);
  // Keys and values together fit 63 bits, so no offset or size derived from them overflows.
  const std::int64_t row_bytes = shape.row_bytes(shape.key_format) + shape.row_bytes(shape.value_format);
  const std::int64_t bytes = saturating_product({shape.layers, pages, shape.kv_heads, kPageSize, row_bytes});
  if (bytes == std::numeric_limits<std::int64_t>::max()) {
    throw Error(code::kOutOfMemory, "a cache of " + std::to_string(capacity) + " tokens, " +
                                        std::to_string(shape.layers) + " layers and " + std::to_string(shape.kv_heads) +
                                        " kv heads of " + std::to_string(shape.head_dim) + " exceeds 2^63 bytes");
  }
  if (const std::int64_t memory = device->own_memory(); memory > 0 && bytes > memory) {
    throw Error(code::kOutOfMemory, "a cache of " + std::to_string(capacity) + " tokens takes " +
                                        std::to_string(bytes) + " bytes: the GPU has " + std::to_string(memory) +
                                        " in all");
  }
  std::shared_ptr<KvCache> cache(new KvCache(std::move(device), shape, std::move(ropes), pages), std::move(dispose));
  if (cache->device_->own_memory() == 0) cache->allocate_pool();
  return cache;
}

KvCache::KvCache(std::shared_ptr<Device> device, const KvShape& shape, LayerRopes ropes, std::int64_t pages)
    : device_(std::move(device)),
      shape_(shape),
      ropes_(std::move(ropes)),
      angles_(ropes_.specs.begin(), ropes_.specs.end()),
      pool_(pages) {}

void KvCache::allocate_pool() {
  if (values_.data() != nullptr) return;
  const auto pool_bytes = [&](KvFormat format) {
    return static_cast<std::size_t>(shape_.layers * pool_.size() * shape_.page_bytes(format));
  };
  Buffer keys = device_->allocate(pool_bytes(shape_.key_format), "keys of the cache");
  values_ = device_->allocate(pool_bytes(shape_.value_format), "values of the cache");
  keys_ = std::move(keys);
}

std::shared_ptr<CacheBlock> KvCache::create_block(std::int64_t budget) {
  if (budget != PagePool::kNoBudget) this->budget(budget);
  return std::shared_ptr<CacheBlock>(new CacheBlock(shared_from_this(), budget));
}

std::int64_t KvCache::open_budget(std::int64_t limit) {
  if (limit < 1) refuse("a budget must be at least 1 page, received " + std::to_string(limit));
  const std::scoped_lock lock(pool_.mutex);
  return pool_.open_budget(limit);
}

void KvCache::close_budget(std::int64_t id) noexcept {
  const std::scoped_lock lock(pool_.mutex);
  pool_.close_budget(id);
}

void KvCache::charge_budget(std::int64_t id, std::int64_t pages) {
  const std::scoped_lock lock(pool_.mutex);
  pool_.charge_budget(id, pages);
}

PagePool::Budget KvCache::budget(std::int64_t id) const {
  const std::scoped_lock lock(pool_.mutex);
  return pool_.budget(id);
}

KvLayer KvCache::layer(std::int64_t index) const {
  if (index < 0 || index >= shape_.layers) refuse(range_message("layer", index, 0, shape_.layers - 1));
  const std::int64_t first_page = device_->kv_first_page(shape_, pool_.size(), index);
  return {.keys = keys_.as<std::byte>() + first_page * shape_.page_bytes(shape_.key_format),
          .values = values_.as<std::byte>() + first_page * shape_.page_bytes(shape_.value_format),
          .rope = ropes_.of(index)};
}

KvCache::Stats KvCache::stats() const {
  const std::scoped_lock lock(pool_.mutex);
  return {
      .pages = pool_.size(),
      .free_pages = pool_.size() - pool_.in_use(),
      .bytes_per_page = shape_.layers * (shape_.page_bytes(shape_.key_format) + shape_.page_bytes(shape_.value_format)),
      .key_bytes_moved = key_bytes_moved_,
      .peak_pages = pool_.peak()};
}

CacheBlock::CacheBlock(std::shared_ptr<KvCache> cache, std::int64_t budget)
    : cache_(std::move(cache)), id_(cache_->next_block_id_++), budget_(budget) {}

CacheBlock::~CacheBlock() {
  const std::scoped_lock lock(cache_->pool_.mutex);
  cache_->pool_.drop_references(segments_);
}

std::vector<std::int32_t> CacheBlock::tokens() const {
  const PagePool& pool = cache_->pool_;
  const std::scoped_lock lock(cache_->pool_.mutex);
  std::vector<std::int32_t> ids;
  ids.reserve(total_length(segments_));
  for (const Segment& segment : segments_) {
    for_each_run(segment, 0, segment.length,
                 [&](std::int64_t page, std::int32_t slot, std::int64_t count, std::int64_t) {
                   const auto first = pool.tokens(page).begin() + slot;
                   ids.insert(ids.end(), first, first + count);
                 });
  }
  return ids;
}

void CacheBlock::append_from(const CacheBlock& source) {
  require_idle();
  require_same_cache(source);
  std::vector<Segment> next;
  next.reserve(segments_.size() + source.segments_.size());
  push_range(next, segments_, 0, length());
  push_range(next, source.segments_, 0, source.length());
  share_segments(std::move(next));
}

void CacheBlock::insert(std::int64_t at, const CacheBlock& source) {
  require_idle();
  require_same_cache(source);
  if (at < 0 || at > length()) refuse(range_message("insert position", at, 0, length()));
  std::vector<Segment> next;
  next.reserve(segments_.size() + source.segments_.size() + 1);
  push_range(next, segments_, 0, at);
  push_range(next, source.segments_, 0, source.length());
  push_range(next, segments_, at, length());
  share_segments(std::move(next));
}

void CacheBlock::truncate(std::int64_t length) {
  if (length < 0 || length > this->length()) refuse(range_message("length", length, 0, this->length()));
  forget(length, this->length());
}

void CacheBlock::forget(std::int64_t begin, std::int64_t end) {
  require_idle();
  if (end < 0 || end > length()) refuse(range_message("end", end, 0, length()));
  if (begin < 0 || begin > end) refuse(range_message("begin", begin, 0, end));
  std::vector<Segment> next;
  next.reserve(segments_.size() + 1);
  push_range(next, segments_, 0, begin);
  push_range(next, segments_, end, length());
  keep_segments(std::move(next));
}

void CacheBlock::clear() {
  require_idle();
  keep_segments({});
}

std::shared_ptr<CacheBlock> CacheBlock::fork(std::int64_t begin, std::int64_t end) const {
  if (end < 0 || end > length()) refuse(range_message("end", end, 0, length()));
  if (begin < 0 || begin > end) refuse(range_message("begin", begin, 0, end));
  std::shared_ptr<CacheBlock> copy(new CacheBlock(cache_, budget_));
  std::vector<Segment> part;
  part.reserve(segments_.size());
  push_range(part, segments_, begin, end);
  copy->share_segments(std::move(part));
  return copy;
}

CacheBlock::CompactResult CacheBlock::compact() {
  const KvCache::Lease lease(*cache_);
  PagePool& pool = cache_->pool_;
  const KvShape& shape = cache_->shape_;
  const std::vector<std::span<const Segment>> runs = runs_to_join(segments_, kv_can_turn(shape.key_format));
  const CompactResult nothing{.segments_before = std::ssize(segments_), .segments_after = std::ssize(segments_)};
  if (runs.size() == segments_.size()) return nothing;

  // Of each run: what stays, its first segment as far as the others can be written behind it, and what is copied there.
  struct Join {
    std::vector<Segment> stays, moves;
  };
  std::vector<Join> joins(runs.size());
  std::vector<PageReservation::Request> requests;
  {
    const std::scoped_lock lock(pool.mutex);
    std::vector<std::int64_t> continued;  // last pages of runs: where two end with the same tokens, one goes on there
    for (std::size_t r = 0; r < runs.size(); ++r) {
      const std::span<const Segment> run = runs[r];
      const Segment& first = run.front();
      const std::int64_t end = first.end_slot() % kPageSize, page = first.pages.back();
      std::int64_t kept = first.length;
      if (run.size() > 1 && end != 0) {
        if (pool.writable(page, end, id_) && std::ranges::find(continued, page) == continued.end()) {
          continued.push_back(page);
        } else {
          kept = std::max(first.length - end, std::int64_t{0});
        }
      }
      push_range(joins[r].stays, run, 0, kept);
      push_range(joins[r].moves, run, kept, total_length(run));
      if (run.size() == 1) continue;
      requests.push_back({.last = joins[r].stays.empty() ? nullptr : joins[r].stays.data(),
                          .position = first.rotated_at,
                          .writer = id_,
                          .budget = budget_,
                          .tokens = total_length(joins[r].moves)});
    }
  }
  PageReservation reservation(pool, requests);

  // The block's segments from now on, and which tokens of them come from where. All keys of a segment are turned by
  // the same angle.
  struct Copy {
    const Segment* from;
    std::size_t to;   // index in `next`
    std::int64_t at;  // token of that segment
    std::int64_t turn;
  };
  std::vector<Segment> next;
  std::vector<Copy> copies;
  std::vector<RopeAngles::Range> turns;
  auto reserved = reservation.ranges().begin();
  for (const Join& join : joins) {
    if (join.moves.empty()) {
      next.push_back(join.stays.front());
      continue;
    }
    const PageReservation::ReservedRange& range = *reserved++;
    std::int64_t at = range.first;
    for (const Segment& from : join.moves) {
      const std::int64_t turn = range.segment.rotated_at + at - from.rotated_at;
      copies.push_back({.from = &from, .to = next.size(), .at = at, .turn = turn});
      turns.push_back({.begin = turn, .end = turn + 1});
      at += from.length;
    }
    next.push_back(range.segment);
  }
  const RopeRows rows(cache_->angles_, false, turns);

  std::vector<KvMoveParams::Move> moves;
  std::int64_t n_moved = 0;
  for (const Copy& copy : copies) {
    const std::int32_t rope_row = copy.turn == 0 ? -1 : rows.row(copy.turn);
    n_moved += copy.from->length;
    for_each_run(*copy.from, 0, copy.from->length,
                 [&](std::int64_t from_page, std::int32_t from_slot, std::int64_t n, std::int64_t from) {
                   const std::int64_t begin = copy.at + from;
                   for_each_run(next[copy.to], begin, begin + n,
                                [&](std::int64_t page, std::int32_t slot, std::int64_t count, std::int64_t at) {
                                  moves.push_back({.from_page = from_page,
                                                   .to_page = page,
                                                   .from_slot = static_cast<std::int32_t>(from_slot + at - begin),
                                                   .to_slot = slot,
                                                   .length = static_cast<std::int32_t>(count),
                                                   .rope_row = rope_row});
                                });
                 });
  }

  std::vector<KvMoveParams::Move> unturned = moves;  // for layers without RoPE
  for (KvMoveParams::Move& move : unturned) move.rope_row = -1;

  cache_->allocate_pool();
  Device& device = *cache_->device_;
  for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
    const std::int32_t rope = cache_->ropes_.of(layer);
    device.kv_move({.shape = shape,
                    .layer = cache_->layer(layer),
                    .rope = rope < 0 ? RopeTable() : rows.tables()[static_cast<std::size_t>(rope)],
                    .moves = rope < 0 ? unturned : moves});
  }
  device.synchronize();

  {
    const std::scoped_lock lock(pool.mutex);
    for (const KvMoveParams::Move& move : moves) {
      std::copy_n(pool.tokens(move.from_page).begin() + move.from_slot, move.length,
                  pool.tokens(move.to_page).begin() + move.to_slot);
    }
    reservation.commit();
    for (const Join& join : joins) pool.add_references(join.stays);
    segments_.swap(next);
    pool.drop_references(next);
  }
  cache_->key_bytes_moved_ += n_moved * shape.layers * shape.kv_heads * shape.data_bytes(shape.key_format);
  return {.segments_before = nothing.segments_before, .segments_after = std::ssize(segments_), .tokens_moved = n_moved};
}

void CacheBlock::read(std::int64_t layer, float* k, float* v, std::int64_t* rotated_at) const {
  cache_->allocate_pool();
  const KvLayer storage = cache_->layer(layer);
  if (length() == 0) return;
  std::vector<AppendSlot> slots;
  slots.reserve(length());
  for (const Segment& segment : segments_) {
    for_each_run(segment, 0, segment.length,
                 [&](std::int64_t page, std::int32_t slot, std::int64_t count, std::int64_t index) {
                   for (std::int32_t i = 0; i < count; ++i) slots.push_back({.page = page, .slot = slot + i});
                   std::iota(rotated_at, rotated_at + count, segment.rotated_at + index);
                   rotated_at += count;
                 });
  }
  const KvShape& shape = cache_->shape_;
  const std::size_t bytes = slots.size() * shape.kv_heads * shape.head_dim * sizeof(float);
  Device& device = *cache_->device_;
  const Buffer keys = device.allocate(bytes, "keys read from the cache");
  const Buffer values = device.allocate(bytes, "values read from the cache");
  device.kv_read({.shape = shape, .layer = storage, .slots = slots, .k = keys.as<float>(), .v = values.as<float>()});
  device.download(k, keys.data(), bytes);
  device.download(v, values.data(), bytes);
}

void CacheBlock::require_idle() const {
  if (cache_->leased_)
    throw Error(code::kBusy, "a step, a compaction or a snapshot is under way on the cache of this block");
}

void CacheBlock::require_same_cache(const CacheBlock& other) const {
  if (other.cache_ != cache_) refuse("the blocks belong to different caches");
}

void CacheBlock::keep_segments(std::vector<Segment> rest) noexcept {
  const std::scoped_lock lock(cache_->pool_.mutex);
  if (!rest.empty()) {
    const std::int64_t end = rest.back().end_slot() % kPageSize;
    if (end != 0) cache_->pool_.mark_dropped(rest.back().pages.back(), end, id_);
  }
  replace_segments(std::move(rest));
}

void CacheBlock::share_segments(std::vector<Segment> next) noexcept {
  const std::scoped_lock lock(cache_->pool_.mutex);
  cache_->pool_.mark_shared(next);
  replace_segments(std::move(next));
}

void CacheBlock::replace_segments(std::vector<Segment> next) noexcept {
  PagePool& pool = cache_->pool_;
  pool.add_references(next);
  segments_.swap(next);
  length_.store(total_length(segments_), std::memory_order_release);
  pool.drop_references(next);
}

}  // namespace hogwild
