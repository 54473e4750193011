#pragma once

namespace stablemask::ops {

/// ops::orthogonalize_: the polynomial a·x + b·x³ + c·x⁵ and how often it is applied.
struct NewtonSchulz {
  static constexpr double a = 3.4445, b = -4.7750, c = 2.0315;
  static constexpr int kIterations = 5;
};

}  // namespace stablemask::ops
