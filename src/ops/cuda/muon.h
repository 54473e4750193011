#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

/// The functions of ops/muon.h on checked arguments; orthogonalize_ on bf16.
namespace stablemask::ops::cuda {

void muon_momentum_(at::Tensor& momentum, at::Tensor& sum, const at::Tensor& grad, double mu,
                    const at::Tensor& control);
void orthogonalize_(const std::vector<at::Tensor>& matrices, double scale);
void muon_apply_(at::Tensor& weights, at::Tensor& remainder, const at::Tensor& update,
                 double weight_decay, const at::Tensor& control);

}  // namespace stablemask::ops::cuda
