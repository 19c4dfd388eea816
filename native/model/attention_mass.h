// Who listens to whom: how much of a new token's attention goes to each entry of its worker's view.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "device/device.h"

namespace hogwild {

// Collects, layer after layer, the probability mass that some new tokens put on the entries of their views: exp(lse of
// the entry's keys - lse of all that the token attends to), summed over layers and query heads. A sink's share is
// nobody's. It attends once more, for these tokens alone: each of their query ranges as if nothing else were there.
class AttentionMass {
 public:
  // `entries`: of each listener, those of its token's query ranges, in view order.
  explicit AttentionMass(std::vector<std::vector<std::int32_t>> entries);

  // A listener's new token.
  struct Listener {
    std::int64_t token = 0;    // of the step on the device
    std::size_t listener = 0;  // index into `entries`
  };

  // `attention`: what the layer has just done for all tokens of `step`, with lse.
  void add(Device& device, const DeviceStep& step, const AttentionParams& attention,
           std::span<const Listener> listeners);

  // Adds what a listener's token put on each entry of its view to mass [entries]. Waits for the device.
  void add_to(Device& device, std::size_t listener, std::span<float> mass) const;

 private:
  struct Plan;  // of their query ranges, each as a token of its own

  static float* reserve(Device& device, Buffer& buffer, std::int64_t floats);

  const std::vector<std::vector<std::int32_t>> entries_;
  std::vector<std::int32_t> first_sum_;  // of each listener: one for each of its query ranges
  std::int32_t n_sums_ = 0;
  Buffer sums_, q_, out_, lse_;
};

}  // namespace hogwild
