// Snapshots: what is read from one cache and written to another is the same blocks, in every bit and in how they go on;
// what no cache could have given is refused, and nothing of it stays.
#include "cache/snapshot.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cache/attention_plan.h"
#include "cache/kv_cache.h"
#include "check.h"
#include "core/error.h"
#include "plain_device.h"

namespace hogwild {
namespace {

using BlockPtr = std::shared_ptr<CacheBlock>;
using Rng = std::mt19937_64;
using Bytes = std::vector<std::byte>;

const RopeSpec kRope{.inverse_frequencies = {1.0, 0.05, 1e-3}, .attention_factor = 1.25};

std::int64_t random_int(Rng& rng, std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}

KvShape shape_of(KvFormat keys, KvFormat values) {
  return {.layers = 3, .kv_heads = 2, .head_dim = 24, .key_format = keys, .value_format = values};
}

// ---- a cache and its blocks -------------------------------------------------------------------------

struct World {
  std::shared_ptr<KvCache> cache;
  std::vector<BlockPtr> blocks;

  World(std::shared_ptr<Device> device, const KvShape& shape, std::int64_t capacity = 512 * kPageSize)
      : cache(KvCache::create(std::move(device), shape, kRope, capacity)) {}

  BlockPtr block(std::size_t i) {
    while (blocks.size() <= i) blocks.push_back(cache->create_block());
    return blocks[i];
  }

  // Keys and values are made from the ids.
  void append(const BlockPtr& block, const std::vector<std::int32_t>& tokens) {
    StepReservation step(*cache, {{.entries = {{.block = block}}, .target = block, .tokens = tokens}});
    const AttentionPlan plan = step.plan(0, step.n_tokens());
    const auto on_device = cache->device().upload(plan.view());
    const std::int64_t row = cache->shape().kv_heads * cache->shape().head_dim;
    for (std::int64_t layer = 0; layer < cache->shape().layers; ++layer) {
      std::vector<float> k, v;
      for (const std::int32_t token : tokens) {
        Rng rng(static_cast<std::uint64_t>(token) * 31 + static_cast<std::uint64_t>(layer));
        std::normal_distribution<float> normal;
        for (std::int64_t i = 0; i < row; ++i) k.push_back(normal(rng));
        for (std::int64_t i = 0; i < row; ++i) v.push_back(normal(rng));
      }
      cache->device().kv_append(*on_device, {.shape = cache->shape(),
                                             .layer = cache->layer(layer),
                                             .first = 0,
                                             .rows = step.n_tokens(),
                                             .k = k.data(),
                                             .v = v.data()});
    }
    step.commit();
  }

  // One of the things that can be done to blocks, the same in every world of equal blocks.
  void change(std::uint64_t seed, std::size_t n_blocks) {
    Rng rng(seed);
    const auto any = [&] { return block(static_cast<std::size_t>(random_int(rng, 0, std::ssize(blocks) - 1))); };
    const BlockPtr target =
        block(static_cast<std::size_t>(random_int(rng, 0, static_cast<std::int64_t>(n_blocks) - 1)));
    const std::int64_t length = target->length();
    switch (random_int(rng, 0, 9)) {
      default: {
        std::vector<std::int32_t> tokens(static_cast<std::size_t>(random_int(rng, 1, 90)));
        for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(random_int(rng, 0, 1000));
        return append(target, tokens);
      }
      case 0:
        if (const BlockPtr source = any(); length + source->length() < 300) target->append_from(*source);
        return;
      case 1:
        if (const BlockPtr source = any(); length + source->length() < 300) {
          target->insert(random_int(rng, 0, length), *source);
        }
        return;
      case 2:
        return target->truncate(random_int(rng, 0, length));
      case 3: {
        const std::int64_t begin = random_int(rng, 0, length);
        return target->forget(begin, random_int(rng, begin, length));
      }
      case 4:
        target->compact();
        return;
      case 5:
        blocks[static_cast<std::size_t>(random_int(rng, 0, std::ssize(blocks) - 1))] = target->fork();
        return;
    }
  }
};

struct Snapshot {
  Bytes index;
  std::vector<Bytes> pieces;
  bool operator==(const Snapshot&) const = default;
};

Snapshot read_snapshot(const World& world, const std::vector<BlockPtr>& blocks) {
  const SnapshotReader reader(world.cache, blocks);
  Snapshot snapshot{.index = reader.index().to_bytes(), .pieces = {}};
  for (std::int64_t i = 0; i < reader.pieces().count(); ++i) {
    Bytes& piece = snapshot.pieces.emplace_back(static_cast<std::size_t>(reader.pieces().bytes(i)));
    reader.read(i, piece.data());
  }
  return snapshot;
}

std::vector<BlockPtr> write_snapshot(const World& world, Snapshot snapshot) {
  SnapshotWriter writer(world.cache, SnapshotIndex::from_bytes(snapshot.index));
  for (std::size_t i = 0; i < snapshot.pieces.size(); ++i)
    writer.write(static_cast<std::int64_t>(i), snapshot.pieces[i]);
  return writer.commit();
}

// What a block holds, to the bit, and how it lies in pages, but for which pages these are.
std::string contents_of(const CacheBlock& block) {
  std::string bytes;
  const auto put = [&](const auto* data, std::size_t count) {
    bytes.append(reinterpret_cast<const char*>(data), count * sizeof(*data));
  };
  const KvShape& shape = block.cache().shape();
  for (const Segment& segment : block.segments()) {
    const std::size_t pages = segment.pages.size();
    put(&segment.first_slot, 1);
    put(&segment.length, 1);
    put(&segment.rotated_at, 1);
    put(&pages, 1);
  }
  const auto n = static_cast<std::size_t>(block.length());
  const std::vector<std::int32_t> tokens = block.tokens();
  put(tokens.data(), n);
  std::vector<float> k(n * static_cast<std::size_t>(shape.kv_heads * shape.head_dim)), v(k.size());
  std::vector<std::int64_t> rotated_at(n);
  for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
    block.read(layer, k.data(), v.data(), rotated_at.data());
    put(k.data(), k.size());
    put(v.data(), v.size());
    put(rotated_at.data(), n);
  }
  return bytes;
}

bool equal(const std::vector<BlockPtr>& blocks, const std::vector<BlockPtr>& others) {
  return std::equal(blocks.begin(), blocks.end(), others.begin(), others.end(),
                    [](const auto& one, const auto& other) { return contents_of(*one) == contents_of(*other); });
}

std::int64_t pages_in_use(const World& world) { return world.cache->pool().in_use(); }

std::vector<std::shared_ptr<Device>> devices() {
  std::vector<std::shared_ptr<Device>> all{std::make_shared<PlainDevice>()};
  for (const std::string& level : available_simd_levels()) {
    try {
      all.push_back(create_cpu_device({.threads = 2, .simd = level}));
    } catch (const Error&) {
      // A level of quantised products alone.
    }
  }
  return all;
}

// ---- tests ------------------------------------------------------------------------------------------

// Blocks that went through anything, into a cache where other pages are free.
TEST(written_blocks_are_the_same_and_go_on_equally) {
  const auto all = devices();
  const KvShape shape = shape_of(KvFormat::kF32, KvFormat::kF32);
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    Rng rng(seed);
    const auto device = [&] { return all[static_cast<std::size_t>(random_int(rng, 0, std::ssize(all) - 1))]; };
    World one(device(), shape), other(device(), shape);
    one.block(4);
    for (int i = 0; i < 40; ++i) one.change(rng(), 5);
    other.append(other.cache->create_block(), std::vector<std::int32_t>(30, 7));
    const BlockPtr keeps_a_page = other.cache->create_block();
    other.append(keeps_a_page, std::vector<std::int32_t>(100, 8));
    const std::int64_t before = pages_in_use(other);

    // All blocks, so that both may go on in every way. Who wrote a page and is gone leaves it to nobody in both.
    const Snapshot snapshot = read_snapshot(one, one.blocks);
    other.blocks = write_snapshot(other, snapshot);
    CHECK(equal(one.blocks, other.blocks));
    CHECK(pages_in_use(other) - before == std::ssize(SnapshotIndex::from_bytes(snapshot.index).pages));
    CHECK(read_snapshot(other, other.blocks) == snapshot);

    for (int i = 0; i < 15; ++i) {
      const std::uint64_t change = rng();
      one.change(change, 5);
      other.change(change, 5);
    }
    bool same = true;
    for (std::size_t b = 0; b < one.blocks.size(); ++b) {
      same &= one.blocks[b]->tokens() == other.blocks[b]->tokens();
      const auto& segments = one.blocks[b]->segments();
      const auto& others = other.blocks[b]->segments();
      same &= segments.size() == others.size();
      for (std::size_t s = 0; same && s < segments.size(); ++s) {
        same &= segments[s].first_slot == others[s].first_slot && segments[s].length == others[s].length &&
                segments[s].rotated_at == others[s].rotated_at && segments[s].pages.size() == others[s].pages.size();
      }
    }
    CHECK_MESSAGE(same, "seed " + std::to_string(seed));
    other.blocks.clear();
    CHECK(pages_in_use(other) == before);
  }
}

// The arrangement inside pages differs between SIMD levels: what is written does not.
TEST(every_format_on_every_device) {
  const std::vector<KvFormat> formats = {KvFormat::kF32, KvFormat::kF16, KvFormat::kBF16, KvFormat::kInt8};
  auto all = devices();
  all.erase(all.begin());  // the plain device has f32 only
  for (const KvFormat keys : formats) {
    for (const KvFormat values : formats) {
      for (const std::int64_t head_dim : {8, 24, 64}) {
        KvShape shape = shape_of(keys, values);
        shape.head_dim = head_dim;
        World source(all.front(), shape);
        source.append(source.block(0), std::vector<std::int32_t>(100, 5));
        source.append(source.block(1), {1, 2, 3});
        source.block(1)->append_from(*source.block(0));
        source.block(0)->forget(3, 70);
        const Snapshot snapshot = read_snapshot(source, source.blocks);
        for (const auto& device : all) {
          World target(device, shape);
          target.blocks = write_snapshot(target, snapshot);
          CHECK(equal(source.blocks, target.blocks));
          CHECK(read_snapshot(target, target.blocks) == snapshot);
        }
      }
    }
  }
}

TEST(shared_pages_are_written_once_and_stay_shared) {
  World one(std::make_shared<PlainDevice>(), shape_of(KvFormat::kF32, KvFormat::kF32));
  one.append(one.block(0), std::vector<std::int32_t>(100, 1));
  one.blocks.push_back(one.blocks[0]->fork());
  one.append(one.blocks[1], {2});
  one.blocks.push_back(one.cache->create_block());
  const Snapshot snapshot = read_snapshot(one, one.blocks);
  const SnapshotIndex index = SnapshotIndex::from_bytes(snapshot.index);
  CHECK(index.pages.size() == 3);  // 64 and 36 tokens for both, one of the fork alone
  CHECK(std::popcount(index.pages[1].slots) == 36);
  CHECK(index.tokens.size() == 101);
  std::size_t bytes = 0;
  for (const Bytes& piece : snapshot.pieces) bytes += piece.size();
  CHECK(bytes == 101 * 3 * 2 * 24 * 2 * sizeof(float));

  World other(std::make_shared<PlainDevice>(), shape_of(KvFormat::kF32, KvFormat::kF32));
  other.blocks = write_snapshot(other, snapshot);
  CHECK(pages_in_use(other) == 3);
  CHECK(other.blocks[0]->segments()[0].pages == other.blocks[1]->segments()[0].pages);
  // The writer goes on in its page, the fork does not, and neither sees the other's tokens.
  other.append(other.blocks[0], {3});
  CHECK(other.blocks[0]->segments().size() == 1);
  CHECK(pages_in_use(other) == 3);
  CHECK(other.blocks[1]->tokens().back() == 2);
}

TEST(other_blocks_leave_no_trace) {
  const KvShape shape = shape_of(KvFormat::kF32, KvFormat::kF32);
  World one(std::make_shared<PlainDevice>(), shape), two(std::make_shared<PlainDevice>(), shape);
  two.append(two.block(5), std::vector<std::int32_t>(200, 9));  // other pages
  for (World* world : {&one, &two}) {
    world->append(world->block(0), {1, 2, 3, 4});
    world->append(world->block(0), {5});
  }
  CHECK(read_snapshot(one, {one.blocks[0]}) == read_snapshot(two, {two.blocks[0]}));
  // A fork that goes on in slots of its own, and is not saved.
  const BlockPtr fork = one.blocks[0]->fork();
  one.append(fork, {6});
  const Snapshot snapshot = read_snapshot(one, {fork});
  CHECK(SnapshotIndex::from_bytes(snapshot.index).pages[0].writer == -1);
}

TEST(pages_count_for_the_budgets_that_are_said) {
  const KvShape shape = shape_of(KvFormat::kF32, KvFormat::kF32);
  World one(std::make_shared<PlainDevice>(), shape);
  one.append(one.block(0), std::vector<std::int32_t>(130, 1));
  one.append(one.block(1), std::vector<std::int32_t>(10, 2));
  const BlockPtr fork = one.blocks[0]->fork();
  one.append(fork, {3});
  // Of three pages of the first block, which is not saved, one of the second, and one of the fork.
  const Snapshot snapshot = read_snapshot(one, {one.blocks[1], fork});
  const auto index = [&] { return SnapshotIndex::from_bytes(snapshot.index); };

  World other(std::make_shared<PlainDevice>(), shape);
  KvCache& cache = *other.cache;
  const std::int64_t first = cache.open_budget(2), second = cache.open_budget(2), third = cache.open_budget(3);
  {
    SnapshotWriter writer(other.cache, index(), {first, second, third});
    CHECK(cache.budget(first).in_use == 1);
    CHECK(cache.budget(second).in_use == 1);
    CHECK(cache.budget(third).in_use == 3);
    for (std::size_t i = 0; i < snapshot.pieces.size(); ++i) {
      Bytes piece = snapshot.pieces[i];
      writer.write(static_cast<std::int64_t>(i), piece);
    }
    other.blocks = writer.commit();
    CHECK(cache.budget(third).peak == 3);
  }
  other.append(other.blocks[0], std::vector<std::int32_t>(64, 4));
  CHECK(cache.budget(first).in_use == 2);
  CHECK_CODE(code::kOutOfPages, other.append(other.blocks[0], std::vector<std::int32_t>(64, 4)));
  other.blocks.clear();
  CHECK(pages_in_use(other) == 0);
  CHECK(cache.budget(third).in_use == 0);

  const std::int64_t small = cache.open_budget(2);
  CHECK_CODE(code::kOutOfPages, SnapshotWriter(other.cache, index(), {first, second, small}));
  CHECK_CODE(code::kInvalidArgument, SnapshotWriter(other.cache, index(), {first, second}));
  CHECK_CODE(code::kInvalidArgument, SnapshotWriter(other.cache, index(), {first, second, small + 1}));
  CHECK(pages_in_use(other) == 0);
  CHECK(cache.budget(first).in_use == 0);
}

TEST(pieces_hold_whole_pages) {
  const KvShape shape{.layers = 5, .kv_heads = 8, .head_dim = 256};
  std::vector<SnapshotIndex::Page> pages(7);
  for (SnapshotIndex::Page& page : pages) page.slots = ~std::uint64_t{0};
  pages[3].slots = 1;
  const SnapshotPieces pieces(shape, pages);
  std::int64_t unit = 0, bytes = 0;
  for (std::int64_t i = 0; i < pieces.count(); ++i) {
    std::int64_t in_piece = 0;
    CHECK(pieces.bytes(i) <= SnapshotPieces::kMaxBytes);
    pieces.for_each_layer(i, [&](std::int64_t layer, std::int64_t first, std::int64_t n, std::int64_t offset) {
      CHECK(layer * 7 + first == unit && n > 0 && offset == in_piece);
      for (std::int64_t page = first; page < first + n; ++page) in_piece += (page == 3 ? 1 : 64) * shape.token_bytes();
      unit += n;
    });
    CHECK(in_piece == pieces.bytes(i));
    bytes += in_piece;
  }
  CHECK(unit == 35 && bytes == 5 * (6 * 64 + 1) * shape.token_bytes());
  CHECK(SnapshotPieces(shape, {}).count() == 0);
}

TEST(wrong_calls_are_refused) {
  const KvShape shape = shape_of(KvFormat::kF32, KvFormat::kF32);
  World one(std::make_shared<PlainDevice>(), shape), other(std::make_shared<PlainDevice>(), shape, 2 * kPageSize);
  one.append(one.block(0), std::vector<std::int32_t>(150, 1));
  CHECK_CODE(code::kInvalidArgument, SnapshotReader(one.cache, {one.blocks[0], one.blocks[0]}));
  CHECK_CODE(code::kInvalidArgument, SnapshotReader(one.cache, {other.block(0)}));
  {
    const SnapshotReader reader(one.cache, {one.blocks[0]});
    CHECK_CODE(code::kBusy, SnapshotReader(one.cache, {one.blocks[0]}));
    CHECK_CODE(code::kBusy, one.append(one.blocks[0], {1}));
    CHECK_CODE(code::kBusy, one.blocks[0]->clear());
  }
  Snapshot snapshot = read_snapshot(one, one.blocks);
  CHECK_CODE(code::kOutOfPages, write_snapshot(other, snapshot));
  CHECK(pages_in_use(other) == 0);

  World third(std::make_shared<PlainDevice>(), shape);
  {
    SnapshotWriter writer(third.cache, SnapshotIndex::from_bytes(snapshot.index));
    Bytes& piece = snapshot.pieces[0];
    CHECK_CODE(code::kBusy, third.block(0)->clear());
    CHECK_CODE(code::kInvalidArgument, writer.commit());
    CHECK_CODE(code::kInvalidArgument, writer.write(1, piece));
    CHECK_CODE(code::kInvalidArgument, writer.write(0, std::span(piece).first(piece.size() - 1)));
    writer.write(0, piece);
    CHECK_CODE(code::kInvalidArgument, writer.write(0, piece));
    CHECK(pages_in_use(third) == 3);
    CHECK(writer.commit().size() == 1);
    CHECK_CODE(code::kInvalidArgument, writer.commit());
  }
  CHECK(pages_in_use(third) == 0);  // the block is gone
  {
    const SnapshotWriter writer(third.cache, SnapshotIndex::from_bytes(snapshot.index));
    CHECK(pages_in_use(third) == 3);
  }
  CHECK(pages_in_use(third) == 0);

  // Nothing at all.
  const Snapshot empty = read_snapshot(third, {third.cache->create_block()});
  CHECK(empty.pieces.empty());
  CHECK(write_snapshot(third, empty)[0]->length() == 0);
  CHECK(write_snapshot(third, read_snapshot(third, {})).empty());
}

// What a cache relies on, whatever bytes its blocks came from.
void check_invariants(const World& world, const std::vector<BlockPtr>& blocks) {
  const PagePool& pool = world.cache->pool();
  std::map<std::int64_t, std::int64_t> references, rotation;
  bool good = true;
  for (const BlockPtr& block : blocks) {
    good &= block->length() == total_length(block->segments());
    for (const Segment& segment : block->segments()) {
      good &= segment.length > 0 && segment.rotated_at >= 0 && segment.first_slot >= 0;
      good &= std::ssize(segment.pages) == pages_for(segment.end_slot());
      for (const std::int64_t page : segment.pages) ++references[page];
      for_each_run(segment, 0, segment.length,
                   [&](std::int64_t page, std::int32_t slot, std::int64_t count, std::int64_t index) {
                     const std::int64_t base = segment.rotated_at + index - slot;
                     good &= rotation.try_emplace(page, base).first->second == base;
                     good &= pool.page(page).used >= slot + count && pool.page(page).used <= kPageSize;
                     good &= pool.page(page).shared <= pool.page(page).used;
                   });
    }
  }
  for (const auto& [page, count] : references) good &= pool.page(page).references == count;
  CHECK(good && pool.in_use() == std::ssize(references));
}

TEST(damaged_indices_are_refused) {
  const KvShape shape = shape_of(KvFormat::kF32, KvFormat::kF32);
  World one(std::make_shared<PlainDevice>(), shape);
  Rng rng(11);
  one.block(3);
  for (int i = 0; i < 30; ++i) one.change(rng(), 4);
  const Snapshot good = read_snapshot(one, one.blocks);

  World target(std::make_shared<PlainDevice>(), shape);
  std::map<std::string, std::int64_t> outcomes;
  const auto offer = [&](const Bytes& index) {
    const std::string code = testing::code_of([&] {
      SnapshotWriter writer(target.cache, SnapshotIndex::from_bytes(index));
      for (std::int64_t i = 0; i < writer.pieces().count(); ++i) {
        Bytes zeros(static_cast<std::size_t>(writer.pieces().bytes(i)));
        writer.write(i, zeros);
      }
      const std::vector<BlockPtr> blocks = writer.commit();
      check_invariants(target, blocks);
      // Whatever was taken can be gone on with: nobody's tokens change but those of who writes.
      for (const BlockPtr& block : blocks) CHECK(block->tokens().size() == static_cast<std::size_t>(block->length()));
    });
    ++outcomes[code];
    CHECK(code.empty() || code == code::kInvalidSession || code == code::kOutOfPages);
    CHECK(pages_in_use(target) == 0);
  };

  for (std::size_t length = 0; length < good.index.size(); ++length) {
    offer(Bytes(good.index.begin(), good.index.begin() + static_cast<std::ptrdiff_t>(length)));
  }
  CHECK(outcomes.size() == 1 && outcomes.contains(code::kInvalidSession));
  Bytes longer = good.index;
  longer.push_back(std::byte{0});
  offer(longer);
  const std::int64_t refused = outcomes[code::kInvalidSession];
  CHECK(refused == std::ssize(good.index) + 1);

  for (std::size_t at = 0; at < good.index.size(); ++at) {
    for (const int change : {0x01, 0x80, 0xff}) {
      Bytes changed = good.index;
      changed[at] ^= static_cast<std::byte>(change);
      offer(changed);
    }
  }
  for (int i = 0; i < 3000; ++i) {
    Bytes changed = good.index;
    for (std::int64_t n = random_int(rng, 1, 4); n > 0; --n) {
      const std::int64_t at = random_int(rng, 0, (std::ssize(changed) - 1) / 8) * 8;
      const std::int64_t values[] = {
          0, 1, -1, 63, 64, 65, std::int64_t{1} << 40, INT64_MAX, INT64_MIN, random_int(rng, 0, 300)};
      const std::int64_t value = values[random_int(rng, 0, 9)];
      std::memcpy(changed.data() + at, &value, std::min<std::size_t>(8, changed.size() - static_cast<std::size_t>(at)));
    }
    offer(changed);
  }
  CHECK(outcomes[""] > 100);  // other token ids are as good
  CHECK(outcomes[code::kInvalidSession] > 5000);
}

// A writer may write on over slots that nobody else names, and over no others.
TEST(an_index_that_would_let_a_writer_overwrite_others_is_refused) {
  World one(std::make_shared<PlainDevice>(), shape_of(KvFormat::kF32, KvFormat::kF32));
  one.append(one.block(0), std::vector<std::int32_t>(40, 1));
  one.blocks.push_back(one.blocks[0]->fork());
  one.blocks[0]->truncate(10);
  const SnapshotReader reader(one.cache, one.blocks);
  SnapshotIndex index = reader.index();
  CHECK(index.pages[0].writer == 0 && index.pages[0].shared == 40 && index.pages[0].used == 40);
  index.pages[0].shared = 39;
  CHECK_CODE(code::kInvalidSession, SnapshotIndex::from_bytes(index.to_bytes()));
  index.pages[0].shared = 40;
  index.pages[0].used = 39;
  CHECK_CODE(code::kInvalidSession, SnapshotIndex::from_bytes(index.to_bytes()));
  index.pages[0].used = 40;
  CHECK(SnapshotIndex::from_bytes(index.to_bytes()).blocks.size() == 2);
}

}  // namespace
}  // namespace hogwild

HOGWILD_TEST_MAIN
