// A test harness in one page: TEST(name) { CHECK(...); } and, at the end of the file, HOGWILD_TEST_MAIN.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "core/error.h"

namespace hogwild::testing {

struct Test {
  const char* name;
  void (*body)();
};
inline std::vector<Test> tests;
inline long checks = 0;
inline long failures = 0;

// HOGWILD_TEST_STOP: ends the program at the first failure.
inline void check(bool good, const char* file, int line, const std::string& what) {
  checks++;
  if (good) return;
  failures++;
  if (failures <= 50) std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what.c_str());
  if (std::getenv("HOGWILD_TEST_STOP") != nullptr) std::_Exit(1);
}

// Code of the Error that `body` throws, "" if none.
template <typename Body>
std::string code_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.code();
  }
  return "";
}

// argv[1], if given, selects the tests whose name contains it.
inline int run(int argc, char** argv) {
  const std::string filter = argc > 1 ? argv[1] : "";
  int n = 0;
  for (const Test& test : tests) {
    if (std::string(test.name).find(filter) == std::string::npos) continue;
    n++;
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    try {
      test.body();
    } catch (const std::exception& error) {
      check(false, test.name, 0, std::string("unexpected exception: ") + error.what());
    }
  }
  std::printf("%d tests, %ld checks, %ld failures\n", n, checks, failures);
  return failures == 0 && checks > 0 ? 0 : 1;
}

}  // namespace hogwild::testing

#define TEST(name)                                                                                  \
  static void name();                                                                               \
  static const bool registered_##name = (::hogwild::testing::tests.push_back({#name, name}), true); \
  static void name()
#define CHECK(condition) ::hogwild::testing::check(condition, __FILE__, __LINE__, #condition)
#define CHECK_MESSAGE(condition, message) \
  ::hogwild::testing::check(condition, __FILE__, __LINE__, std::string(#condition ": ") + (message))
#define CHECK_CODE(expected, ...) \
  CHECK_MESSAGE(::hogwild::testing::code_of([&] { __VA_ARGS__; }) == (expected), #__VA_ARGS__)
#define HOGWILD_TEST_MAIN \
  int main(int argc, char** argv) { return ::hogwild::testing::run(argc, argv); }
