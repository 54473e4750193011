#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "stablemask/ops/kernels.h"
#include "stablemask/ops/stable_mask.h"

namespace stablemask::ops {

/// Implementation of attention: the fastest available one, the formula in plain ATen, or a flash
/// kernel with the log-sum-exp correction.
enum class AttentionBackend { kAuto, kReference, kFlash };

struct AttentionOptions {
  std::optional<double> scale;         ///< multiplies q·k; nullopt: 1/sqrt(D)
  std::optional<PseudoScores> pseudo;  ///< StableMask; nullopt: plain causal attention
  at::Tensor log_mass;                 ///< row_log_mass of `pseudo`, to share it between layers;
                                       ///< undefined: computed here. Only the flash path reads it
  at::Tensor alibi_slopes;             ///< fp32 [H]; undefined: no bias. a_ij −= slope·(i − j)
  int64_t window = 0;                  ///< keys visible to a row, including its own; 0: all
  int64_t query_offset = 0;            ///< position of query row 0
  int64_t key_offset = 0;              ///< position of key column 0, S = query_offset + T −
                                       ///< key_offset; > 0 only if no row's window reaches further
                                       ///< back (a KV cache that drops old keys)
  at::Tensor document_start;           ///< int64 [B,T] on q's device: column of the first token of
                                       ///< each row's document; undefined: one document. Rows see
  ///< keys of their document only; positions for the pseudo mass
  ///< restart with each document. Needs query_offset = 0
  AttentionBackend backend = AttentionBackend::kAuto;
  Kernels kernels = Kernels::kFused;  ///< kFusedBf16: of packed_attention; kReference as kFused
};

/// Causal attention with the StableMask refinement:
///   softmax(A ⊙ C + P) ⊙ C · v,   A = scale·q·kᵀ + ALiBi.
/// q [B,T,H,D]; k, v [B,S,Hkv,D], H a multiple of Hkv; fp32, fp64 or bf16. The last dimension must
/// be contiguous, other strides are free (views of a packed projection are read in place). Returns
/// [B,T,H,D]. Differentiable in q, k, v and in pseudo->gamma, pseudo->p_base (or log_mass where it
/// is given).
///
/// kReference computes the score matrix in fp32 (fp64 for fp64). kFlash runs a causal flash kernel
/// and corrects its result through the log-sum-exp, which is exact and adds no O(T²) work:
///   lse' = logaddexp(lse, log S), out' = out·exp(lse − lse'); the backward takes (out', lse').
/// kAuto takes kFlash if available for the inputs, else kReference. Flash kernels:
///   CPU:  ATen's kernel; fp32, bf16, and fp64 only when kFlash is requested. Windows, documents
///   and
///         more than one query with a KV cache use an additive [B or 1, 1, T, S] mask.
///   CUDA: bf16. cuDNN for S = T > 1 and D ≤ 128; FlashAttention-2 for windows, documents, KV
///   caches,
///         D ≤ 256, and always in at::Context's deterministic mode.
/// Throws c10::Error for arguments outside this description: a dimension of size 0, another dtype,
/// different devices, a negative window or offset, no or negative gamma, gamma 0 with an infinite
/// mask length (values of gamma are read on the CPU only). ConfigError when kFlash is requested and
/// not available, and for the mask length "sequence" with a KV cache or documents, where N is
/// undefined.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionOptions& options);

struct AttentionWithLse {
  at::Tensor out;  ///< [B,T,H,D], as `attention` returns it
  at::Tensor lse;  ///< fp32 (fp64 for fp64) [B,H,T]: log Σ exp of the row's real scores including
                   ///< the ALiBi bias, excluding the pseudo mass; input of mask_ratio
};
/// `attention` and the log-sum-exp of each row. No gradients. kReference needs O(T²) memory.
AttentionWithLse attention_with_lse(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const AttentionOptions& options);

/// `attention` without a KV cache on the packed projection [B,T,H+2·Hkv,D] (H query heads, Hkv key
/// heads, both already rotated, Hkv value heads). Returns [B,T,H,D]. Same result as split_heads and
/// attention with fewer passes over memory on CUDA: one cuDNN graph reads the projection in place
/// and handles ALiBi, grouped heads and, for an infinite mask length, the pseudo mass. Dtypes other
/// than bf16, windows, documents and the CPU use split_heads and attention; so does at::Context's
/// deterministic mode where cuDNN's deterministic backward, which holds a bf16 [B,H,T,T], takes
/// more than 2 GiB. Throws as `attention`.
///
/// Kernels::kFusedBf16 on fp32 tensors of a CPU with instructions for bf16 (cpu_has_bf16), unless
/// the backend is kReference: a kernel of our own whose products round their operands to bf16 and
/// add in fp32, forward and backward, for all of these options; its bits do not depend on the
/// number of threads. document_start must not decrease within a sequence.
at::Tensor packed_attention(const at::Tensor& packed, int64_t heads, int64_t kv_heads,
                            const AttentionOptions& options);

/// log S of each row of `attention` with these options and T = `length`: [H,T], or [B,H,T] with
/// documents, in gamma's dtype. Positions start at query_offset, or at 0 in each document.
at::Tensor row_log_mass(const AttentionOptions& options, int64_t length);

}  // namespace stablemask::ops
