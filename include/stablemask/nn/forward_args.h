#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "stablemask/nn/kv_cache.h"
#include "stablemask/nn/linear.h"
#include "stablemask/nn/observer.h"
#include "stablemask/ops/decode.h"
#include "stablemask/ops/kernels.h"

namespace stablemask::nn {

/// Arguments of a forward pass besides the tokens. The caller may set document_start, cached,
/// dropout and observer; Transformer computes the others once for all layers.
struct ForwardArgs {
  at::Tensor document_start;  ///< int64 [B,T] or undefined (ops/attention.h)
  CachedTokens cached;        ///< the tokens, B = 1, continue a sequence of a KV cache
  at::Tensor positions;       ///< RoPE's or learned ones, int64 [T] or [B,T]
  at::Tensor rope;            ///< ops::rope_table, fp32 [rows, dims]
  at::Tensor log_mass;        ///< ops::row_log_mass; undefined if the mask is learnable or off
  DropoutStep dropout;        ///< of the adapters
  ops::Kernels kernels = ops::Kernels::kFused;
  ForwardObserver* observer = nullptr;  ///< sees intermediate values; null: none
};

/// Arguments of a decoding step, one new token of each of B cached sequences (ops/decode.h).
struct DecodeArgs {
  const KvCache* cache = nullptr;
  std::vector<ops::DecodeOptions> layers;  ///< Transformer::decode_options
  at::Tensor positions;                    ///< int64 [B]; −1: no sequence
  at::Tensor rows;                         ///< int64 [B]: rows of the cache
  ops::Kernels kernels = ops::Kernels::kFused;
};

/// Options of Transformer::loss.
struct LossOptions {
  double z_loss = 0.0;
  at::Tensor document_start;  ///< int64 [B,T] or undefined (ops/attention.h)
  /// The caller calls loss.backward() exactly once with a gradient of 1 (HeadGradient::kInForward).
  bool backward_follows = false;
  ForwardObserver* observer = nullptr;  ///< of the forward pass; null: none
  DropoutStep dropout = {};             ///< of the adapters
};

}  // namespace stablemask::nn
