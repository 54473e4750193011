#pragma once

#include <memory>

#include "stablemask/dist/group.h"

namespace stablemask {

/// While it lives, the processes of `group` take the same algorithm for each GEMM of a GPU, and
/// process 0 alone writes the cache file (ops/algorithms.h): without it the last bits of a result
/// may depend on the process that computes it. One per process at a time; all processes have one.
class SharedAlgorithms {
 public:
  explicit SharedAlgorithms(std::shared_ptr<dist::Group> group);
  ~SharedAlgorithms();
  SharedAlgorithms(const SharedAlgorithms&) = delete;
  SharedAlgorithms& operator=(const SharedAlgorithms&) = delete;
};

}  // namespace stablemask
