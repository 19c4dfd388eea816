// How a page of the pool is arranged on the GPU: [kv head][kPageSize tokens][row], rows of 16-byte chunks.
// In the 16-bit formats the chunks of a row are permuted. A copy to shared memory is then linear, and ldmatrix, which
// reads one chunk of 8 neighbouring rows at a time, meets no bank twice. In the others, which are converted on the way,
// they lie in order. Behind the rows of a (page, kv head) stand their scales [kPageSize], where the format has them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/ops.h"
#include "simt/simt.h"

namespace hogwild::cuda {

inline constexpr int kChunkBytes = 16;

// Where a chunk of row `row` lies, in chunks from row 0, with an even number of chunks per row. Its number
// is the sum of an even number that is known at compile time where a thread walks along a row, and of the
// thread's own part, which shares no bit below `shared` with it.
//
// Shared memory has 8 groups of banks of 16 bytes. Row r begins at group r * chunks mod 8, which takes only
// 8 / g different values over 8 rows, g = gcd(chunks, 8); so rows that begin at the same group differ in
// the low bits of their chunks.
SIMT_HOST_DEVICE int swizzled_chunk(int chunks, int row, int even_chunk, int own_chunk) {
  const int shared = min(chunks & -chunks, 8);  // g: the greatest power of two that divides `chunks`
  // Written so that few registers hold all addresses of a thread: only even_chunk % shared meets the
  // thread's own part; what is added last is an immediate offset.
  const int own = own_chunk ^ (row / (8 / shared) % shared);
  return row * chunks + (even_chunk % shared ^ own) + even_chunk / shared * shared;
}

SIMT_HOST_DEVICE int swizzled_chunk(int chunks, int row, int chunk) {
  return swizzled_chunk(chunks, row, chunk & ~1, chunk & 1);
}

// First chunk of a (page, kv head) in its pool, in a 16-bit format ...
SIMT_HOST_DEVICE std::size_t page_offset(std::int64_t page, std::int64_t kv_head, std::int64_t kv_heads, int chunks) {
  return static_cast<std::size_t>((page * kv_heads + kv_head) * kPageSize * chunks);
}

SIMT_HOST_DEVICE bool is_permuted(KvFormat format) { return format == KvFormat::kBF16 || format == KvFormat::kF16; }

// ... and its first byte in any format, with rows of `width` elements.
SIMT_HOST_DEVICE std::size_t page_byte(std::int64_t page, std::int64_t kv_head, std::int64_t kv_heads, KvFormat format,
                                       int width) {
  const int row_bytes = is_permuted(format) ? 2 * width : format == KvFormat::kInt8 ? width + 4 : 4 * width;
  return static_cast<std::size_t>((page * kv_heads + kv_head) * kPageSize * row_bytes);
}

}  // namespace hogwild::cuda
