// Logarithm of the pseudo mass and its gradient, with c = N−1−i pseudo slots in row i and
// f(x) = log((1 − e^{−x}) / x):
//   log S = p_base + log c + f(γ·c) − f(γ)        ∂/∂γ = c·f'(γ·c) − f'(γ)     for i < N−1
//   log S = p_base − log(1 − e^{−γ})              ∂/∂γ = −1/(e^γ − 1)          for N = ∞
// and ∂/∂p_base = 1. In fp64, which costs nothing at H·T numbers, so that the results are exact
// to fp32.
//
// Forward: a thread per row and head. Backward: a block per head, whose threads take every 256th
// row; the sums depend on the shape alone.
#include "src/ops/cuda/common.cuh"
#include "src/ops/cuda/stable_mask.h"
#include "src/ops/pseudo_mass.h"

namespace stablemask::ops::cuda {
namespace {

constexpr int kThreads = 256;

/// f'(x) = 1/(e^x − 1) − 1/x.
__device__ double log_mean_decay_slope(double x) {
  if (x >= kDecaySeriesLimit) return 1.0 / expm1(x) - 1.0 / x;
  const double s = x * x;
  double series = s * (1.0 / 47900160.0) - 1.0 / 1209600.0;
  series = series * s + 1.0 / 30240.0;
  series = series * s - 1.0 / 720.0;
  series = series * s + 1.0 / 12.0;
  return series * x - 0.5;
}

__device__ __forceinline__ int64_t position(const LogMassRows& in, int64_t row) {
  return in.positions != nullptr ? in.positions[row] : in.offset + row;
}

__global__ void __launch_bounds__(kThreads) stable_mask_log_mass_kernel(const LogMassForward p) {
  const LogMassRows& in = p.in;
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= in.rows) return;
  const int head = static_cast<int>(blockIdx.y);
  const double gamma = in.gamma[head];
  const double p_base = in.p_base[head];
  const double mass = log_mass_at(gamma, p_base, position(in, row), in.n, in.infinite_beyond);
  p.log_mass[head * in.rows + row] = static_cast<float>(mass);
}

__global__ void __launch_bounds__(kThreads)
    stable_mask_log_mass_backward_kernel(const LogMassBackward p) {
  __shared__ double sums[2][kThreads / 32];
  const LogMassRows& in = p.in;
  const int head = static_cast<int>(blockIdx.x);
  const double gamma = in.gamma[head];
  const double slope = log_mean_decay_slope(gamma);
  // The mass of N = ∞ is infinite, a constant, for gamma = 0.
  const bool has_beyond = in.infinite_beyond && gamma > 0.0;
  const double slope_beyond = -1.0 / expm1(gamma);
  double dgamma = 0.0;
  double dp_base = 0.0;
  for (int64_t row = threadIdx.x; row < in.rows; row += kThreads) {
    const int64_t i = position(in, row);
    const bool within = i < in.n - 1;
    if (!within && !(i >= in.n && has_beyond)) continue;
    const double grad = p.dlog_mass[head * in.rows + row];
    const auto slots = static_cast<double>(in.n - 1 - i);
    dgamma += grad * (within ? slots * log_mean_decay_slope(gamma * slots) - slope : slope_beyond);
    dp_base += grad;
  }
  dgamma = warp_sum(dgamma);
  dp_base = warp_sum(dp_base);
  if (threadIdx.x % 32 == 0) {
    sums[0][threadIdx.x / 32] = dgamma;
    sums[1][threadIdx.x / 32] = dp_base;
  }
  __syncthreads();
  if (threadIdx.x >= 2) return;
  double total = 0.0;
  for (const double sum : sums[threadIdx.x]) total += sum;
  (threadIdx.x == 0 ? p.dgamma : p.dp_base)[head] = static_cast<float>(total);
}

}  // namespace

cudaError_t launch(const LogMassForward& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(p.in.rows, kThreads)),
                  static_cast<unsigned>(p.in.heads));
  stable_mask_log_mass_kernel<<<grid, kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t launch(const LogMassBackward& p, cudaStream_t stream) {
  stable_mask_log_mass_backward_kernel<<<static_cast<unsigned>(p.in.heads), kThreads, 0, stream>>>(
      p);
  return cudaGetLastError();
}

}  // namespace stablemask::ops::cuda
