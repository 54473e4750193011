#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "stablemask/io/safetensors.h"

namespace stablemask {

/// Calls take(name, values on the CPU) for each tensor of the file, after checking that the file
/// holds exactly the names of `wanted`, in one of `types` (of kF32 and kBf16) and with their
/// shapes. Throws CheckpointError with `path` and every tensor that is missing, unexpected, or of
/// another shape or type.
void for_each_tensor(const std::map<std::string, at::Tensor>& wanted, const SafetensorsFile& file,
                     const std::string& path,
                     const std::function<void(const std::string&, const at::Tensor&)>& take,
                     const std::vector<ElementType>& types = {ElementType::kF32});

/// Copies the fp32 `host` to `tensor`, fp32 or bf16, on any device. bf16 rounds as
/// ops::split_weights does.
void copy_rounded(const at::Tensor& host, at::Tensor& tensor);

}  // namespace stablemask
