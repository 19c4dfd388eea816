// The one exception that native code throws on purpose. addon/ turns it into a JavaScript
// HogwildError; `code` becomes `error.code` and is part of the public interface.
#pragma once

#include <stdexcept>
#include <string>

namespace hogwild {

// The codes that native code uses; lib/errors.ts documents each for users.
namespace code {
inline constexpr const char* kInvalidArgument = "HOGWILD_INVALID_ARGUMENT";
inline constexpr const char* kInvalidModel = "HOGWILD_INVALID_MODEL";
inline constexpr const char* kInvalidSession = "HOGWILD_INVALID_SESSION";
inline constexpr const char* kUnsupported = "HOGWILD_UNSUPPORTED";
inline constexpr const char* kOutOfPages = "HOGWILD_OUT_OF_PAGES";
inline constexpr const char* kOutOfMemory = "HOGWILD_OUT_OF_MEMORY";
inline constexpr const char* kWriteConflict = "HOGWILD_WRITE_CONFLICT";
inline constexpr const char* kBusy = "HOGWILD_BUSY";
inline constexpr const char* kClosed = "HOGWILD_CLOSED";
inline constexpr const char* kAborted = "HOGWILD_ABORTED";
inline constexpr const char* kInternal = "HOGWILD_INTERNAL";
}  // namespace code

class Error : public std::runtime_error {
 public:
  Error(const char* code, const std::string& message) : std::runtime_error(message), code_(code) {}

  const char* code() const noexcept { return code_; }

 private:
  const char* code_;  // one of namespace code: a string literal, so never freed
};

// What most checks of arguments end with.
[[noreturn]] inline void refuse(const std::string& message) { throw Error(code::kInvalidArgument, message); }
inline void require(bool good, const char* message) {
  if (!good) refuse(message);
}

}  // namespace hogwild
