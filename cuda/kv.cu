// Keys and values in and out of the pages of the cache.
//
//   append  new tokens' keys, rotated, and values -> pages
//   move    runs of tokens -> other pages, keys turned on the way
//   read    pages -> f32, in token order
//   gather, scatter  on the host: pages <-> rows as they are
//
// Letters: n rows (tokens), Hkv heads, D head dim, R rotary dim, E width of the pages' rows: D elements and
// padding, which is written as zero. A chunk: eight elements; a thread takes a unit of two of them (rope.cuh). Keys and
// values go the same way: as far as rotation goes, values have R = 0.
#include <climits>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "dispatch.cuh"
#include "kernels.h"
#include "page.cuh"
#include "rope.cuh"
#include "vector_load.cuh"

namespace hogwild::cuda {
namespace {

constexpr int kThreads = 128;

// A code of int8; its row has a scale (core/kv_format.h).
struct Int8 {
  std::int8_t code;
};
constexpr float kGreatestCode = 127;
constexpr float kLeastMagnitude = 0x1p-100f;  // rows below it are zeros

// Calls `body.template operator()<T>()` with the type of a format's elements.
template <typename Body>
cudaError_t dispatch_format(KvFormat format, Body&& body) {
  switch (format) {
    case KvFormat::kF32:
      return body.template operator()<float>();
    case KvFormat::kF16:
      return body.template operator()<simt::f16>();
    case KvFormat::kBF16:
      return body.template operator()<simt::bf16>();
    case KvFormat::kInt8:
      return body.template operator()<Int8>();
  }
  return cudaErrorInvalidValue;
}

template <typename T>
constexpr KvFormat kFormatOf = KvFormat::kF32;
template <>
constexpr KvFormat kFormatOf<simt::f16> = KvFormat::kF16;
template <>
constexpr KvFormat kFormatOf<simt::bf16> = KvFormat::kBF16;
template <>
constexpr KvFormat kFormatOf<Int8> = KvFormat::kInt8;

template <typename T>
constexpr bool kHasScale = std::is_same_v<T, Int8>;
template <typename T>
constexpr bool kIsWide = std::is_same_v<T, float>;

// Eight elements as they lie in a page.
template <typename T>
using RawChunk = std::conditional_t<kIsWide<T>, Raw8, std::conditional_t<kHasScale<T>, uint2, uint4>>;

SIMT_HOST_DEVICE int width_of(const KvShape& shape) { return static_cast<int>(shape.head_dim + shape.padding); }
SIMT_HOST_DEVICE int units_of(const KvShape& shape) { return width_of(shape) / kUnitElements / 2; }  // of a row

// The keys or the values of one (page, kv head).
template <typename T>
struct PageHead {
  unsigned char* first;
  int width;

  SIMT_DEVICE RawChunk<T>& chunk(int slot, int chunk) const {
    auto* chunks = reinterpret_cast<RawChunk<T>*>(first);
    const int per_row = width / kUnitElements;
    return chunks[is_permuted(kFormatOf<T>) ? swizzled_chunk(per_row, slot, chunk) : slot * per_row + chunk];
  }
  SIMT_DEVICE float& scale(int slot) const { return reinterpret_cast<float*>(first + kPageSize * width)[slot]; }
};

template <typename T>
SIMT_DEVICE PageHead<T> page_head(void* pool, const KvShape& shape, std::int64_t page, std::int64_t kv_head) {
  const int width = width_of(shape);
  return {static_cast<unsigned char*>(pool) + page_byte(page, kv_head, shape.kv_heads, kFormatOf<T>, width), width};
}

// Without its scale.
template <typename T>
SIMT_DEVICE void to_floats(const RawChunk<T>& raw, float (&x)[8]) {
  if constexpr (kIsWide<T>) {
    convert8(raw, Dtype::kF32, x);
  } else if constexpr (kHasScale<T>) {
    Int8 codes[8];
    memcpy(codes, &raw, sizeof raw);
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = codes[i].code;
  } else {
    unpack8<T>(raw, x);
  }
}

template <typename T>
SIMT_DEVICE RawChunk<T> from_floats(const float (&x)[8]) {
  static_assert(!kHasScale<T>, "a row of codes is rounded as a whole");
  RawChunk<T> raw;
  if constexpr (kIsWide<T>) {
    memcpy(&raw, x, sizeof raw);
  } else {
    raw = pack8<T>(x);
  }
  return raw;
}

// A row of a page, as load_rotated_unit takes it.
template <typename T>
struct PageRow {
  PageHead<T> head;
  int slot;

  SIMT_DEVICE RawChunk<T> load(int chunk) const { return head.chunk(slot, chunk); }
  SIMT_DEVICE void convert(const RawChunk<T>& raw, float (&x)[8]) const { to_floats<T>(raw, x); }
  SIMT_DEVICE float load_element(int d) const {
    float x[8];
    to_floats<T>(head.chunk(slot, d / kUnitElements), x);
    return x[d % kUnitElements];
  }
};

// ---- append -----------------------------------------------------------------------------------------

// Keys, or values.
struct AppendFrom {
  const void* rows;  // [n, Hkv, D]
  void* pool;
  RopeTable rope;  // of values: R = 0
};
struct AppendArguments {
  KvShape shape;
  std::int64_t rows;
  Dtype dtype;
  const AppendSlot* slots;
  AppendFrom from[2];
};

// One unit of a new row, rotated.
SIMT_DEVICE RotatedUnit load_new_unit(const AppendArguments& p, const AppendFrom& from, int row, int unit,
                                      const AppendSlot& slot) {
  const int head_dim = static_cast<int>(p.shape.head_dim);
  const ActivationRow new_row = {from.rows, p.dtype, static_cast<std::size_t>(row) * head_dim};
  return load_rotated_unit(new_row, head_dim, from.rope, slot.rope_row, unit);
}

// Grid: (units of all rows and kv heads; keys, values).
template <typename T>
__global__ void __launch_bounds__(kThreads) append_kv(const __grid_constant__ AppendArguments p) {
  simt::follow_preceding();
  const AppendFrom& from = p.from[blockIdx.y];
  const int kv_heads = static_cast<int>(p.shape.kv_heads);
  const int units = units_of(p.shape);
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int row = i / units;  // of (token, kv head)
  const int token = row / kv_heads;
  if (token >= p.rows) return;
  const AppendSlot slot = p.slots[token];
  if (slot.page < 0) return;

  const PageHead<T> head = page_head<T>(from.pool, p.shape, slot.page, row - token * kv_heads);
  const RotatedUnit unit = load_new_unit(p, from, row, i - row * units, slot);
  head.chunk(slot.slot, unit.chunk[0]) = from_floats<T>(unit.first);
  head.chunk(slot.slot, unit.chunk[1]) = from_floats<T>(unit.second);
}

// The same for codes, which share the scale of their row: half a warp for each row, a unit for each lane.
constexpr int kRowLanes = 16;
static_assert(kRowLanes * 2 * kUnitElements == 256, "the widest row");

SIMT_DEVICE unsigned magnitude_bits(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof bits);
  return bits & 0x7fffffffu;  // they ascend with |x|, and those of NaN are the greatest
}

SIMT_DEVICE uint2 to_codes(const float (&x)[8], float scale, bool is_zero) {
  Int8 codes[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) codes[i].code = is_zero ? 0 : static_cast<std::int8_t>(rintf(x[i] / scale));
  uint2 raw;
  memcpy(&raw, codes, sizeof raw);
  return raw;
}

// Grid: (rows and kv heads; keys, values).
__global__ void __launch_bounds__(kThreads) append_codes(const __grid_constant__ AppendArguments p) {
  simt::follow_preceding();
  const AppendFrom& from = p.from[blockIdx.y];
  const int kv_heads = static_cast<int>(p.shape.kv_heads);
  const int lane = static_cast<int>(threadIdx.x) % kRowLanes;
  const int row = static_cast<int>(blockIdx.x * kThreads + threadIdx.x) / kRowLanes;
  AppendSlot slot;
  slot.page = -1;
  if (row < p.rows * kv_heads) slot = p.slots[row / kv_heads];
  const bool has_units = slot.page >= 0 && lane < units_of(p.shape);
  RotatedUnit unit;
  unsigned largest = 0;
  if (has_units) {
    unit = load_new_unit(p, from, row, lane, slot);
#pragma unroll
    for (int i = 0; i < kUnitElements; ++i) {
      largest = max(largest, max(magnitude_bits(unit.first[i]), magnitude_bits(unit.second[i])));
    }
  }
#pragma unroll
  for (int distance = kRowLanes / 2; distance >= 1; distance /= 2) {
    largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
  }
  if (!has_units) return;
  const PageHead<Int8> head = page_head<Int8>(from.pool, p.shape, slot.page, row % kv_heads);
  float magnitude;
  memcpy(&magnitude, &largest, sizeof magnitude);
  const bool is_finite = magnitude < INFINITY;
  const bool is_zero = !is_finite || magnitude < kLeastMagnitude;
  const float scale = !is_finite ? NAN : is_zero ? 0.f : magnitude / kGreatestCode;
  head.chunk(slot.slot, unit.chunk[0]) = to_codes(unit.first, scale, is_zero);
  head.chunk(slot.slot, unit.chunk[1]) = to_codes(unit.second, scale, is_zero);
  if (lane == 0) head.scale(slot.slot) = scale;
}

// ---- move -------------------------------------------------------------------------------------------

struct MoveArguments {
  KvShape shape;
  RopeTable rope;
  struct {
    void* pool;
    bool is_key;
  } from[2];
};

// Grid: (moves; kv heads; keys, values).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    move_kv(const __grid_constant__ MoveArguments p, const KvMoveParams::Move* moves) {
  simt::follow_preceding();
  const KvMoveParams::Move move = moves[blockIdx.x];
  void* const pool = p.from[blockIdx.z].pool;
  const PageHead<T> from = page_head<T>(pool, p.shape, move.from_page, blockIdx.y);
  const PageHead<T> to = page_head<T>(pool, p.shape, move.to_page, blockIdx.y);
  const int chunks = width_of(p.shape) / kUnitElements;
  if constexpr (!kHasScale<T>) {
    if (p.from[blockIdx.z].is_key && move.rope_row >= 0) {
      const int units = chunks / 2;
      for (int i = static_cast<int>(threadIdx.x); i < move.length * units; i += kThreads) {
        const PageRow<T> row = {from, move.from_slot + i / units};
        const RotatedUnit unit =
            load_rotated_unit(row, static_cast<int>(p.shape.head_dim), p.rope, move.rope_row, i % units);
        to.chunk(move.to_slot + i / units, unit.chunk[0]) = from_floats<T>(unit.first);
        to.chunk(move.to_slot + i / units, unit.chunk[1]) = from_floats<T>(unit.second);
      }
      return;
    }
  }
  for (int i = static_cast<int>(threadIdx.x); i < move.length * chunks; i += kThreads) {
    to.chunk(move.to_slot + i / chunks, i % chunks) = from.chunk(move.from_slot + i / chunks, i % chunks);
  }
  if constexpr (kHasScale<T>) {
    for (int i = static_cast<int>(threadIdx.x); i < move.length; i += kThreads) {
      to.scale(move.to_slot + i) = from.scale(move.from_slot + i);
    }
  }
}

// ---- read -------------------------------------------------------------------------------------------

struct ReadArguments {
  KvShape shape;
  const AppendSlot* slots;  // [n]
  int n;
  struct {
    void* pool;
    float* rows;  // [n, Hkv, D]
  } from[2];
};

// Grid: (chunks of all rows and kv heads; keys, values).
template <typename T>
__global__ void __launch_bounds__(kThreads) read_kv(const __grid_constant__ ReadArguments p) {
  simt::follow_preceding();
  const int chunks = static_cast<int>(p.shape.head_dim) / kUnitElements;  // without padding
  const int kv_heads = static_cast<int>(p.shape.kv_heads);
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int row = i / chunks;  // of (token, kv head)
  if (row >= p.n * kv_heads) return;
  const AppendSlot slot = p.slots[row / kv_heads];
  const PageHead<T> head = page_head<T>(p.from[blockIdx.y].pool, p.shape, slot.page, row % kv_heads);
  float x[8];
  to_floats<T>(head.chunk(slot.slot, i % chunks), x);
  if constexpr (kHasScale<T>) {
    const float scale = head.scale(slot.slot);
#pragma unroll
    for (int j = 0; j < kUnitElements; ++j) x[j] *= scale;
  }
  float4* to = reinterpret_cast<float4*>(p.from[blockIdx.y].rows + static_cast<std::size_t>(i) * kUnitElements);
  to[0] = make_float4(x[0], x[1], x[2], x[3]);
  to[1] = make_float4(x[4], x[5], x[6], x[7]);
}

}  // namespace

// ---- rows on the host -------------------------------------------------------------------------------

namespace {

// Calls copy(offset in the page, offset in the rows, bytes) for each piece of the marked slots: chunk by chunk where
// they are permuted, else row by row; then their scales.
template <typename Copy>
void for_each_piece(const KvShape& shape, KvFormat format, std::uint64_t slots, Copy copy) {
  const auto width = static_cast<int>(shape.row_elements());
  const auto row_bytes = static_cast<std::size_t>(shape.row_elements() * kv_element_bytes(format));
  const auto used_bytes = static_cast<std::size_t>(shape.head_dim * kv_element_bytes(format));
  const auto scale_bytes = static_cast<std::size_t>(kv_scale_bytes(format));
  const auto for_each_slot = [&](const auto& visit) {
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
      for (int slot = 0; slot < kPageSize; ++slot) {
        if (slots >> slot & 1) visit(page_byte(0, head, shape.kv_heads, format, width), slot);
      }
    }
  };
  std::size_t at = 0;
  for_each_slot([&](std::size_t head, int slot) {
    if (!is_permuted(format)) {
      copy(head + slot * row_bytes, at, used_bytes);
      at += used_bytes;
      return;
    }
    const auto chunks = static_cast<int>(row_bytes / kChunkBytes);
    for (int chunk = 0; chunk < static_cast<int>(used_bytes / kChunkBytes); ++chunk, at += kChunkBytes) {
      copy(head + static_cast<std::size_t>(swizzled_chunk(chunks, slot, chunk)) * kChunkBytes, at, kChunkBytes);
    }
  });
  if (scale_bytes == 0) return;
  for_each_slot([&](std::size_t head, int slot) {
    copy(head + kPageSize * row_bytes + slot * scale_bytes, at, scale_bytes);
    at += scale_bytes;
  });
}

}  // namespace

void gather_rows(const KvShape& shape, KvFormat format, const std::byte* page, std::uint64_t slots, std::byte* rows) {
  for_each_piece(shape, format, slots, [&](std::size_t in_page, std::size_t row, std::size_t bytes) {
    std::memcpy(rows + row, page + in_page, bytes);
  });
}

void scatter_rows(const KvShape& shape, KvFormat format, std::byte* page, std::uint64_t slots, const std::byte* rows) {
  for_each_piece(shape, format, slots, [&](std::size_t in_page, std::size_t row, std::size_t bytes) {
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

// Calls launch.template operator()<T>(sides) for keys and values together where they have one format, else for each
// alone. `from`: what kernels get of the two; of a launch for one, the first is looked at.
template <typename From, typename Launch>
cudaError_t for_keys_and_values(const KvShape& shape, From (&from)[2], Launch&& launch) {
  const auto with_format = [&](KvFormat format, unsigned sides) {
    return dispatch_format(format, [&]<typename T>() { return launch.template operator()<T>(sides); });
  };
  if (shape.key_format == shape.value_format) return with_format(shape.key_format, 2);
  const cudaError_t error = with_format(shape.key_format, 1);
  if (error != cudaSuccess) return error;
  from[0] = from[1];
  return with_format(shape.value_format, 1);
}

}  // namespace

cudaError_t launch_kv_append(const KvAppendParams& params, const StepArrays& step, KernelStream stream) {
  const KvShape& shape = params.shape;
  if (!is_supported(shape, step.rope.rotary_dim) || !is_count(params.rows)) return cudaErrorInvalidValue;
  if (!are_aligned({params.layer.keys, params.layer.values, step.rope.cos, step.rope.sin, params.k, params.v})) {
    return cudaErrorInvalidValue;
  }
  if (params.rows == 0) return cudaSuccess;
  RopeTable unturned = step.rope;
  unturned.rotary_dim = 0;
  AppendArguments p = {.shape = shape,
                       .rows = params.rows,
                       .dtype = params.buffers.dtype,
                       .slots = step.slots + params.first,
                       .from = {{params.k, params.layer.keys, step.rope}, {params.v, params.layer.values, unturned}}};
  return for_keys_and_values(shape, p.from, [&]<typename T>(unsigned sides) {
    const std::int64_t per_row = kHasScale<T> ? kRowLanes : units_of(shape);
    const unsigned ctas = ctas_for(params.rows * shape.kv_heads * per_row);
    if (ctas == 0) return cudaErrorInvalidValue;
    if constexpr (kHasScale<T>) {
      return SIMT_LAUNCH(append_codes, dim3(ctas, sides), dim3(kThreads), 0, stream, p);
    } else {
      return SIMT_LAUNCH(append_kv<T>, dim3(ctas, sides), dim3(kThreads), 0, stream, p);
    }
  });
}

cudaError_t launch_kv_move(const KvMoveParams& params, KernelStream stream) {
  const KvShape& shape = params.shape;
  if (!is_supported(shape, params.rope.rotary_dim) || !is_count(std::ssize(params.moves))) return cudaErrorInvalidValue;
  if (!are_aligned({params.layer.keys, params.layer.values, params.rope.cos, params.rope.sin})) {
    return cudaErrorInvalidValue;
  }
  if (params.moves.empty()) return cudaSuccess;
  MoveArguments p = {
      .shape = shape, .rope = params.rope, .from = {{params.layer.keys, true}, {params.layer.values, false}}};
  return for_keys_and_values(shape, p.from, [&]<typename T>(unsigned sides) {
    const dim3 grid(static_cast<unsigned>(params.moves.size()), static_cast<unsigned>(shape.kv_heads), sides);
    return SIMT_LAUNCH(move_kv<T>, grid, dim3(kThreads), 0, stream, p, params.moves.data());
  });
}

cudaError_t launch_kv_read(const KvReadParams& params, KernelStream stream) {
  const KvShape& shape = params.shape;
  const std::int64_t n = std::ssize(params.slots);
  if (!is_supported(shape, 0) || !is_count(n)) return cudaErrorInvalidValue;
  if (!are_aligned({params.layer.keys, params.layer.values, params.k, params.v})) return cudaErrorInvalidValue;
  if (n == 0) return cudaSuccess;
  const unsigned ctas = ctas_for(n * shape.kv_heads * (shape.head_dim / kUnitElements));
  if (ctas == 0) return cudaErrorInvalidValue;
  ReadArguments p = {.shape = shape,
                     .slots = params.slots.data(),
                     .n = static_cast<int>(n),
                     .from = {{params.layer.keys, params.k}, {params.layer.values, params.v}}};
  return for_keys_and_values(shape, p.from, [&]<typename T>(unsigned sides) {
    return SIMT_LAUNCH(read_kv<T>, dim3(ctas, sides), dim3(kThreads), 0, stream, p);
  });
}

}  // namespace hogwild::cuda
