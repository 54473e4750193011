#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stablemask/nn/kv_cache.h"
#include "stablemask/nn/model.h"

namespace stablemask::nn {

/// A model with a KV cache: the two passes of generation. The model's weights, learnable masks
/// among them, must not change during its lifetime. No gradients.
class Decoder {
 public:
  /// For `rows` sequences of at most `capacity` tokens. Throws as KvCache.
  Decoder(Transformer model, int64_t rows, int64_t capacity);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  /// Caches ids int64 [T], T ≥ 1, of the sequence in `row`, the first of them at `position`. Runs
  /// the kernels of training and evaluation, so long inputs are fast; at most kLongestPrefill
  /// tokens bound the memory. On a GPU T is padded to one of eight lengths between powers of two,
  /// because algorithms of matrix products are chosen for each length.
  void prefill(int64_t row, int64_t position, const at::Tensor& ids);
  static constexpr int64_t kLongestPrefill = 4096;
  /// Caches the first tokens, ids int64 [B,T], of B sequences in `rows`, int64 [B], in one pass. A
  /// shorter sequence is followed by any ids. T must be at most the cache's slots. On a GPU B is
  /// padded to a power of two and T as above.
  void begin(const at::Tensor& rows, const at::Tensor& ids);
  /// Tokens of the pass that begins `sequences` with at most `longest` tokens, padding included.
  static int64_t tokens_to_begin(int64_t sequences, int64_t longest);

  /// Logits [B,V] after ids int64 [B] at `positions` of the sequences in `rows`, which it caches;
  /// all int64 [B] on the model's device. −1 as position: no sequence, the logits have no meaning.
  at::Tensor decode(const at::Tensor& ids, const at::Tensor& positions, const at::Tensor& rows);

  const Transformer& model() const { return model_; }
  const KvCache& cache() const { return cache_; }

 private:
  Transformer model_;
  KvCache cache_;
  DecodeArgs args_;
};

}  // namespace stablemask::nn
