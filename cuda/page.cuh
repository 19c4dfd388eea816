// How a page of the pool is arranged on the GPU: [kv head][kPageSize
// tokens][D], rows of D elements cut into chunks of 16 bytes, and the chunks of
// a row permuted. A copy to shared memory is then linear, and ldmatrix, which
// reads one chunk of 8 neighbouring rows at a time, meets no bank twice.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/ops.h"
#include "simt/simt.h"

namespace hogwild::cuda {

inline constexpr int kChunkElements = 8;  // 16 bytes of a 16-bit type

SIMT_HOST_DEVICE constexpr int greatest_common_divisor(int a, int b) {
  return b == 0 ? a : greatest_common_divisor(b, a % b);
}

// Where a chunk of row `row` lies, in chunks from row 0. Its number is the sum of an even number that is
// known at compile time where a thread walks along a row, and of the thread's own part, which shares no
// bit below kShared with it.
//
// Shared memory has 8 groups of banks of 16 bytes. Row r begins at group r *
// kChunks mod 8, which takes only 8 / g different values over 8 rows, g =
// gcd(kChunks, 8); so rows that begin at the same group differ in the low bits
// of their chunks.
template <int kHeadDim>
SIMT_DEVICE int swizzled_chunk(int row, int even_chunk, int own_chunk) {
  constexpr int kChunks = kHeadDim / kChunkElements;
  constexpr int kShared = greatest_common_divisor(kChunks, 8);
  static_assert(kHeadDim % 16 == 0, "mma.sync takes 16 columns at a time");
  // Written so that few registers hold all addresses of a thread: only
  // even_chunk % kShared meets the thread's own part; what is added last is an
  // immediate offset.
  const int own = own_chunk ^ (row / (8 / kShared) % kShared);
  return row * kChunks + (even_chunk % kShared ^ own) + even_chunk / kShared * kShared;
}

// First element of a (page, kv head) in its pool.
SIMT_DEVICE std::size_t page_offset(std::int64_t page, std::int64_t kv_head, const KvShape& shape) {
  return static_cast<std::size_t>((page * shape.kv_heads + kv_head) * kPageSize * shape.head_dim);
}

}  // namespace hogwild::cuda
