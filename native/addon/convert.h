// What crosses the border between JavaScript and C++: arguments, handles, results and errors.
//
// No call from JavaScript may crash the process, so every argument is checked here, whatever its
// TypeScript type promises. Reading an argument can run JavaScript (a getter, a proxy) that changes
// anything, so functions read all their arguments first and look at the state of handles after that.
#pragma once

#include <napi.h>

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "addon/type_tags.h"
#include "core/error.h"
#include "core/kv_format.h"
#include "core/tensor.h"

namespace hogwild::addon {

// One per environment (the main thread, each worker thread): the addon has no mutable globals.
struct EnvironmentData {
  Napi::FunctionReference error_class;  // set by setErrorClass: new (message, code)
  Napi::FunctionReference uint8_array, int32_array, float32_array, float64_array;
};

// ---- errors ---------------------------------------------------------------------------------------

// What went wrong, carried from a native thread to JavaScript.
struct Failure {
  const char* code = nullptr;  // one of namespace code; null: nothing went wrong
  std::string message;

  explicit operator bool() const { return code != nullptr; }
};

// The exception being handled, as a Failure. Only inside a catch clause.
Failure current_failure() noexcept;

// A HogwildError, or, before setErrorClass was called, an Error with a `code`.
Napi::Error to_error(Napi::Env env, const Failure& failure);

// Every exported function goes through one of these: no C++ exception may reach Node. Node-API's own callbacks,
// since Napi::CallbackInfo asks for memory where a caller gives many arguments.
using Function = Napi::Value (*)(const Napi::CallbackInfo&);

template <typename Call>
napi_value throwing(Napi::Env env, Call&& call) {
  try {
    try {
      return call();
    } catch (const Napi::Error&) {
      throw;
    } catch (...) {
      throw to_error(env, current_failure());
    }
  } catch (const Napi::Error& error) {
    error.ThrowAsJavaScriptException();
    return nullptr;
  }
}

template <Function kFunction>
napi_value throwing(napi_env env, napi_callback_info info) {
  return throwing(env, [&]() -> napi_value { return kFunction(Napi::CallbackInfo(env, info)); });
}

// For functions that return a promise: they reject, they never throw.
template <Function kFunction>
napi_value rejecting(napi_env env, napi_callback_info info) {
  const auto rejected = [env](const Napi::Error& error) {
    const auto deferred = Napi::Promise::Deferred::New(env);
    deferred.Reject(error.Value());
    return deferred.Promise();
  };
  return throwing(env, [&]() -> napi_value {
    try {
      return kFunction(Napi::CallbackInfo(env, info));
    } catch (const Napi::Error& error) {
      return rejected(error);
    } catch (...) {
      return rejected(to_error(env, current_failure()));
    }
  });
}

// ---- handles --------------------------------------------------------------------------------------

// JavaScript holds native state through opaque, tagged Externals, each of which owns a reference.
// `State` names its kind (kKind) and stands in the list of type_tags.h, so one kind never passes for another.
template <typename State>
Napi::Value to_handle(Napi::Env env, std::shared_ptr<State> state) {
  using Owner = std::shared_ptr<State>;
  auto owner = std::make_unique<Owner>(std::move(state));
  auto external = Napi::External<Owner>::New(env, owner.get(), [](Napi::Env, Owner* data) { delete data; });
  owner.release();
  external.TypeTag(&kTypeTag<State>);
  return external;
}

// ---- arguments ------------------------------------------------------------------------------------

// A value from JavaScript with its path (`workers[1].tokens`), for messages. Readers throw
// kInvalidArgument, naming what is expected and what was received.
//
// A path is put together for a message alone, so a property refers to its object: whose argument must have a name of
// its own (`property` of a temporary does not compile).
class Argument {
 public:
  Argument(const Napi::CallbackInfo& info, std::size_t index, const char* name) : value_(info[index]), name_(name) {}
  Argument(const Argument&) = delete;
  Argument& operator=(const Argument&) = delete;

  [[noreturn]] void refuse(const std::string& expected) const;
  std::string path() const;

  bool is_null() const { return value_.IsNull(); }
  bool is_undefined() const { return value_.IsUndefined(); }
  bool boolean() const;
  double number() const;                                              // finite
  double number(double low, double high) const;                       // low <= x <= high
  std::int64_t integer(std::int64_t low, std::int64_t high) const;    // low <= x <= high
  std::int64_t count() const { return integer(0, kMaxSafeInteger); }  // an index, an offset
  std::int64_t size() const { return integer(1, kMaxSafeInteger); }   // a dimension
  std::uint64_t uint64() const;                                       // bigint
  std::string string() const;
  Dtype dtype() const;
  KvFormat kv_format() const;
  Format format() const;
  template <typename T>
  T one_of(std::initializer_list<std::pair<const char*, T>> choices) const {
    if (value_.IsString()) {
      const std::string text = value_.As<Napi::String>().Utf8Value();
      for (const auto& [name, choice] : choices) {
        if (text == name) return choice;
      }
    }
    std::string expected;
    for (const auto& [name, choice] : choices) {
      if (!expected.empty()) expected += " or ";
      expected += name;
    }
    refuse(expected);
  }
  Napi::Function function() const;

  // Typed arrays are copied: JavaScript may change or transfer them while a step runs.
  std::vector<std::uint8_t> bytes() const;
  std::vector<std::int32_t> int32s() const;
  std::vector<float> floats() const;
  std::vector<float> floats(std::int64_t length) const;  // exactly so many
  std::vector<double> doubles() const;
  // The array itself, of exactly so many elements. JavaScript may take its memory away at any time: whoever writes to
  // it later looks at its length again.
  Napi::Float32Array float32_array(std::int64_t length) const;

  Argument property(const char* name) const&;
  Argument property(const char* name) && = delete;
  // What `read` makes of each element of an array.
  template <typename Read>
  auto map(Read read) const {
    std::vector<decltype(read(std::declval<const Argument&>()))> results;
    const std::uint32_t length = array_length();
    for (std::uint32_t i = 0; i < length; i++) results.push_back(read(item(i)));
    return results;
  }

  template <typename State>
  std::shared_ptr<State> handle() const {
    if (value_.IsExternal()) {
      const auto external = value_.As<Napi::External<std::shared_ptr<State>>>();
      if (external.CheckTypeTag(&kTypeTag<State>)) return *external.Data();
    }
    refuse(std::string("a ") + State::kKind + " handle");
  }

  static constexpr std::int64_t kMaxSafeInteger = (std::int64_t{1} << 53) - 1;

 private:
  Argument(Napi::Value value, const Argument& of, const char* name) : value_(value), of_(&of), name_(name) {}
  Argument(Napi::Value value, const Argument& of, std::uint32_t index) : value_(value), of_(&of), index_(index) {}

  std::uint32_t array_length() const;
  Argument item(std::uint32_t index) const;
  template <typename T>
  std::vector<T> elements(napi_typedarray_type type, const char* expected) const;

  Napi::Value value_;
  const Argument* of_ = nullptr;  // whose property or element it is
  const char* name_ = nullptr;    // null: an element
  std::uint32_t index_ = 0;
};

// ---- results --------------------------------------------------------------------------------------

// Fresh zero-filled typed arrays. Made by their JavaScript constructors, which report a lack of memory
// (kOutOfMemory here), where Node-API's own call would end the process.
Napi::Uint8Array new_uint8_array(Napi::Env env, std::int64_t length);
Napi::Int32Array new_int32_array(Napi::Env env, std::int64_t length);
Napi::Float32Array new_float32_array(Napi::Env env, std::int64_t length);
Napi::Float64Array new_float64_array(Napi::Env env, std::int64_t length);

}  // namespace hogwild::addon
