#pragma once

#include "stablemask/ops/fp8.h"

/// The functions of stablemask/ops/fp8.h in plain ATen, on checked arguments and any device: the
/// reference of the kernels, and what runs where there are none.
namespace stablemask::ops::fp8::plain {

void update_scales_(Scaling& scaling);
void fit_scale_(const Slot& slot);
void quantize(const at::Tensor& x, const Slot& slot, Matrix& out);
void quantize_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                       double eps, const Slot& slot, at::Tensor& sum, at::Tensor& rstd, Matrix& out,
                       Kernels kernels);
void quantize_swiglu(const at::Tensor& gate_up, const Slot& slot, Matrix& out, Kernels kernels);
void quantize_swiglu_backward(const at::Tensor& dout, const at::Tensor& gate_up, const Slot& slot,
                              Matrix& out, Kernels kernels);
void quantize_rope_backward(const at::Tensor& dpacked, int64_t heads_rotated,
                            const RopeInputs& rope, const Slot& slot, Matrix& out, Kernels kernels);
/// ops::rope in place, without autograd.
void rotate_(at::Tensor& packed, int64_t heads_rotated, const RopeInputs& rope, Kernels kernels);
void product(at::Tensor& out, const Operand& a, const Operand& b, double beta,
             const at::Tensor& addend);

}  // namespace stablemask::ops::fp8::plain
