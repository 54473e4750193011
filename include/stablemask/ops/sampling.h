#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace stablemask::ops {

/// How the next id of each of B sequences is drawn. All tensors are [B] on the logits' device,
/// except `seen`.
struct Sampling {
  at::Tensor temperature;         ///< fp64, ≥ 0; divides the logits; 0: the largest logit
  at::Tensor top_k;               ///< int64; 0: all ids
  at::Tensor top_p;               ///< fp64 in (0, 1]
  at::Tensor min_p;               ///< fp64 in [0, 1]; share of the likeliest id's probability
  at::Tensor repetition_penalty;  ///< fp64 > 0; 1: none
  at::Tensor seed;                ///< int64, the bits of a uint64
  at::Tensor drawn;               ///< int64: ids drawn before for this sequence
  at::Tensor rows;                ///< int64: row of `seen` of sequence b; undefined: b
  at::Tensor seen;                ///< uint8 [R,V]: 1 where the id is in the sequence so far;
                                  ///< undefined: no penalty. The drawn id is marked
};

/// Draws an id from each row of logits [B,V], fp32 or bf16, among ids below `vocabulary` ≤ V; the
/// others are padding. Returns int64 [B]; −1 where a logit below `vocabulary` is not finite. In
/// this order:
///  1. repetition penalty r for ids seen: x > 0: x/r, else x·r (Keskar et al., arXiv 1909.05858),
///     rounded to fp32;
///  2. temperature 0: the largest logit, the lowest id among equal ones. Otherwise, on
///     softmax(x / temperature):
///  3. the top_k likeliest ids (the lowest ids among equal ones);
///  4. of these the fewest likeliest whose probabilities reach top_p of their sum;
///  5. of these the ids with at least min_p of the likeliest one's probability;
///  6. u = number `drawn` of SplitMix64(seed), 53 bits in [0, 1), selects the id: the first in
///     order of likelihood at which the sum of probabilities exceeds u of the whole.
/// A probability is the integer next to 2^40 · exp((x − max) / temperature), and sums of them are
/// exact: a row's result does not depend on the other rows, and the CPU and a GPU draw the same id
/// from the same logits. An id with less than 2^−41 of the likeliest one's probability is never
/// drawn. On a GPU only the device reads the settings, so that a CUDA graph can be recorded. Values
/// out of range are no error: they draw an unspecified id. Throws c10::Error for other shapes,
/// dtypes or devices, on the CPU also for rows that are not in `seen`.
at::Tensor sample(const at::Tensor& logits, int64_t vocabulary, const Sampling& sampling);

}  // namespace stablemask::ops
