// Keys and values in and out of the pages of the cache.
//
//   append  new tokens' keys, rotated, and values -> pages
//   move    runs of tokens -> other pages, keys turned on the way
//   read    pages -> f32, in token order
//   gather, scatter  on the host: pages <-> rows as they are
//
// Letters: n rows (tokens), Hkv heads, D head dim, R rotary dim, E width of the pages' rows: D elements and
// padding, which is written as zero. A thread takes a unit of two chunks of a row (rope.cuh). Keys and values
// go the same way: as far as rotation goes, values have R = 0.
#include <climits>
#include <cstring>

#include "dispatch.cuh"
#include "kernels.h"
#include "page.cuh"
#include "rope.cuh"
#include "vector_load.cuh"

namespace hogwild::cuda {
namespace {

constexpr int kThreads = 128;

// The keys or the values of one (page, kv head).
template <typename Pool>
struct PageHead {
  Pool* first;  // chunk
  int chunks;   // per row

  SIMT_DEVICE Pool& chunk(int slot, int chunk) const { return first[swizzled_chunk(chunks, slot, chunk)]; }
};

template <typename T>
SIMT_HOST_DEVICE int chunks_of(const KvShape& shape) {
  return static_cast<int>(shape.head_dim + shape.padding) / kChunkElements<T>;
}

template <typename T, typename Pool>
SIMT_DEVICE PageHead<Pool> page_head(Pool* pool, const KvShape& shape, std::int64_t page, std::int64_t kv_head) {
  const int chunks = chunks_of<T>(shape);
  return {pool + page_offset(page, kv_head, shape.kv_heads, chunks), chunks};
}

// A row of a page, as load_rotated_unit takes it.
template <typename T>
struct PageRow {
  PageHead<const uint4> head;
  int slot;

  SIMT_DEVICE uint4 load(int chunk) const { return head.chunk(slot, chunk); }
  SIMT_DEVICE void convert(uint4 raw, float (&x)[8]) const { unpack8<T>(raw, x); }
  SIMT_DEVICE float load_element(int d) const {
    const auto* chunk = reinterpret_cast<const std::uint16_t*>(&head.chunk(slot, d / kChunkElements<T>));
    return simt::unpack2<T>(chunk[d % kChunkElements<T>]).x;
  }
};

template <typename T>
SIMT_DEVICE void store_unit(const PageHead<uint4>& head, int slot, const RotatedUnit& unit) {
  head.chunk(slot, unit.chunk[0]) = pack8<T>(unit.first);
  head.chunk(slot, unit.chunk[1]) = pack8<T>(unit.second);
}

// ---- append -----------------------------------------------------------------------------------------

// Grid: (units of all rows and kv heads; keys, values).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    append_kv(const __grid_constant__ KvAppendParams p, const AppendSlot* slots, const RopeTable key_rope) {
  const bool is_key = blockIdx.y == 0;
  const int head_dim = static_cast<int>(p.shape.head_dim);
  const int kv_heads = static_cast<int>(p.shape.kv_heads);
  const int units = chunks_of<T>(p.shape) / 2;
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int row = i / units;  // of (token, kv head)
  if (row >= p.rows * kv_heads) return;
  const AppendSlot slot = slots[row / kv_heads];
  if (slot.page < 0) return;

  const ActivationRow from = {is_key ? p.k : p.v, p.buffers.dtype, static_cast<std::size_t>(row) * head_dim};
  RopeTable rope = key_rope;
  if (!is_key) rope.rotary_dim = 0;
  const RotatedUnit unit = load_rotated_unit(from, head_dim, rope, slot.rope_row, i % units);
  auto* pool = static_cast<uint4*>(is_key ? p.layer.keys : p.layer.values);
  store_unit<T>(page_head<T>(pool, p.shape, slot.page, row % kv_heads), slot.slot, unit);
}

// ---- move -------------------------------------------------------------------------------------------

// Grid: (moves; kv heads; keys, values).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    move_kv(const __grid_constant__ KvMoveParams p, const KvMoveParams::Move* moves) {
  const bool is_key = blockIdx.z == 0;
  const KvMoveParams::Move move = moves[blockIdx.x];
  auto* pool = static_cast<uint4*>(is_key ? p.layer.keys : p.layer.values);
  const PageHead<const uint4> from = page_head<T, const uint4>(pool, p.shape, move.from_page, blockIdx.y);
  const PageHead<uint4> to = page_head<T>(pool, p.shape, move.to_page, blockIdx.y);
  const int chunks = chunks_of<T>(p.shape);
  if (is_key && move.rope_row >= 0) {
    const int units = chunks / 2;
    for (int i = static_cast<int>(threadIdx.x); i < move.length * units; i += kThreads) {
      const PageRow<T> row = {from, move.from_slot + i / units};
      store_unit<T>(to, move.to_slot + i / units,
                    load_rotated_unit(row, static_cast<int>(p.shape.head_dim), p.rope, move.rope_row, i % units));
    }
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < move.length * chunks; i += kThreads) {
      to.chunk(move.to_slot + i / chunks, i % chunks) = from.chunk(move.from_slot + i / chunks, i % chunks);
    }
  }
}

// ---- read -------------------------------------------------------------------------------------------

// Grid: (chunks of all rows and kv heads; keys, values).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    read_kv(const __grid_constant__ KvReadParams p, const AppendSlot* slots, int n) {
  const bool is_key = blockIdx.y == 0;
  const int chunks = static_cast<int>(p.shape.head_dim) / kChunkElements<T>;  // without padding
  const int kv_heads = static_cast<int>(p.shape.kv_heads);
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int row = i / chunks;  // of (token, kv head)
  if (row >= n * kv_heads) return;
  const AppendSlot slot = slots[row / kv_heads];
  const auto* pool = static_cast<const uint4*>(is_key ? p.layer.keys : p.layer.values);
  const PageRow<T> from = {page_head<T>(pool, p.shape, slot.page, row % kv_heads), slot.slot};
  float x[8];
  from.convert(from.load(i % chunks), x);
  float4* to = reinterpret_cast<float4*>((is_key ? p.k : p.v) + static_cast<std::size_t>(i) * kChunkElements<T>);
  to[0] = make_float4(x[0], x[1], x[2], x[3]);
  to[1] = make_float4(x[4], x[5], x[6], x[7]);
}

}  // namespace

// ---- rows on the host -------------------------------------------------------------------------------

namespace {

// Calls copy(offset in the page, offset in the rows, bytes) for each chunk of the marked slots.
template <typename Copy>
void for_each_chunk(const KvShape& shape, KvFormat format, std::uint64_t slots, Copy copy) {
  const std::int64_t element = kv_element_bytes(format);
  const int chunks = static_cast<int>(shape.row_elements() * element / kChunkBytes);
  const int used = static_cast<int>(shape.head_dim * element / kChunkBytes);
  std::size_t row = 0;
  for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
    for (int slot = 0; slot < kPageSize; ++slot) {
      if ((slots >> slot & 1) == 0) continue;
      for (int chunk = 0; chunk < used; ++chunk, row += kChunkBytes) {
        const std::size_t in_page = page_offset(0, head, shape.kv_heads, chunks) + swizzled_chunk(chunks, slot, chunk);
        copy(in_page * kChunkBytes, row, kChunkBytes);
      }
    }
  }
}

}  // namespace

void gather_rows(const KvShape& shape, KvFormat format, const std::byte* page, std::uint64_t slots, std::byte* rows) {
  for_each_chunk(shape, format, slots, [&](std::size_t in_page, std::size_t row, std::size_t bytes) {
    std::memcpy(rows + row, page + in_page, bytes);
  });
}

void scatter_rows(const KvShape& shape, KvFormat format, std::byte* page, std::uint64_t slots, const std::byte* rows) {
  for_each_chunk(shape, format, slots, [&](std::size_t in_page, std::size_t row, std::size_t bytes) {
    std::memcpy(page + in_page, rows + row, bytes);
  });
}

// ---- launchers --------------------------------------------------------------------------------------

namespace {

// Rows or moves of one launch: no overflow below.
bool is_count(std::int64_t n) { return 0 <= n && n <= INT_MAX; }

// CTAs for a thread per item; 0 where an int cannot count the threads.
unsigned ctas_for(std::int64_t items) {
  return items <= INT_MAX - kThreads ? static_cast<unsigned>((items + kThreads - 1) / kThreads) : 0;
}

}  // namespace

cudaError_t launch_kv_append(const KvAppendParams& params, const StepArrays& step, cudaStream_t stream) {
  const KvShape& shape = params.shape;
  if (!is_supported(shape, step.rope.rotary_dim) || !is_count(params.rows)) return cudaErrorInvalidValue;
  if (!are_aligned({params.layer.keys, params.layer.values, step.rope.cos, step.rope.sin, params.k, params.v})) {
    return cudaErrorInvalidValue;
  }
  if (params.rows == 0) return cudaSuccess;
  return dispatch_format(shape, [&]<typename T>() {
    const unsigned ctas = ctas_for(params.rows * shape.kv_heads * (chunks_of<T>(shape) / 2));
    if (ctas == 0) return cudaErrorInvalidValue;
    return SIMT_LAUNCH(append_kv<T>, dim3(ctas, 2), dim3(kThreads), 0, stream, params, step.slots + params.first,
                       step.rope);
  });
}

cudaError_t launch_kv_move(const KvMoveParams& params, cudaStream_t stream) {
  const KvShape& shape = params.shape;
  if (!is_supported(shape, params.rope.rotary_dim) || !is_count(std::ssize(params.moves))) return cudaErrorInvalidValue;
  if (!are_aligned({params.layer.keys, params.layer.values, params.rope.cos, params.rope.sin})) {
    return cudaErrorInvalidValue;
  }
  if (params.moves.empty()) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(params.moves.size()), static_cast<unsigned>(shape.kv_heads), 2);
  return dispatch_format(shape, [&]<typename T>() {
    return SIMT_LAUNCH(move_kv<T>, grid, dim3(kThreads), 0, stream, params, params.moves.data());
  });
}

cudaError_t launch_kv_read(const KvReadParams& params, cudaStream_t stream) {
  const KvShape& shape = params.shape;
  const std::int64_t n = std::ssize(params.slots);
  if (!is_supported(shape, 0) || !is_count(n)) return cudaErrorInvalidValue;
  if (!are_aligned({params.layer.keys, params.layer.values, params.k, params.v})) return cudaErrorInvalidValue;
  if (n == 0) return cudaSuccess;
  return dispatch_format(shape, [&]<typename T>() {
    const unsigned ctas = ctas_for(n * shape.kv_heads * (shape.head_dim / kChunkElements<T>));
    if (ctas == 0) return cudaErrorInvalidValue;
    return SIMT_LAUNCH(read_kv<T>, dim3(ctas, 2), dim3(kThreads), 0, stream, params, params.slots.data(),
                       static_cast<int>(n));
  });
}

}  // namespace hogwild::cuda
