#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/ops/decode.h"

namespace stablemask::nn {

class KvCache;

/// Tokens [1,T] of a forward pass that continue a cached sequence, or with `rows` tokens [B,T] that
/// begin B of them.
struct CachedTokens {
  KvCache* cache = nullptr;  ///< null: the tokens start a sequence that is not cached
  int64_t row = 0;           ///< of the cache
  int64_t position = 0;      ///< of the first token, so the number of tokens in the row before it
  int64_t count = 0;         ///< tokens to cache; those after them are padding. 0: all T
  at::Tensor rows = {};  ///< int64 [B] on the cache's device, in place of `row`; `position` is 0
};

/// Rotated keys and values of sequences that are being generated: [rows, slots, Hkv, D] a layer.
/// The token at position p of a sequence is in slot p mod slots. With config.window = W there are
/// at most W + 1 slots, so that memory and time per token stay constant however long a text gets.
class KvCache {
 public:
  /// Allocates the memory for `rows` sequences of at most `capacity` tokens. Throws ConfigError for
  /// a model whose result depends on the length of the input, which is not known when tokens are
  /// cached: mask length "sequence" and log_length_scale; and for a capacity beyond its learned
  /// positions.
  KvCache(const ModelConfig& config, int64_t rows, int64_t capacity, at::TensorOptions options);

  int64_t rows() const { return rows_; }
  int64_t slots() const { return slots_; }
  int64_t capacity() const { return capacity_; }
  int64_t bytes() const;  ///< of all layers
  const ops::DecodeCache& layer(int64_t layer) const { return layers_.at(layer); }

  /// Position of the first token that the row at `position` sees.
  int64_t first_visible(int64_t position) const;
  /// Caches k, v [1,T,Hkv,D] of `layer` and returns keys and values [1,S,Hkv,D] of positions
  /// first_visible(position) … position+T−1. Throws c10::Error for a row or positions outside the
  /// cache.
  std::pair<at::Tensor, at::Tensor> append(int64_t layer, const CachedTokens& tokens,
                                           const at::Tensor& k, const at::Tensor& v);
  /// Caches the first `tokens.count` positions of k, v [B,T,Hkv,D] in the rows `tokens.rows`. A
  /// sequence that is shorter may have any tokens after its own: decoding overwrites each before it
  /// reads it. Throws c10::Error for more tokens than slots.
  void begin(int64_t layer, const CachedTokens& tokens, const at::Tensor& k, const at::Tensor& v);

 private:
  /// `fresh` [1,T,Hkv,D] after the slots of positions first … end−1 of the row.
  at::Tensor after_cached(const at::Tensor& row, int64_t first, int64_t end,
                          const at::Tensor& fresh) const;
  void write(at::Tensor row, int64_t position, const at::Tensor& values) const;

  int64_t rows_, capacity_, slots_, window_;
  std::vector<ops::DecodeCache> layers_;
};

}  // namespace stablemask::nn
