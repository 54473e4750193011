#pragma once

#include <algorithm>
#include <cstdint>

#include "stablemask/data/batch.h"
#include "stablemask/data/shards.h"
#include "stablemask/infer/evaluate.h"

namespace stablemask {

/// Window k over `tokens` tokens; evaluate() defines the windows.
struct WindowPlan {
  int64_t tokens, length, stride;

  int64_t count() const {
    return tokens <= length ? 1 : 1 + (tokens - length + stride - 1) / stride;
  }
  int64_t begin(int64_t k) const { return k * stride; }
  int64_t end(int64_t k) const { return std::min(begin(k) + length, tokens); }
  int64_t first_scored(int64_t k) const { return k == 0 ? 0 : end(k - 1); }
  bool overlaps() const { return stride < length; }
  /// Windows of full length; at most one more, the last, is short.
  int64_t full() const {
    return end(count() - 1) - begin(count() - 1) == length ? count() : count() - 1;
  }
};

/// Throws ConfigError for a window, stride, batch or EOS id out of range; DataError when the shard
/// is empty or has more token ids than `vocabulary`, the model's.
WindowPlan window_plan(const Shard& shard, const EvalOptions& options, int64_t vocabulary);

/// Windows per forward pass: enough tokens to use the machine well, and never more windows than the
/// `count` there are.
int64_t windows_of_pass(const EvalOptions& options, int64_t count, bool on_cpu);

/// `rows` windows of equal length from window k on, in host memory. Throws DataError for an id that
/// is not below `vocabulary`.
Batch gather_windows(const Shard& shard, const WindowPlan& plan, const EvalOptions& options,
                     int64_t k, int64_t rows, int64_t vocabulary);

}  // namespace stablemask
