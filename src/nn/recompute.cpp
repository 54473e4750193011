#include "src/nn/recompute.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <utility>

namespace stablemask::nn {
namespace {

using torch::autograd::AutogradContext;

struct Work : torch::CustomClassHolder {
  Work(std::function<Tensors(const Tensors&)> run_in, Tensors parameters_in)
      : run(std::move(run_in)), parameters(std::move(parameters_in)) {}
  std::function<Tensors(const Tensors&)> run;
  Tensors parameters;
};

/// `all`: the inputs, then the parameters. Parameters are inputs of the autograd node, so that they
/// get gradients even if no input requires one, as after frozen layers.
struct Recomputed : torch::autograd::Function<Recomputed> {
  static Tensors forward(AutogradContext* ctx, at::TensorList all,
                         const c10::intrusive_ptr<Work>& work) {
    const Tensors inputs = all.slice(0, all.size() - work->parameters.size()).vec();
    ctx->save_for_backward(inputs);
    ctx->saved_data["work"] = c10::IValue::make_capsule(work);
    return work->run(inputs);
  }

  static Tensors backward(AutogradContext* ctx, const Tensors& grads) {
    const auto work = c10::static_intrusive_pointer_cast<Work>(ctx->saved_data["work"].toCapsule());
    const Tensors saved = ctx->get_saved_variables();
    Tensors inputs, leaves;
    std::vector<size_t> positions;  // of `leaves` in the result
    const auto want = [&](const at::Tensor& leaf, size_t position) {
      leaves.push_back(leaf);
      positions.push_back(position);
    };
    for (size_t i = 0; i < saved.size(); ++i) {
      inputs.push_back(saved[i].detach().requires_grad_(ctx->needs_input_grad(i)));
      if (inputs.back().requires_grad()) want(inputs.back(), i);
    }
    for (size_t i = 0; i < work->parameters.size(); ++i) {
      if (work->parameters[i].requires_grad()) want(work->parameters[i], saved.size() + i);
    }
    const at::AutoGradMode record(true);
    const Tensors outputs = work->run(inputs);
    const Tensors found = torch::autograd::grad(outputs, leaves, grads, /*retain_graph=*/false,
                                                /*create_graph=*/false, /*allow_unused=*/true);
    Tensors result(saved.size() + work->parameters.size() + 1);
    for (size_t i = 0; i < found.size(); ++i) result[positions[i]] = found[i];
    return result;
  }
};

}  // namespace

Tensors recomputed(std::function<Tensors(const Tensors&)> work, const Tensors& inputs,
                   const Tensors& parameters) {
  Tensors all = inputs;
  all.insert(all.end(), parameters.begin(), parameters.end());
  return Recomputed::apply(at::TensorList(all),
                           c10::make_intrusive<Work>(std::move(work), parameters));
}

}  // namespace stablemask::nn
