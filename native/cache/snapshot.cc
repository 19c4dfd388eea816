#include "cache/snapshot.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "core/error.h"

namespace hogwild {
namespace {

static_assert(std::endian::native == std::endian::little, "indices are little-endian");

// Positions are sums of two of these at most, and far from overflow.
constexpr std::int64_t kMaxPosition = std::int64_t{1} << 40;

[[noreturn]] void refuse_index(const std::string& what) {
  throw Error(code::kInvalidSession, "the index of blocks is damaged: " + what);
}

// `count` slots from `first` on.
std::uint64_t slot_mask(std::int64_t first, std::int64_t count) {
  const std::uint64_t low = count >= kPageSize ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
  return low << first;
}

std::int32_t end_of(std::uint64_t slots) { return static_cast<std::int32_t>(kPageSize - std::countl_zero(slots)); }

// ---- bytes ----------------------------------------------------------------------------------------

class ByteWriter {
 public:
  explicit ByteWriter(std::vector<std::byte>& to) : to_(to) {}

  template <typename T>
  void put(T value) {
    put_all(std::span<const T>(&value, 1));
  }
  template <typename T>
  void put_all(std::span<const T> values) {
    if (values.empty()) return;
    const std::size_t at = to_.size();
    to_.resize(at + values.size_bytes());  // not insert, in which GCC 12 sees an overflow
    std::memcpy(to_.data() + at, values.data(), values.size_bytes());
  }

 private:
  std::vector<std::byte>& to_;
};

// Reads no byte that is not there: what asks for more is refused.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <typename T>
  T get() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  // How many of something follow, each of at least `bytes`.
  std::int64_t get_count(std::size_t bytes) {
    const auto count = get<std::uint64_t>();
    if (count > rest_.size() / bytes) refuse_index("it ends early");
    return static_cast<std::int64_t>(count);
  }
  std::span<const std::byte> take(std::size_t bytes) {
    if (bytes > rest_.size()) refuse_index("it ends early");
    const auto taken = rest_.first(bytes);
    rest_ = rest_.subspan(bytes);
    return taken;
  }
  bool at_end() const { return rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
};

struct PageRecord {
  std::uint64_t slots = 0;
  std::int64_t position = 0;
  std::int32_t writer = 0;
  std::uint8_t used = 0;
  std::uint8_t shared = 0;
  std::uint16_t zero = 0;
};
static_assert(sizeof(PageRecord) == 24);

// ---- what an index must fulfil ----------------------------------------------------------------------

// What the segments of blocks say about one page.
struct Named {
  std::uint64_t slots = 0;
  std::uint64_t shared = 0;  // slots that somebody else than the writer names, or that are named twice
};

void name(Named& page, std::int32_t writer, std::int32_t block, std::int64_t slot, std::int64_t count) {
  const std::uint64_t slots = slot_mask(slot, count);
  page.shared |= writer == block ? slots & page.slots : slots;
  page.slots |= slots;
}

void check_page(const SnapshotIndex::Page& page, const Named& named) {
  if (page.slots == 0 || page.slots != named.slots) refuse_index("a page's slots are not those of its blocks");
  const std::int32_t end = end_of(page.slots);
  if (page.used < end || page.used > kPageSize || page.shared > page.used) refuse_index("slots of a page in use");
  if (page.writer < 0) {
    if (page.writer != -1 || page.used != end || page.shared != end) refuse_index("a page that nobody writes");
  } else if (page.shared < end_of(named.shared)) {
    refuse_index("a page's shared slots");
  }
}

void check(const SnapshotIndex& index) {
  const auto n_pages = static_cast<std::int64_t>(index.pages.size());
  std::vector<Named> named(index.pages.size());
  std::int64_t seen = 0;  // pages: in the order in which they are first named
  for (std::size_t b = 0; b < index.blocks.size(); ++b) {
    std::vector<Segment> joined;
    for (const Segment& segment : index.blocks[b]) {
      std::int64_t position = segment.rotated_at - segment.first_slot;
      for (const std::int64_t page : segment.pages) {
        if (page < 0 || page > seen || page >= n_pages) refuse_index("pages in another order");
        seen += page == seen;
        if (index.pages[static_cast<std::size_t>(page)].position != position) refuse_index("the rotation of a page");
        position += kPageSize;
      }
      for_each_run(segment, 0, segment.length,
                   [&](std::int64_t page, std::int32_t slot, std::int64_t count, std::int64_t) {
                     const auto p = static_cast<std::size_t>(page);
                     name(named[p], index.pages[p].writer, static_cast<std::int32_t>(b), slot, count);
                   });
      push_joined(joined, segment);
    }
    if (joined.size() != index.blocks[b].size()) refuse_index("segments that are one");
  }
  if (seen != n_pages) refuse_index("pages that no block names");
  for (std::size_t p = 0; p < named.size(); ++p) {
    if (index.pages[p].writer >= std::ssize(index.blocks)) refuse_index("the writer of a page");
    check_page(index.pages[p], named[p]);
  }
}

}  // namespace

std::vector<std::byte> SnapshotIndex::to_bytes() const {
  std::vector<std::byte> bytes;
  ByteWriter writer(bytes);
  writer.put(static_cast<std::uint64_t>(pages.size()));
  writer.put(static_cast<std::uint64_t>(blocks.size()));
  for (const Page& page : pages) {
    writer.put(PageRecord{.slots = page.slots,
                          .position = page.position,
                          .writer = page.writer,
                          .used = static_cast<std::uint8_t>(page.used),
                          .shared = static_cast<std::uint8_t>(page.shared)});
  }
  writer.put_all(std::span<const std::int32_t>(tokens));
  for (const std::vector<Segment>& segments : blocks) {
    writer.put(static_cast<std::uint64_t>(segments.size()));
    for (const Segment& segment : segments) {
      writer.put(static_cast<std::int64_t>(segment.first_slot));
      writer.put(segment.length);
      writer.put_all(std::span<const std::int64_t>(segment.pages));
    }
  }
  return bytes;
}

SnapshotIndex SnapshotIndex::from_bytes(std::span<const std::byte> bytes) {
  ByteReader reader(bytes);
  SnapshotIndex index;
  const std::int64_t n_pages = reader.get_count(sizeof(PageRecord));
  const std::int64_t n_blocks = reader.get_count(sizeof(std::uint64_t));
  index.pages.reserve(static_cast<std::size_t>(n_pages));
  std::size_t n_tokens = 0;
  for (std::int64_t p = 0; p < n_pages; ++p) {
    const auto page = reader.get<PageRecord>();
    if (page.position < 0 || page.position > kMaxPosition || page.zero != 0) refuse_index("the rotation of a page");
    index.pages.push_back({.slots = page.slots,
                           .position = page.position,
                           .writer = page.writer,
                           .used = page.used,
                           .shared = page.shared});
    n_tokens += static_cast<std::size_t>(std::popcount(page.slots));
  }
  const auto ids = reader.take(n_tokens * sizeof(std::int32_t));
  index.tokens.resize(n_tokens);
  if (n_tokens > 0) std::memcpy(index.tokens.data(), ids.data(), ids.size());
  if (std::any_of(index.tokens.begin(), index.tokens.end(), [](std::int32_t token) { return token < -1; })) {
    refuse_index("a token's id");
  }
  index.blocks.reserve(static_cast<std::size_t>(n_blocks));
  for (std::int64_t b = 0; b < n_blocks; ++b) {
    std::vector<Segment>& segments = index.blocks.emplace_back();
    const std::int64_t n_segments = reader.get_count(3 * sizeof(std::int64_t));
    segments.reserve(static_cast<std::size_t>(n_segments));
    for (std::int64_t s = 0; s < n_segments; ++s) {
      const auto first_slot = reader.get<std::int64_t>(), length = reader.get<std::int64_t>();
      if (first_slot < 0 || first_slot >= kPageSize || length < 1 || length > kMaxPosition) {
        refuse_index("the bounds of a segment");
      }
      Segment& segment = segments.emplace_back();
      segment.first_slot = static_cast<std::int32_t>(first_slot);
      segment.length = length;
      const auto names = static_cast<std::size_t>(pages_for(segment.end_slot()));
      const auto list = reader.take(names * sizeof(std::int64_t));
      segment.pages.resize(names);
      std::memcpy(segment.pages.data(), list.data(), list.size());
      const std::int64_t first_page = segment.pages.front();
      if (first_page < 0 || first_page >= n_pages) refuse_index("pages in another order");
      segment.rotated_at = index.pages[static_cast<std::size_t>(first_page)].position + first_slot;
    }
  }
  if (!reader.at_end()) refuse_index("something stands behind it");
  check(index);
  return index;
}

// ---- pieces ---------------------------------------------------------------------------------------

SnapshotPieces::SnapshotPieces(const KvShape& shape, std::span<const SnapshotIndex::Page> pages)
    : n_pages_(static_cast<std::int64_t>(pages.size())) {
  page_bytes_.reserve(pages.size());
  for (const SnapshotIndex::Page& page : pages) {
    page_bytes_.push_back(std::popcount(page.slots) * shape.token_bytes());
  }
  Piece piece;
  for (std::int64_t unit = 0; unit < shape.layers * n_pages_; ++unit) {
    const std::int64_t bytes = page_bytes_[static_cast<std::size_t>(unit % n_pages_)];
    if (piece.bytes > 0 && piece.bytes + bytes > kMaxBytes) {
      pieces_.push_back(piece);
      piece = {.first = unit, .end = unit, .bytes = 0};
    }
    piece.end = unit + 1;
    piece.bytes += bytes;
  }
  if (piece.bytes > 0) pieces_.push_back(piece);
}

// ---- reading --------------------------------------------------------------------------------------

SnapshotReader::SnapshotReader(std::shared_ptr<KvCache> cache, std::vector<std::shared_ptr<CacheBlock>> blocks)
    : cache_(std::move(cache)), lease_(*cache_), pieces_(cache_->shape_, {}) {
  std::unordered_map<std::int64_t, std::int32_t> writers;  // number of a block, by its id
  for (const auto& block : blocks) {
    if (block->cache_ != cache_) refuse("the blocks belong to different caches");
    if (!writers.emplace(block->id_, static_cast<std::int32_t>(writers.size())).second) {
      refuse("a block stands twice in the list");
    }
  }
  std::unordered_map<std::int64_t, std::int64_t> numbers;  // of pages, by their id in the pool
  const std::scoped_lock lock(cache_->pool_.mutex);
  const PagePool& pool = cache_->pool_;
  for (const auto& block : blocks) {
    std::vector<Segment>& segments = index_.blocks.emplace_back(block->segments_);
    for (Segment& segment : segments) {
      std::int64_t position = segment.rotated_at - segment.first_slot;
      for (std::int64_t& page : segment.pages) {
        const auto [known, is_new] = numbers.emplace(page, std::ssize(pages_));
        if (is_new) {
          pages_.push_back({.page = page});
          index_.pages.push_back({.position = position});
        }
        page = known->second;
        position += kPageSize;
      }
      for_each_run(segment, 0, segment.length,
                   [&](std::int64_t page, std::int32_t slot, std::int64_t count, std::int64_t) {
                     pages_[static_cast<std::size_t>(page)].slots |= slot_mask(slot, count);
                   });
    }
  }
  for (std::size_t p = 0; p < pages_.size(); ++p) {
    const auto& [id, slots] = pages_[p];
    const PagePool::Page& from = pool.page(id);
    SnapshotIndex::Page& page = index_.pages[p];
    page.slots = slots;
    // Whoever took the page and is not of these blocks writes on elsewhere: nobody will here.
    const auto writer = writers.find(from.writer);
    page.writer = writer == writers.end() ? -1 : writer->second;
    page.used = page.writer < 0 ? end_of(slots) : static_cast<std::int32_t>(from.used);
    page.shared = page.writer < 0 ? end_of(slots) : static_cast<std::int32_t>(from.shared);
    for (std::uint64_t rest = slots; rest != 0; rest &= rest - 1) {
      index_.tokens.push_back(pool.tokens(id)[static_cast<std::size_t>(std::countr_zero(rest))]);
    }
  }
  pieces_ = SnapshotPieces(cache_->shape_, index_.pages);
}

void SnapshotReader::read(std::int64_t piece, std::byte* to) const {
  cache_->allocate_pool();
  pieces_.for_each_layer(piece, [&](std::int64_t layer, std::int64_t first, std::int64_t n, std::int64_t offset) {
    cache_->device_->kv_save(
        {.shape = cache_->shape_,
         .layer = cache_->layer(layer),
         .pages = std::span(pages_).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(n)),
         .rows = to + offset});
  });
}

// ---- writing --------------------------------------------------------------------------------------

SnapshotWriter::SnapshotWriter(std::shared_ptr<KvCache> cache, SnapshotIndex index, std::vector<std::int64_t> budgets)
    : cache_(std::move(cache)),
      lease_(*cache_),
      index_(std::move(index)),
      pieces_(cache_->shape_, index_.pages),
      budgets_(std::move(budgets)) {
  const std::size_t n_blocks = index_.blocks.size();
  if (budgets_.empty()) budgets_.assign(n_blocks + 1, PagePool::kNoBudget);
  if (budgets_.size() != n_blocks + 1) {
    refuse("expected " + std::to_string(n_blocks + 1) + " budgets for " + std::to_string(n_blocks) +
           " blocks, received " + std::to_string(budgets_.size()));
  }
  const auto budget_of = [&](const SnapshotIndex::Page& page) {
    return page.writer < 0 ? budgets_.back() : budgets_[static_cast<std::size_t>(page.writer)];
  };
  std::unordered_map<std::int64_t, std::int64_t> pages_of;  // by budget
  for (const SnapshotIndex::Page& page : index_.pages) ++pages_of[budget_of(page)];

  pages_.reserve(index_.pages.size());
  PagePool& pool = cache_->pool_;
  const std::scoped_lock lock(pool.mutex);
  const auto n_pages = static_cast<std::int64_t>(index_.pages.size());
  for (const std::int64_t budget : budgets_) {
    if (budget != PagePool::kNoBudget) pool.budget(budget);
  }
  pool.require_free(n_pages);
  for (const auto& [budget, wanted] : pages_of) pool.require_free(wanted, budget);
  taken_.reserve(index_.pages.size());
  pool.make_room(n_pages);
  for (const SnapshotIndex::Page& page : index_.pages) {
    pool.take(1, budget_of(page), taken_);
    pages_.push_back({.page = taken_.back(), .slots = page.slots});
  }
}

SnapshotWriter::~SnapshotWriter() {
  if (taken_.empty()) return;
  const std::scoped_lock lock(cache_->pool_.mutex);
  for (auto page = taken_.rbegin(); page != taken_.rend(); ++page) cache_->pool_.drop_reference(*page);
}

void SnapshotWriter::write(std::int64_t piece, std::span<std::byte> from) {
  if (piece != next_piece_ || piece >= pieces_.count()) refuse("pieces come in order, each once");
  if (std::ssize(from) != pieces_.bytes(piece)) {
    refuse("piece " + std::to_string(piece) + " has " + std::to_string(pieces_.bytes(piece)) + " bytes, received " +
           std::to_string(from.size()));
  }
  cache_->allocate_pool();
  pieces_.for_each_layer(piece, [&](std::int64_t layer, std::int64_t first, std::int64_t n, std::int64_t offset) {
    cache_->device_->kv_load(
        {.shape = cache_->shape_,
         .layer = cache_->layer(layer),
         .pages = std::span(pages_).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(n)),
         .rows = from.data() + offset});
  });
  ++next_piece_;
}

std::vector<std::shared_ptr<CacheBlock>> SnapshotWriter::commit() {
  if (next_piece_ != pieces_.count()) refuse("not all pieces were written");
  std::vector<std::shared_ptr<CacheBlock>> blocks;
  blocks.reserve(index_.blocks.size());
  for (std::size_t b = 0; b < index_.blocks.size(); ++b) blocks.push_back(cache_->create_block(budgets_[b]));
  // Nothing fails from here on.
  ++next_piece_;
  PagePool& pool = cache_->pool_;
  const std::scoped_lock lock(pool.mutex);
  const std::int32_t* tokens = index_.tokens.data();
  for (std::size_t p = 0; p < taken_.size(); ++p) {
    const SnapshotIndex::Page& page = index_.pages[p];
    pool.restore(taken_[p],
                 {.writer = page.writer < 0 ? 0 : blocks[static_cast<std::size_t>(page.writer)]->id_,
                  .used = page.used,
                  .shared = page.shared},
                 page.slots, tokens);
    tokens += std::popcount(page.slots);
  }
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    for (Segment& segment : index_.blocks[b]) {
      for (std::int64_t& page : segment.pages) page = taken_[static_cast<std::size_t>(page)];
    }
    pool.add_references(index_.blocks[b]);
    blocks[b]->segments_.swap(index_.blocks[b]);
    blocks[b]->length_.store(total_length(blocks[b]->segments_), std::memory_order_release);
  }
  for (const std::int64_t page : taken_) pool.drop_reference(page);  // the blocks have theirs
  taken_.clear();
  pool.record_peak();
  return blocks;
}

}  // namespace hogwild
