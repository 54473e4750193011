#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <string>

#include "stablemask/io/safetensors.h"

namespace stablemask {

/// Calls take(name, fp32 values on the CPU) for every tensor of the file, after checking that the
/// file holds exactly the tensors of `wanted`, in fp32 and of their shapes. Throws CheckpointError,
/// naming `path`, with every tensor that is missing, unexpected or of another shape or type.
void for_each_tensor(const std::map<std::string, at::Tensor>& wanted, const SafetensorsFile& file,
                     const std::string& path,
                     const std::function<void(const std::string&, const at::Tensor&)>& take);

/// Fills `wanted`, fp32 or bf16 (rounded as ops::split_weights does), from the file's tensors of
/// the same names. Throws as for_each_tensor.
void copy_tensors(std::map<std::string, at::Tensor> wanted, const SafetensorsFile& file,
                  const std::string& path);

}  // namespace stablemask
