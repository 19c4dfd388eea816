#include "addon/promise_task.h"

#include <condition_variable>
#include <list>
#include <mutex>
#include <thread>
#include <utility>

namespace hogwild::addon {

// ---- PromiseTask ----------------------------------------------------------------------------------

void PromiseTask::keep(Napi::Object value) { kept_ = Napi::Persistent(value); }

bool PromiseTask::run() noexcept {
  try {
    if (*cancelled_ && !begun_) throw Error(code::kAborted, "aborted before it began");
    begun_ = true;
    execute(*cancelled_);
    return done();
  } catch (...) {
    failure_ = current_failure();
    return true;
  }
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

// Shared by the Runner, its thread, its thread-safe function and its disposers; the last of them frees it.
struct Runner::Core {
  // A task, or an object that is to die. Lists of entries are spliced: queueing one that exists cannot fail.
  struct Entry {
    std::unique_ptr<PromiseTask> task;
    void* object = nullptr;
    void (*destroy)(void*) = nullptr;
  };

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
  std::list<Entry> queue;     // under the mutex, as is all that follows
  CancelFlag running;         // of the task under way
  std::size_t disposals = 0;  // objects that are to die here
  bool stop = false;          // no task will come any more
  bool ending = false;        // nor will the thread wait for objects
  bool ended = false;

  void run() {
    for (;;) {
      std::list<Entry> next;
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [this] { return !queue.empty() || (stop && (disposals == 0 || ending)); });
        if (queue.empty()) {
          ended = true;
          break;
        }
        next.splice(next.begin(), queue, queue.begin());
        if (next.front().task) running = next.front().task->cancel_flag();
      }
      auto& [task, object, destroy] = next.front();
      if (!task) {
        destroy(object);
        continue;
      }
      const bool done = task->run();
      {
        const std::lock_guard lock(mutex);
        running.reset();
        if (!done) {
          queue.splice(queue.end(), next);
          continue;
        }
      }
      // Never refused: the queue is unbounded, and this thread's own hold keeps the function open.
      delivery.NonBlockingCall(task.release());
    }
    delivery.Release();
  }

  void cancel_all(bool environment_ends) noexcept {
    {
      const std::lock_guard lock(mutex);
      stop = true;
      ending |= environment_ends;
      if (running) *running = true;
      for (const Entry& entry : queue) {
        if (entry.task) *entry.task->cancel_flag() = true;
      }
    }
    wake.notify_all();
  }

  void join() {
    if (thread.joinable()) thread.join();
  }

  static void at_environment_end(void* data) {
    auto* core = static_cast<Core*>(data);
    core->closed = true;
    core->cancel_all(true);
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
    core_->ended = true;
    core_->delivery.Release();
    throw;
  }
}

Napi::Promise Runner::schedule(std::unique_ptr<PromiseTask> task) {
  if (core_->closed) throw Error(code::kClosed, "the device is closed");
  // Whatever can fail comes before the promise: one that is never settled leaks.
  std::list<Core::Entry> entry;
  PromiseTask& scheduled = *entry.emplace_back(Core::Entry{.task = std::move(task)}).task;
  const Napi::Promise promise = scheduled.deferred_.emplace(Napi::Promise::Deferred::New(core_->env)).Promise();
  {
    const std::lock_guard lock(core_->mutex);
    core_->queue.splice(core_->queue.end(), entry);
  }
  if (core_->unsettled++ == 0) core_->delivery.Ref(core_->env);
  core_->wake.notify_one();
  return promise;
}

bool Runner::idle() const { return core_->unsettled == 0; }

bool Runner::closed() const { return core_->closed; }

void Runner::close() noexcept {
  if (std::exchange(core_->closed, true)) return;
  core_->cancel_all(false);
}

// ---- Disposer -------------------------------------------------------------------------------------

struct Runner::Disposal {
  std::shared_ptr<Core> core;
  std::list<Core::Entry> entry = std::list<Core::Entry>(1);  // made in advance: disposing asks for no memory

  explicit Disposal(std::shared_ptr<Core> runner) : core(std::move(runner)) {
    const std::lock_guard lock(core->mutex);
    core->disposals++;
  }
  ~Disposal() {
    {
      const std::lock_guard lock(core->mutex);
      core->disposals--;
    }
    core->wake.notify_all();
  }
  Disposal(const Disposal&) = delete;
  Disposal& operator=(const Disposal&) = delete;
};

Runner::Disposer::Disposer(const Runner& runner) : disposal_(std::make_shared<Disposal>(runner.core_)) {}

void Runner::Disposer::dispose(void* object, void (*destroy)(void*)) const noexcept {
  Core& core = *disposal_->core;
  {
    const std::lock_guard lock(core.mutex);
    if (!core.ended) {
      disposal_->entry.front() = {.task = nullptr, .object = object, .destroy = destroy};
      core.queue.splice(core.queue.end(), disposal_->entry);
      object = nullptr;
    }
  }
  if (object) return destroy(object);
  core.wake.notify_all();
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
