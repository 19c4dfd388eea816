// How ops are cut for the thread pool.
#pragma once

#include <cstdint>

#include "device/cpu/thread_pool.h"

namespace hogwild {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Calls body(begin, end) for ranges that make up [0, rows), on all threads where that pays.
template <typename Body>
void for_rows(ThreadPool& pool, std::int64_t rows, std::int64_t cols, Body&& body) {
  // Elements of pointwise work below which one thread is done before a second has begun.
  constexpr std::int64_t kMinParallelElements = 8192;
  if (rows * cols < kMinParallelElements) {
    if (rows > 0) body(std::int64_t{0}, rows);
  } else {
    pool.run(rows, [&](std::int64_t begin, std::int64_t end, int) { body(begin, end); });
  }
}

}  // namespace hogwild
