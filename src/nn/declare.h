#pragma once

#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <vector>

#include "stablemask/nn/model.h"
#include "stablemask/nn/parameters.h"

/// The parameters of each module under the names that the module registers, and their registration.
namespace stablemask::nn {

std::vector<Parameter> mask_parameters(const ModelConfig& config);
std::vector<Parameter> attention_parameters(const ModelConfig& config);
std::vector<Parameter> feed_forward_parameters(const ModelConfig& config);
std::vector<Parameter> norm_parameters(const ModelConfig& config);

/// Registers the parameter of this name among `declared` with the module.
at::Tensor register_declared(torch::nn::Module& module, const std::vector<Parameter>& declared,
                             const std::string& name, const ModelConfig& config, Fill fill);

/// Fills a parameter as `declared.init` says: a pure function of (seed, name), the same on every
/// device. kConfig leaves it alone.
void initialise(at::Tensor& parameter, const Parameter& declared, const ModelConfig& config,
                uint64_t seed);

}  // namespace stablemask::nn
