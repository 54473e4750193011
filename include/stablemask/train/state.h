#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "stablemask/config/config.h"
#include "stablemask/nn/model.h"

namespace stablemask {

/// Everything that training changes, in one flat buffer per kind: the weights, fp32 gradients,
/// AdamW m and v. Weights are fp32, or bf16 beside the remainders that make them as exact
/// (ops/optimizer.h, SplitWeights). The model's parameters become views of the weights, their
/// `.grad()` views of the gradients. Parameters that decay (rank ≥ 2) lie before those that do not;
/// frozen ones have no place in the training buffers.
class FlatState {
 public:
  /// Moves `model` to the device; `compute` is fp32 or bf16. With freeze_layers = n > 0 the
  /// embedding (a tied head with it) and the first n blocks stay as they are.
  FlatState(nn::Transformer& model, at::Device device, at::ScalarType compute,
            int64_t freeze_layers = 0);

  void zero_grad();
  /// Zeros all gradients but those that nn::Transformer::begin_gradients declares stale.
  void zero_added_grad();
  /// AdamW on the decay and the no-decay range; `control` is ops/optimizer.h's, on the device.
  void update(const OptimizerConfig& config, const at::Tensor& control,
              ops::Kernels kernels = ops::Kernels::kFused);
  /// Global L2 norm of the gradients, fp32 0-dim on the device.
  at::Tensor grad_norm(ops::Kernels kernels = ops::Kernels::kFused) const;

  /// Every parameter in fp32, on the CPU: copies, but views of fp32 weights that lie there.
  std::map<std::string, at::Tensor> master() const;
  /// Sets a parameter to the fp32 `value` of its shape; an unknown name is a c10::Error.
  void set_master(const std::string& name, const at::Tensor& value);
  /// Views: of every parameter in the weights; of m and v of the trained ones under "m.NAME",
  /// "v.NAME".
  std::map<std::string, at::Tensor> named_weights() const;
  std::map<std::string, at::Tensor> named_optimizer() const;

  int64_t trained_parameters() const;

 private:
  struct Entry {
    std::string name;
    std::vector<int64_t> shape;
    int64_t offset;  ///< elements from the start of every flat buffer
  };
  /// The trained or the frozen parameters, one behind the other.
  struct Layout {
    std::vector<Entry> entries;
    int64_t size = 0;
    at::Tensor weights, remainder;  ///< the latter undefined beside fp32
  };
  static at::Tensor view(const at::Tensor& flat, const Entry& entry);
  static void set(Layout& layout, const Entry& entry, const at::Tensor& value);

  Layout trained_, frozen_;
  /// Trained parameters: those that nn::multiplies_once names up to overwritten_end_, then the
  /// other ones that decay up to decay_end_, then those that do not.
  int64_t overwritten_end_ = 0, decay_end_ = 0;
  at::Tensor grad_, m_, v_;
};

}  // namespace stablemask
