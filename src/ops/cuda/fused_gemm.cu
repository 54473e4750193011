// Matrix products that finish their result before it leaves the chip: SwiGLU behind the
// up-projection of the feed-forward layer, its gradient behind the gradient of the down-projection,
// rotary embedding behind the attention projection. The product itself is fused_gemm.cuh's; here
// are the tails. Each works on the rounded product, as the separate kernels do, in their formulas:
// swiglu.cu, rope.cu.
//
// Memory traffic beside the operands, per element of the product: SwiGLU writes 1.5 elements, its
// gradient reads and writes 2, rotary embedding writes 1; all of it under the products.
#include "src/ops/cuda/fused_gemm.h"

#include "src/ops/cuda/fused_gemm.cuh"

namespace stablemask::ops::cuda {
namespace {

using namespace fused_gemm;

/// Calls f(gate, up) on the pairs of one half of a warp's two blocks, which it may change and which
/// go back there. A few at a time: through shared memory they cost no registers that the sums need.
template <int half, typename F>
__device__ __forceinline__ void for_each_pair(const Own& own, const F& f) {
#pragma unroll
  for (int j = 4 * half; j < 4 * half + 4; j += 2) {
    uint32_t gate[4], up[4];
    load_fragments(gate, fragment(own.block(0), j));
    load_fragments(up, fragment(own.block(1), j));
#pragma unroll
    for (int i = 0; i < 4; ++i) f(2 * j + i, gate[i], up[i]);
    store_fragments(fragment(own.block(0), j), gate);
    store_fragments(fragment(own.block(1), j), up);
  }
}

struct Nothing {};

/// Stores gate and up, the halves of the tile's columns, and silu(gate)·up.
struct SwigluTail {
  using State = Nothing;
  static constexpr int kColumns = 128;
  static constexpr bool kInnerRows = false;
  static constexpr int kSlices = 6;  // for each 64 of them: send gate and up, then their product
  CUtensorMap gate, up, out;

  __device__ void begin(const Own&, State&, Place) const {}

  template <int slice>
  __device__ void run(const Finished& tile, Place at, const Own& own, State&, const Place*) const {
    constexpr int kHalf = slice / 3, kStep = slice % 3;
    const int column = at.column + 64 * kHalf;
    if constexpr (kStep == 0) {
      await_blocks<0>();
      fill_block(own.block(0), [&](int i) { return tile.pairs[16 * kHalf + i]; });
      fill_block(own.block(1), [&](int i) { return tile.pairs[32 + 16 * kHalf + i]; });
      send_blocks([&] {
        write_tile(gate, column, at.row, own.block(0));
        write_tile(up, column, at.row, own.block(1));
      });
    } else {
      if constexpr (kStep == 1) await_blocks<0>();
      for_each_pair<kStep - 1>(own, [](int, uint32_t& gates, uint32_t& ups) {
        const float2 g = unpack2(gates), u = unpack2(ups);
        gates = pack2(g.x * sigmoid_as<bf16>(g.x) * u.x, g.y * sigmoid_as<bf16>(g.y) * u.y);
      });
      if constexpr (kStep == 2) {
        send_blocks([&] { write_tile(out, column, at.row, own.block(0)); });
      }
    }
  }
};

/// The tile is the gradient of silu(gate)·up; reads gate and up, stores their gradients.
struct SwigluGradTail {
  using State = Nothing;
  static constexpr int kColumns = 256;
  static constexpr bool kInnerRows = true;
  static constexpr int kSlices = 8;  // for each 64 columns: compute, then fetch the next
  CUtensorMap gate, up, dgate, dup;

  __device__ void begin(const Own& own, State&, Place at) const { fetch(own, at, 0); }

  template <int slice>
  __device__ void run(const Finished& tile, Place at, const Own& own, State&,
                      const Place* next) const {
    constexpr int kPart = slice / 2, kStep = slice % 2;
    if constexpr (kStep == 0) {
      barrier_wait(own.barrier, kPart % 2);
      const auto f = [&](int i, uint32_t& gates, uint32_t& ups) {
        gradient(tile.pairs[16 * kPart + i], gates, ups);
      };
      for_each_pair<0>(own, f);
      for_each_pair<1>(own, f);
      send_blocks([&] {
        write_tile(dgate, at.column + 64 * kPart, at.row, own.block(0));
        write_tile(dup, at.column + 64 * kPart, at.row, own.block(1));
      });
    } else if constexpr (kPart < 3) {
      fetch(own, at, kPart + 1);
    } else if (next != nullptr) {
      fetch(own, *next, 0);
    }
  }

  /// Gate and up of 64 columns to the warp's blocks, once what was there has left.
  __device__ void fetch(const Own& own, Place at, int part) const {
    if (!first_lane()) return;
    await_writes_read<0>();
    barrier_expect(own.barrier, 2 * kBlockBytes);
    copy_tile<true>(own.block(0), gate, at.column + 64 * part, at.row, own.barrier);
    copy_tile<true>(own.block(1), up, at.column + 64 * part, at.row, own.barrier);
  }

  /// Replaces two gates and ups by their gradients.
  __device__ static void gradient(uint32_t dout_pair, uint32_t& gate_pair, uint32_t& up_pair) {
    const float2 d = unpack2(dout_pair), g = unpack2(gate_pair), u = unpack2(up_pair);
    const float sx = sigmoid_as<bf16>(g.x), sy = sigmoid_as<bf16>(g.y);
    gate_pair = pack2(d.x * u.x * sx * (1.0f + g.x * (1.0f - sx)),
                      d.y * u.y * sy * (1.0f + g.y * (1.0f - sy)));
    up_pair = pack2(d.x * g.x * sx, d.y * g.y * sy);
  }
};

/// Rotates the heads that lie in the first `rotated` columns, then stores.
template <int kHeadDim>
struct RopeTail {
  /// Where the angles of a lane's two rows begin in the table; negative: at an unknown position.
  struct State {
    int64_t angles[2];
  };
  static constexpr int kColumns = 256;
  static constexpr bool kInnerRows = false;
  static constexpr int kSlices = 8;  // a quarter of each head's angles each, then 64 columns each
  CUtensorMap out;
  const int64_t* positions;
  const float* table;
  int64_t position_period, table_rows;
  int tokens, rotated;

  __device__ void begin(const Own&, State& state, Place at) const { look_up(state, at); }

  template <int slice>
  __device__ void run(Finished& tile, Place at, const Own& own, State& state,
                      const Place* next) const {
    if constexpr (slice < 4) {
      if (at.column < rotated) rotate<slice>(tile, at, state);
    } else {
      constexpr int kPart = slice - 4;
      const uint32_t block = own.block(kPart % 2);
      await_blocks<1>();
      fill_block(block, [&](int i) { return tile.pairs[16 * kPart + i]; });
      send_blocks([&] { write_tile(out, at.column + 64 * kPart, at.row, block); });
      if (kPart == 3 && next != nullptr) look_up(state, *next);
    }
  }

  __device__ void look_up(State& state, Place at) const {
#pragma unroll
    for (int second = 0; second < 2; ++second) {  // 8 rows on
      const int row = at.row + threadIdx.x % 32 / 4 + 8 * second;
      const int64_t position = row < tokens ? positions[row % position_period] : 0;
      const bool known = position >= 0 && position < table_rows;
      state.angles[second] = known ? position * kHeadDim : -1;
    }
  }

  template <int quarter>
  __device__ void rotate(Finished& tile, Place at, const State& state) const {
    constexpr int kGroups = kHeadDim / 64;  // of 8 angles
    float2 cosines[2][kGroups], sines[2][kGroups];
#pragma unroll
    for (int second = 0; second < 2; ++second) {
      const bool known = state.angles[second] >= 0;
      const float* angles = table + (known ? state.angles[second] : 0) + threadIdx.x % 4 * 2;
      const float sign = known ? 1.0f : __int_as_float(0x7fc00000);
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const int m = 8 * (quarter * kGroups + i);
        cosines[second][i] = *reinterpret_cast<const float2*>(angles + m);
        const float2 sine = *reinterpret_cast<const float2*>(angles + kHeadDim / 2 + m);
        sines[second][i] = {sign * sine.x, sign * sine.y};
      }
    }
#pragma unroll
    for (int head = 0; head < kTileColumns / kHeadDim; ++head) {
      if (at.column + head * kHeadDim >= rotated) break;
#pragma unroll
      for (int i = 0; i < 2 * kGroups; ++i) {
        const int group = head * kHeadDim / 8 + quarter * kGroups + i / 2;
        uint32_t& x = tile.pairs[2 * group + i % 2];
        turn(x, tile.pairs[2 * group + i % 2 + kHeadDim / 8], cosines[i % 2][i / 2],
             sines[i % 2][i / 2]);
      }
    }
  }

  __device__ static void turn(uint32_t& x_pair, uint32_t& y_pair, float2 cosine, float2 sine) {
    const float2 x = unpack2(x_pair), y = unpack2(y_pair);
    x_pair = pack2(x.x * cosine.x - y.x * sine.x, x.y * cosine.y - y.y * sine.y);
    y_pair = pack2(y.x * cosine.x + x.x * sine.x, y.y * cosine.y + x.y * sine.y);
  }
};

/// A bf16 matrix as the copy engine sees it, in boxes of 64 columns; false where it cannot.
bool describe(CUtensorMap* map, const void* data, int64_t rows, int64_t columns, int64_t stride,
              int box_rows) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {  // the driver's function, without linking the driver
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
    const bool there = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
    return there ? reinterpret_cast<Encode>(function) : nullptr;
  }();
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * sizeof(bf16)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  return encode != nullptr &&
         encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data), sizes, strides,
                box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/// Runs a product whose operands and tail are described: [rows, inner]·[inner, columns], `columns`
/// counted in tiles of Tail::kColumns.
template <typename Tail>
cudaError_t start(Product<Tail>& p, int64_t rows, int64_t columns, int64_t inner,
                  cudaStream_t stream) {
  p.row_tiles = static_cast<int>(ceil_div<int64_t>(rows, kCluster * kTileRows));
  p.column_tiles = static_cast<int>(ceil_div<int64_t>(columns, Tail::kColumns));
  p.slabs = static_cast<int>(ceil_div<int64_t>(inner, kSlab));
  int processors = 0;
  cudaError_t error = device_attribute(cudaDevAttrMultiProcessorCount, &processors);
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel<Tail>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 kSharedBytes);
  }
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kCluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kCluster * std::min(processors / kCluster, p.tiles()));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel<Tail>, p);
}

template <int kHeadDim>
cudaError_t start_rope(const RopeProjection& p, cudaStream_t stream) {
  Product<RopeTail<kHeadDim>> product{};
  const int64_t columns = int64_t{p.packed_heads} * kHeadDim;
  const bool described =
      describe(&product.a, p.x, p.tokens, p.inner, p.inner, kTileRows) &&
      describe(&product.b[0], p.weight, columns, p.inner, p.inner, kTileColumns / 2) &&
      describe(&product.tail.out, p.packed, p.tokens, columns, columns, kWarpRows);
  if (!described) return cudaErrorInvalidValue;
  product.b[1] = product.b[0];
  product.tail.positions = p.positions;
  product.tail.table = p.table;
  product.tail.position_period = p.position_period;
  product.tail.table_rows = p.table_rows;
  product.tail.tokens = static_cast<int>(p.tokens);
  product.tail.rotated = p.heads * kHeadDim;
  return start(product, p.tokens, columns, p.inner, stream);
}

}  // namespace

bool fused_gemm_runs_here() {
#ifdef STABLEMASK_SM_90A
  int major = 0, minor = 0;
  return device_attribute(cudaDevAttrComputeCapabilityMajor, &major) == cudaSuccess &&
         device_attribute(cudaDevAttrComputeCapabilityMinor, &minor) == cudaSuccess && major == 9 &&
         minor == 0;
#else
  return false;
#endif
}

cudaError_t launch(const SwigluProjection& p, cudaStream_t stream) {
  Product<SwigluTail> product{};
  const int64_t f = p.features;
  const auto half = [&](const void* matrix, int64_t width) {
    return static_cast<const bf16*>(matrix) + f * width;
  };
  const bool described =
      describe(&product.a, p.x, p.rows, p.inner, p.inner, kTileRows) &&
      describe(&product.b[0], p.weight, f, p.inner, p.inner, kTileColumns / 2) &&
      describe(&product.b[1], half(p.weight, p.inner), f, p.inner, p.inner, kTileColumns / 2) &&
      describe(&product.tail.gate, p.gate_up, p.rows, f, 2 * f, kWarpRows) &&
      describe(&product.tail.up, half(p.gate_up, 1), p.rows, f, 2 * f, kWarpRows) &&
      describe(&product.tail.out, p.out, p.rows, f, f, kWarpRows);
  if (!described) return cudaErrorInvalidValue;
  return start(product, p.rows, f, p.inner, stream);
}

cudaError_t launch(const SwigluProjectionBackward& p, cudaStream_t stream) {
  Product<SwigluGradTail> product{};
  const int64_t f = p.features;
  const bf16* up = static_cast<const bf16*>(p.gate_up) + f;
  const bf16* dup = static_cast<const bf16*>(p.dgate_up) + f;
  const bool described = describe(&product.a, p.dy, p.rows, p.inner, p.inner, kTileRows) &&
                         describe(&product.b[0], p.weight, p.inner, f, f, kSlab) &&
                         describe(&product.tail.gate, p.gate_up, p.rows, f, 2 * f, kWarpRows) &&
                         describe(&product.tail.up, up, p.rows, f, 2 * f, kWarpRows) &&
                         describe(&product.tail.dgate, p.dgate_up, p.rows, f, 2 * f, kWarpRows) &&
                         describe(&product.tail.dup, dup, p.rows, f, 2 * f, kWarpRows);
  if (!described) return cudaErrorInvalidValue;
  return start(product, p.rows, f, p.inner, stream);
}

cudaError_t launch(const RopeProjection& p, cudaStream_t stream) {
  switch (p.head_dim) {
    case 64:
      return start_rope<64>(p, stream);
    case 128:
      return start_rope<128>(p, stream);
    case 256:
      return start_rope<256>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace stablemask::ops::cuda
