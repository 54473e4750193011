#pragma once

#include <optional>
#include <string>

namespace stablemask {

/// Dense bf16 tensor-core peak of a GPU in FLOP/s, by the name that the CUDA driver reports
/// ("NVIDIA H100 80GB HBM3"); from the vendor's data sheets. nullopt: not in the table.
std::optional<double> peak_flops(const std::string& device_name);

}  // namespace stablemask
