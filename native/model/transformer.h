// A model on a device: what the binding and the tests hold.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "model/decoder.h"
#include "model/step.h"

namespace hogwild {

class Transformer {
 public:
  // Throws kInvalidModel, kUnsupported: see Decoder.
  Transformer(std::shared_ptr<Device> device, ModelConfig config, std::unique_ptr<Weights> weights)
      : decoder_(std::move(device), std::move(config), std::move(weights)) {}

  const ModelConfig& config() const { return decoder_.config(); }
  Device& device() const { return decoder_.device(); }
  std::int64_t weight_bytes() const { return decoder_.weight_bytes(); }

  // A step in pieces, between which others may use the device. This object and the cache outlive it.
  std::unique_ptr<Step> begin(KvCache& cache, std::vector<StepWorker> workers) {
    return std::make_unique<Step>(decoder_, cache, std::move(workers));
  }

  // All of it at once.
  StepResult step(KvCache& cache, std::vector<StepWorker> workers, const std::atomic<bool>& cancel) {
    check_cancelled(cancel);
    const std::unique_ptr<Step> step = begin(cache, std::move(workers));
    while (!step->advance(cancel)) {
    }
    return std::move(step->result());
  }

 private:
  Decoder decoder_;
};

}  // namespace hogwild
