#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "stablemask/config/config.h"
#include "stablemask/dist/group.h"
#include "stablemask/nn/parameters.h"
#include "stablemask/ops/kernels.h"
#include "stablemask/optim/flat_parameters.h"

namespace stablemask {

/// Updates the trained parameters from their gradients, and owns the buffers that this needs.
class Optimizer {
 public:
  virtual ~Optimizer() = default;

  /// Enqueues what an update needs of whole parameters, such as the orthogonalisation of their
  /// momentum. Every process calls it once an update, after the gradients of its own parts are
  /// complete and before it updates the first range. `control` as below.
  virtual void prepare(const at::Tensor& /*control*/, dist::Group& /*group*/) {}

  /// Enqueues one update of the elements in `range`, which is inside one of the layout's
  /// own_ranges(). `control` holds learning rate, number of the update and gradient scale
  /// (ops::update_control) on the device; a negative scale leaves every buffer unchanged. Updating
  /// the parts of a range equals updating the whole range.
  virtual void update(FlatRange range, const at::Tensor& control) = 0;

  /// A buffer, fp32 or bf16 [layout().local_size(cover)], of the elements that this process
  /// updates.
  struct Buffer {
    at::Tensor values;
    Cover cover = Cover::kAll;
  };
  /// The state that a resumed run needs. The elements of PARAMETER in the buffer NAME, a name
  /// without a dot, are NAME.PARAMETER in optimizer.safetensors.
  virtual std::map<std::string, Buffer> buffers() const = 0;
};

/// The optimizer that config.kind names, with its state zeroed. `seed`, the run's, decides how a
/// bf16 state (config.state) is rounded.
std::unique_ptr<Optimizer> make_optimizer(const OptimizerConfig& config,
                                          std::shared_ptr<FlatParameters> parameters,
                                          ops::Kernels kernels = ops::Kernels::kFused,
                                          int64_t seed = 0);

/// Bytes that the optimizer keeps for a trained parameter.
struct OptimizerBytes {
  int64_t state = 0;    ///< in its buffers, which are split with the parameters (Share)
  int64_t working = 0;  ///< during an update, in every process
};
/// `element`: bytes of an element of the compute dtype, 4 on the CPU.
OptimizerBytes optimizer_bytes(const OptimizerConfig& config, const nn::Parameter& parameter,
                               int64_t element = 4);

}  // namespace stablemask
