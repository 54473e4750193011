#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "stablemask/ops/functional.h"

/// Training in FP8: matrices of 8-bit floating-point numbers with one scale each, and their
/// products. Formats: Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433. No
/// autograd. Nothing waits for the device or reads its numbers on the host, so all of it can be
/// recorded in a CUDA graph; results are bitwise reproducible. Each function throws c10::Error that
/// names the argument where a shape, dtype or device does not fit.
namespace stablemask::ops::fp8 {

enum class Format {
  kE4M3,  ///< at::kFloat8_e4m3fn, numbers up to 448: weights and activations
  kE5M2,  ///< at::kFloat8_e5m2, numbers up to 57,344: gradients
};
at::ScalarType type_of(Format format);
double largest(Format format);

/// "" if `device` can multiply in FP8: the CPU, or a GPU of compute capability 8.9 or higher that
/// this build has kernels for. Otherwise the reason, as a clause for an error message.
std::string problem(c10::Device device);

/// Rows and columns of every quantised matrix are multiples of this, as the tensor cores need it.
constexpr int64_t kMultiple = 16;

/// One tensor's place in a Scaling: 0-dim fp32 views of its buffers.
struct Slot {
  Format format = Format::kE4M3;
  at::Tensor scale;    ///< numbers are multiplied by it before they are rounded; a power of two
  at::Tensor inverse;  ///< 1 / scale, exact
  at::Tensor maximum;  ///< raised to the largest |x| of every tensor quantised with this slot
  at::Tensor limit;    ///< largest(format)
  double margin = 1.0;
};

/// Delayed scaling of N tensors: the scale of a step follows from the maxima of earlier steps, so
/// that a tensor is quantised in the pass that produces it. Buffers are on one device and, but for
/// `inverses`, contiguous.
struct Scaling {
  std::vector<Format> formats;  ///< [N]
  double margin = 1.0;          ///< ≥ 1: a tensor may outgrow its history by it without clipping
  at::Tensor limits;            ///< fp32 [N]: largest(format)
  at::Tensor maxima;            ///< fp32 [N] since the last update; NaN or ∞ after such an x
  at::Tensor history;      ///< fp32 [N, n]: maxima of the last n updates, newest first; 0: none
  at::Tensor scales;       ///< fp32 [N]
  at::Tensor inverses;     ///< fp32 [N], 16 bytes apart, as cuBLASLt reads them
  at::Tensor saturations;  ///< int64 [N]: updates before which numbers were clipped

  Slot slot(int64_t index) const;
};

/// Scales of 1 and no history; n = `length` ≥ 1.
Scaling make_scaling(std::vector<Format> formats, int64_t length, double margin,
                     c10::Device device);

/// After a step: enters `maxima` into the history, computes the scales of the next step and zeroes
/// `maxima`. scale = the largest power of two with scale · margin · max(history) ≤ limit, within
/// 2^±60. A tensor whose maximum is 0 or not finite keeps its history and scale. Several processes
/// first reduce `maxima` to their maximum. A power of two, because it rounds nothing and costs no
/// precision: the spacing of floating-point numbers is relative.
void update_scales_(Scaling& scaling, Kernels kernels = Kernels::kFused);

/// Sets scale and inverse from `maximum` alone, by the same rule; a maximum of 0 or not finite
/// leaves them. For a tensor without a history: quantise it, fit the scale, quantise it again.
void fit_scale_(const Slot& slot);

/// A factor of a product: K-major, as the tensor cores need it.
struct Operand {
  at::Tensor values;   ///< FP8 [rows, K], contiguous
  at::Tensor inverse;  ///< fp32, 0-dim: values · inverse approximates the matrix
};

/// A quantised matrix x [M, K]. `inverse` shares memory with the Scaling: products must precede the
/// update of the scales.
struct Matrix {
  at::Tensor values;   ///< FP8 [M, K]
  at::Tensor twin;     ///< FP8 [K, M], the transposed values
  at::Tensor inverse;  ///< fp32, 0-dim

  Operand direct() const { return {values, inverse}; }
  Operand turned() const { return {twin, inverse}; }
};

/// What of a matrix is stored.
enum class Parts { kValues, kTwin, kBoth };

/// Memory for a matrix [rows, columns] of `slot`, to be filled by the functions below.
Matrix make_matrix(int64_t rows, int64_t columns, const Slot& slot, Parts parts);

/// Fills the defined ones of out.values and out.twin in one pass over x [..., K], rows flattened:
///   values = x · scale, clipped to ±largest(format), rounded to nearest, ties to even.
/// A number that is not finite becomes NaN, so that an overflow elsewhere stays visible. Raises
/// slot.maximum to max |x|, before scaling. x bf16 or fp32 (CPU: also fp64), contiguous.
void quantize(const at::Tensor& x, const Slot& slot, Matrix& out,
              Kernels kernels = Kernels::kFused);

/// quantize(rms_norm(s, weight, eps)) with the same bits, s = residual + x. With `residual`
/// defined, s is written to `sum`; otherwise s = x. rstd fp32 [rows] = 1/sqrt(mean(s²) + eps), for
/// the backward. x [..., C] bf16 or fp32.
void quantize_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                       double eps, const Slot& slot, at::Tensor& sum, at::Tensor& rstd, Matrix& out,
                       Kernels kernels = Kernels::kFused);

/// quantize(silu(gate) · up) with the same bits as from ops::swiglu; gate_up [..., 2F], out [M, F].
void quantize_swiglu(const at::Tensor& gate_up, const Slot& slot, Matrix& out,
                     Kernels kernels = Kernels::kFused);

/// quantize(dgate_up) with the same bits, dgate_up [M, 2F] the gradient of ops::swiglu for dout
/// [..., F]. F is a multiple of 16.
void quantize_swiglu_backward(const at::Tensor& dout, const at::Tensor& gate_up, const Slot& slot,
                              Matrix& out, Kernels kernels = Kernels::kFused);

/// quantize(dx) with the same bits, dx [B·T, Hp·D] the gradient of ops::rope for dpacked
/// [B,T,Hp,D].
void quantize_rope_backward(const at::Tensor& dpacked, int64_t heads_rotated,
                            const RopeInputs& rope, const Slot& slot, Matrix& out,
                            Kernels kernels = Kernels::kFused);

/// How a GPU sums the products of a row.
enum class Sums {
  kPromoted,  ///< moved to fp32 registers after short runs of K
  kFast,      ///< kept in the tensor cores, whose sums have fewer bits than fp32 on Hopper
};

/// out = a.inverse · b.inverse · a·bᵀ + beta·c; a [M, K], b [N, K], out [M, N] bf16 or fp32 with
/// contiguous rows, beta 0 or 1; c is `addend` (shape, strides and dtype of out) or out itself
/// where `addend` is undefined. Not both operands e5m2. With x [M, K], weight [N, K] and dy [M, N]:
///   y  = x·weightᵀ       product(y, x.direct(), weight.direct())
///   dx = dy·weight       product(dx, dy.direct(), weight.turned())
///   dw += dyᵀ·x          product(dw, dy.turned(), x.turned(), 1.0)
/// CPU and kReference: the same numbers, multiplied and summed in fp32.
void product(at::Tensor& out, const Operand& a, const Operand& b, double beta = 0.0,
             const at::Tensor& addend = {}, Sums sums = Sums::kPromoted,
             Kernels kernels = Kernels::kFused);

/// gate_up [M, 2F] = x·weightᵀ, x [M, K] and weight [2F, K], then quantize_swiglu(gate_up, slot,
/// out). On Hopper GPUs one kernel for large e4m3 factors, e4m3 results with twin, and kFast.
void product_swiglu(at::Tensor& gate_up, const Operand& x, const Operand& weight, const Slot& slot,
                    Matrix& out, Sums sums, Kernels kernels = Kernels::kFused);

/// packed [B,T,Hp,D] = x·weightᵀ, x [B·T, K] and weight [Hp·D, K], its first `heads_rotated` heads
/// rotated as by ops::rope. On Hopper GPUs one kernel for large e4m3 factors, whole heads of D =
/// 64, 128 or 256, and kFast.
void product_rope(at::Tensor& packed, const Operand& x, const Operand& weight,
                  int64_t heads_rotated, const RopeInputs& rope, Sums sums,
                  Kernels kernels = Kernels::kFused);

}  // namespace stablemask::ops::fp8
