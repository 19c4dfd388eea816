// Asynchronous calls. Each device handle has one runner: a thread that executes tasks in the order in
// which they were scheduled, so everything that computes on a device comes from one thread, and none of
// it from libuv's four. A task's result goes back to the JavaScript thread and settles its promise.
#pragma once

#include <napi.h>

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "addon/convert.h"

namespace hogwild::addon {

using CancelFlag = std::shared_ptr<std::atomic<bool>>;

// The base of every asynchronous call. A task owns all that it works on (copies and shared_ptrs), since
// JavaScript may close or drop any handle meanwhile. It is made and destroyed on the JavaScript thread.
class PromiseTask {
 public:
  PromiseTask() = default;
  virtual ~PromiseTask() = default;
  PromiseTask(const PromiseTask&) = delete;
  PromiseTask& operator=(const PromiseTask&) = delete;

  const CancelFlag& cancel_flag() const { return cancelled_; }

 protected:
  // The work, on the runner's thread: no JavaScript here. Once `cancelled` is set it should throw
  // kAborted soon; the environment's end waits for it.
  virtual void execute(const std::atomic<bool>& cancelled) = 0;

  // The promise's value, on the JavaScript thread, after `execute` returned. Little may be done here:
  // it is time that the event loop loses.
  virtual Napi::Value result(Napi::Env env) = 0;

  // What `execute` took, the wait for its turn left out. Known in `result`.
  double seconds() const { return seconds_; }

  // Keeps `value` alive until the promise is settled. Arrays that nobody else can reach are memory that
  // `execute` may fill: results need no copy on the JavaScript thread.
  void keep(Napi::Object value);
  Napi::Object kept() const { return kept_.Value(); }

 private:
  friend class Runner;

  void run() noexcept;
  void settle(Napi::Env env);
  void abandon() noexcept;

  std::optional<Napi::Promise::Deferred> deferred_;  // from schedule() on: one that is never settled leaks
  Napi::ObjectReference kept_;
  CancelFlag cancelled_ = std::make_shared<std::atomic<bool>>(false);
  Failure failure_;
  double seconds_ = 0;
};

// Used on the JavaScript thread only. An idle runner keeps no process alive. At the end of the
// environment the task under way is cancelled and the thread joined.
class Runner {
 public:
  explicit Runner(Napi::Env env);
  ~Runner() { close(); }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  // Throws kClosed after close().
  Napi::Promise schedule(std::unique_ptr<PromiseTask> task);

  // Whether no task is waiting or under way: nobody computes on the device.
  bool idle() const;
  bool closed() const;

  // Cancels every task and returns at once; their promises are still settled, with kAborted where the
  // task did not get to its end. The thread ends by itself.
  void close() noexcept;

 private:
  struct Core;

  std::shared_ptr<Core> core_;
};

// What a caller holds to cancel tasks: `createCancel` and `cancel` of the binding.
class Cancel {
 public:
  static constexpr const char* kKind = "cancel";
  static constexpr napi_type_tag kTag{0x686f6777696c6401, 0x9d5c1f0b7a3e4c01};

  void add(const CancelFlag& flag);  // sets it at once where cancel() came before
  void cancel();

 private:
  bool cancelled_ = false;
  std::vector<std::weak_ptr<std::atomic<bool>>> flags_;
};

}  // namespace hogwild::addon
