#include "src/optim/muon.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "src/optim/adamw.h"
#include "stablemask/ops/muon.h"
#include "stablemask/ops/stream.h"

namespace stablemask {
namespace {

/// Root mean square of the elements of AdamW's update, which an orthogonal matrix times
/// kUpdateSize·√(larger side) has, too: Liu et al., "Muon is Scalable for LLM Training", arXiv
/// 2502.16982, section 2.2. AdamW's learning rates and weight decay fit for both.
constexpr double kUpdateSize = 0.2;
/// Elements of the matrices that are orthogonalised at a time. Each takes 4 to 8 bytes meanwhile.
constexpr int64_t kElementsAtOnce = int64_t{1} << 26;

FlatRange common(FlatRange a, FlatRange b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

/// The matrices of one shape in a block; `tall` ones have more rows than columns and are
/// orthogonalised with the others as their transposes.
struct Shape {
  struct Matrix {
    int64_t offset;  ///< from the begin of the block's bucket
    bool tall;
  };
  int64_t rows, columns;  ///< rows ≤ columns
  std::vector<Matrix> matrices;
};

class Muon final : public Optimizer {
 public:
  Muon(const OptimizerConfig& config, std::shared_ptr<FlatParameters> parameters,
       ops::Kernels kernels, int64_t seed)
      : config_(config),
        parameters_(std::move(parameters)),
        kernels_(kernels),
        rest_(make_adamw(config, parameters_, kernels, seed, Cover::kRest)),
        blocks_(layout().blocks()),
        side_(parameters_->weights().device()) {
    const at::TensorOptions fp32 = parameters_->gradients().options();
    momentum_ = at::zeros({layout().local_size(Cover::kBlocks)}, fp32);
    for (const Bucket& bucket : layout().buckets()) {
      if (bucket.kind == Bucket::Kind::kBlock) buckets_.push_back(bucket.range);
    }
    if (buckets_.empty()) return;
    find_shapes();
    const int64_t parts = layout().share().parts;
    each_ = (static_cast<int64_t>(buckets_.size()) + parts - 1) / parts;
    // Fp32 where products are exact; bf16 where tensor cores multiply.
    const bool rounds =
        fp32.device().is_cuda() && parameters_->weights().scalar_type() == at::kBFloat16;
    update_ = at::zeros({parts * each_ * buckets_[0].size()},
                        fp32.dtype(rounds ? at::kBFloat16 : at::kFloat));
  }

  void prepare(const at::Tensor& control, dist::Group& group) override {
    if (buckets_.empty()) return;
    for (const FlatRange& own : layout().own_ranges()) add_momentum(common(own, blocks_), control);
    const Share& share = layout().share();
    if (share.parts > 1) {
      for (const FlatRange& bucket : buckets_) group.all_gather(in_update(bucket));
    }
    const auto count = static_cast<int64_t>(buckets_.size());
    const int64_t first = std::min(share.part * each_, count);
    const int64_t end = std::min(first + each_, count);
    orthogonalize(first, end);
    if (share.parts > 1) group.all_gather(update_);
  }

  void update(FlatRange range, const at::Tensor& control) override {
    const FlatRange before{range.begin, std::min(range.end, blocks_.begin)};
    const FlatRange after{std::max(range.begin, blocks_.end), range.end};
    if (before.size() > 0) rest_->update(before, control);
    apply(common(range, blocks_), control);
    if (after.size() > 0) rest_->update(after, control);
  }

  std::map<std::string, Buffer> buffers() const override {
    std::map<std::string, Buffer> all = rest_->buffers();
    all["momentum"] = {momentum_, Cover::kBlocks};
    return all;
  }

 private:
  const FlatLayout& layout() const { return parameters_->layout(); }
  /// The elements of `range`, inside the blocks.
  at::Tensor in_update(FlatRange range) const {
    return update_.narrow(0, range.begin - blocks_.begin, range.size());
  }

  void find_shapes();
  void orthogonalize(int64_t first, int64_t end);
  void orthogonalize(const Shape& shape, int64_t first, int64_t end) const;
  void add_momentum(FlatRange range, const at::Tensor& control);
  void apply(FlatRange range, const at::Tensor& control);

  OptimizerConfig config_;
  std::shared_ptr<FlatParameters> parameters_;
  ops::Kernels kernels_;
  std::unique_ptr<Optimizer> rest_;
  FlatRange blocks_;
  std::vector<FlatRange> buckets_;  ///< of the blocks: equal sizes, without gaps
  std::vector<Shape> shapes_;
  ops::SideStream side_;
  int64_t each_ = 0;     ///< blocks that a process orthogonalises, at most
  at::Tensor momentum_;  ///< fp32 [layout().local_size(kBlocks)]
  /// [parts, each_, bucket size]: the matrices of the blocks with padding; first the momentum that
  /// is orthogonalised, then the update to be multiplied by the learning rate.
  at::Tensor update_;
};

void Muon::find_shapes() {
  for (const FlatLayout::Entry& entry : layout().entries()) {
    if (!layout().covers(Cover::kBlocks, {entry.offset, entry.offset + entry.numel()})) continue;
    TORCH_CHECK(!entry.matrix_rows.empty(), "Muon: ", entry.name,
                " is not a projection of the model; train adapters with AdamW");
    if (entry.offset >= buckets_[0].end) break;  // all blocks have the same matrices
    int64_t offset = entry.offset - buckets_[0].begin;
    for (const int64_t rows : entry.matrix_rows) {
      const int64_t columns = entry.shape[1];
      const auto [least, most] = std::minmax(rows, columns);
      auto shape = std::find_if(shapes_.begin(), shapes_.end(), [&](const Shape& one) {
        return one.rows == least && one.columns == most;
      });
      if (shape == shapes_.end()) shape = shapes_.insert(shape, {least, most, {}});
      shape->matrices.push_back({offset, rows > columns});
      offset += rows * columns;
    }
  }
}

/// Of the blocks [first, end). The shapes are dealt out to two streams: where the tiles of one
/// product leave a part of the GPU idle at their end, those of another fill it.
void Muon::orthogonalize(int64_t first, int64_t end) {
  for (size_t i = 1; i < shapes_.size(); i += 2) {
    const ops::SideStream::Entered on_side(side_);
    orthogonalize(shapes_[i], first, end);
  }
  for (size_t i = 0; i < shapes_.size(); i += 2) orthogonalize(shapes_[i], first, end);
  // A stream without work of this update is no part of a graph that records it.
  if (shapes_.size() > 1) side_.point().wait();
}

void Muon::orthogonalize(const Shape& shape, int64_t first, int64_t end) const {
  const int64_t of_block = static_cast<int64_t>(shape.matrices.size()) * shape.rows * shape.columns;
  const int64_t most = std::max<int64_t>(kElementsAtOnce / of_block, 1);
  const int64_t rounds = (end - first + most - 1) / most;
  const double scale = kUpdateSize * std::sqrt(static_cast<double>(shape.columns));
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t from = first + (end - first) * round / rounds;
    const int64_t to = first + (end - first) * (round + 1) / rounds;
    std::vector<at::Tensor> matrices;
    for (const Shape::Matrix& matrix : shape.matrices) {
      const int64_t rows = matrix.tall ? shape.columns : shape.rows;
      const int64_t columns = matrix.tall ? shape.rows : shape.columns;
      const int64_t size = buckets_[0].size();
      const at::Tensor all = update_.as_strided({to - from, rows, columns}, {size, columns, 1},
                                                from * size + matrix.offset);
      matrices.push_back(matrix.tall ? all.transpose(1, 2) : all);
    }
    ops::orthogonalize_(matrices, scale, kernels_);
  }
}

/// `range`: inside an own range and the blocks; may be empty, as in the next function.
void Muon::add_momentum(FlatRange range, const at::Tensor& control) {
  if (range.size() == 0) return;
  const FlatRange place = layout().local(range, Cover::kBlocks);
  at::Tensor momentum = momentum_.narrow(0, place.begin, place.size()), sum = in_update(range);
  ops::muon_momentum_(momentum, sum, parameters_->gradients().narrow(0, range.begin, range.size()),
                      config_.momentum, control, kernels_);
}

void Muon::apply(FlatRange range, const at::Tensor& control) {
  if (range.size() == 0) return;
  const FlatRange place = layout().local(range);
  at::Tensor weights = parameters_->weights().narrow(0, range.begin, range.size()), remainder;
  if (parameters_->remainder().defined()) {
    remainder = parameters_->remainder().narrow(0, place.begin, place.size());
  }
  ops::muon_apply_(weights, remainder, in_update(range), config_.weight_decay, control, kernels_);
}

}  // namespace

std::unique_ptr<Optimizer> make_muon(const OptimizerConfig& config,
                                     std::shared_ptr<FlatParameters> parameters,
                                     ops::Kernels kernels, int64_t seed) {
  return std::make_unique<Muon>(config, std::move(parameters), kernels, seed);
}

}  // namespace stablemask
