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

void check_ropes(const LayerRopes& ropes, const KvShape& shape, const Device& device) {
  for (const RopeSpec& rope : ropes.specs) check_rope(rope, shape);
  if (!ropes.layers.empty() && std::ssize(ropes.layers) != shape.layers) {
    refuse("ropes: expected one for each of " + std::to_string(shape.layers) + " layers, received " +
           std::to_string(ropes.layers.size()));
  }
  for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
    if (ropes.of(layer) >= -1 && ropes.of(layer) < std::ssize(ropes.specs)) continue;
    refuse("ropes: layer " + std::to_string(layer) + " has number " + std::to_string(ropes.of(layer)) + " of " +
           std::to_string(ropes.specs.size()));
  }
  if (ropes.differ() && !device.has(Feature::kSeveralRopes)) {
    throw Error(code::kUnsupported,
                "ropes: the " + device.info().type + " device turns all layers alike; the cpu device can differ");
  }
}

std::string range_message(const char* what, std::int64_t value, std::int64_t low, std::int64_t high) {
  return std::string(what) + " must be from " + std::to_string(low) + " to " + std::to_string(high) + ", received " +
         std::to_string(value);
}

}  // namespace

KvCache::Lease::Lease(KvCache& cache) : cache_(cache) {
  if (cache.leased_.exchange(true)) throw Error(code::kBusy, "a step or a compaction is under way on this cache");
}

std::shared_ptr<KvCache> KvCache::create(std::shared_ptr<Device> device, KvShape shape, LayerRopes ropes,
                                         std::int64_t capacity, Dispose dispose) {
  check_shape(shape);
  check_ropes(ropes, shape, *device);
  if (capacity < 1) refuse("capacity must be at least 1 token, received " + std::to_string(capacity));
  shape.padding = device->kv_padding(shape);
  const std::int64_t pages = pages_for(capacity);
  // Keys and values together fit 63 bits, so no offset or size derived from them overflows.
  const std::int64_t element = static_cast<std::int64_t>(dtype_size(shape.dtype));
  const std::int64_t bytes =
      saturating_product({2, shape.layers, pages, shape.kv_heads, kPageSize, shape.row_elements(), element});
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
  const std::size_t bytes = static_cast<std::size_t>(shape_.layers * pool_.size() * shape_.page_bytes());
  Buffer keys = device_->allocate(bytes, "keys of the cache");
  values_ = device_->allocate(bytes, "values of the cache");
  keys_ = std::move(keys);
}

std::shared_ptr<CacheBlock> KvCache::create_block() {
  return std::shared_ptr<CacheBlock>(new CacheBlock(shared_from_this()));
}

KvLayer KvCache::layer(std::int64_t index) const {
  if (index < 0 || index >= shape_.layers) refuse(range_message("layer", index, 0, shape_.layers - 1));
  const std::int64_t offset = index * pool_.size() * shape_.page_bytes();
  return {.keys = keys_.as<std::byte>() + offset, .values = values_.as<std::byte>() + offset, .rope = ropes_.of(index)};
}

KvCache::Stats KvCache::stats() const {
  const std::scoped_lock lock(pool_.mutex);
  return {.pages = pool_.size(),
          .free_pages = pool_.size() - pool_.in_use(),
          .bytes_per_page = 2 * shape_.layers * shape_.page_bytes(),
          .key_bytes_moved = key_bytes_moved_,
          .peak_pages = pool_.peak()};
}

CacheBlock::CacheBlock(std::shared_ptr<KvCache> cache) : cache_(std::move(cache)), id_(cache_->next_block_id_++) {}

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

std::shared_ptr<CacheBlock> CacheBlock::fork() const {
  std::shared_ptr<CacheBlock> copy = cache_->create_block();
  copy->share_segments(segments_);
  return copy;
}

CacheBlock::CompactResult CacheBlock::compact() {
  const KvCache::Lease lease(*cache_);
  const auto n_segments = static_cast<std::int64_t>(segments_.size());
  if (n_segments <= 1) return {.segments_before = n_segments, .segments_after = n_segments, .tokens_moved = 0};

  // What stays: the first segment, as far as the others can be written behind it.
  PagePool& pool = cache_->pool_;
  const Segment& first = segments_.front();
  const std::int64_t end = first.end_slot() % kPageSize;
  std::int64_t kept = first.length;
  if (end != 0) {
    const std::scoped_lock lock(pool.mutex);
    if (!pool.writable(first.pages.back(), end, id_)) kept = std::max(first.length - end, std::int64_t{0});
  }
  std::vector<Segment> stays, moves_from;
  push_range(stays, segments_, 0, kept);
  push_range(moves_from, segments_, kept, length());
  const std::int64_t n_moved = length() - kept;

  const PageReservation::Request request{
      .last = stays.empty() ? nullptr : stays.data(), .position = first.rotated_at, .writer = id_, .tokens = n_moved};
  PageReservation reservation(pool, {&request, 1});
  const Segment& joined = reservation.ranges().front().segment;

  // All keys of a segment are turned by the same angle.
  std::vector<RopeAngles::Range> turns;
  std::int64_t index = kept;  // in `joined`
  for (const Segment& source : moves_from) {
    const std::int64_t turn = joined.rotated_at + index - source.rotated_at;
    turns.push_back({.begin = turn, .end = turn + 1});
    index += source.length;
  }
  const RopeRows rows(cache_->angles_, false, turns);

  std::vector<KvMoveParams::Move> moves;
  index = kept;
  for (std::size_t i = 0; i < moves_from.size(); ++i) {
    const Segment& source = moves_from[i];
    const std::int32_t rope_row = turns[i].begin == 0 ? -1 : rows.row(turns[i].begin);
    for_each_run(source, 0, source.length,
                 [&](std::int64_t from_page, std::int32_t from_slot, std::int64_t n, std::int64_t from) {
                   for_each_run(joined, index + from, index + from + n,
                                [&](std::int64_t page, std::int32_t slot, std::int64_t count, std::int64_t to) {
                                  const std::int64_t skipped = to - index - from;
                                  moves.push_back({.from_page = from_page,
                                                   .to_page = page,
                                                   .from_slot = static_cast<std::int32_t>(from_slot + skipped),
                                                   .to_slot = slot,
                                                   .length = static_cast<std::int32_t>(count),
                                                   .rope_row = rope_row});
                                });
                 });
    index += source.length;
  }

  std::vector<KvMoveParams::Move> unturned = moves;  // for layers without RoPE
  for (KvMoveParams::Move& move : unturned) move.rope_row = -1;

  cache_->allocate_pool();
  Device& device = *cache_->device_;
  const KvShape& shape = cache_->shape_;
  for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
    const std::int32_t rope = cache_->ropes_.of(layer);
    device.kv_move({.shape = shape,
                    .layer = cache_->layer(layer),
                    .rope = rope < 0 ? RopeTable() : rows.tables()[static_cast<std::size_t>(rope)],
                    .moves = rope < 0 ? unturned : moves});
  }
  device.synchronize();

  std::vector<Segment> next{joined};
  {
    const std::scoped_lock lock(pool.mutex);
    for (const KvMoveParams::Move& move : moves) {
      std::copy_n(pool.tokens(move.from_page).begin() + move.from_slot, move.length,
                  pool.tokens(move.to_page).begin() + move.to_slot);
    }
    reservation.commit();
    pool.add_references(stays);
    segments_.swap(next);
    pool.drop_references(next);
  }
  cache_->key_bytes_moved_ +=
      n_moved * shape.layers * shape.kv_heads * shape.head_dim * static_cast<std::int64_t>(dtype_size(shape.dtype));
  return {.segments_before = n_segments, .segments_after = 1, .tokens_moved = n_moved};
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
  if (cache_->leased_) throw Error(code::kBusy, "a step or a compaction is under way on the cache of this block");
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
