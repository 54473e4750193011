#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

namespace stablemask {

/// Whether STABLEMASK_FAULTS=all asks for every fault instead of a sample.
inline bool tries_all_faults() {
  const char* faults = std::getenv("STABLEMASK_FAULTS");
  return faults != nullptr && std::string(faults) == "all";
}

/// Counts over all tests of a process, printed at its end: "12 faults, 0 lost". Owned by GoogleTest
/// (AddGlobalTestEnvironment).
class Totals : public testing::Environment {
 public:
  explicit Totals(std::string what) : what_(std::move(what)) {}
  void add(int tried, int lost) {
    tried_ += tried;
    lost_ += lost;
  }
  void TearDown() override { std::printf("%d %s, %d lost\n", tried_, what_.c_str(), lost_); }

 private:
  std::string what_;
  int tried_ = 0, lost_ = 0;
};

}  // namespace stablemask
