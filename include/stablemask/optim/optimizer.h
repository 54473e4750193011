#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "stablemask/config/config.h"
#include "stablemask/ops/kernels.h"
#include "stablemask/optim/flat_parameters.h"

namespace stablemask {

/// Updates the trained parameters from their gradients, and owns the buffers that this needs.
class Optimizer {
 public:
  virtual ~Optimizer() = default;

  /// Enqueues one update of the elements in `range`, which is inside one of the layout's
  /// own_ranges(). `control` holds learning rate, number of the update and gradient scale
  /// (ops::update_control) on the device; a negative scale leaves every buffer unchanged. Updating
  /// the parts of a range equals updating the whole range.
  virtual void update(FlatRange range, const at::Tensor& control) = 0;

  /// The state that a resumed run needs: fp32 or bf16 buffers [layout().local_size()] of the
  /// elements that this process updates. The elements of PARAMETER in the buffer NAME, a name
  /// without a dot, are NAME.PARAMETER in optimizer.safetensors.
  virtual std::map<std::string, at::Tensor> buffers() const = 0;
};

/// The optimizer that config.kind names, with its state zeroed. `seed`, the run's, decides how a
/// bf16 state (config.state) is rounded.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config,
                                          std::shared_ptr<FlatParameters> parameters,
                                          ops::Kernels kernels = ops::Kernels::kFused,
                                          int64_t seed = 0);

/// Bytes of the optimizer's buffers for each trained parameter.
int64_t optimizer_bytes_per_parameter(const OptimizerConfig& config);

}  // namespace stablemask
