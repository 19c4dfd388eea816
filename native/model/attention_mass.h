// Who listens to whom: how much of a new token's attention goes to each entry of its worker's view.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/device.h"

namespace hogwild {

// Collects, layer after layer, the probability mass that some new tokens put on the entries of their views: exp(lse of
// the entry's keys - lse of all that the token attends to), the mean over layers and query heads. A sink's share is
// nobody's. It attends once more, for these tokens alone: each of their query ranges as if nothing else were there.
class AttentionMass {
 public:
  // A new token whose mass is wanted.
  struct Listener {
    std::int64_t token = 0;                      // of the step on the device
    std::span<const std::int32_t> entries = {};  // of each of the token's query ranges, in view order
    std::span<float> mass = {};                  // [entries of the view]: the sum of its query heads is added to
  };

  // `attention`: what the layer has just done for all tokens of `step`, with lse.
  void add(Device& device, const DeviceStep& step, const AttentionParams& attention,
           std::span<const Listener> listeners);

 private:
  struct Plan;  // of their query ranges, each as a token of its own

  static float* reserve(Device& device, Buffer& buffer, std::int64_t floats);

  // Kept from layer to layer.
  Buffer q_, out_, lse_;
  std::vector<float> queries_, range_lse_, token_lse_;
};

}  // namespace hogwild
