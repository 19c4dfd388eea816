// Views of blocks alone.
#pragma once

#include <vector>

#include "cache/attention_plan.h"

namespace hogwild {

inline std::vector<ViewEntry> entries_of(const std::vector<std::shared_ptr<CacheBlock>>& blocks) {
  std::vector<ViewEntry> entries;
  for (const auto& block : blocks) entries.push_back({.block = block});
  return entries;
}

}  // namespace hogwild
