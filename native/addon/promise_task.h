// Asynchronous calls. Each device handle has one runner: a thread that executes tasks in the order in
// which they were scheduled, so everything that computes on a device comes from one thread, and none of
// it from libuv's four. Long tasks do their work in pieces and take turns with whatever else has been scheduled
// by then. A task's result goes back to the JavaScript thread and settles its promise.
//
// What holds memory of a device dies on that thread as well (Disposer): giving back gigabytes takes its
// time, and a card waits for all that is queued on it.
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
  // For a task that goes on with what another one began: `execute` is called even if it was cancelled before.
  struct Begun {};
  explicit PromiseTask(Begun) : begun_(true) {}

  // The work, on the runner's thread: no JavaScript here. Once `cancelled` is set it should throw
  // kAborted soon; the environment's end waits for it.
  virtual void execute(const std::atomic<bool>& cancelled) = 0;

  // Whether `execute` has done all of it. Where not, it is called again, after one turn of each task that
  // waits by then.
  virtual bool done() const { return true; }

  // The promise's value, on the JavaScript thread, after `execute` returned. Little may be done here:
  // it is time that the event loop loses. What `execute` has changed stays changed, so where that
  // matters this must not fail: no memory is asked for.
  virtual Napi::Value result(Napi::Env env) = 0;

  // Keeps `value` alive until the promise is settled. Arrays that nobody else can reach are memory that
  // `execute` may fill: results need no copy on the JavaScript thread.
  void keep(Napi::Object value);
  Napi::Object kept() const { return kept_.Value(); }

 private:
  friend class Runner;

  bool run() noexcept;  // one turn; whether it was the last
  void settle(Napi::Env env);
  void abandon() noexcept;

  std::optional<Napi::Promise::Deferred> deferred_;  // from schedule() on: one that is never settled leaks
  Napi::ObjectReference kept_;
  CancelFlag cancelled_ = std::make_shared<std::atomic<bool>>(false);
  bool begun_ = false;
  Failure failure_;
};

// Used on the JavaScript thread only. An idle runner keeps no process alive. At the end of the
// environment the task under way is cancelled and the thread joined.
class Runner {
 public:
  class Disposer;

  // Throws kOutOfMemory where the system refuses the thread.
  explicit Runner(Napi::Env env);
  ~Runner() { close(); }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  // Throws kClosed after close(), and where there is no memory; then the task was not scheduled.
  Napi::Promise schedule(std::unique_ptr<PromiseTask> task);

  // Whether no task is waiting or under way: nobody computes on the device.
  bool idle() const;
  bool closed() const;

  // Cancels every task and returns at once; their promises are still settled, with kAborted where the
  // task did not get to its end. The thread ends by itself, once nothing is left that is to die on it.
  void close() noexcept;

 private:
  struct Core;
  struct Disposal;

  std::shared_ptr<Core> core_;
};

// A deleter for the shared_ptr of one object: whoever drops the last reference, on whatever thread, the
// object dies on the runner's thread, behind the tasks scheduled before. At the end of the environment,
// when that thread is gone, it dies where it is dropped. Making one may throw; disposing does not, and
// waits for nothing.
class Runner::Disposer {
 public:
  explicit Disposer(const Runner& runner);

  template <typename T>
  void operator()(T* object) const noexcept {
    dispose(object, [](void* data) { delete static_cast<T*>(data); });
  }

 private:
  void dispose(void* object, void (*destroy)(void*)) const noexcept;

  std::shared_ptr<Disposal> disposal_;
};

// What a caller holds to cancel tasks: `createCancel` and `cancel` of the binding.
class Cancel {
 public:
  static constexpr const char* kKind = "cancel";

  void add(const CancelFlag& flag);  // sets it at once where cancel() came before
  void cancel();

 private:
  bool cancelled_ = false;
  std::vector<std::weak_ptr<std::atomic<bool>>> flags_;
};

}  // namespace hogwild::addon
