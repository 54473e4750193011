#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "stablemask/ops/stable_mask.h"

namespace stablemask::ops {

/// Which implementation runs: the fastest that can serve, the literal formula, or a flash kernel
/// with the log-sum-exp correction.
enum class AttentionBackend { kAuto, kReference, kFlash };

struct AttentionOptions {
  std::optional<double> scale;         ///< multiplies q·k; nullopt: 1/sqrt(D)
  std::optional<PseudoScores> pseudo;  ///< StableMask; nullopt: plain causal
  at::Tensor log_mass;                 ///< row_log_mass of `pseudo`, to share it between layers;
                                       ///< undefined: computed here. The flash path's only
  at::Tensor alibi_slopes;             ///< fp32 [H]; undefined: no bias. a_ij −= slope·(i − j)
  int64_t window = 0;                  ///< keys a row may see, itself included; 0: all
  int64_t query_offset = 0;            ///< position of query row 0; S = query_offset + T
  at::Tensor document_start;           ///< int64 [B,T] on q's device: column of the first token of
                                       ///< the row's document; undefined: one document. Keys are of
                                       ///< the same document only, and the positions behind log S
                                       ///< count from its start. Needs query_offset = 0
  AttentionBackend backend = AttentionBackend::kAuto;
};

/// Causal attention with the StableMask refinement:
///   softmax(A ⊙ C + P) ⊙ C · v,   A = scale·q·kᵀ + ALiBi.
/// q [B,T,H,D]; k, v [B,S,Hkv,D], H a multiple of Hkv; fp32, fp64, bf16; last dimension contiguous,
/// other strides free (views of a packed projection are read in place). Returns [B,T,H,D].
/// Differentiable in q, k, v and in pseudo->gamma, pseudo->p_base (or log_mass where it is given).
///
/// kReference forms the scores literally in fp32 (fp64 stays fp64). kFlash runs a causal flash
/// kernel and corrects it through the log-sum-exp (exact, no O(T²) work added): lse' =
/// logaddexp(lse, log S), out' = out·exp(lse − lse'), and the stock backward called with (out',
/// lse'). kAuto takes kFlash wherever it can serve and falls back to kReference.
///   CPU:  ATen's flash kernel, fp32, fp64 (on demand only), bf16. Windows, documents and several
///         queries behind a cache go through an additive [B or 1, 1, T, S] mask.
///   CUDA: bf16. cuDNN for square causal attention with D ≤ 128; FlashAttention-2 for windows,
///         documents, caches, D ≤ 256, and always when at::Context asks for determinism.
/// Throws c10::Error on contract violations, ConfigError when kFlash is forced and cannot serve,
/// and for the mask length "sequence" behind a cache or across documents, where N has no meaning.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionOptions& options);

struct AttentionWithLse {
  at::Tensor out;  ///< [B,T,H,D], as `attention` returns it
  at::Tensor lse;  ///< fp32 (fp64 for fp64) [B,H,T]: log Σ exp of the row's real scores, the ALiBi
                   ///< bias included, without the pseudo mass; mask_ratio takes it
};
/// `attention` together with the log-sum-exp of each row. No gradients. Memory O(T²) with
/// kReference.
AttentionWithLse attention_with_lse(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const AttentionOptions& options);

/// `attention` on the packed projection [B,T,H+2·Hkv,D] (H query, Hkv key, Hkv value heads, rotated
/// already) without a cache: the same as split_heads and attention, with fewer passes over memory.
/// Returns [B,T,H,D]. CUDA: one cuDNN graph reads the projection where it lies, with ALiBi, grouped
/// heads and, for the infinite mask length, the pseudo mass inside the kernel. Other dtypes than
/// bf16, windows, documents, learnable masks, determinism and CPUs take the composition.
at::Tensor packed_attention(const at::Tensor& packed, int64_t heads, int64_t kv_heads,
                            const AttentionOptions& options);

/// log S of each row of such a call, fp32 [H,T], or [B,H,T] with documents; `length` = T. With
/// documents, positions restart (document_start), otherwise they begin at query_offset.
at::Tensor row_log_mass(const AttentionOptions& options, int64_t length);

}  // namespace stablemask::ops
