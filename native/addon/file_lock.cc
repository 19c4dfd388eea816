// A lock on an open file: Node.js has none, and the tools that share the hub's cache lock with flock.
#include <napi.h>
#include <sys/file.h>

#include <cerrno>
#include <system_error>

#include "addon/convert.h"
#include "addon/exports.h"

namespace hogwild::addon {

Napi::Value try_lock(const Napi::CallbackInfo& info) {
  const Argument argument(info, 0, "file");
  const auto file = static_cast<int>(argument.integer(0, INT32_MAX));
  while (::flock(file, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno == EWOULDBLOCK) return Napi::Boolean::New(info.Env(), false);
    if (errno == EBADF) argument.refuse("an open file");
    throw Error(code::kUnsupported, "cannot lock the file: " + std::generic_category().message(errno));
  }
  return Napi::Boolean::New(info.Env(), true);
}

}  // namespace hogwild::addon
