#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "stablemask/nn/model.h"
#include "stablemask/nn/parameters.h"
#include "stablemask/ops/kernels.h"

namespace stablemask {

/// Elements [begin, end) of the trained parameters' flat buffers.
struct FlatRange {
  int64_t begin = 0, end = 0;
};

/// The parameters of a model in flat buffers: master weights and fp32 gradients. Master weights are
/// fp32, or bf16 plus the 16 low-order bits that make them fp32 (ops::SplitWeights). The model's
/// parameters become views of the weights, their `.grad()` views of the gradients. Frozen
/// parameters have buffers of their own and no gradients.
///
/// Order of the trained parameters: those whose gradient is overwritten by a matrix product
/// (nn::Parameter::multiplies), the other ones that decay, those that do not decay; within each
/// group the order of nn::parameters. Each begins at a multiple of 64 elements; the padding is 0.
class FlatParameters {
 public:
  /// Moves `model` to the device; `compute` is fp32 or bf16. With freeze_layers = n > 0 the
  /// embedding (and with it a tied head) and the first n blocks are frozen.
  FlatParameters(nn::Transformer& model, at::Device device, at::ScalarType compute,
                 int64_t freeze_layers = 0);

  int64_t size() const { return trained_.size; }    ///< of the trained buffers, padding included
  int64_t decay_end() const { return decay_end_; }  ///< weight decay applies to [0, decay_end)
  int64_t trained_parameters() const;               ///< without padding

  /// Flat buffers of the trained parameters, [size()]. `remainder` is undefined for fp32 weights.
  const at::Tensor& weights() const { return trained_.weights; }
  const at::Tensor& remainder() const { return trained_.remainder; }
  const at::Tensor& gradients() const { return gradients_; }
  /// Views of the trained parameters in `flat` [size()], another buffer of the same layout, under
  /// `prefix` + name.
  std::map<std::string, at::Tensor> views(const at::Tensor& flat, const std::string& prefix) const;

  void zero_gradients();
  /// Zeroes the gradients that nn::Transformer::begin_gradients does not declare stale.
  void zero_accumulated_gradients();
  /// Global L2 norm of the gradients, fp32 0-dim on the device.
  at::Tensor grad_norm(ops::Kernels kernels = ops::Kernels::kFused) const;

  /// Every parameter in fp32 on the CPU: copies, except that fp32 weights on the CPU are returned
  /// as views.
  std::map<std::string, at::Tensor> master() const;
  /// Sets a parameter to the fp32 `value` of the same shape; an unknown name is a c10::Error.
  void set_master(const std::string& name, const at::Tensor& value);
  /// Views of every parameter in the weights' dtype.
  std::map<std::string, at::Tensor> named_weights() const;

 private:
  struct Entry {
    std::string name;
    std::vector<int64_t> shape;
    int64_t offset;  ///< in elements, from the start of the flat buffers
  };
  /// The trained or the frozen parameters.
  struct Layout {
    std::vector<Entry> entries;
    int64_t size = 0;
    at::Tensor weights, remainder;
  };
  void lay_out(const ModelConfig& config, int64_t freeze_layers);
  static at::Tensor view(const at::Tensor& flat, const Entry& entry);
  static void set(Layout& layout, const Entry& entry, const at::Tensor& value);

  Layout trained_, frozen_;
  int64_t overwritten_end_ = 0, decay_end_ = 0;
  at::Tensor gradients_;
};

}  // namespace stablemask
