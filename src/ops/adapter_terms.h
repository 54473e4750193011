#pragma once

#include <ATen/ATen.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <utility>

#include "src/ops/products.h"
#include "stablemask/ops/adapter.h"

/// Shared by the ops of adapter.h.
namespace stablemask::ops {

/// What an adapted product has besides its matrices; kept for the backward.
struct AdapterTerms : torch::CustomClassHolder {
  AdapterTerms(Adapter adapter_in, Dropout dropout_in, Kernels kernels_in,
               const Input& input = at::Tensor())
      : adapter(std::move(adapter_in)),
        dropout(std::move(dropout_in)),
        kernels(kernels_in),
        norm(input.norm),
        eps(input.eps) {}

  /// Calls visit(j, first row, rows) for each W_j.
  template <class Visit>
  void for_each(const Visit& visit) const {
    int64_t first = 0;
    for (size_t j = 0; j < adapter.rows.size(); ++j) {
      visit(static_cast<int64_t>(j), first, adapter.rows[j]);
      first += adapter.rows[j];
    }
  }
  int64_t rank() const { return adapter.b.tensor().size(1); }
  /// x [rows, in] after the dropout, which is its own gradient.
  at::Tensor dropped(const at::Tensor& x) const;
  /// The input [rows, in] from kept(input).
  at::Tensor input(const at::Tensor& kept) const;
  /// [out, k·r], to multiply with low_rank_input: B_j in the rows of W_j and in the columns of its
  /// part, 0 elsewhere. Undefined where the fused kernels do not run for x.
  at::Tensor wide_b(const at::Tensor& x) const;
  /// Whether fused kernels may run for x.
  bool fuses(const at::Tensor& x) const;

  const Adapter adapter;
  const Dropout dropout;
  const Kernels kernels;
  const at::Tensor norm;  ///< of the input, undefined if the input itself is kept
  const double eps;
};
using Terms = c10::intrusive_ptr<AdapterTerms>;

/// What the backward keeps of an input.
inline at::Tensor kept(const Input& input) {
  return input.source.defined() ? input.source.detach() : input.x;
}

/// Throws c10::Error for arguments that do not fit each other; `op` is for messages.
void check_adapter(const char* op, const Input& x, const at::Tensor& weight, const Adapter& adapter,
                   const Dropout& dropout);

/// scale · D(x) · Aᵀ [rows, k·r]; rows begin at multiples of 16 bytes on a GPU.
at::Tensor low_rank_input(const at::Tensor& x, const AdapterTerms& terms);
/// out [rows, out] += low · Bᵀ, low = low_rank_input(x).
void add_low_rank(at::Tensor& out, const at::Tensor& low, const AdapterTerms& terms);

/// An adapted product and what its backward needs of the adapter.
struct AdaptedProduct {
  at::Tensor out, low, wide_b;
};
/// [residual +] x · Wᵀ + low · Bᵀ; x [rows, in], residual [rows, out] or undefined.
AdaptedProduct adapted_product(const at::Tensor& residual, const at::Tensor& x,
                               const at::Tensor& weight, const AdapterTerms& terms);

/// scale · dy · B, the gradient of D(x) · Aᵀ: [rows, k·r]. wide_b: of the forward, may be
/// undefined.
at::Tensor gradient_of_low(const at::Tensor& dy, const at::Tensor& wide_b,
                           const AdapterTerms& terms);
/// dy · W and the adapter's part of the gradient of x [rows, in].
at::Tensor gradient_of_x(const at::Tensor& dy, const at::Tensor& weight, const at::Tensor& dlow,
                         const AdapterTerms& terms);

/// Gradients of the factors from dy [rows, out], dlow = gradient_of_low, x [rows, in] and low =
/// low_rank_input(x): accumulated into the factors' .grad() where that is defined, else returned.
struct FactorGradients {
  at::Tensor a, b;
};
FactorGradients gradients_of_factors(const at::Tensor& dy, const at::Tensor& dlow,
                                     const at::Tensor& x, const at::Tensor& low,
                                     const AdapterTerms& terms);

void save_terms(torch::autograd::AutogradContext* ctx, const char* key, const Terms& terms);
Terms load_terms(torch::autograd::AutogradContext* ctx, const char* key);

}  // namespace stablemask::ops
