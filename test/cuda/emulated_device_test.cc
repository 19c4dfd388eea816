// The host side of the CUDA device on the emulated card, which can be told to fail and counts what it is asked for:
// memory, graphs, streams, the choice of a card.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../native/check.h"
#include "core/float16.h"
#include "core/format.h"
#include "device/cuda/memory.h"
#include "device/device.h"
#include "kernels.h"
#include "kv_shape.h"
#include "simt/simt.h"
#include "worker_step.h"

namespace hogwild {
namespace {

constexpr std::int64_t kHeads = 2, kQueryHeads = 4, kDim = 64;

// As a test finds the card.
struct Fresh {
  Fresh() { simt::card = {.allocated = simt::card.allocated, .checks_graphs = false}; }
};

std::string message_of(const auto& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}
bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Attention of one step over a pool of its own.
struct Attention {
  explicit Attention(std::shared_ptr<Device> device, std::int64_t workers = 3, std::int64_t common = 100)
      : device(std::move(device)), step(workers, common, 20, 0, kDim) {
    const std::int64_t pages = std::ssize(step.pages);
    keys = allocate(pages * shape().page_bytes(KvFormat::kBF16));
    values = allocate(pages * shape().page_bytes(KvFormat::kBF16));
    std::vector<std::uint16_t> cached(static_cast<std::size_t>(pages * shape().page_elements()));
    for (std::size_t i = 0; i < cached.size(); ++i) cached[i] = f32_to_bf16(0.01f * static_cast<float>(i % 101) - 0.5f);
    for (const Buffer* pool : {&keys, &values}) this->device->upload(pool->data(), cached.data(), 2 * cached.size());
    const std::int64_t rows = this->device->bucket_rows(workers);
    q = allocate(4 * rows * kQueryHeads * kDim);
    out = allocate(4 * rows * kQueryHeads * kDim);
    lse = allocate(4 * rows * kQueryHeads);
    std::vector<float> queries(static_cast<std::size_t>(rows * kQueryHeads * kDim));
    for (std::size_t i = 0; i < queries.size(); ++i) queries[i] = 0.01f * static_cast<float>(i % 97) - 0.5f;
    this->device->upload(q.data(), queries.data(), queries.size() * sizeof(float));
  }
  static KvShape shape() { return bf16_shape(1, kHeads, kDim); }
  Buffer allocate(std::int64_t bytes) const { return device->allocate(static_cast<std::size_t>(bytes), "a test"); }
  AttentionParams params() const {
    return {.shape = shape(),
            .layer = {keys.data(), values.data()},
            .query_heads = kQueryHeads,
            .scale = 0.125f,
            .q = q.data(),
            .out = out.data(),
            .lse = lse.as<float>()};
  }
  std::unique_ptr<DeviceStep> upload() const { return device->upload(step.view()); }
  void run(const DeviceStep& on_device) const { device->attention(on_device, params()); }
  // As a step of a model: uploaded, then run or replayed.
  void replay(const Device::GraphKey& key, const std::function<void(const DeviceStep&)>& ops) const {
    const auto on_device = upload();
    device->replay(key, *on_device, [&] { ops(*on_device); });
  }
  std::vector<float> results() const {
    std::vector<float> host(static_cast<std::size_t>(step.workers * kQueryHeads * kDim));
    device->download(host.data(), out.data(), host.size() * sizeof(float));
    return host;
  }

  std::shared_ptr<Device> device;
  WorkerStep step;
  Buffer keys, values, q, out, lse;
};

// ---- the card -------------------------------------------------------------------------------------------

TEST(what_cards_there_are_is_asked_without_a_context) {
  const Fresh fresh;
  simt::card.count = 2;
  CHECK(cuda_status().cards.size() == 2);
  CHECK(cuda_status().reason.empty());
  CHECK(simt::card.contexts.empty());
}

TEST(only_the_chosen_card_gets_a_context) {
  const Fresh fresh;
  simt::card.count = 3;
  std::shared_ptr<Device> device = create_cuda_device(1);
  Buffer buffer = device->allocate(1000, "a test");
  CHECK(simt::card.contexts == std::set<int>{1});
  // Another thread, with no card of its own, gives it back.
  const std::size_t allocated = simt::card.allocated;
  std::thread([&] { buffer = Buffer(); }).join();
  CHECK(simt::card.allocated == allocated - 1000);
  std::thread([&] { device.reset(); }).join();
  CHECK(simt::card.contexts == std::set<int>{1});
}

TEST(a_card_that_cannot_be_used_says_why) {
  const Fresh fresh;
  CHECK_CODE(std::string(code::kInvalidArgument), create_cuda_device(1));
  simt::card.has_kernels = false;
  CHECK(contains(message_of([] { create_cuda_device(0); }), "no kernels"));
  simt::card = {.compute_capability = 75};
  CHECK(contains(message_of([] { create_cuda_device(0); }), "7.5"));
  simt::card = {.driver_version = 12020};
  CHECK(contains(message_of([] { create_cuda_device(0); }), "12.2"));
  simt::card = {.driver_version = 0};
  CHECK(contains(message_of([] { create_cuda_device(0); }), "no NVIDIA driver"));
}

TEST(an_error_that_loses_the_context_says_so) {
  const Fresh fresh;
  const auto device = create_cuda_device(0);
  const Buffer buffer = device->allocate(16, "a test");
  const auto failure = [&](cudaError_t error) {
    simt::card.copy_error = error;
    simt::card.failing_copies = 1;
    return message_of([&] {
      const int zero = 0;
      device->upload(buffer.data(), &zero, sizeof zero);
    });
  };
  CHECK(contains(failure(cudaErrorIllegalAddress), "start it anew"));
  CHECK(contains(failure(cudaErrorLaunchFailure), "start it anew"));
  const std::string once = failure(cudaErrorInvalidValue);
  CHECK(contains(once, "cudaErrorInvalidValue") && !contains(once, "start it anew"));
}

// ---- sampling ------------------------------------------------------------------------------------------

// Rows of every kind side by side: each finds its own ids, counts and bans.
TEST(penalties_of_rows_side_by_side) {
  const Fresh fresh;
  constexpr std::int32_t kVocab = 50;
  struct Case {
    float repetition, presence, frequency;
    std::vector<std::int32_t> seen, counts, forbidden;
  };
  const std::vector<Case> cases = {
      {1, 0, 0, {1, 2, 3}, {1, 1, 1}, {}},  // nothing is penalised
      {1, 0.5f, 0, {7, 9, 11}, {3, 1, 2}, {30}},
      {1, 0, 0.25f, {7, 9, 11}, {3, 1, 2}, {}},
      {1, 0, 0, {}, {}, {31, 32}},
      {1.5f, 0, 0, {5, 6, 49}, {}, {}},
      {1, 1, -2, {0, 48, 20}, {1, 2, 7}, {20, 21}},
      {0.5f, -0.5f, 0.125f, {3, 13, 23, 33}, {4, 3, 2, 1}, {}},
      {1, 0, 0.5f, {40, 41}, {}, {}},  // once each
      {1, 2, 0, {}, {}, {}},           // nothing was seen
  };
  std::vector<float> logits;
  std::vector<SampleParams::Row> rows;
  std::vector<std::int32_t> expected;
  // Each case with each of its seen ids, and one that was not, in front by little more than the others.
  for (const Case& c : cases) {
    std::vector<std::int32_t> leaders = c.seen;
    leaders.push_back(17);
    for (const std::int32_t leader : leaders) {
      std::vector<float> row(kVocab);
      for (std::int32_t id = 0; id < kVocab; ++id) row[id] = 2 + 0.01f * static_cast<float>(id * 7 % kVocab);
      row[leader] = 3;
      rows.push_back({.logits_row = std::ssize(rows),
                      .repetition_penalty = c.repetition,
                      .presence_penalty = c.presence,
                      .frequency_penalty = c.frequency,
                      .seen = c.seen,
                      .counts = c.counts,
                      .forbidden = c.forbidden});
      logits.insert(logits.end(), row.begin(), row.end());
      for (std::size_t i = 0; i < c.seen.size(); ++i) {
        const float count = c.counts.empty() ? 1 : static_cast<float>(c.counts[i]);
        row[c.seen[i]] = row[c.seen[i]] / c.repetition - c.presence - count * c.frequency;
      }
      for (const std::int32_t id : c.forbidden) row[id] = -INFINITY;
      expected.push_back(static_cast<std::int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
    }
  }
  const auto device = create_cuda_device(0);
  const Buffer on_device = device->allocate(logits.size() * sizeof(float), "a test");
  device->upload(on_device.data(), logits.data(), logits.size() * sizeof(float));
  std::vector<std::int32_t> tokens(rows.size(), -1);
  device->sample({.logits = on_device.as<float>(), .vocab = kVocab, .rows = rows, .tokens = tokens.data()});
  CHECK(tokens == expected);

  rows.front().counts = rows.front().counts.first(2);
  CHECK_CODE(std::string(code::kInvalidArgument),
             device->sample({.logits = on_device.as<float>(), .vocab = kVocab, .rows = rows, .tokens = tokens.data()}));
}

// ---- layers that differ -------------------------------------------------------------------------------

// Layers of two kinds in turn, as many models have them: the work of a step is shared out once for each kind.
TEST(layers_of_different_windows_take_turns) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  AttentionParams plain = attention.params(), windowed = plain;
  windowed.window = 30;
  const auto alone = [&](const AttentionParams& params) {
    attention.device->attention(*attention.upload(), params);
    return attention.results();
  };
  const std::vector<float> all = alone(plain), seen = alone(windowed);
  CHECK(all != seen);

  const auto step = attention.upload();
  const std::size_t launches = simt::card.kernel_launches;
  for (int layer = 0; layer < 6; ++layer) {
    attention.device->attention(*step, layer % 2 == 0 ? plain : windowed);
    CHECK(attention.results() == (layer % 2 == 0 ? all : seen));
  }
  // Attention and combination; a plan for each kind, before which a window has the rows cut.
  CHECK(simt::card.kernel_launches - launches == 6 * 2 + 2 + 1);

  simt::card.checks_graphs = true;
  for (int i = 0; i < 4; ++i) {
    attention.replay({.model = 1, .cache = 1, .buffers = 1, .rows = 4}, [&](const DeviceStep& on_device) {
      for (int layer = 0; layer < 4; ++layer) {
        attention.device->attention(on_device, layer % 2 == 0 ? windowed : plain);
      }
    });
    CHECK(attention.results() == all);
  }
  CHECK(simt::card.graph_launches == 3);
}

// More kinds of layers than there is room for.
TEST(any_number_of_windows_in_a_step) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  const auto step = attention.upload();
  std::vector<std::vector<float>> first;
  for (int i = 0; i < 22; ++i) {
    AttentionParams params = attention.params();
    params.window = 1 + 9 * (i % 11);
    attention.device->attention(*step, params);
    if (i < 11) {
      first.push_back(attention.results());
    } else {
      CHECK(attention.results() == first[static_cast<std::size_t>(i % 11)]);
    }
  }
}

// A step whose views have temperatures is another graph than one without: it finds them in an array of its own.
TEST(temperatures_come_and_go_between_replays) {
  const Fresh fresh;
  simt::card.checks_graphs = true;
  Attention attention(create_cuda_device(0));
  attention.run(*attention.upload());
  const std::vector<float> cold = attention.results();
  const auto set_temperature = [&](float temperature) {
    for (QueryRange& range : attention.step.query_ranges) range.temperature = temperature;
  };
  set_temperature(3);
  attention.run(*attention.upload());
  const std::vector<float> warm = attention.results();
  CHECK(warm != cold);
  for (int i = 0; i < 8; ++i) {
    set_temperature(i / 2 % 2 == 0 ? 3 : 1);
    attention.replay({.model = 1, .cache = 1, .buffers = 1, .rows = 4},
                     [&](const DeviceStep& step) { attention.run(step); });
    CHECK(attention.results() == (i / 2 % 2 == 0 ? warm : cold));
  }
}

// Each layer turns queries by its own table, or not at all.
TEST(layers_of_different_ropes_take_turns) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  const WorkerStep& step = attention.step;
  const WorkerStep other(3, 100, 20, 0, 32);
  StepView view = step.view();
  const RopeTable first = view.ropes[0], second = other.view().ropes[0];
  const auto result = [&](std::span<const RopeTable> ropes, std::int32_t rope) {
    StepView with = view;
    with.ropes = ropes;
    const auto on_device = attention.device->upload(with);
    AttentionParams params = attention.params();
    params.layer.rope = rope;
    attention.device->attention(*on_device, params);
    return attention.results();
  };
  const RopeTable both[] = {first, second};
  const std::vector<float> by_first = result({&first, 1}, 0), by_second = result({&second, 1}, 0);
  const std::vector<float> unturned = result({&first, 1}, -1);
  CHECK(by_first != by_second && by_first != unturned && by_second != unturned);
  CHECK(result(both, 0) == by_first && result(both, 1) == by_second && result(both, -1) == unturned);
  CHECK(result({}, 0) == unturned);
}

// ---- graphs ---------------------------------------------------------------------------------------------

TEST(a_step_is_run_then_captured_then_replayed) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  int calls = 0;
  for (int i = 0; i < 4; ++i) {
    attention.replay({.model = 1, .cache = 1, .buffers = 1, .rows = 4}, [&](const DeviceStep& step) {
      ++calls;
      attention.run(step);
    });
  }
  CHECK(calls == 2);
  CHECK(simt::card.graph_launches == 3);
}

// What the host does for a step: the fewer calls, the sooner the card is at work.
TEST(a_replayed_step_takes_one_copy_and_one_launch) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  const Device::GraphKey key{.model = 1, .cache = 1, .buffers = 1, .rows = 4};
  const Buffer logits = attention.allocate(4 * 1000 * 4);
  const std::vector<SampleParams::Row> rows = {{.logits_row = 0, .temperature = 1}, {.logits_row = 3}};
  std::vector<std::int32_t> tokens(rows.size());
  std::vector<float> logprobs(rows.size());
  const SampleParams sample{
      .logits = logits.as<float>(), .vocab = 1000, .rows = rows, .tokens = tokens.data(), .logprobs = logprobs.data()};
  for (int i = 0; i < 3; ++i) {
    attention.replay(key, [&](const DeviceStep& step) { attention.run(step); });
    attention.device->sample(sample);
  }
  const simt::Card before = simt::card;
  attention.replay(key, [&](const DeviceStep& step) { attention.run(step); });
  CHECK(simt::card.copies - before.copies == 1);
  CHECK(simt::card.graph_launches - before.graph_launches == 1);
  CHECK(simt::card.kernel_launches == before.kernel_launches);
  CHECK(simt::card.synchronizations == before.synchronizations);
  // Sampling: its rows go there and its tokens come back, for all workers at once.
  attention.device->sample(sample);
  CHECK(simt::card.copies - before.copies == 3);
  CHECK(simt::card.kernel_launches - before.kernel_launches == 3);
  CHECK(simt::card.synchronizations - before.synchronizations == 1);
  CHECK(simt::card.allocations == before.allocations);
  CHECK(simt::card.pinned_allocations == before.pinned_allocations);
  CHECK(simt::card.timing_events == 0);
}

// Each kernel may begin before the one in front of it has ended, but for those behind a copy or a graph.
TEST(kernels_of_a_step_overlap) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  const auto launched = [&](const Attention& on, const auto& body) {
    const simt::Card before = simt::card;
    body();
    const std::vector<float> results = on.results();
    const int kernels = simt::card.kernel_launches - before.kernel_launches;
    return std::pair(kernels - (simt::card.overlapping - before.overlapping), results);
  };
  const Device::GraphKey key{.model = 1, .cache = 1, .buffers = 1, .rows = 4};
  const auto twice = [](const Attention& on) {
    return [&on](const DeviceStep& step) {
      on.run(step);
      on.run(step);
    };
  };
  const auto [first, expected] = launched(attention, [&] { twice(attention)(*attention.upload()); });
  CHECK(first == 1);  // behind the copy of the step
  for (int i = 0; i < 4; ++i) {
    const auto [others, results] = launched(attention, [&] { attention.replay(key, twice(attention)); });
    CHECK(others == (i < 2 ? 1 : 0) && results == expected);  // run, captured, replayed
  }
  const auto [again, results] = launched(attention, [&] { attention.run(*attention.upload()); });
  CHECK(again == 1 && results == expected);  // behind a graph

  // Where kernels do not wait, none overlaps.
  const auto check_none = [&] {
    const Attention other(create_cuda_device(0));
    const int before = simt::card.overlapping;
    for (int i = 0; i < 3; ++i) {
      other.replay(key, twice(other));
      CHECK(other.results() == expected);
    }
    CHECK(simt::card.overlapping == before);
  };
  simt::card.compute_capability = 89;
  check_none();
  simt::card = {.allocated = simt::card.allocated, .compiled_for = 80, .checks_graphs = false};
  check_none();
  simt::card = {.allocated = simt::card.allocated, .checks_graphs = false};
  setenv("HOGWILD_CUDA_OVERLAP", "off", 1);
  check_none();
  setenv("HOGWILD_CUDA_OVERLAP", "perhaps", 1);
  CHECK(contains(message_of([] { create_cuda_device(0); }), "HOGWILD_CUDA_OVERLAP: expected on or off"));
  unsetenv("HOGWILD_CUDA_OVERLAP");
}

// What another stream waits for, or is waited for, is no kernel.
TEST(kernels_on_an_engines_stream_do_not_overlap) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  const auto step = attention.upload();
  attention.run(*step);
  cudaStream_t stream = nullptr;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  const int before = simt::card.overlapping;
  AttentionParams params = attention.params();
  params.buffers = {.dtype = Dtype::kF32, .stream = stream, .is_external = true};
  attention.device->attention(*step, params);
  CHECK(simt::card.overlapping == before);
  const int kernels = simt::card.kernel_launches;
  attention.run(*step);
  CHECK(simt::card.overlapping - before == simt::card.kernel_launches - kernels - 1);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST(memory_made_while_a_step_is_captured_is_cleared_once) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  const Device::GraphKey key{.model = 1, .cache = 1, .buffers = 1, .rows = 4};
  attention.replay(key, [&](const DeviceStep& step) { attention.run(step); });
  Buffer other;
  attention.replay(key, [&](const DeviceStep& step) {
    attention.run(step);
    std::thread([&] { other = attention.allocate(64); }).join();
  });
  CHECK(simt::card.graph_launches == 1);
  const std::vector<float> pattern(16, 1.5f);
  attention.device->upload(other.data(), pattern.data(), 64);
  attention.replay(key, [](const DeviceStep&) { throw Error(code::kInternal, "not captured"); });
  std::vector<float> after(16);
  attention.device->download(after.data(), other.data(), 64);
  CHECK(after == pattern);
}

TEST(what_cannot_be_captured_is_run_each_time) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  const Device::GraphKey key{.model = 1, .cache = 1, .buffers = 1, .rows = 4};
  attention.run(*attention.upload());
  const std::vector<float> expected = attention.results();
  int calls = 0;
  const auto step = [&](const auto& disturb) {
    attention.device->synchronize();
    const std::vector<float> zeros(expected.size());
    attention.device->upload(attention.out.data(), zeros.data(), zeros.size() * sizeof(float));
    attention.replay(key, [&](const DeviceStep& on_device) {
      ++calls;
      attention.run(on_device);
      disturb();
    });
    CHECK(attention.results() == expected);
  };
  const auto nothing = [] {};
  // A call that no graph holds: the capture is lost, the step is not.
  const auto unsupported = [&] { static_cast<void>(attention.allocate(16)); };
  step(nothing);
  step(unsupported);
  CHECK(calls == 3);  // captured in vain, then run
  step(nothing);
  CHECK(calls == 4);
  CHECK(simt::card.graph_launches == 0);
}

TEST(a_graph_that_cannot_be_made_is_run_each_time) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  simt::card.failing_instantiations = 1;
  int calls = 0;
  for (int i = 0; i < 4; ++i) {
    attention.replay({.model = 1, .cache = 1, .buffers = 1, .rows = 4}, [&](const DeviceStep& step) {
      ++calls;
      attention.run(step);
    });
  }
  CHECK(calls == 5 && simt::card.graph_launches == 0);
  // Another key is captured.
  for (int i = 0; i < 2; ++i) {
    attention.replay({.model = 2, .cache = 1, .buffers = 1, .rows = 4},
                     [&](const DeviceStep& step) { attention.run(step); });
  }
  CHECK(simt::card.graph_launches == 1);
}

TEST(a_step_aborted_or_refused_while_it_is_captured_is_captured_later) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  const Device::GraphKey key{.model = 1, .cache = 1, .buffers = 1, .rows = 4};
  const auto step = [&](const char* error) {
    attention.replay(key, [&](const DeviceStep& on_device) {
      attention.run(on_device);
      if (error != nullptr) throw Error(error, "thrown by the test");
    });
  };
  step(nullptr);
  CHECK_CODE(std::string(code::kAborted), step(code::kAborted));
  CHECK_CODE(std::string(code::kInvalidArgument), step(code::kInvalidArgument));
  CHECK(simt::card.graph_launches == 0);
  step(nullptr);
  CHECK(simt::card.graph_launches == 1);
}

TEST(graphs_can_be_turned_off) {
  const Fresh fresh;
  setenv("HOGWILD_CUDA_GRAPHS", "off", 1);
  const Attention attention(create_cuda_device(0));
  int calls = 0;
  for (int i = 0; i < 3; ++i) {
    attention.replay({.model = 1, .cache = 1, .buffers = 1, .rows = 4}, [&](const DeviceStep& step) {
      ++calls;
      attention.run(step);
    });
  }
  CHECK(calls == 3 && simt::card.graph_launches == 0);
  setenv("HOGWILD_CUDA_GRAPHS", "maybe", 1);
  CHECK(contains(message_of([] { create_cuda_device(0); }), "HOGWILD_CUDA_GRAPHS: expected on or off, found 'maybe'"));
  unsetenv("HOGWILD_CUDA_GRAPHS");
}

TEST(equal_keys_with_other_arguments_are_noticed) {
  const Fresh fresh;
  simt::card.checks_graphs = true;
  const Attention attention(create_cuda_device(0));
  const Device::GraphKey key{.model = 1, .cache = 1, .buffers = 1, .rows = 4};
  for (int i = 0; i < 3; ++i) attention.replay(key, [&](const DeviceStep& step) { attention.run(step); });
  CHECK(simt::card.graph_launches == 2);
  const auto refused = [&](const auto& change) {
    return message_of([&] {
      attention.replay(key, [&](const DeviceStep& step) {
        AttentionParams params = attention.params();
        change(params);
        attention.device->attention(step, params);
      });
    });
  };
  CHECK(refused([](AttentionParams&) {}) == "");
  CHECK(contains(refused([](AttentionParams& p) { p.scale = 0.5f; }), "differs from its piece of work"));
  CHECK(contains(refused([](AttentionParams& p) { p.lse = nullptr; }), "differs from its piece of work"));
  CHECK(contains(message_of([&] { attention.replay(key, [](const DeviceStep&) {}); }), "piece of work 0 on"));
  CHECK(refused([](AttentionParams&) {}) == "");
}

TEST(steps_keep_their_memory_while_they_are_in_use) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  const WorkerStep other_step(3, 50, 10, 0, kDim);
  const auto one = attention.upload();
  attention.run(*one);
  const std::vector<float> expected = attention.results();
  {
    const auto other = attention.device->upload(other_step.view());
    attention.run(*other);
    const std::vector<float> others = attention.results();
    CHECK(others != expected);
    attention.run(*one);
    CHECK(attention.results() == expected);
    attention.run(*other);
    CHECK(attention.results() == others);
  }
  // Memory of ended steps is used again, and so is that in which their work is shared out.
  const auto run_some = [&] {
    for (int i = 0; i < 8; ++i) attention.run(*attention.device->upload(other_step.view()));
  };
  run_some();
  const std::size_t allocated = simt::card.allocated;
  run_some();
  CHECK(simt::card.allocated == allocated);
  attention.run(*one);
  CHECK(attention.results() == expected);
}

// A replayed graph shares out the work of its own step: for another one that is at hand it must be done again.
TEST(a_step_can_be_gone_on_with_after_a_replay) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0)), other(attention.device, 3, 900);
  const auto one = attention.upload();
  for (int i = 0; i < 4; ++i) {
    attention.run(*one);
    const std::vector<float> expected = attention.results();
    other.replay({.model = 1, .cache = 1, .buffers = 1, .rows = 4}, [&](const DeviceStep& step) { other.run(step); });
    attention.run(*one);
    CHECK(attention.results() == expected);
  }
}

// ---- what is rounded between ops ------------------------------------------------------------------------

// A product of what an op leaves in 16 bits has the bits of a product that rounds f32 itself.
TEST(products_round_as_what_comes_before_them) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0), 5, 300);
  Device& device = *attention.device;
  constexpr std::int64_t kRows = 5, kCols = kQueryHeads * kDim, kOutputs = 72;
  std::vector<float> values(static_cast<std::size_t>(kRows * kCols));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = 0.37f * static_cast<float>(i % 61) - 11.1f;
  const auto bytes_of = [](const std::vector<float>& v) { return v.size() * sizeof(float); };
  Buffer x = attention.allocate(static_cast<std::int64_t>(bytes_of(values)));
  device.upload(x.data(), values.data(), bytes_of(values));
  const Buffer between = attention.allocate(static_cast<std::int64_t>(bytes_of(values)));
  const Buffer y = attention.allocate(kRows * kOutputs * 4);
  const auto step = attention.upload();
  for (const Format format : {Format::kBF16, Format::kF16}) {
    std::vector<std::uint16_t> bits(static_cast<std::size_t>(kOutputs * kCols));
    for (std::size_t i = 0; i < bits.size(); ++i) {
      const float weight = 0.01f * static_cast<float>(i % 89) - 0.4f;
      bits[i] = format == Format::kF16 ? f32_to_f16(weight) : f32_to_bf16(weight);
    }
    WeightStorage storage;
    const Matrix weight = device.upload_weight(
        {.data = reinterpret_cast<const std::byte*>(bits.data()), .format = format, .rows = kOutputs, .cols = kCols},
        storage);
    CHECK(device.product_input(weight) == dtype_of(format));
    const auto product_after = [&](const auto& op, Dtype dtype) {
      op(between.data(), dtype);
      device.matmul({.x = between.data(),
                     .x_dtype = dtype,
                     .rows = kRows,
                     .k = kCols,
                     .n_outputs = 1,
                     .outputs = {{weight, nullptr, y.as<float>()}}});
      std::vector<float> host(static_cast<std::size_t>(kRows * kOutputs));
      device.download(host.data(), y.data(), bytes_of(host));
      return host;
    };
    const auto check = [&](const auto& op) {
      const std::vector<float> wide = product_after(op, Dtype::kF32);
      CHECK(wide == product_after(op, dtype_of(format)));
      CHECK(wide[0] != 0);
    };
    check([&](void* out, Dtype dtype) {
      device.rms_norm({.x = x.as<float>(),
                       .weight = x.as<float>(),
                       .eps = 1e-5f,
                       .rows = kRows,
                       .cols = kCols,
                       .out = out,
                       .out_dtype = dtype});
    });
    check([&](void* out, Dtype dtype) {
      device.gated_activation(
          {.gate = x.as<float>(), .up = attention.q.as<float>(), .n = kRows * kCols, .out = out, .out_dtype = dtype});
    });
    check([&](void* out, Dtype dtype) {
      AttentionParams params = attention.params();
      params.out = out;
      params.out_dtype = dtype;
      device.attention(*step, params);
    });
    // In the other 16 bits nothing is rounded twice: refused.
    CHECK_CODE(std::string(code::kUnsupported),
               product_after([](void*, Dtype) {}, format == Format::kF16 ? Dtype::kBF16 : Dtype::kF16));
  }
}

// ---- deterministic --------------------------------------------------------------------------------------

// The step of its first worker alone, which sees what it sees beside the others.
WorkerStep first_worker_of(const WorkerStep& step) {
  WorkerStep alone = step;
  alone.workers = 1;
  alone.query_ranges.clear();
  for (PlanSegment& segment : alone.segments) {
    alone.query_ranges.push_back(step.query_ranges[segment.first_query_range]);
    segment.first_query_range = std::ssize(alone.query_ranges) - 1;
    segment.n_query_ranges = 1;
  }
  alone.token_query_ranges.resize(alone.segments.size());
  std::iota(alone.token_query_ranges.begin(), alone.token_query_ranges.end(), 0);
  alone.token_query_ranges_at = {0, std::ssize(alone.token_query_ranges)};
  alone.slots.resize(1);
  alone.tokens.resize(1);
  return alone;
}

TEST(a_worker_gets_the_same_bits_alone_and_beside_others) {
  const Fresh fresh;
  simt::card.checks_graphs = true;
  for (const std::int64_t workers : {3, 40}) {  // 40: rows of more than one tile
    Attention attention(create_cuda_device(0, true), workers, 1200);
    CHECK(attention.device->info().deterministic);
    const WorkerStep all = attention.step, alone = first_worker_of(all);
    std::vector<float> expected;
    for (int i = 0; i < 6; ++i) {  // run, captured, replayed
      attention.step = i % 2 == 0 ? all : alone;
      attention.replay({.model = 1, .cache = 1, .buffers = 1, .rows = attention.step.workers},
                       [&](const DeviceStep& step) { attention.run(step); });
      std::vector<float> row = attention.results();
      row.resize(kQueryHeads * kDim);
      if (i == 0) expected = row;
      CHECK(row == expected);
    }
  }
  CHECK(!create_cuda_device(0)->info().deterministic);
}

TEST(products_of_many_rows_are_those_of_few) {
  const Fresh fresh;
  constexpr std::int64_t kRows = 150, kCols = 520, kOutputs = 72;
  std::vector<std::uint16_t> bits(static_cast<std::size_t>(kOutputs * kCols));
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = f32_to_bf16(0.01f * static_cast<float>(i % 89) - 0.4f);
  std::vector<float> values(static_cast<std::size_t>(kRows * kCols));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = 0.37f * static_cast<float>(i % 61) - 11.1f;
  const auto product = [&](bool deterministic, std::int64_t first, std::int64_t rows) {
    const auto device = create_cuda_device(0, deterministic);
    WeightStorage storage;
    const Matrix weight = device->upload_weight({.data = reinterpret_cast<const std::byte*>(bits.data()),
                                                 .format = Format::kBF16,
                                                 .rows = kOutputs,
                                                 .cols = kCols},
                                                storage);
    const Buffer x = device->allocate(static_cast<std::size_t>(rows * kCols) * sizeof(float), "a test");
    const Buffer y = device->allocate(static_cast<std::size_t>(rows * 2 * kOutputs) * sizeof(float), "a test");
    device->upload(x.data(), values.data() + first * kCols, x.bytes());
    float* second = y.as<float>() + rows * kOutputs;
    device->matmul({.x = x.data(),
                    .rows = rows,
                    .k = kCols,
                    .n_outputs = 2,
                    .outputs = {{weight, nullptr, y.as<float>()}, {weight, nullptr, second}}});
    std::vector<float> host(static_cast<std::size_t>(rows * 2 * kOutputs));
    device->download(host.data(), y.data(), y.bytes());
    return host;
  };
  const std::vector<float> all = product(true, 0, kRows);
  for (const std::int64_t row : {0, 64, 149}) {
    const std::vector<float> one = product(true, row, 1);
    for (const std::int64_t matrix : {0, 1}) {
      CHECK(std::equal(one.begin() + matrix * kOutputs, one.begin() + (matrix + 1) * kOutputs,
                       all.begin() + (matrix * kRows + row) * kOutputs));
    }
  }
  // Larger tiles add up in another order.
  CHECK(product(false, 0, kRows) != all);
}

// ---- an engine's buffers --------------------------------------------------------------------------------

TEST(buffers_of_an_engine_are_checked) {
  const Fresh fresh;
  simt::card.count = 2;
  const Attention attention(create_cuda_device(0));
  const auto refused = [&](const auto& change) {
    AttentionParams params = attention.params();
    params.buffers.is_external = true;
    change(params);
    return message_of([&] { attention.device->attention(*attention.upload(), params); });
  };
  CHECK(refused([](AttentionParams&) {}) == "");
  const auto* q = attention.q.as<float>();
  CHECK(contains(refused([&](AttentionParams& p) { p.out = attention.q.data(); }), "memory of their own"));
  CHECK(contains(refused([&](AttentionParams& p) {
                   p.q = q + 4;
                   p.out = const_cast<float*>(q);
                 }),
                 "memory of their own"));
  CHECK(contains(refused([&](AttentionParams& p) { p.lse = attention.out.as<float>() + 8; }), "memory of their own"));
  std::vector<float> host(static_cast<std::size_t>(3 * kQueryHeads * kDim));
  CHECK(contains(refused([&](AttentionParams& p) { p.q = host.data(); }), "buffers.q: expected"));
  CHECK(contains(refused([&](AttentionParams& p) { p.lse = host.data(); }), "buffers.lse: expected"));
  const Buffer small = attention.allocate(16);
  CHECK(contains(refused([&](AttentionParams& p) { p.out = small.data(); }), "buffers.out: expected 3072 bytes"));
  const auto other = create_cuda_device(1);
  const Buffer far = other->allocate(1 << 16, "a test");
  CHECK(contains(refused([&](AttentionParams& p) { p.q = far.data(); }), "found that of GPU 1"));

  // Whatever was refused: the next one is right.
  attention.run(*attention.upload());
  const std::vector<float> expected = attention.results();
  CHECK(refused([](AttentionParams&) {}) == "");
  CHECK(attention.results() == expected);
}

TEST(keys_and_values_may_share_memory) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  const auto step = attention.upload();
  KvAppendParams params{.shape = Attention::shape(),
                        .layer = {attention.keys.data(), attention.values.data()},
                        .rows = 3,
                        .k = attention.q.data(),
                        .v = attention.q.data(),
                        .buffers = {.dtype = Dtype::kF32, .stream = nullptr, .is_external = true}};
  attention.device->kv_append(*step, params);
  const std::vector<float> host(12);
  params.k = host.data();
  CHECK_CODE(std::string(code::kInvalidArgument), attention.device->kv_append(*step, params));
}

// Work on an engine's stream comes after what the device has enqueued, and before what it will.
TEST(streams_of_an_engine_and_of_the_device_wait_for_each_other) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  const auto step = attention.upload();
  cudaStream_t stream = nullptr;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  KvAppendParams append{.shape = Attention::shape(),
                        .layer = {attention.keys.data(), attention.values.data()},
                        .rows = 3,
                        .k = attention.q.data(),
                        .v = attention.q.data()};
  AttentionParams params = attention.params();
  const auto waits_of = [&](cudaStream_t engine) {
    append.buffers = params.buffers = {.dtype = Dtype::kF32, .stream = engine, .is_external = true};
    simt::card.waits.clear();
    attention.device->kv_append(*step, append);
    attention.device->attention(*step, params);
    return simt::card.waits;
  };
  for (const cudaStream_t engine : {stream, cudaStreamLegacy}) {
    const auto waits = waits_of(engine);
    CHECK(waits.size() == 4);  // two for each call
    if (waits.size() != 4) continue;
    const simt::Stream* const own = waits[0].first;
    CHECK(own != nullptr && own != engine);
    for (std::size_t i = 0; i < waits.size(); i += 2) {
      CHECK(waits[i] == std::pair(own, static_cast<const simt::Stream*>(engine)));
      CHECK(waits[i + 1] == std::pair(static_cast<const simt::Stream*>(engine), own));
    }
  }
  CHECK(waits_of(nullptr).empty());
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

TEST(a_stream_that_captures_is_refused) {
  const Fresh fresh;
  const Attention attention(create_cuda_device(0));
  const auto step = attention.upload();
  attention.run(*step);
  cudaStream_t stream = nullptr;
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  AttentionParams params = attention.params();
  params.buffers = {.dtype = Dtype::kF32, .stream = stream, .is_external = true};
  CHECK(contains(message_of([&] { attention.device->attention(*step, params); }), "captures no graph"));
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
  CHECK(graph->work.empty());
  attention.device->attention(*step, params);
  CHECK(cudaGraphDestroy(graph) == cudaSuccess && cudaStreamDestroy(stream) == cudaSuccess);
}

// ---- pages and host memory --------------------------------------------------------------------------------

TEST(pages_are_saved_and_loaded) {
  const Fresh fresh;
  const auto device = create_cuda_device(0);
  for (const std::int64_t head_dim : {24, 64, 72}) {
    KvShape shape = bf16_shape(1, kHeads, head_dim);
    shape.padding = device->kv_padding(shape);
    const std::int64_t page_bytes = shape.page_bytes(KvFormat::kBF16);
    const auto pool = [&] { return device->allocate(static_cast<std::size_t>(4 * page_bytes), "a test"); };
    const Buffer keys = pool(), values = pool(), other_keys = pool(), other_values = pool();
    const KvCopyParams::Page marked[] = {{.page = 2, .slots = ~std::uint64_t{0}},
                                         {.page = 0, .slots = 0x8000'0000'0000'0106}};
    const std::size_t bytes = static_cast<std::size_t>((64 + 4) * shape.token_bytes());
    std::vector<std::uint16_t> rows(bytes / 2), back(bytes / 2);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = f32_to_bf16(static_cast<float>(i % 1009) - 500);
    const auto params = [&](const Buffer& k, const Buffer& v, std::vector<std::uint16_t>& data) {
      return KvCopyParams{.shape = shape,
                          .layer = {.keys = k.data(), .values = v.data()},
                          .pages = marked,
                          .rows = reinterpret_cast<std::byte*>(data.data())};
    };
    device->kv_load(params(keys, values, rows));
    device->kv_save(params(keys, values, back));
    CHECK(back == rows);
    device->kv_load(params(other_keys, other_values, back));
    // What attention and the others read: the rows, page after page.
    std::vector<AppendSlot> slots;
    for (const auto& [page, mask] : marked) {
      for (std::int32_t slot = 0; slot < kPageSize; ++slot) {
        if (mask >> slot & 1) slots.push_back({.page = page, .slot = slot});
      }
    }
    const std::size_t elements = slots.size() * static_cast<std::size_t>(kHeads * head_dim);
    std::vector<float> k(elements), v(elements);
    const Buffer out_k = device->allocate(4 * elements, "a test"), out_v = device->allocate(4 * elements, "a test");
    device->kv_read({.shape = shape,
                     .layer = {.keys = other_keys.data(), .values = other_values.data()},
                     .slots = slots,
                     .k = out_k.as<float>(),
                     .v = out_v.as<float>()});
    device->download(k.data(), out_k.data(), 4 * elements);
    device->download(v.data(), out_v.data(), 4 * elements);
    std::size_t at = 0;
    bool good = true;
    for (const auto& [first, n] : {std::pair<std::int64_t, std::int64_t>{0, 64}, {64, 4}}) {
      for (const std::vector<float>* read : {&k, &v}) {
        for (std::int64_t h = 0; h < kHeads; ++h) {
          for (std::int64_t t = first; t < first + n; ++t) {
            for (std::int64_t d = 0; d < head_dim; ++d) {
              good &= (*read)[static_cast<std::size_t>((t * kHeads + h) * head_dim + d)] == bf16_to_f32(rows[at++]);
            }
          }
        }
      }
    }
    CHECK(good && at == rows.size());
  }
}

// ---- memory ---------------------------------------------------------------------------------------------

TEST(staging_grows_geometrically) {
  const Fresh fresh;
  cuda::PinnedBuffer buffer;
  for (std::size_t bytes = 1; bytes <= 10'000; ++bytes) buffer.reserve(bytes);
  CHECK_MESSAGE(simt::card.pinned_allocations <= 15, std::to_string(simt::card.pinned_allocations));
}

// Rows of int8 and f32, with what belongs to them, come back bit for bit.
TEST(pages_of_any_format_are_saved_and_loaded) {
  const Fresh fresh;
  const auto device = create_cuda_device(0);
  constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kF16, KvFormat::kBF16, KvFormat::kInt8};
  for (const KvFormat key_format : kFormats) {
    for (const KvFormat value_format : kFormats) {
      KvShape shape = {
          .layers = 1, .kv_heads = kHeads, .head_dim = 72, .key_format = key_format, .value_format = value_format};
      shape.padding = device->kv_padding(shape);
      const Buffer keys = device->allocate(static_cast<std::size_t>(3 * shape.page_bytes(key_format)), "a test");
      const Buffer values = device->allocate(static_cast<std::size_t>(3 * shape.page_bytes(value_format)), "a test");
      const KvCopyParams::Page marked[] = {{.page = 2, .slots = ~std::uint64_t{0}}, {.page = 0, .slots = 0x106}};
      std::vector<std::byte> rows(static_cast<std::size_t>((64 + 3) * shape.token_bytes())), back(rows.size());
      for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::byte>(i * 7 % 251);
      KvCopyParams params = {.shape = shape,
                             .layer = {.keys = keys.data(), .values = values.data()},
                             .pages = marked,
                             .rows = rows.data()};
      device->kv_load(params);
      params.rows = back.data();
      device->kv_save(params);
      CHECK(back == rows);
    }
  }
}

TEST(partial_results_do_not_grow_with_the_tokens) {
  cuda::AttentionLaunch launch{.params = {.shape = Attention::shape(), .query_heads = kQueryHeads}};
  launch.max_ctas = 264;
  launch.step.plan.max_tokens = 64;
  const std::size_t few = cuda::attention_workspace_bytes(launch);
  launch.step.plan.max_tokens = 32'768;
  const std::size_t many = cuda::attention_workspace_bytes(launch);
  CHECK_MESSAGE(few > 0 && many <= few + 4096, std::to_string(few) + ", " + std::to_string(many));
}

// Two CTAs of the larger tiles fit 228 KiB of shared memory, one fits 100 KiB.
TEST(there_are_as_many_ctas_as_fit) {
  const Fresh fresh;
  const auto workspace = [] {
    const std::size_t before = simt::card.allocated;
    const Attention attention(create_cuda_device(0), 5, 3000);
    attention.run(*attention.upload());
    return simt::card.allocated - before;
  };
  const std::size_t two = workspace();
  simt::card.shared_memory = 100 * 1024;
  const std::size_t one = workspace();
  CHECK_MESSAGE(one < two, std::to_string(one) + ", " + std::to_string(two));
  cuda::AttentionLaunch launch{.params = {.shape = bf16_shape(1, 8, 128), .query_heads = 40}};
  launch.step.plan.max_tokens = 4;
  int ctas = 0;
  CHECK(cuda::attention_ctas_per_multiprocessor(launch, &ctas) == cudaSuccess && ctas == 1);
  simt::card.shared_memory = 228 * 1024;
  CHECK(cuda::attention_ctas_per_multiprocessor(launch, &ctas) == cudaSuccess && ctas >= 2);
  launch.params.shape.head_dim = 7;
  CHECK(cuda::attention_ctas_per_multiprocessor(launch, &ctas) == cudaErrorInvalidValue);
}

}  // namespace
}  // namespace hogwild

HOGWILD_TEST_MAIN
