#include "src/train/exchange.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <utility>

#include "stablemask/ops/optimizer.h"

namespace stablemask {
namespace {

/// Products of the backward pass that run beside the reduction of a bucket: the first two of a
/// block's feed-forward layer take about as long.
constexpr int64_t kProductsBesideReduction = 2;
/// Products of the forward pass that run beside the gathering of a bucket: a block's first takes
/// twice as long.
constexpr int64_t kProductsBesideGather = 1;

}  // namespace

Exchange::Exchange(const ModelConfig& model, std::shared_ptr<FlatParameters> flat,
                   std::shared_ptr<dist::Group> group, const Options& options)
    : flat_(std::move(flat)),
      group_(std::move(group)),
      kernels_(options.kernels),
      bucket_at_(model.layers + 2),
      side_(flat_->gradients().device()) {
  const Share& share = flat_->layout().share();
  TORCH_CHECK(share.parts == 1 || (share.parts == group_->size() && share.part == group_->rank()),
              "Exchange: process ", group_->rank(), " of ", group_->size(), " has part ",
              share.part, " of ", share.parts);
  std::vector<size_t> head;
  int64_t largest = 0;
  for (size_t i = 0; i < buckets().size(); ++i) {
    const Bucket& bucket = buckets()[i];
    largest = std::max(largest, bucket.range.size());
    if (bucket.kind == Bucket::Kind::kBlock) {
      rest_.push_back(i);
      bucket_at_[bucket.block] = i;
    } else if (bucket.kind == Bucket::Kind::kHead && !model.tied_head) {
      head.push_back(i);
      bucket_at_.back() = i;
    } else {
      front_.push_back(i);
    }
  }
  rest_.insert(rest_.end(), head.begin(), head.end());
  const at::TensorOptions fp64 = flat_->gradients().options().dtype(at::kDouble);
  squares_ = at::zeros({static_cast<int64_t>(buckets().size())}, fp64);
  sums_ = at::zeros({2}, fp64);
  if (options.reduce_dtype != at::kFloat) {
    rounded_ = at::empty({largest}, fp64.dtype(options.reduce_dtype));
  }
}

void Exchange::begin_step() {
  reduced_.assign(buckets().size(), false);
  gathered_.assign(buckets().size(), {});
  gathers_begun_ = 0;
  gather_next();
}

/// Enqueues the gathering of the weights that the forward pass needs next, beside what follows on
/// the current stream.
void Exchange::gather_next() {
  if (!sharded() || gathers_begun_ == rest_.size()) return;
  const size_t bucket = rest_[gathers_begun_++];
  const ops::SideStream::Entered on_side(side_);
  flat_->gather_weights(buckets()[bucket], *group_);
  gathered_[bucket] = side_.point();
  ops::leave_multiprocessors(group_->multiprocessors(), kProductsBesideGather);
}

void Exchange::begin_micro_batch(bool first, bool last, bool overlap) {
  first_ = first;
  last_ = last;
  overlap_ = overlap;
}

void Exchange::hidden(int64_t point, const at::Tensor& x) {
  const std::optional<size_t> bucket = bucket_at_.at(point);
  if (!bucket) return;
  if (first_) {
    gathered_[*bucket].wait();
    gather_next();
  }
  // Without a gradient at this point, as before the first trained block, finish() reduces it.
  if (last_ && x.requires_grad()) {
    const bool products_follow = point > 0;
    x.register_hook([this, bucket, products_follow](const at::Tensor&) {
      if (overlap_) reduce(*bucket);
      if (products_follow) {
        ops::leave_multiprocessors(group_->multiprocessors(), kProductsBesideReduction);
      }
    });
  }
}

/// Enqueues the sum of a bucket's gradients, which the current stream has completed.
void Exchange::reduce(size_t index) {
  const at::NoGradGuard no_grad;
  const ops::SideStream::Entered on_side(side_);
  const Bucket& bucket = buckets()[index];
  const FlatRange own = flat_->layout().own(bucket);
  const at::Tensor whole = flat_->gradients().narrow(0, bucket.range.begin, bucket.range.size());
  const auto part = [&](const at::Tensor& all) {
    return all.narrow(0, own.begin - bucket.range.begin, own.size());
  };
  at::Tensor sent = whole;
  if (rounded_.defined()) {
    sent = rounded_.narrow(0, 0, whole.size(0));
    sent.copy_(whole);
  }
  if (sharded()) {
    group_->reduce_scatter(sent, dist::Reduce::kSum);
  } else {
    group_->all_reduce(sent, dist::Reduce::kSum);
  }
  if (rounded_.defined()) part(whole).copy_(part(sent));
  if (sharded()) {
    squares_[static_cast<int64_t>(index)].copy_(ops::sum_of_squares(part(whole), kernels_));
  }
  reduced_[index] = true;
}

Exchange::Sums Exchange::finish(const at::Tensor& loss) {
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < buckets().size(); ++i) {
    if (!reduced_[i]) reduce(i);
  }
  {
    const ops::SideStream::Entered on_side(side_);
    sums_.select(0, 0).copy_(loss);
    sums_.select(0, 1).copy_(sharded() ? squares_.sum()
                                       : ops::sum_of_squares(flat_->gradients(), kernels_));
    // Without parts every process has the sum of all squares already.
    group_->all_reduce(sharded() ? sums_ : sums_.narrow(0, 0, 1), dist::Reduce::kSum);
  }
  side_.point().wait();
  return {sums_[0].to(at::kFloat), sums_[1].sqrt().to(at::kFloat)};
}

void Exchange::update(const std::function<void(FlatRange)>& update) {
  const FlatLayout& layout = flat_->layout();
  if (!sharded()) {
    for (const FlatRange& range : layout.own_ranges()) update(range);
    return;
  }
  for (const size_t bucket : front_) update(layout.own(buckets()[bucket]));
  {
    const ops::SideStream::Entered on_side(side_);
    for (const size_t bucket : front_) flat_->gather_weights(buckets()[bucket], *group_);
  }
  for (const size_t bucket : rest_) update(layout.own(buckets()[bucket]));
  side_.point().wait();
}

}  // namespace stablemask
