#pragma once

#include <ATen/core/Tensor.h>

#include "src/ops/dispatch.h"
#include "src/ops/fused_projections.h"
#include "src/ops/products.h"

/// Products with an elementwise op behind them: one fused kernel where it runs, else the product
/// and the op's kernel. Without autograd; not for Kernels::kReference.
namespace stablemask::ops {

struct RopeOfHeads {
  int64_t packed_heads, heads, dims;
  at::Tensor positions, table;  ///< contiguous
};

inline void save_rope(torch::autograd::AutogradContext* ctx, const RopeOfHeads& rope) {
  ctx->saved_data["heads"] = rope.heads;
  ctx->saved_data["dims"] = rope.dims;
}
/// The members that unrotated reads; positions and table are saved as variables.
inline RopeOfHeads load_rope(torch::autograd::AutogradContext* ctx, const at::Tensor& positions,
                             const at::Tensor& table) {
  return {0, ctx->saved_data["heads"].toInt(), ctx->saved_data["dims"].toInt(), positions, table};
}

/// x [B,T,in] → [B,T,Hp,D], rotary embedding of x · weightᵀ + second. product(out) computes that
/// sum into out [B·T, Hp·D].
template <class Product>
at::Tensor rotated_product(const at::Tensor& x, const at::Tensor& weight,
                           const SecondFactors& second, const RopeOfHeads& rope,
                           const Product& product) {
  const int64_t columns = weight.size(0), head_dim = columns / rope.packed_heads;
  at::Tensor packed = at::empty({x.size(0), x.size(1), rope.packed_heads, head_dim}, x.options());
  if (!project_rope(rows(x), weight, rope.heads, rope.dims, rope.positions, rope.table, packed,
                    second)) {
    at::Tensor flat = packed.view({-1, columns});
    product(flat);
    STABLEMASK_KERNEL(packed, rope_(packed, rope.heads, rope.dims, rope.positions, rope.table,
                                    /*inverse=*/false));
  }
  return packed;
}

/// Gradient [B·T, Hp·D] of the sum that rotated_product rotates, from that of its result.
inline at::Tensor unrotated(const at::Tensor& dpacked, const RopeOfHeads& rope) {
  at::Tensor grad = writable(dpacked);
  STABLEMASK_KERNEL(grad, rope_(grad, rope.heads, rope.dims, rope.positions, rope.table,
                                /*inverse=*/true));
  return grad.view({-1, grad.size(2) * grad.size(3)});
}

struct Gated {
  at::Tensor gate_up, hidden;  ///< [rows, 2F], [rows, F]
};

/// gate_up = x · upᵀ + second of x [rows, in], hidden = silu(gate) · up. product(out) computes that
/// sum into out.
template <class Product>
Gated gated_product(const at::Tensor& x, const at::Tensor& up, const SecondFactors& second,
                    const Product& product) {
  Gated out{at::empty({x.size(0), up.size(0)}, x.options()),
            at::empty({x.size(0), up.size(0) / 2}, x.options())};
  if (!project_swiglu(x, up, out.gate_up, out.hidden, second)) {
    product(out.gate_up);
    STABLEMASK_KERNEL(x, swiglu_forward(out.gate_up, out.hidden));
  }
  return out;
}

}  // namespace stablemask::ops
