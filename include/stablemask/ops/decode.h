#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "stablemask/ops/stable_mask.h"

namespace stablemask::ops {

/// Keys and values of one layer for decoding: `keys` and `values` [R,S,Hkv,D], R sequences with S
/// slots each. The token at position p of a sequence is in slot p mod S, so that with a window
/// W ≤ S the slots are a ring.
struct DecodeCache {
  at::Tensor keys;
  at::Tensor values;
};

struct DecodeOptions {
  std::optional<double> scale;         ///< multiplies q·k; nullopt: 1/sqrt(D)
  std::optional<PseudoScores> pseudo;  ///< StableMask with N fixed or infinite; nullopt: causal
  at::Tensor alibi_slopes;             ///< fp32 [H]; undefined: no bias
  int64_t window = 0;                  ///< keys visible to a row, including its own; 0: all
  int64_t rope_dims = 0;               ///< rotated dimensions of queries and keys; 0: none
  at::Tensor rope_table;               ///< fp32 [P, rope_dims] of ops::rope_table from position 0
};

/// One decoding step of ops::attention, for one new token of each of B sequences.
///   packed    [B,H+2·Hkv,D]: projection of the new tokens, not rotated; fp32 or bf16, the cache's
///             dtype
///   rows      int64 [B]: row of the cache that holds sequence b, all different; undefined: b
///   positions int64 [B]: position of the new token, so the number of tokens cached before it;
///             −1: no sequence: nothing is written and the result is 0
/// Rotates query and key by their position (RoPE), writes key and value of the new token into the
/// cache, and returns softmax(A ⊙ C + P) ⊙ C · v of the new rows, [B,H,D]: the same as
/// ops::attention of whole sequences has in its last rows. The pseudo mass is one number a head and
/// position. All tensors are on one device and only the device reads rows and positions, so that a
/// CUDA graph can be recorded; a position for which there is no slot or no row of the table is an
/// error of the caller that is checked on the CPU only. Head dimensions above 256 on CUDA run on
/// the reference, which reads rows and positions on the host. No gradients. Throws c10::Error for
/// shapes, dtypes and options outside this description.
at::Tensor decode_attention(const at::Tensor& packed, int64_t heads, const DecodeCache& cache,
                            const at::Tensor& rows, const at::Tensor& positions,
                            const DecodeOptions& options);

}  // namespace stablemask::ops
