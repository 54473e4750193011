#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "stablemask/config/config.h"

namespace stablemask::nn {

/// Keys (rotated) and values of every layer, [B, capacity, Hkv, D] each, filled to `length`.
class KvCache {
 public:
  /// For B = `batch` sequences of at most `capacity` tokens.
  KvCache(const ModelConfig& config, int64_t batch, int64_t capacity, at::TensorOptions options);

  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  /// Writes k, v [B,T,Hkv,D] of `layer` after the cached ones; returns views of all S = length + T.
  /// c10::Error when they do not fit.
  std::pair<at::Tensor, at::Tensor> append(int64_t layer, const at::Tensor& k, const at::Tensor& v);
  /// After every layer has appended T tokens.
  void advance(int64_t tokens) { length_ += tokens; }
  void truncate(int64_t length);

 private:
  std::vector<at::Tensor> keys_, values_;
  int64_t length_ = 0, capacity_ = 0;
};

}  // namespace stablemask::nn
