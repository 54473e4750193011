// Sums of two products, such as that of a frozen weight and that of its low-rank adapter, in one
// GEMM of fused_gemm.cuh: a product with few columns in its factors costs a k-block instead of a
// pass over the result.
//
// Memory traffic beside the operands, in elements per element of the result: 1 written, 1 read with
// an addend; both overlap with the mainloop.
#include "src/ops/cuda/fused_gemm_launch.cuh"

namespace stablemask::ops::cuda {
namespace {

using namespace fused_gemm;

/// Stores the tile.
template <bool kMnMajor>
struct StoreEpilogue {
  using LaneState = NoState;
  static constexpr bool kFp8 = false;
  static constexpr int kColumns = 256;
  static constexpr bool kMnMajorB = kMnMajor, kOwnTiles = false;
  static constexpr int kSlices = 4;  ///< 64 columns each
  CUtensorMap out;

  __device__ void begin(const WarpScratch&, LaneState&, TileOrigin) const {}

  template <int slice>
  __device__ void run(const ResultTile& tile, TileOrigin at, const WarpScratch& scratch, LaneState&,
                      const TileOrigin*) const {
    const uint32_t buffer = scratch.buffer(slice % 2);
    wait_for_stores<1>();
    fill_buffer(buffer, [&](int i) { return tile.pairs[16 * slice + i]; });
    store_buffers([&] { tma_store(out, at.column + 64 * slice, at.row, buffer); });
  }
};

/// Stores the sum of the tile and the addend's.
struct AddEpilogue {
  using LaneState = NoState;
  static constexpr bool kFp8 = false;
  static constexpr int kColumns = 256;
  static constexpr bool kMnMajorB = false, kOwnTiles = false;
  /// Per 128 columns: add and store, load the next.
  static constexpr int kSlices = 4;
  CUtensorMap addend, out;

  __device__ void begin(const WarpScratch& scratch, LaneState&, TileOrigin at) const {
    load(scratch, at, 0);
  }

  template <int slice>
  __device__ void run(const ResultTile& tile, TileOrigin at, const WarpScratch& scratch, LaneState&,
                      const TileOrigin* next) const {
    constexpr int kHalf = slice / 2;
    if constexpr (slice % 2 == 0) {
      barrier_wait(scratch.barrier, kHalf);
      add<2 * kHalf>(tile, scratch.buffer(0));
      add<2 * kHalf + 1>(tile, scratch.buffer(1));
      store_buffers([&] {
        tma_store(out, at.column + 128 * kHalf, at.row, scratch.buffer(0));
        tma_store(out, at.column + 128 * kHalf + 64, at.row, scratch.buffer(1));
      });
    } else if constexpr (kHalf == 0) {
      load(scratch, at, 1);
    } else if (next != nullptr) {
      load(scratch, *next, 0);
    }
  }

  /// Loads 128 columns into the warp's buffers after their last store has read them.
  __device__ void load(const WarpScratch& scratch, TileOrigin at, int half) const {
    if (!first_lane()) return;
    tma_store_wait_read<0>();
    barrier_arrive_expect_bytes(scratch.barrier, 2 * kBufferBytes);
    const int column = at.column + 128 * half;
    tma_load<true>(scratch.buffer(0), addend, column, at.row, scratch.barrier);
    tma_load<true>(scratch.buffer(1), addend, column + 64, at.row, scratch.barrier);
  }

  /// Adds 64 columns of the tile to a buffer.
  template <int part>
  __device__ static void add(const ResultTile& tile, uint32_t buffer) {
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t sum[4];
      load_fragments(sum, fragment(buffer, j));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 x = unpack2(sum[i]), y = unpack2(tile.pairs[16 * part + 2 * j + i]);
        sum[i] = pack2(x.x + y.x, x.y + y.y);
      }
      store_fragments(fragment(buffer, j), sum);
    }
  }
};

template <typename Epilogue>
cudaError_t launch_sum(GemmParams<Epilogue>& gemm, const SumProjection& p, cudaStream_t stream) {
  if (!encode_tensor_map(&gemm.epilogue.out, p.out, p.rows, p.columns, p.columns, kWarpRows)) {
    return cudaErrorInvalidValue;
  }
  return launch_gemm(gemm, {p.rows, p.columns, Epilogue::kMnMajorB}, p.first, p.second, stream);
}

template <bool kMnMajor>
cudaError_t launch_store(const SumProjection& p, cudaStream_t stream) {
  GemmParams<StoreEpilogue<kMnMajor>> gemm{};
  return launch_sum(gemm, p, stream);
}

}  // namespace

cudaError_t launch(const SumProjection& p, cudaStream_t stream) {
  if (p.addend == nullptr) {
    return p.plain ? launch_store<true>(p, stream) : launch_store<false>(p, stream);
  }
  GemmParams<AddEpilogue> gemm{};
  const bool encoded =
      encode_tensor_map(&gemm.epilogue.addend, p.addend, p.rows, p.columns, p.columns, kWarpRows);
  return encoded && !p.plain ? launch_sum(gemm, p, stream) : cudaErrorInvalidValue;
}

}  // namespace stablemask::ops::cuda
