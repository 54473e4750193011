#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define STABLEMASK_HOST_DEVICE __host__ __device__
#else
#define STABLEMASK_HOST_DEVICE
#endif

/// The logarithm of the pseudo mass of one row and head in closed form (ops/stable_mask.h), for
/// host and device code, in fp32 or fp64.
namespace stablemask::ops {

/// Below this, the direct forms of log_mean_decay and of its derivative lose digits; the first
/// dropped terms of the series are below 3e-18 and 2e-16.
constexpr double kDecaySeriesLimit = 0.25;

/// f(x) = log((1 − e^{−x}) / x) = −x/2 + Σ B_{2k} x^{2k} / (2k·(2k)!), x ≥ 0.
template <typename Real>
STABLEMASK_HOST_DEVICE inline Real log_mean_decay(Real x) {
  if (x >= static_cast<Real>(kDecaySeriesLimit)) return std::log(-std::expm1(-x) / x);
  const Real s = x * x;
  Real series = s * static_cast<Real>(1.0 / 479001600.0) - static_cast<Real>(1.0 / 9676800.0);
  series = series * s + static_cast<Real>(1.0 / 181440.0);
  series = series * s - static_cast<Real>(1.0 / 2880.0);
  series = series * s + static_cast<Real>(1.0 / 24.0);
  return series * s - x * static_cast<Real>(0.5);
}

/// log S of the row at `position` with N = n; −inf without pseudo slots. Rows from n on have the
/// mass of N = ∞ with `infinite_beyond` and none without; n = 0 with infinite_beyond is N = ∞.
template <typename Real>
STABLEMASK_HOST_DEVICE inline Real log_mass_at(Real gamma, Real p_base, int64_t position, int64_t n,
                                               bool infinite_beyond) {
  if (position < n - 1) {
    const auto slots = static_cast<Real>(n - 1 - position);
    return p_base + std::log(slots) + log_mean_decay(gamma * slots) - log_mean_decay(gamma);
  }
  if (position >= n && infinite_beyond) return p_base - std::log(-std::expm1(-gamma));
  return -static_cast<Real>(INFINITY);
}

}  // namespace stablemask::ops
