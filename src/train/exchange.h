#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "stablemask/dist/group.h"
#include "stablemask/nn/observer.h"
#include "stablemask/ops/kernels.h"
#include "stablemask/ops/stream.h"
#include "stablemask/optim/flat_parameters.h"

namespace stablemask {

/// Exchanges gradients and weights with the other processes during a step, bucket by bucket on a
/// stream beside the computation. The gradients of a bucket are summed as soon as the last
/// micro-batch's backward pass has completed them. If each process updates a part of the weights,
/// those that the embedding needs are gathered during the rest of the update, the others in the
/// next step: each bucket while its first forward pass computes with the one before.
///
/// The calls of a step: begin_step; for each micro-batch begin_micro_batch, a forward pass that
/// this object observes, its backward pass; finish; update. All on the step's stream; every process
/// makes the same ones.
class Exchange final : public nn::ForwardObserver {
 public:
  struct Options {
    at::ScalarType reduce_dtype = at::kFloat;  ///< or bf16: gradients are rounded to it and summed
    ops::Kernels kernels = ops::Kernels::kFused;
  };
  Exchange(const ModelConfig& model, std::shared_ptr<FlatParameters> flat,
           std::shared_ptr<dist::Group> group, const Options& options);

  void begin_step();
  /// Without `overlap` gradients are summed after the backward pass: for the step in which the
  /// algorithms of its products are timed.
  void begin_micro_batch(bool first, bool last, bool overlap = true);

  struct Sums {
    at::Tensor loss;  ///< fp32 0-dim
    at::Tensor norm;  ///< of all gradients, fp32 0-dim
  };
  /// `loss` 0-dim, of this process. Afterwards the gradients of the own parts are the sums over all
  /// processes; those of other parts are unspecified.
  Sums finish(const at::Tensor& loss);
  /// Calls `update` for each of the layout's own_ranges().
  void update(const std::function<void(FlatRange)>& update);

  void attention(int64_t, const at::Tensor&, const ops::AttentionOptions&) override {}
  void hidden(int64_t point, const at::Tensor& x) override;

 private:
  const std::vector<Bucket>& buckets() const { return flat_->layout().buckets(); }
  bool sharded() const { return flat_->layout().share().parts > 1; }
  void gather_next();
  void reduce(size_t bucket);

  const std::shared_ptr<FlatParameters> flat_;
  const std::shared_ptr<dist::Group> group_;
  const ops::Kernels kernels_;
  std::vector<size_t> front_;  ///< buckets that the embedding needs, and vectors
  std::vector<size_t> rest_;   ///< the other ones in the order of the forward pass
  /// For each point of nn::ForwardObserver the bucket that is multiplied by next, if any.
  std::vector<std::optional<size_t>> bucket_at_;

  ops::SideStream side_;
  std::vector<ops::SideStream::Point> gathered_;        ///< by bucket
  size_t gathers_begun_ = 0;                            ///< of rest_, in this step
  std::vector<bool> reduced_;                           ///< by bucket, in this step
  bool first_ = false, last_ = false, overlap_ = true;  ///< of the current micro-batch
  at::Tensor rounded_;  ///< bf16, of the size of the largest bucket; undefined for fp32
  at::Tensor squares_;  ///< fp64 [buckets], Σ g² of the own parts
  at::Tensor sums_;     ///< fp64: loss, Σ g²
};

}  // namespace stablemask
