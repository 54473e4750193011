#pragma once

#include <cooperative_groups.h>

namespace stablemask::ops::cuda {

/// The thread block's cluster: on GPUs before Hopper, and without a launch attribute, the block
/// alone. Before a block's shared memory is accessed by another one, both must have begun; and it
/// must not end before these accesses have.
struct Cluster {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cooperative_groups::cluster_group group = cooperative_groups::this_cluster();
  __device__ int size() const { return static_cast<int>(group.num_blocks()); }
  __device__ int rank() const { return static_cast<int>(group.block_rank()); }
  /// Between arrive and wait, what the other blocks wrote before they arrived is not visible yet.
  __device__ void arrive() const { group.barrier_arrive(); }
  __device__ void wait() const { group.barrier_wait(); }
  template <typename T>
  __device__ T* at(T* shared, int block) const {
    return group.map_shared_rank(shared, block);
  }
#else
  __device__ int size() const { return 1; }
  __device__ int rank() const { return 0; }
  __device__ void arrive() const {}
  __device__ void wait() const { __syncthreads(); }
  template <typename T>
  __device__ T* at(T* shared, int) const {
    return shared;
  }
#endif
  __device__ void sync() const {
    arrive();
    wait();
  }
};

}  // namespace stablemask::ops::cuda
