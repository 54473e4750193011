#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "stablemask/base/config.h"
#include "stablemask/ops/stable_mask.h"

namespace stablemask::ops {

struct AttentionOptions {
  double scale = 0.0;                  ///< multiplies q·k; 0: 1/sqrt(D)
  std::optional<PseudoScores> pseudo;  ///< StableMask; nullopt: plain causal
  at::Tensor alibi_slopes;             ///< fp32 [H]; undefined: no bias. a_ij −= slope·(i − j)
  int64_t window = 0;                  ///< keys a row may see, itself included; 0: all
  int64_t query_offset = 0;            ///< position of query row 0; S = query_offset + T
  at::Tensor document_start;           ///< int64 [B,T] on the host's device of q: column of the first
                                       ///< token of the row's document; undefined: one document.
                                       ///< Row positions (log S, ALiBi) count from it
  AttentionBackend backend = AttentionBackend::kAuto;
};

/// Causal attention with the StableMask refinement:
///   softmax(A ⊙ C + P) ⊙ C · v,   A = scale·q·kᵀ + ALiBi.
/// q [B,T,H,D]; k, v [B,S,Hkv,D], H a multiple of Hkv; fp32, fp64, bf16; last dimension contiguous,
/// other strides free (views of a packed projection are read in place). Returns [B,T,H,D].
/// Differentiable in q, k, v and in pseudo->gamma, pseudo->p_base.
///
/// kReference forms the scores literally in fp32 (fp64 stays fp64). kFlash runs a causal flash kernel
/// and corrects it through the log-sum-exp (exact, O(T) memory): lse' = logaddexp(lse, log S),
/// out' = out·exp(lse − lse'), and the stock backward called with (out', lse'). kAuto takes kFlash
/// wherever it can serve the options and falls back to kReference.
/// Throws c10::Error on contract violations, ConfigError when kFlash is forced and cannot serve.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const AttentionOptions& options);

}  // namespace stablemask::ops
