#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "stablemask/dist/group.h"
#include "stablemask/nn/model.h"
#include "stablemask/ops/kernels.h"
#include "stablemask/optim/flat_layout.h"

namespace stablemask {

/// The parameters of a model in flat buffers: master weights and fp32 gradients. Master weights are
/// fp32, or bf16 plus the 16 low-order bits that make them fp32 (ops::SplitWeights). The model's
/// parameters become views of the weights, their `.grad()` views of the gradients. Frozen
/// parameters have buffers of their own and no gradients; those of a model with adapters
/// (config.lora) have no low-order bits either and belong to no checkpoint of the run.
///
/// If several processes share the parameters (Share), each has the whole weights and gradients, but
/// the low-order bits of its own parts only, and updates only these.
class FlatParameters {
 public:
  /// Moves `model` to the device; `compute` is fp32 or bf16. The values of a model that has no
  /// weights (has_weights) do not move: all but those of its mask's parameters are 0 until
  /// set_master. With freeze_layers = n > 0 the
  /// embedding (and with it a tied head) and the first n blocks are frozen.
  FlatParameters(nn::Transformer& model, at::Device device, at::ScalarType compute,
                 int64_t freeze_layers = 0, Share share = {});

  /// Of the trained parameters, as are the sizes and buffers below.
  const FlatLayout& layout() const { return trained_.layout; }
  int64_t size() const { return layout().size(); }
  int64_t decay_end() const { return layout().decay_end(); }
  int64_t trained_parameters() const { return layout().numel(); }  ///< without padding

  /// [size()].
  const at::Tensor& weights() const { return trained_.weights; }
  const at::Tensor& gradients() const { return gradients_; }
  /// A local buffer, [layout().local_size()]; undefined for fp32 weights.
  const at::Tensor& remainder() const { return trained_.remainder; }
  /// Views of the trained parameters that `cover` names in `flat` [size()], another buffer of the
  /// same layout, under `prefix` + name.
  std::map<std::string, at::Tensor> views(const at::Tensor& flat, const std::string& prefix,
                                          Cover cover = Cover::kAll) const {
    return layout().views(flat, {0, size()}, prefix, cover);
  }

  void zero_gradients();
  /// Zeroes the gradients that nn::Transformer::begin_gradients does not declare stale.
  void zero_accumulated_gradients();
  /// L2 norm of the gradients of this process, fp32 0-dim on the device.
  at::Tensor grad_norm(ops::Kernels kernels = ops::Kernels::kFused) const;

  /// After the own parts were updated: the weights of all other parts are out of date.
  void weights_changed() { stale_ = layout().share().parts > 1; }
  /// Brings the weights of all parts up to date, unless they are. Every process calls it.
  void gather_weights(dist::Group& group);
  /// Enqueues the gathering of one bucket's weights.
  void gather_weights(const Bucket& bucket, dist::Group& group) const;

  /// The parameters' values in the local buffers `local` of all processes, of any dtype, which hold
  /// what `cover` names, under `prefix` + name, in host memory. Every process calls it; process 0
  /// receives the tensors, the others nothing. Copies, except for a buffer on the CPU with one
  /// part.
  std::map<std::string, at::Tensor> gather(const at::Tensor& local, const std::string& prefix,
                                           dist::Group& group, Cover cover = Cover::kAll) const;
  /// Every parameter in fp32, but of a model with adapters the adapters alone; otherwise as
  /// `gather`.
  std::map<std::string, at::Tensor> master(dist::Group& group);
  std::map<std::string, at::Tensor> master();  ///< for one part, of this process
  /// Sets a parameter to the fp32 `value` of the same shape, rounded if it has no low-order bits;
  /// an unknown name is a c10::Error. Processes that share the parameters all set the same value.
  void set_master(const std::string& name, const at::Tensor& value);
  /// Copies those elements of trained parameter `name`, which `cover` names, given as `value`, that
  /// belong to this process into `local`. Errors as set_master.
  void set_local(at::Tensor& local, const std::string& name, const at::Tensor& value,
                 Cover cover = Cover::kAll) const;
  /// Views of every parameter in the weights' dtype.
  std::map<std::string, at::Tensor> named_weights() const;

 private:
  /// The trained or the frozen parameters.
  struct Buffers {
    FlatLayout layout;
    at::Tensor weights, remainder;
  };
  static void set(Buffers& buffers, const FlatLayout::Entry& entry, const at::Tensor& value);

  Buffers trained_, frozen_;
  bool adapters_only_ = false;  ///< the frozen parameters are those of a base model
  at::Tensor gradients_;
  bool stale_ = false;  ///< the weights of the other processes' parts are
};

/// As nn::Transformer::init_weights, for the model that `flat` has moved, with the same values in
/// fp32. Some arrive while others are made; host memory holds few at a time beside `flat`.
void init_weights(nn::Transformer& model, FlatParameters& flat, uint64_t seed,
                  nn::InitScope scope = nn::InitScope::kAll);

}  // namespace stablemask
