// SwiGLU:  out = silu(g) · u,  silu(g) = g·σ(g)
//   dg = dout · u · σ(g) · (1 + g·(1 − σ(g))),   du = dout · silu(g)
//
// Parallelisation: a thread processes one pack of columns in several rows; no index divisions.
// Memory traffic in elements per element of `out`: forward 3, backward 5.
#include "src/ops/cuda/swiglu.cuh"

#include "src/ops/cuda/common.cuh"

namespace stablemask::ops::cuda {
namespace {

constexpr int kRowsPerThread = 4;

template <typename T, int kVec>
__global__ void swiglu_forward_kernel(const SwigluForward p) {
  const int64_t column = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kVec;
  if (column >= p.features) return;
  for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
    const T* gate = static_cast<const T*>(p.gate_up) + row * 2 * p.features + column;
    const Pack<T, kVec> g = load<kVec>(gate);
    const Pack<T, kVec> u = load<kVec>(gate + p.features);
    float out[kVec];
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      out[k] = swiglu_of<T>(to_float(g.data[k]), to_float(u.data[k]));
    }
    store<kVec>(static_cast<T*>(p.out) + row * p.features + column, pack<T>(out));
  }
}

template <typename T, int kVec>
__global__ void swiglu_backward_kernel(const SwigluBackward p) {
  const int64_t column = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kVec;
  if (column >= p.features) return;
  for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
    const int64_t at = row * 2 * p.features + column;
    const T* gate = static_cast<const T*>(p.gate_up) + at;
    const Pack<T, kVec> g = load<kVec>(gate);
    const Pack<T, kVec> u = load<kVec>(gate + p.features);
    const Pack<T, kVec> d = load<kVec>(static_cast<const T*>(p.dout) + row * p.features + column);
    float dgate[kVec];
    float dup[kVec];
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      const SwigluGradient gradient =
          swiglu_gradient_of<T>(to_float(d.data[k]), to_float(g.data[k]), to_float(u.data[k]));
      dgate[k] = gradient.gate;
      dup[k] = gradient.up;
    }
    T* to = static_cast<T*>(p.dgate_up) + at;
    store<kVec>(to, pack<T>(dgate));
    store<kVec>(to + p.features, pack<T>(dup));
  }
}

struct LaunchGrid {
  dim3 grid;
  int threads;
};

LaunchGrid launch_grid(int64_t rows, int64_t features, int vec) {
  const int64_t packs = features / vec;
  const int threads = block_size(packs, 256);
  const int64_t row_blocks = std::min<int64_t>(ceil_div<int64_t>(rows, kRowsPerThread), 65535);
  return {dim3(static_cast<unsigned>(ceil_div<int64_t>(packs, threads)),
               static_cast<unsigned>(row_blocks)),
          threads};
}

}  // namespace

cudaError_t launch(const SwigluForward& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool whole = aligned(p.gate_up, p.out) && p.features % kFullPack<T> == 0;
    return with_pack<T>(whole, [&](auto vec) {
      const LaunchGrid s = launch_grid(p.rows, p.features, vec.value);
      swiglu_forward_kernel<T, vec.value><<<s.grid, s.threads, 0, stream>>>(p);
      return cudaGetLastError();
    });
  });
}

cudaError_t launch(const SwigluBackward& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool whole = aligned(p.dout, p.gate_up, p.dgate_up) && p.features % kFullPack<T> == 0;
    return with_pack<T>(whole, [&](auto vec) {
      const LaunchGrid s = launch_grid(p.rows, p.features, vec.value);
      swiglu_backward_kernel<T, vec.value><<<s.grid, s.threads, 0, stream>>>(p);
      return cudaGetLastError();
    });
  });
}

}  // namespace stablemask::ops::cuda
