#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <vector>

#include "stablemask/nn/model.h"
#include "stablemask/nn/parameters.h"

/// Declarations of each module's parameters, with names relative to the module, and their
/// registration and initialisation.
namespace stablemask::nn {

std::vector<Parameter> mask_parameters(const ModelConfig& config);
std::vector<Parameter> attention_parameters(const ModelConfig& config);
std::vector<Parameter> feed_forward_parameters(const ModelConfig& config);
std::vector<Parameter> norm_parameters(const ModelConfig& config);

/// Registers the parameter `name` of `declared` with the module and initialises it as `fill` says.
/// Returns the registered tensor.
at::Tensor register_declared(torch::nn::Module& module, const std::vector<Parameter>& declared,
                             const std::string& name, const ModelConfig& config, Fill fill);

/// The projection `name` of block `layer` with those of its adapter and its bias that are declared,
/// all registered as register_declared does.
Linear register_linear(torch::nn::Module& module, const std::vector<Parameter>& declared,
                       const std::string& name, int64_t layer, const ModelConfig& config,
                       Fill fill);

/// Initialises a parameter as `declared.init` says; the values depend on (seed, name) only and are
/// the same on every device. Does nothing for Init::kConfig.
void initialise(const at::Tensor& parameter, const Parameter& declared, const ModelConfig& config,
                uint64_t seed);

}  // namespace stablemask::nn
