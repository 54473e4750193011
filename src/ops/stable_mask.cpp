#include "stablemask/ops/stable_mask.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <vector>

#include "src/ops/contracts.h"
#ifdef STABLEMASK_HAS_CUDA
#include "src/ops/cuda/log_mass.h"
#endif

namespace stablemask::ops {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// log((1 − e^{−x}) / x) for x ≥ 0. The direct form loses digits as x → 0 (and its derivative
/// 1/expm1(x) − 1/x much more), so below 1/4 the Bernoulli series −x/2 + Σ B_{2k} x^{2k}/(2k·(2k)!)
/// takes over; its first dropped term is 4.4e-11·x^12 < 3e-18.
at::Tensor log_mean_decay(const at::Tensor& x) {
  const at::Tensor near_zero = x < 0.25;
  // Each branch gets only arguments where its derivative is finite: `where` would pass a NaN of the
  // branch not taken on to the gradient.
  const at::Tensor small = at::where(near_zero, x, at::zeros_like(x));
  const at::Tensor large = at::where(near_zero, at::ones_like(x), x);
  const at::Tensor s = small * small;
  at::Tensor series = s * (1.0 / 479001600.0) - 1.0 / 9676800.0;
  series = series * s + 1.0 / 181440.0;
  series = series * s - 1.0 / 2880.0;
  series = series * s + 1.0 / 24.0;
  series = series * s - small * 0.5;
  return at::where(near_zero, series, at::log(-at::expm1(-large)) - at::log(large));
}

at::Tensor per_head(const at::Tensor& values, int64_t trailing_dims) {
  std::vector<int64_t> shape(static_cast<size_t>(trailing_dims) + 1, 1);
  shape[0] = values.numel();
  return values.reshape(shape);
}

/// log S for N = ∞; +inf where gamma is 0.
at::Tensor infinite_log_mass(const at::Tensor& gamma, const at::Tensor& p_base) {
  const at::Tensor positive = gamma > 0;
  // As in log_mean_decay, the branch not taken needs a finite derivative.
  const at::Tensor safe = at::where(positive, gamma, at::ones_like(gamma));
  return at::where(positive, p_base - at::log(-at::expm1(-safe)),
                   at::full({}, kInfinity, gamma.options()));
}

}  // namespace

at::Tensor alibi_slopes(int64_t heads) {
  TORCH_CHECK(heads > 0, "alibi_slopes: heads must be positive, got ", heads);
  int64_t power = 1;
  while (power * 2 <= heads) power *= 2;
  const auto geometric = [](int64_t h, int64_t count) {
    return std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(count));
  };
  const at::Tensor slopes = at::empty({heads}, at::kFloat);
  float* out = slopes.data_ptr<float>();
  for (int64_t h = 0; h < heads; ++h) {
    const double slope = h < power ? geometric(h, power) : geometric(2 * (h - power), 2 * power);
    out[h] = static_cast<float>(slope);
  }
  return slopes;
}

at::Tensor pseudo_mask(const PseudoScores& pseudo, int64_t length, int64_t columns) {
  check_pseudo("pseudo_mask", pseudo);
  TORCH_CHECK(length >= 0 && columns >= 0,
              "pseudo_mask: length and columns must be at least 0, got ", length, " and ", columns);
  if (columns == 0) columns = length;
  int64_t n = columns;
  if (pseudo.length.kind == MaskLength::Kind::kFixed) n = pseudo.length.n;
  if (pseudo.length.kind == MaskLength::Kind::kSequence) n = length;
  const auto index = at::TensorOptions().dtype(at::kLong).device(pseudo.gamma.device());
  const at::Tensor i = at::arange(length, index).unsqueeze(1);
  const at::Tensor j = at::arange(columns, index).unsqueeze(0);
  const at::Tensor slot = at::logical_and(j > i, j < n);
  const at::Tensor distance = (j - i - 1).to(pseudo.gamma.scalar_type());
  const at::Tensor scores = per_head(pseudo.p_base, 2) - per_head(pseudo.gamma, 2) * distance;
  return at::where(slot, scores, at::zeros_like(scores));
}

at::Tensor log_pseudo_mass(const PseudoScores& pseudo, const at::Tensor& positions,
                           int64_t sequence_length) {
  check_pseudo("log_pseudo_mass", pseudo);
  check_device("log_pseudo_mass", "gamma", pseudo.gamma, "positions", positions);
  TORCH_CHECK(positions.scalar_type() == at::kLong && sequence_length >= 0,
              "log_pseudo_mass: positions ", positions.sizes(),
              " must be int64 below a sequence_length of at least 0, got ", positions.toString(),
              " and ", sequence_length);
#ifdef STABLEMASK_HAS_CUDA
  if (cuda::has_log_mass(pseudo)) {
    std::vector<int64_t> shape = positions.sizes().vec();
    shape.insert(shape.begin(), pseudo.gamma.numel());
    return cuda::log_mass(pseudo, positions.contiguous(), 0, positions.numel(), sequence_length)
        .view(shape);
  }
#endif
  const at::Tensor gamma = per_head(pseudo.gamma, positions.dim());
  const at::Tensor p_base = per_head(pseudo.p_base, positions.dim());
  if (pseudo.length.kind == MaskLength::Kind::kInfinite) {
    std::vector<int64_t> shape = positions.sizes().vec();
    shape.insert(shape.begin(), pseudo.gamma.numel());
    return infinite_log_mass(gamma, p_base).expand(shape);
  }
  const bool fixed = pseudo.length.kind == MaskLength::Kind::kFixed;
  const int64_t n = fixed ? pseudo.length.n : sequence_length;
  const at::Tensor slots = (n - 1 - positions).unsqueeze(0);
  const at::Tensor count = slots.clamp_min(1).to(gamma.scalar_type());
  const at::Tensor mass =
      p_base + at::log(count) + log_mean_decay(gamma * count) - log_mean_decay(gamma);
  const at::Tensor none = at::full({}, -kInfinity, mass.options());
  const at::Tensor within = at::where(slots > 0, mass, none);
  const bool has_rows_beyond = fixed && pseudo.length.infinite_beyond && sequence_length > n;
  if (!has_rows_beyond) return within;
  return at::where(slots < 0, infinite_log_mass(gamma, p_base), within);
}

at::Tensor log_pseudo_mass(const PseudoScores& pseudo, int64_t length, int64_t offset) {
  check_pseudo("log_pseudo_mass", pseudo);
  TORCH_CHECK(length >= 0 && offset >= 0,
              "log_pseudo_mass: length and offset must be at least 0, got ", length, " and ",
              offset);
#ifdef STABLEMASK_HAS_CUDA
  if (cuda::has_log_mass(pseudo)) {
    return cuda::log_mass(pseudo, at::Tensor(), offset, length, offset + length);
  }
#endif
  const auto index = at::TensorOptions().dtype(at::kLong).device(pseudo.gamma.device());
  return log_pseudo_mass(pseudo, at::arange(offset, offset + length, index), offset + length);
}

at::Tensor mask_ratio(const at::Tensor& lse, const at::Tensor& log_pseudo_mass) {
  check_float("mask_ratio", "lse", lse);
  check_float("mask_ratio", "log_pseudo_mass", log_pseudo_mass);
  check_device("mask_ratio", "lse", lse, "log_pseudo_mass", log_pseudo_mass);
  return at::sigmoid(log_pseudo_mass - lse);
}

}  // namespace stablemask::ops
