#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace stablemask::nn {

using Tensors = std::vector<at::Tensor>;

/// work(inputs) that keeps nothing but `inputs` for its backward, which runs `work` a second time
/// (Chen et al., arXiv 1604.06174): the same values and gradients, bit for bit, for less memory and
/// one more forward pass. `work` must be a pure function of `inputs` and of the leaves
/// `parameters`; every input and output is defined.
Tensors recomputed(std::function<Tensors(const Tensors&)> work, const Tensors& inputs,
                   const Tensors& parameters);

}  // namespace stablemask::nn
