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
  AdapterTerms(Adapter adapter_in, Dropout dropout_in, Kernels kernels_in)
      : adapter(std::move(adapter_in)), dropout(std::move(dropout_in)), kernels(kernels_in) {}

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

  const Adapter adapter;
  const Dropout dropout;
  const Kernels kernels;
};
using Terms = c10::intrusive_ptr<AdapterTerms>;

/// Throws c10::Error for arguments that do not fit each other; `op` is for messages.
void check_adapter(const char* op, const at::Tensor& x, const at::Tensor& weight,
                   const Adapter& adapter, const Dropout& dropout);

/// low [rows, k·r] = scale · D(x) · Aᵀ.
void low_rank_input(at::Tensor& low, const at::Tensor& x, const AdapterTerms& terms);
/// out [rows, out] += scale · D(x) · (B·A)ᵀ; returns low_rank_input.
at::Tensor add_low_rank(at::Tensor& out, const at::Tensor& x, const AdapterTerms& terms);
/// scale · dy · B, the gradient of D(x) · Aᵀ: [rows, k·r].
at::Tensor gradient_of_low(const at::Tensor& dy, const AdapterTerms& terms);
/// dy · W and the adapter's part of the gradient of x [rows, in].
at::Tensor gradient_of_x(const at::Tensor& dy, const at::Tensor& weight, const at::Tensor& dlow,
                         const AdapterTerms& terms);

/// Gradients of the factors from dy [rows, out], dlow = gradient_of_low(dy), x [rows, in] and low =
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
