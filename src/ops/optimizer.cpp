#include "stablemask/ops/optimizer.h"

#include <ATen/ATen.h>

#include "src/ops/dispatch.h"

namespace stablemask::ops {

void adamw_(at::Tensor& master, at::Tensor& compute, at::Tensor& m, at::Tensor& v,
            const at::Tensor& grad, const AdamWArgs& args) {
  for (const at::Tensor& x : {compute, m, v, grad}) {
    TORCH_CHECK(x.numel() == master.numel() && x.device() == master.device(),
                "adamw_: every buffer must have the size and device of master");
  }
  STABLEMASK_KERNEL(master, adamw_(master, compute, m, v, grad, args));
}

at::Tensor sum_of_squares(const at::Tensor& flat) {
  return STABLEMASK_KERNEL(flat, sum_of_squares(flat));
}

}  // namespace stablemask::ops
