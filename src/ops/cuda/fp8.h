#pragma once

#include "stablemask/ops/fp8.h"

/// The functions of stablemask/ops/fp8.h on CUDA tensors; arguments are checked.
namespace stablemask::ops::cuda {

void update_scales_(fp8::Scaling& scaling);
void quantize(const at::Tensor& x, const fp8::Slot& slot, fp8::Matrix& out);
void quantize_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                       double eps, const fp8::Slot& slot, at::Tensor& sum, at::Tensor& rstd,
                       fp8::Matrix& out);
void quantize_swiglu(const at::Tensor& gate_up, const fp8::Slot& slot, fp8::Matrix& out);
void quantize_swiglu_backward(const at::Tensor& dout, const at::Tensor& gate_up,
                              const fp8::Slot& slot, fp8::Matrix& out);
void quantize_rope_backward(const at::Tensor& dpacked, int64_t heads_rotated,
                            const RopeInputs& rope, const fp8::Slot& slot, fp8::Matrix& out);
void product(at::Tensor& out, const fp8::Operand& a, const fp8::Operand& b, double beta,
             const at::Tensor& addend, fp8::Sums sums);

/// Whether the products with an epilogue run for these arguments: e4m3, fast sums, a GPU of compute
/// capability 9.0, bf16 results on 16-byte boundaries, and enough tiles to fill the GPU.
bool product_swiglu_serves(const at::Tensor& gate_up, const fp8::Operand& x,
                           const fp8::Operand& weight, const fp8::Matrix& out, fp8::Sums sums);
bool product_rope_serves(const at::Tensor& packed, const fp8::Operand& x,
                         const fp8::Operand& weight, const RopeInputs& rope, fp8::Sums sums);
void product_swiglu(at::Tensor& gate_up, const fp8::Operand& x, const fp8::Operand& weight,
                    const fp8::Slot& slot, fp8::Matrix& out);
void product_rope(at::Tensor& packed, const fp8::Operand& x, const fp8::Operand& weight,
                  int64_t heads_rotated, const RopeInputs& rope);

}  // namespace stablemask::ops::cuda
