// Dropout (rules: ops/dropout_rules.h).
//
// Parallelisation: a thread processes one pack of neighbouring elements at a time.
// Memory traffic in elements per element: 2.
#include "src/ops/cuda/common.cuh"
#include "src/ops/dropout_rules.h"

namespace stablemask::ops::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T, int kVec>
__global__ void dropout_kernel(const DropoutArgs p) {
  const uint64_t seed = dropout::seed_of(*p.key, p.stream);
  const int64_t packs = p.count / kVec;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < packs;
       i += int64_t{gridDim.x} * kThreads) {
    const Pack<T, kVec> x = load<kVec>(static_cast<const T*>(p.x) + i * kVec);
    float out[kVec];
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      const bool keeps = dropout::keeps(seed, p.first + i * kVec + k, p.threshold);
      out[k] = keeps ? to_float(x.data[k]) * p.factor : 0.0f;
    }
    store<kVec>(static_cast<T*>(p.out) + i * kVec, pack<T>(out));
  }
}

}  // namespace

cudaError_t launch(const DropoutArgs& p, cudaStream_t stream) {
  return with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool whole = aligned(p.x, p.out) && p.count % kFullPack<T> == 0;
    return with_pack<T>(whole, [&](auto vec) {
      const int64_t blocks = ceil_div<int64_t>(p.count / vec.value, kThreads);
      const auto grid = static_cast<unsigned>(std::min<int64_t>(blocks, 8192));
      dropout_kernel<T, vec.value><<<grid, kThreads, 0, stream>>>(p);
      return cudaGetLastError();
    });
  });
}

}  // namespace stablemask::ops::cuda
