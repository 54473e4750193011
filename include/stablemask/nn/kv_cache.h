#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "stablemask/config/config.h"

namespace stablemask::nn {

/// Key/value cache of generation: rotated keys and values of every layer, [B, capacity, Hkv, D]
/// each, of which the first `length` tokens are valid.
class KvCache {
 public:
  /// For B = `batch` sequences of at most `capacity` tokens.
  KvCache(const ModelConfig& config, int64_t batch, int64_t capacity, at::TensorOptions options);

  int64_t length() const { return length_; }
  int64_t capacity() const { return capacity_; }
  /// Writes k, v [B,T,Hkv,D] of `layer` after the cached tokens; returns views [B,S,Hkv,D] of all
  /// S = length + T. Throws c10::Error if S exceeds the capacity.
  std::pair<at::Tensor, at::Tensor> append(int64_t layer, const at::Tensor& k, const at::Tensor& v);
  /// Adds `tokens` to length; call after every layer has appended them.
  void advance(int64_t tokens) { length_ += tokens; }
  /// Drops the tokens from `length` on. Throws c10::Error if fewer are cached.
  void truncate(int64_t length);

 private:
  std::vector<at::Tensor> keys_, values_;
  int64_t length_ = 0, capacity_ = 0;
};

}  // namespace stablemask::nn
