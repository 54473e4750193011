#pragma once

#include <memory>
#include <vector>

#include "stablemask/dist/group.h"
#include "tests/train/steps.h"

/// Steps of several processes.
namespace stablemask::testing_processes {

using GroupPtr = std::shared_ptr<dist::Group>;

/// Sequences of a step: micro-batches of 1 row, number i on process i % size.
inline constexpr int64_t kBatch = 6, kContext = 16;

inline Config base_config() {
  Config config;
  config.model = testing_models::tiny_config(Position::kRope, true);
  config.model.layers = 3;
  config.optimizer.clip_norm = 0.5;
  return config;
}

/// Micro-batches of a process in a step; not all positions have a target.
inline std::vector<Batch> batches_of(const dist::Group& group, int64_t step) {
  Batch whole = testing_steps::batch(kBatch, kContext, step);
  std::vector<Batch> own;
  const std::vector<Batch> all = testing_steps::split(whole, kBatch);
  for (int64_t i = group.rank(); i < kBatch; i += group.size()) {
    own.push_back(all[i]);
    for (int64_t target = 0; target < 2 * i; ++target) {
      own.back().targets[target] = kIgnoreTarget;
      --own.back().valid_targets;
    }
  }
  return own;
}

}  // namespace stablemask::testing_processes
