#pragma once

#include <string>
#include <vector>

#include "tests/ops/checks.h"

namespace stablemask::ops::testing {

/// An op, an independent implementation of its formula, and inputs.
struct Case {
  std::string name;
  Function op;
  Function formula;
  Tensors inputs;
};

std::vector<Case> small_cases();
/// Sizes larger than any block or vector of the kernels and not multiples of them.
std::vector<Case> large_cases();

/// Compares value and gradients of the op in `type` with the formula in fp64; the formula in `type`
/// sets the tolerance.
void compare(const Case& c, at::ScalarType type, double eps, at::Device device);

}  // namespace stablemask::ops::testing
