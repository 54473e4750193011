#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace stablemask::nn {

using Tensors = std::vector<at::Tensor>;

/// Activation checkpointing (Chen et al., arXiv 1604.06174): returns work(inputs) and keeps only
/// `inputs` for the backward, which runs `work` again. Values and gradients are bitwise the same.
/// `work` must be a pure function of `inputs` and of the leaf tensors `parameters`; every input and
/// output must be defined.
Tensors recomputed(std::function<Tensors(const Tensors&)> work, const Tensors& inputs,
                   const Tensors& parameters);

}  // namespace stablemask::nn
