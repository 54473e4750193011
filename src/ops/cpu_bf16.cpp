#include "src/ops/cpu_bf16.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "src/ops/cpu_bf16_pack.h"

namespace stablemask::ops::cpu {
namespace {

/// The largest block of `out` that one call of the micro-kernel computes, and the part of the
/// summed dimension that it adds at a time: operands of 128 and 256 KiB.
constexpr int64_t kBlockRows = 64, kBlockColumns = 128, kBlockDepth = 1024;

int64_t blocks(int64_t size, int64_t block) { return (size + block - 1) / block; }

/// As few blocks of at most `most` as possible, about equal, so that threads get equal work.
int64_t even_block(int64_t size, int64_t most) {
  constexpr int64_t kVector = 16;
  return blocks(blocks(size, blocks(size, most)), kVector) * kVector;
}

enum class Side { kLeft, kRight };

/// A factor in blocks along its outer dimension (rows of the left one, columns of the right one),
/// packed for the micro-kernel, each block `words` words.
class FactorBlocks {
 public:
  FactorBlocks(const Factor& factor, Side side)
      : x_(factor.matrix.const_data_ptr<float>()),
        stride_(factor.matrix.stride(0)),
        left_(side == Side::kLeft),
        transposed_(factor.transposed),
        sums_along_rows_(left_ != transposed_),
        size_(factor.matrix.size(sums_along_rows_ ? 0 : 1)),
        block_(even_block(size_, left_ ? kBlockRows : kBlockColumns)),
        depth_(factor.matrix.size(sums_along_rows_ ? 1 : 0)) {}

  int64_t count() const { return blocks(size_, block_); }
  int64_t block() const { return block_; }
  int64_t half_depth() const { return (depth_ + 1) / 2; }
  int64_t words() const { return block_ * half_depth(); }
  int64_t size_of(int64_t index) const { return std::min(block_, size_ - index * block_); }

  void pack(int64_t index, uint32_t* out) const {
    const int64_t first = index * block_, size = size_of(index);
    const bf16::Words words = sums_along_rows_
                                  ? bf16::Words{x_ + first * stride_, size, depth_, stride_, false}
                                  : bf16::Words{x_ + first, depth_, size, stride_, true};
    bf16::pack(words, out, left_ ? half_depth() : block_, transposed_);
  }

 private:
  const float* x_;
  int64_t stride_;
  bool left_, transposed_, sums_along_rows_;
  int64_t size_, block_, depth_;
};

/// Memory for packed blocks.
class PackedWords {
 public:
  explicit PackedWords(int64_t words) : buffer_(at::empty({words}, at::kInt)) {}
  uint32_t* data() const { return reinterpret_cast<uint32_t*>(buffer_.data_ptr<int32_t>()); }

 private:
  at::Tensor buffer_;
};

const at::BFloat16* numbers(const uint32_t* words) {
  return reinterpret_cast<const at::BFloat16*>(words);
}

/// By oneDNN's micro-kernel for blocks, which has code for AVX512-BF16 and for AMX. The right
/// factor is packed at first, a block of the left one by the thread that multiplies it, whose cache
/// it stays in.
void block_product(at::Tensor& out, const Factor& a, const Factor& b, bool adds) {
  const FactorBlocks left(a, Side::kLeft), right(b, Side::kRight);
  const PackedWords all_right(right.count() * right.words());
  at::parallel_for(0, right.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) right.pack(j, all_right.data() + j * right.words());
  });
  const int64_t columns = right.count(), depth = 2 * left.half_depth(), stride = out.stride(0);
  float* to = out.data_ptr<float>();
  at::parallel_for(0, left.count() * columns, 1, [&](int64_t begin, int64_t end) {
    const PackedWords one_left(left.words());
    for (int64_t index = begin; index < end; ++index) {
      const int64_t i = index / columns, j = index % columns;
      if (index == begin || j == 0) left.pack(i, one_left.data());
      float* block = to + i * left.block() * stride + j * right.block();
      const at::BFloat16* of_right = numbers(all_right.data() + j * right.words());
      for (int64_t k = 0; k < depth; k += kBlockDepth) {
        at::native::cpublas::brgemm(left.size_of(i), right.size_of(j),
                                    std::min(kBlockDepth, depth - k), depth, right.block(), stride,
                                    adds || k > 0, numbers(one_left.data()) + k,
                                    of_right + k * right.block(), block, /*is_vnni=*/true);
      }
    }
    at::native::cpublas::brgemm_release(/*is_vnni=*/true);
  });
}

at::Tensor rounded(const Factor& factor) {
  const at::Tensor matrix = factor.matrix.to(at::kBFloat16).to(at::kFloat);
  return factor.transposed ? matrix.t() : matrix;
}

}  // namespace

void bf16_product(at::Tensor& out, const Factor& a, const Factor& b, bool adds, bool instructions) {
  for (const at::Tensor* x : {&std::as_const(out), &a.matrix, &b.matrix}) {
    TORCH_CHECK(x->is_cpu() && x->scalar_type() == at::kFloat && x->dim() == 2 &&
                    (x->size(1) <= 1 || x->stride(1) == 1),
                "bf16_product: needs fp32 matrices on the CPU with contiguous rows, got ",
                x->toString(), " ", x->sizes());
  }
  const int64_t depth = a.matrix.size(a.transposed ? 0 : 1);
  TORCH_CHECK(out.size(0) == a.matrix.size(a.transposed ? 1 : 0) &&
                  out.size(1) == b.matrix.size(b.transposed ? 0 : 1) &&
                  depth == b.matrix.size(b.transposed ? 1 : 0),
              "bf16_product: shapes do not fit: ", out.sizes(), ", ", a.matrix.sizes(), ", ",
              b.matrix.sizes());
  if (out.numel() == 0) return;
  if (!adds && depth == 0) {
    out.zero_();
  } else if (depth > 0 && instructions) {
    block_product(out, a, b, adds);
  } else if (depth > 0) {
    const at::Tensor product = at::mm(rounded(a), rounded(b));
    adds ? out.add_(product) : out.copy_(product);
  }
}

}  // namespace stablemask::ops::cpu
