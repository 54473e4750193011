#pragma once

#include <cstdint>

/// Causal attention on the CPU of fp32 heads whose products take operands rounded to bf16 and add
/// in fp32; the softmax is in fp32. Needs AVX512-BF16 (ops::cpu_has_bf16). Single-threaded, no
/// framework types.
namespace stablemask::ops::cpu::bf16 {

/// A key head of one sequence and the query heads that share it, which follow each other in memory.
struct AttentionGroup {
  int64_t length, dim, heads;     ///< T, D, query heads
  int64_t stride;                 ///< from row to row of q, k and v
  const float *q, *k, *v;         ///< [T, heads, D], [T, D], [T, D]
  int64_t out_stride;             ///< from row to row of the output
  float scale;                    ///< of the scores
  const float* slopes = nullptr;  ///< [heads]: score −= slope · (i − j); null: none
  const int32_t* first = nullptr;  ///< [T], not decreasing: first key that row i sees, ≤ i; null: 0
  const float* log_mass = nullptr;  ///< [heads, T], ±∞ allowed; null: no pseudo mass
};

/// The part of a backward pass that one call computes: gradients of q for rows [row, end_row) and
/// of k and v for rows [key, end_key). Bounds are multiples of kAttentionRows or T; ranges may be
/// empty.
struct AttentionPart {
  int64_t row, end_row, key, end_key;
};
constexpr int64_t kAttentionRows = 64;

/// 32-bit words that the functions below need as `work`, aligned to 64 bytes and 0 before the first
/// call; calls of one length and dim may follow each other.
int64_t attention_forward_words(int64_t length, int64_t dim);
int64_t attention_backward_words(int64_t length, int64_t dim);

/// Rows [begin, end), such bounds, of out [T, heads, D] and lse [heads, T]:
///   lse = log(Σ_j exp score_ij + exp log_mass_i),  out_i = Σ_j exp(score_ij − lse_i) · v_j.
void attend(const AttentionGroup& group, int64_t begin, int64_t end, float* out, float* lse,
            uint32_t* work);

/// Gradients from dout (the layout of out) and the result of `attend`; dq, dk and dv have the
/// layout of q, k and v. Bits do not depend on how calls share the parts.
struct AttentionGradient {
  const float *dout, *out, *lse;
  float *dq, *dk, *dv;
};
void attend_backward(const AttentionGroup& group, const AttentionGradient& gradient,
                     const AttentionPart& part, uint32_t* work);

}  // namespace stablemask::ops::cpu::bf16
