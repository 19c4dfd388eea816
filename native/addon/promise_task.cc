#include "addon/promise_task.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

namespace hogwild::addon {

// ---- PromiseTask ----------------------------------------------------------------------------------

void PromiseTask::keep(Napi::Object value) { kept_ = Napi::Persistent(value); }

void PromiseTask::run() noexcept {
  const auto begin = std::chrono::steady_clock::now();
  try {
    if (*cancelled_) throw Error(code::kAborted, "aborted before it began");
    execute(*cancelled_);
  } catch (...) {
    failure_ = current_failure();
  }
  seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void PromiseTask::settle(Napi::Env env) {
  Napi::Value value;
  if (!failure_) {
    try {
      value = result(env);
    } catch (const Napi::Error&) {  // the environment is ending
      throw;
    } catch (...) {
      failure_ = current_failure();
    }
  }
  if (failure_) {
    deferred_->Reject(to_error(env, failure_).Value());
  } else {
    deferred_->Resolve(value);
  }
}

void PromiseTask::abandon() noexcept { kept_.SuppressDestruct(); }

// ---- Runner ---------------------------------------------------------------------------------------

// Shared by the Runner, its thread and its thread-safe function; the last of them frees it.
struct Runner::Core {
  static void deliver(Napi::Env env, Napi::Function callback, Core* core, PromiseTask* task);
  using Delivery = Napi::TypedThreadSafeFunction<Core, PromiseTask, deliver>;

  // The JavaScript thread's own.
  napi_env env = nullptr;
  std::size_t unsettled = 0;
  bool closed = false;

  Delivery delivery;
  std::thread thread;

  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::unique_ptr<PromiseTask>> queue;  // under the mutex, as are the next two
  CancelFlag running;                              // of the task under way
  bool stop = false;

  void run() {
    for (;;) {
      std::unique_ptr<PromiseTask> task;
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [this] { return stop || !queue.empty(); });
        if (queue.empty()) break;
        task = std::move(queue.front());
        queue.pop_front();
        running = task->cancel_flag();
      }
      task->run();
      {
        const std::lock_guard lock(mutex);
        running.reset();
      }
      // Never refused: the queue is unbounded, and this thread's own hold keeps the function open.
      delivery.NonBlockingCall(task.release());
    }
    delivery.Release();
  }

  void cancel_all() noexcept {
    {
      const std::lock_guard lock(mutex);
      stop = true;
      if (running) *running = true;
      for (const auto& task : queue) *task->cancel_flag() = true;
    }
    wake.notify_all();
  }

  void join() {
    if (thread.joinable()) thread.join();
  }

  static void at_environment_end(void* data) {
    auto* core = static_cast<Core*>(data);
    core->closed = true;
    core->cancel_all();
    core->join();
  }
};

// On the JavaScript thread, once per task; `env` is null when the environment is going away.
void Runner::Core::deliver(Napi::Env env, Napi::Function, Core* core, PromiseTask* raw) {
  const std::unique_ptr<PromiseTask> task(raw);
  core->unsettled--;
  if (env == nullptr) return task->abandon();
  if (core->unsettled == 0) core->delivery.Unref(env);
  task->settle(env);
}

Runner::Runner(Napi::Env env) : core_(std::make_shared<Core>()) {
  core_->env = env;
  auto hold = std::make_unique<std::shared_ptr<Core>>(core_);
  core_->delivery = Core::Delivery::New(
      env, "hogwild", 0, 1, core_.get(),
      [](Napi::Env ending, std::shared_ptr<Core>* core, Core*) {
        (*core)->join();  // its last act was to release the function: this waits for nothing
        napi_remove_env_cleanup_hook(ending, Core::at_environment_end, core->get());
        delete core;
      },
      hold.get());
  hold.release();
  core_->delivery.Unref(env);
  // Hooks run last-in first-out: the thread is joined before the thread-safe function is taken down.
  napi_add_env_cleanup_hook(env, Core::at_environment_end, core_.get());
  try {
    core_->thread = std::thread([core = core_] { core->run(); });
  } catch (...) {
    core_->closed = true;
    core_->delivery.Release();
    throw;
  }
}

Napi::Promise Runner::schedule(std::unique_ptr<PromiseTask> task) {
  if (core_->closed) throw Error(code::kClosed, "the device is closed");
  const Napi::Promise promise = task->deferred_.emplace(Napi::Promise::Deferred::New(core_->env)).Promise();
  {
    const std::lock_guard lock(core_->mutex);
    core_->queue.push_back(std::move(task));
  }
  if (core_->unsettled++ == 0) core_->delivery.Ref(core_->env);
  core_->wake.notify_one();
  return promise;
}

bool Runner::idle() const { return core_->unsettled == 0; }

bool Runner::closed() const { return core_->closed; }

void Runner::close() noexcept {
  if (std::exchange(core_->closed, true)) return;
  core_->cancel_all();
}

// ---- Cancel ---------------------------------------------------------------------------------------

void Cancel::add(const CancelFlag& flag) {
  if (cancelled_) {
    *flag = true;
    return;
  }
  std::erase_if(flags_, [](const auto& other) { return other.expired(); });
  flags_.push_back(flag);
}

void Cancel::cancel() {
  cancelled_ = true;
  for (const auto& weak : flags_) {
    if (const auto flag = weak.lock()) *flag = true;
  }
}

}  // namespace hogwild::addon
