#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "stablemask/config/config.h"

namespace stablemask::nn {

/// Key/value cache of generation: rotated keys and values of every layer for the tokens that later
/// rows can see. With config.window = W the cache drops tokens that lie more than W−1 back, so that
/// memory and time per token stay constant however long the text gets.
class KvCache {
 public:
  /// For B = `batch` sequences of at most `capacity` tokens; a window that needs less memory than
  /// `capacity` removes the limit.
  KvCache(const ModelConfig& config, int64_t batch, int64_t capacity, at::TensorOptions options);

  int64_t length() const { return length_; }  ///< tokens appended so far, dropped ones included
  /// Tokens that one forward pass can append; longer inputs are appended in parts.
  int64_t longest_append() const;
  /// Position of the first key that `append` returns for `tokens` new tokens.
  int64_t first_position(int64_t tokens) const;

  /// Writes k, v [B,T,Hkv,D] of `layer` after the cached tokens; returns views [B,S,Hkv,D] of the
  /// tokens first_position(T) … length+T−1. Throws c10::Error if T > longest_append().
  std::pair<at::Tensor, at::Tensor> append(int64_t layer, const at::Tensor& k, const at::Tensor& v);
  /// Adds `tokens` to length; call after every layer has appended them.
  void advance(int64_t tokens);
  /// Drops the tokens from `length` on. Throws c10::Error if fewer are cached, or if tokens that
  /// the next row sees have been dropped.
  void truncate(int64_t length);

 private:
  /// Tokens before `length` that the row at `length` sees.
  int64_t visible(int64_t length) const;

  std::vector<at::Tensor> keys_, values_;  ///< [B, slots, Hkv, D]
  int64_t window_ = 0;                     ///< 0: none, or it does not bound the cache
  int64_t slots_ = 0;
  int64_t length_ = 0;
  int64_t first_ = 0;  ///< position of the token in slot 0
};

}  // namespace stablemask::nn
