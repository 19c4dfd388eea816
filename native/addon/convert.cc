#include "addon/convert.h"

#include <cmath>
#include <new>
#include <stdexcept>
#include <system_error>

#include "core/format.h"

namespace hogwild::addon {

Failure current_failure() noexcept {
  try {
    try {
      throw;
    } catch (const Error& error) {
      return {error.code(), error.what()};
    } catch (const std::bad_alloc&) {
      return {code::kOutOfMemory, "out of memory"};
    } catch (const std::length_error&) {  // a container asked for more than any memory holds
      return {code::kOutOfMemory, "out of memory"};
    } catch (const std::system_error& error) {  // thrown by std::thread alone, for want of memory or of threads
      return {code::kOutOfMemory, std::string("the system refused a thread: ") + error.what()};
    } catch (const std::exception& error) {
      return {code::kInternal, error.what()};
    } catch (...) {
      return {code::kInternal, "unknown C++ exception"};
    }
  } catch (...) {  // no memory for the message; this one is short enough to need none
    return {code::kOutOfMemory, "out of memory"};
  }
}

Napi::Error to_error(Napi::Env env, const Failure& failure) {
  const auto message = Napi::String::New(env, failure.message);
  const auto code = Napi::String::New(env, failure.code);
  const auto* data = env.GetInstanceData<EnvironmentData>();
  if (data != nullptr && !data->error_class.IsEmpty()) return Napi::Error(env, data->error_class.New({message, code}));
  const auto error = Napi::Error::New(env, failure.message);
  error.Value().Set("code", code);
  return error;
}

namespace {

// For messages: the value itself where it is short, else its type.
std::string describe(const Napi::Value& value) {
  switch (value.Type()) {
    case napi_undefined:
      return "undefined";
    case napi_null:
      return "null";
    case napi_boolean:
    case napi_number:
      return value.ToString().Utf8Value();
    case napi_string: {
      const std::string text = value.As<Napi::String>().Utf8Value();
      if (text.size() > 40) return "a string of " + std::to_string(text.size()) + " bytes";
      return std::string("'").append(text).append("'");
    }
    case napi_bigint:
      return "a bigint";
    case napi_function:
      return "a function";
    case napi_external:
      return "a handle of another kind";
    case napi_symbol:
      return "a symbol";
    case napi_object:
      if (value.IsTypedArray()) {
        return "a typed array of length " + std::to_string(value.As<Napi::TypedArray>().ElementLength());
      }
      return value.IsArray() ? "an array" : "an object";
  }
  return "something else";
}

}  // namespace

void Argument::refuse(const std::string& expected) const {
  throw Error(code::kInvalidArgument, path() + ": expected " + expected + ", received " + describe(value_));
}

bool Argument::boolean() const {
  if (!value_.IsBoolean()) refuse("a boolean");
  return value_.As<Napi::Boolean>().Value();
}

double Argument::number() const {
  if (value_.IsNumber()) {
    const double number = value_.As<Napi::Number>().DoubleValue();
    if (std::isfinite(number)) return number;
  }
  refuse("a finite number");
}

double Argument::number(double low, double high) const {
  if (value_.IsNumber()) {
    const double number = value_.As<Napi::Number>().DoubleValue();
    if (number >= low && number <= high) return number;
  }
  refuse("a number from " + std::to_string(low) + " to " + std::to_string(high));
}

std::int64_t Argument::integer(std::int64_t low, std::int64_t high) const {
  if (value_.IsNumber()) {
    const double number = value_.As<Napi::Number>().DoubleValue();
    if (number == std::floor(number) && number >= static_cast<double>(low) && number <= static_cast<double>(high)) {
      return static_cast<std::int64_t>(number);
    }
  }
  refuse("an integer from " + std::to_string(low) + " to " + std::to_string(high));
}

std::uint64_t Argument::uint64() const {
  if (value_.IsBigInt()) {
    bool lossless = false;
    const std::uint64_t integer = value_.As<Napi::BigInt>().Uint64Value(&lossless);
    if (lossless) return integer;
  }
  refuse("a bigint from 0 to 2^64 - 1");
}

std::string Argument::string() const {
  if (!value_.IsString()) refuse("a string");
  return value_.As<Napi::String>().Utf8Value();
}

Dtype Argument::dtype() const {
  return one_of<Dtype>({{"f32", Dtype::kF32}, {"f16", Dtype::kF16}, {"bf16", Dtype::kBF16}});
}

KvFormat Argument::kv_format() const {
  return one_of<KvFormat>(
      {{"f32", KvFormat::kF32}, {"f16", KvFormat::kF16}, {"bf16", KvFormat::kBF16}, {"int8", KvFormat::kInt8}});
}

Format Argument::format() const {
  if (value_.IsString()) {
    const FormatInfo* info = find_format(value_.As<Napi::String>().Utf8Value());
    if (info != nullptr) return info->format;
  }
  std::string names;
  for (const FormatInfo& info : kFormats) names += (names.empty() ? "" : " or ") + std::string(info.name);
  refuse(names);
}

Napi::Function Argument::function() const {
  if (!value_.IsFunction()) refuse("a function");
  return value_.As<Napi::Function>();
}

template <typename T>
std::vector<T> Argument::elements(napi_typedarray_type type, const char* expected) const {
  if (!value_.IsTypedArray() || value_.As<Napi::TypedArray>().TypedArrayType() != type) refuse(expected);
  const auto array = value_.As<Napi::TypedArrayOf<T>>();
  const T* data = array.Data();
  return data == nullptr ? std::vector<T>() : std::vector<T>(data, data + array.ElementLength());
}

std::vector<std::uint8_t> Argument::bytes() const { return elements<std::uint8_t>(napi_uint8_array, "a Uint8Array"); }

std::vector<std::int32_t> Argument::int32s() const { return elements<std::int32_t>(napi_int32_array, "an Int32Array"); }

std::vector<float> Argument::floats() const { return elements<float>(napi_float32_array, "a Float32Array"); }

std::vector<float> Argument::floats(std::int64_t length) const {
  std::vector<float> values = floats();
  if (static_cast<std::int64_t>(values.size()) != length) {
    refuse("a Float32Array of length " + std::to_string(length));
  }
  return values;
}

std::vector<double> Argument::doubles() const { return elements<double>(napi_float64_array, "a Float64Array"); }

Napi::Float32Array Argument::float32_array(std::int64_t length) const {
  if (value_.IsTypedArray() && value_.As<Napi::TypedArray>().TypedArrayType() == napi_float32_array) {
    const auto array = value_.As<Napi::Float32Array>();
    if (static_cast<std::int64_t>(array.ElementLength()) == length) return array;
  }
  refuse("a Float32Array of length " + std::to_string(length));
}

std::string Argument::path() const {
  if (of_ == nullptr) return name_;
  std::string path = of_->path();
  if (name_ != nullptr) return path.append(".").append(name_);
  return path.append("[").append(std::to_string(index_)).append("]");
}

Argument Argument::property(const char* name) const& {
  if (!value_.IsObject()) refuse("an object");
  return Argument(value_.As<Napi::Object>().Get(name), *this, name);
}

std::uint32_t Argument::array_length() const {
  if (!value_.IsArray()) refuse("an array");
  return value_.As<Napi::Array>().Length();
}

Argument Argument::item(std::uint32_t index) const {
  return Argument(value_.As<Napi::Array>().Get(index), *this, index);
}

namespace {

template <typename Array>
Array new_typed_array(Napi::Env env, const Napi::FunctionReference& constructor, napi_typedarray_type type,
                      std::int64_t length) {
  Napi::Value array;
  try {
    array = constructor.New({Napi::Number::New(env, static_cast<double>(length))});
  } catch (const Napi::Error&) {
    throw Error(code::kOutOfMemory, "no memory for a result of " + std::to_string(length) + " elements");
  }
  // A constructor that was replaced before the addon was loaded can return anything, and results are written to it.
  if (!array.IsTypedArray() || array.As<Napi::TypedArray>().TypedArrayType() != type ||
      static_cast<std::int64_t>(array.As<Napi::TypedArray>().ElementLength()) != length) {
    throw Error(code::kUnsupported, "a global typed array constructor was replaced before hogwild was loaded");
  }
  return array.As<Array>();
}

}  // namespace

Napi::Uint8Array new_uint8_array(Napi::Env env, std::int64_t length) {
  return new_typed_array<Napi::Uint8Array>(env, env.GetInstanceData<EnvironmentData>()->uint8_array, napi_uint8_array,
                                           length);
}

Napi::Int32Array new_int32_array(Napi::Env env, std::int64_t length) {
  return new_typed_array<Napi::Int32Array>(env, env.GetInstanceData<EnvironmentData>()->int32_array, napi_int32_array,
                                           length);
}

Napi::Float32Array new_float32_array(Napi::Env env, std::int64_t length) {
  return new_typed_array<Napi::Float32Array>(env, env.GetInstanceData<EnvironmentData>()->float32_array,
                                             napi_float32_array, length);
}

Napi::Float64Array new_float64_array(Napi::Env env, std::int64_t length) {
  return new_typed_array<Napi::Float64Array>(env, env.GetInstanceData<EnvironmentData>()->float64_array,
                                             napi_float64_array, length);
}

}  // namespace hogwild::addon
