#pragma once

#include <string>
#include <vector>

#include "tests/ops/checks.h"

namespace stablemask::ops::testing {

/// An op, the same formula written independently of it, and inputs.
struct Case {
  std::string name;
  Function op;
  Function formula;
  Tensors inputs;
};

std::vector<Case> small_cases();
/// Sizes beyond any block or vector of the kernels, none a multiple of one.
std::vector<Case> large_cases();

/// Value and gradients of the op in `type` are as near the fp64 formula as the formula in `type`.
void compare(const Case& c, at::ScalarType type, double eps, at::Device device);

}  // namespace stablemask::ops::testing
