#pragma once

#include "src/ops/cuda/fused_gemm.cuh"
#include "src/ops/cuda/fused_gemm.h"
#include "src/ops/multiprocessors.h"

/// Host side of fused_gemm.cuh.
namespace stablemask::ops::cuda::fused_gemm {

struct NoState {};  // LaneState of an epilogue that keeps nothing

/// How a matrix lies in memory, and the boxes in which TMA moves it.
struct TensorMapKind {
  CUtensorMapDataType type;
  int bytes;  ///< of a number
  int box_columns;
  CUtensorMapSwizzle swizzle;
};
constexpr TensorMapKind kBf16Map{CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, 64,
                                 CU_TENSOR_MAP_SWIZZLE_128B};
constexpr TensorMapKind kFp8Map{CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, kBlockBytes,
                                CU_TENSOR_MAP_SWIZZLE_128B};
constexpr TensorMapKind kFp8ValuesMap{CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, 64,
                                      CU_TENSOR_MAP_SWIZZLE_64B};
constexpr TensorMapKind kFp8TwinMap{CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, kWarpRows,
                                    CU_TENSOR_MAP_SWIZZLE_NONE};

/// TMA descriptor of a matrix; false where the driver refuses it.
inline bool encode_tensor_map(CUtensorMap* map, const void* data, int64_t rows, int64_t columns,
                              int64_t stride, int box_rows, const TensorMapKind& kind = kBf16Map) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {  // looked up at run time, so that libcuda is not linked
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
    const bool there = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
    return there ? reinterpret_cast<Encode>(function) : nullptr;
  }();
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride * kind.bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(kind.box_columns),
                            static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  return encode != nullptr &&
         encode(map, kind.type, 2, const_cast<void*>(data), sizes, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, kind.swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

struct GemmShape {
  int64_t rows, columns;
  bool mn_major;        ///< weights are [inner, columns] instead of [columns, inner]
  bool halves = false;  ///< a tile has rows of a weight [2·columns, inner] from both its halves
};

/// Tensor maps of a pair of factors of a kind; with mn_major bf16.
inline bool encode_operands(Operands& to, const Factors& from, const GemmShape& shape,
                            const TensorMapKind& kind) {
  const auto* weight = static_cast<const uint8_t*>(from.weight);
  if (!encode_tensor_map(&to.a, from.x, shape.rows, from.inner, from.x_stride, kTileRows, kind)) {
    return false;
  }
  if (shape.mn_major) {
    return encode_tensor_map(&to.b[0], weight, from.inner, shape.columns, from.weight_stride,
                             kBlockK, kind);
  }
  const auto rows_from = [&](CUtensorMap* map, int64_t first) {
    return encode_tensor_map(map, weight + first * from.weight_stride * kind.bytes, shape.columns,
                             from.inner, from.weight_stride, kTileColumns / 2, kind);
  };
  return rows_from(&to.b[0], 0) && rows_from(&to.b[1], shape.halves ? shape.columns : 0);
}

/// Launches a GEMM whose operands, numbers of tiles and of k-blocks and epilogue are set.
template <typename Epilogue>
cudaError_t launch_tiles(const GemmParams<Epilogue>& p, cudaStream_t stream) {
  int multiprocessors = 0;
  cudaError_t error = device_attribute(cudaDevAttrMultiProcessorCount, &multiprocessors);
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel<Epilogue>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 kSharedBytes);
  }
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kCluster, 1, 1};
  cudaLaunchConfig_t config{};
  const int used = std::max(kCluster, multiprocessors - static_cast<int>(multiprocessors_left()));
  config.gridDim = dim3(kCluster * std::min(used / kCluster, p.tiles()));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel<Epilogue>, p);
}

/// Launches the GEMM of `first` and, if its inner dimension is not 0, `second`; p.epilogue and, of
/// e4m3 factors, their inverse scales are set.
template <typename Epilogue>
cudaError_t launch_gemm(GemmParams<Epilogue>& p, const GemmShape& shape, const Factors& first,
                        const Factors& second, cudaStream_t stream) {
  const TensorMapKind& kind = Epilogue::kFp8 ? kFp8Map : kBf16Map;
  if (!encode_operands(p.first, first, shape, kind) ||
      (second.inner > 0 && !encode_operands(p.second, second, shape, kind))) {
    return cudaErrorInvalidValue;
  }
  p.row_tiles = static_cast<int>(ceil_div<int64_t>(shape.rows, kCluster * kTileRows));
  p.column_tiles = static_cast<int>(ceil_div<int64_t>(shape.columns, Epilogue::kColumns));
  p.first_k_blocks = static_cast<int>(ceil_div<int64_t>(first.inner, p.kInner));
  p.k_blocks = p.first_k_blocks + static_cast<int>(ceil_div<int64_t>(second.inner, p.kInner));
  return launch_tiles(p, stream);
}

}  // namespace stablemask::ops::cuda::fused_gemm
