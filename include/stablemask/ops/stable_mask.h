#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace stablemask::ops {

/// Legend: B batch, T time (tokens in the block), C channels, H heads, D head dim, L layers,
/// V vocabulary, N mask length, i query index, j key index (both from 0), h head.

/// N: row i has the pseudo slots j = i+1 … N−1.
struct MaskLength {
  enum class Kind { kFixed, kInfinite, kSequence };  ///< kSequence: N = T of the block
  Kind kind = Kind::kFixed;
  int64_t n = 0;                 ///< kFixed only
  bool infinite_beyond = false;  ///< kFixed: rows i ≥ n have the pseudo mass of kInfinite, not none
};

/// P[h,i,j] = p_base[h] − gamma[h]·(j − i − 1) for i < j ≤ N−1. Both tensors are [H], fp32 or fp64,
/// gamma ≥ 0, and may require gradients (learnable StableMask). The functions below throw
/// c10::Error for scores of other shapes or dtypes, without gamma or p_base, and on the CPU for a
/// negative gamma.
struct PseudoScores {
  at::Tensor gamma;
  at::Tensor p_base;
  MaskLength length;
};

/// Slopes of ALiBi, fp32 [H]: 2^(−8(h+1)/H) for H a power of two; otherwise those of the next lower
/// power of two followed by every other slope of the next higher one (Press et al., arXiv
/// 2108.12409).
at::Tensor alibi_slopes(int64_t heads);

/// P [H, T, columns], T = `length`; 0 on and below the diagonal and right of N−1. columns = 0: T.
/// columns > T includes pseudo slots right of the block (fixed N > T).
at::Tensor pseudo_mask(const PseudoScores& pseudo, int64_t length, int64_t columns = 0);

/// log S_i, S_i = Σ_{j>i} exp P_ij in closed form, for rows at int64 `positions` (any shape) →
/// [H, *positions.shape] in gamma's dtype. All positions are below `sequence_length`, which is N
/// for kSequence. Differentiable in gamma and p_base.
///   S_i = e^{p_base}·(1 − e^{−γ(N−1−i)})/(1 − e^{−γ})   (γ → 0: e^{p_base}·(N−1−i))
///   i = N−1: log S = −inf.  i ≥ N: −inf, or with infinite_beyond that of N = ∞:
///   S = e^{p_base}/(1 − e^{−γ})   (γ = 0: ∞)
at::Tensor log_pseudo_mass(const PseudoScores& pseudo, const at::Tensor& positions,
                           int64_t sequence_length);

/// As above for rows offset … offset+length−1: [H, length]. kSequence uses N = offset + length.
at::Tensor log_pseudo_mass(const PseudoScores& pseudo, int64_t length, int64_t offset = 0);

/// ρ = S / (S + e^lse), the attention mass that a row gives to pseudo slots. lse: natural
/// log-sum-exp of the row's real scores. Shapes broadcast.
at::Tensor mask_ratio(const at::Tensor& lse, const at::Tensor& log_pseudo_mass);

}  // namespace stablemask::ops
