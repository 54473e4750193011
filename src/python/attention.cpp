#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "src/ops/attention_parts.h"
#include "stablemask/ops/attention.h"
#include "stablemask/ops/device.h"

/// torch.ops.stablemask: the attention of this repository as an operator of Python's torch.
///   attention            what a program calls: checks, autograd and autocast
///   attention_forward    the kernels on the CPU and on CUDA, which torch.compile sees as one node
///   attention_backward   their gradients
/// Tensors are [B,H,T,D], as those of scaled_dot_product_attention. The shapes of the results for
/// torch.compile are in stablemask/__init__.py.
namespace stablemask::python {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// The options of the operator that have no gradient. `Int` is c10::SymInt while shapes are traced.
template <typename Int>
struct Options {
  std::optional<Int> mask_length;
  bool infinite_beyond = true;
  std::optional<double> scale;
  Int window = 0;
  OptionalTensor alibi_slopes;
  Int key_offset = 0;
  OptionalTensor document_start;
};
using TracedOptions = Options<c10::SymInt>;

/// [B,H,T,D] → [B,T,H,D], copied where a kernel could not read it in place: GPU kernels load 16
/// bytes at a time, and repeated elements (stride 0) are for none of them.
at::Tensor tokens_first(const at::Tensor& x) {
  const at::Tensor y = x.transpose(1, 2);
  const int64_t step = x.is_cuda() ? 16 / x.element_size() : 1;
  bool readable = y.stride(3) == 1;
  for (int64_t d = 0; d < 3; ++d) {
    if (y.size(d) > 1 && (y.stride(d) == 0 || y.stride(d) % step != 0)) readable = false;
  }
  if (x.is_cuda() && y.storage_offset() % step != 0) readable = false;
  return readable ? y : y.clone(at::MemoryFormat::Contiguous);
}

/// [B,T,H,D] → [B,H,T,D] with the strides of at::empty_like(like).
at::Tensor heads_first(const at::Tensor& x, const at::Tensor& like) {
  const at::Tensor y = x.transpose(1, 2);
  const std::vector<int64_t> strides = like.is_non_overlapping_and_dense()
                                           ? like.strides().vec()
                                           : at::infer_dense_strides(like.sizes(), like.strides());
  bool same = true;
  for (int64_t d = 0; d < 4; ++d) {
    if (y.size(d) > 1 && y.stride(d) != strides[static_cast<size_t>(d)]) same = false;
  }
  if (same) return y.as_strided(y.sizes(), strides);
  return at::empty_strided(y.sizes(), strides, y.options()).copy_(y);
}

/// Refuses a GPU that this build has no kernels for.
void check_device_usable(const at::Tensor& query) {
  if (!query.is_cuda()) return;
  static const std::string problem = ops::cuda_problem();
  TORCH_CHECK_NOT_IMPLEMENTED(
      problem.empty(), "stablemask.attention cannot run on ", query.device(), ": ", problem,
      "; install the package again on a machine with this GPU and nvcc (docs/pytorch.md), or move "
      "the tensors to the CPU");
}

ops::AttentionOptions kernel_options(const at::Tensor& query, const at::Tensor& key,
                                     const OptionalTensor& gamma, const OptionalTensor& p_base,
                                     const Options<int64_t>& options) {
  ops::AttentionOptions result;
  result.scale = options.scale;
  if (gamma) {
    using Kind = ops::MaskLength::Kind;
    ops::MaskLength length{Kind::kInfinite};
    if (options.mask_length) length = {Kind::kFixed, *options.mask_length, options.infinite_beyond};
    result.pseudo = ops::PseudoScores{*gamma, *p_base, length};
  }
  result.alibi_slopes = options.alibi_slopes.value_or(at::Tensor());
  result.window = options.window;
  result.key_offset = options.key_offset;
  result.query_offset = key.size(2) - query.size(2) + options.key_offset;
  result.document_start = options.document_start.value_or(at::Tensor());
  // On the CPU every dtype has a flash kernel; "auto" would take the formula for fp64.
  if (query.is_cpu()) result.backend = ops::AttentionBackend::kFlash;
  return result;
}

std::tuple<at::Tensor, at::Tensor> forward_kernel(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& gamma, const OptionalTensor& p_base, std::optional<int64_t> mask_length,
    bool infinite_beyond, std::optional<double> scale, int64_t window,
    const OptionalTensor& alibi_slopes, int64_t key_offset, const OptionalTensor& document_start) {
  check_device_usable(query);
  const c10::DeviceGuard device(query.device());
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const ops::AttentionForward result = ops::attention_forward(
      tokens_first(query), tokens_first(key), tokens_first(value),
      kernel_options(
          query, key, gamma, p_base,
          {mask_length, infinite_beyond, scale, window, alibi_slopes, key_offset, document_start}));
  return {heads_first(result.out, query), result.lse};
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

/// The last two are empty without mask_gradients.
Gradients backward_kernel(const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key,
                          const at::Tensor& value, const OptionalTensor& gamma,
                          const OptionalTensor& p_base, const at::Tensor& out,
                          const at::Tensor& lse, bool mask_gradients,
                          std::optional<int64_t> mask_length, bool infinite_beyond,
                          std::optional<double> scale, int64_t window,
                          const OptionalTensor& alibi_slopes, int64_t key_offset,
                          const OptionalTensor& document_start) {
  check_device_usable(query);
  const c10::DeviceGuard device(query.device());
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const ops::AttentionGradients grads = ops::attention_backward(
      tokens_first(grad), tokens_first(query), tokens_first(key), tokens_first(value),
      {tokens_first(out), lse},
      kernel_options(
          query, key, gamma, p_base,
          {mask_length, infinite_beyond, scale, window, alibi_slopes, key_offset, document_start}),
      mask_gradients);
  const auto or_empty = [&](const at::Tensor& x) {
    return x.defined() ? x : at::empty({0}, lse.options());
  };
  return {heads_first(grads.q, query), heads_first(grads.k, key), heads_first(grads.v, value),
          or_empty(grads.gamma), or_empty(grads.p_base)};
}

std::tuple<at::Tensor, at::Tensor> call_forward(const at::Tensor& query, const at::Tensor& key,
                                                const at::Tensor& value,
                                                const OptionalTensor& gamma,
                                                const OptionalTensor& p_base,
                                                const TracedOptions& options) {
  using Signature = std::tuple<at::Tensor, at::Tensor>(
      const at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&,
      const OptionalTensor&, std::optional<c10::SymInt>, bool, std::optional<double>, c10::SymInt,
      const OptionalTensor&, c10::SymInt, const OptionalTensor&);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("stablemask::attention_forward", "")
                             .typed<Signature>();
  return op.call(query, key, value, gamma, p_base, options.mask_length, options.infinite_beyond,
                 options.scale, options.window, options.alibi_slopes, options.key_offset,
                 options.document_start);
}

Gradients call_backward(const at::Tensor& grad, const variable_list& saved, bool mask_gradients,
                        const TracedOptions& options) {
  using Signature =
      Gradients(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                const OptionalTensor&, const OptionalTensor&, const at::Tensor&, const at::Tensor&,
                bool, std::optional<c10::SymInt>, bool, std::optional<double>, c10::SymInt,
                const OptionalTensor&, c10::SymInt, const OptionalTensor&);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("stablemask::attention_backward", "")
                             .typed<Signature>();
  const auto optional = [](const at::Tensor& x) {
    return x.defined() ? OptionalTensor(x) : std::nullopt;
  };
  return op.call(grad, saved[0], saved[1], saved[2], optional(saved[3]), optional(saved[4]),
                 saved[5], saved[6], mask_gradients, options.mask_length, options.infinite_beyond,
                 options.scale, options.window, options.alibi_slopes, options.key_offset,
                 options.document_start);
}

struct Attention : torch::autograd::Function<Attention> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, const OptionalTensor& gamma,
                            const OptionalTensor& p_base, const TracedOptions& options) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [out, lse] = call_forward(query, key, value, gamma, p_base, options);
    ctx->save_for_backward({query, key, value, gamma.value_or(at::Tensor()),
                            p_base.value_or(at::Tensor()), out, lse,
                            options.alibi_slopes.value_or(at::Tensor()),
                            options.document_start.value_or(at::Tensor())});
    ctx->saved_data["mask_length"] = options.mask_length;
    ctx->saved_data["infinite_beyond"] = options.infinite_beyond;
    ctx->saved_data["scale"] = options.scale;
    ctx->saved_data["window"] = options.window;
    ctx->saved_data["key_offset"] = options.key_offset;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    TracedOptions options;
    options.mask_length = ctx->saved_data["mask_length"].toOptional<c10::SymInt>();
    options.infinite_beyond = ctx->saved_data["infinite_beyond"].toBool();
    options.scale = ctx->saved_data["scale"].toOptional<double>();
    options.window = ctx->saved_data["window"].toSymInt();
    options.key_offset = ctx->saved_data["key_offset"].toSymInt();
    if (saved[7].defined()) options.alibi_slopes = saved[7];
    if (saved[8].defined()) options.document_start = saved[8];
    const bool mask_gradients =
        saved[3].defined() && (ctx->needs_input_grad(3) || ctx->needs_input_grad(4));
    auto [dq, dk, dv, dgamma, dp_base] = call_backward(grads[0], saved, mask_gradients, options);
    if (!mask_gradients) dgamma = dp_base = at::Tensor();
    return {dq, dk, dv, dgamma, dp_base, at::Tensor()};
  }
};

void check_dtype(const at::Tensor& x, const char* name) {
  const auto type = x.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kBFloat16,
                   "stablemask.attention: ", name, " must be float32, float64 or bfloat16, got ",
                   x.dtype());
}

/// The checks in the names and shapes of Python; the kernels check the options.
void check_inputs(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  check_dtype(query, "query");
  for (const auto& [x, name] : {std::pair{&key, "key"}, std::pair{&value, "value"}}) {
    TORCH_CHECK_TYPE(x->scalar_type() == query.scalar_type(), "stablemask.attention: ", name,
                     " must have query's dtype ", query.dtype(), ", got ", x->dtype());
    TORCH_CHECK_VALUE(x->device() == query.device(), "stablemask.attention: ", name,
                      " must be on query's device ", query.device(), ", got ", x->device());
  }
  TORCH_CHECK_VALUE(query.dim() == 4 && key.dim() == 4 && value.sym_sizes() == key.sym_sizes(),
                    "stablemask.attention: query must be [B,H,T,D], key [B,Hkv,S,D] and value of "
                    "key's shape, got ",
                    query.sym_sizes(), ", ", key.sym_sizes(), " and ", value.sym_sizes());
  TORCH_CHECK_VALUE(query.sym_numel() > 0 && key.sym_numel() > 0,
                    "stablemask.attention: no dimension may be 0, got query ", query.sym_sizes(),
                    " and key ", key.sym_sizes());
  TORCH_CHECK_VALUE(query.sym_size(0) == key.sym_size(0) && query.sym_size(3) == key.sym_size(3) &&
                        query.sym_size(1) % key.sym_size(1) == 0,
                    "stablemask.attention: query ", query.sym_sizes(), " and key ", key.sym_sizes(),
                    " must agree in batch and head dimension, and query's heads must be a multiple "
                    "of key's");
  TORCH_CHECK_VALUE(key.sym_size(2) >= query.sym_size(2), "stablemask.attention: key has ",
                    key.sym_size(2), " positions, query has ", query.sym_size(2),
                    "; the last position of both is the same token, so key must have as many");
}

void check_mask(const at::Tensor& query, const OptionalTensor& gamma, const OptionalTensor& p_base,
                const TracedOptions& options) {
  TORCH_CHECK_VALUE(gamma || (!p_base && !options.mask_length),
                    "stablemask.attention: p_base and mask_length need gamma, which switches "
                    "StableMask on");
  for (const auto& [x, name] : {std::pair{&gamma, "gamma"}, std::pair{&p_base, "p_base"}}) {
    if (!*x) continue;
    TORCH_CHECK_VALUE((*x)->dim() == 1 && (*x)->sym_size(0) == query.sym_size(1),
                      "stablemask.attention: ", name, " must be [H] = [", query.sym_size(1),
                      "], got ", (*x)->sym_sizes());
    TORCH_CHECK_VALUE((*x)->device() == query.device(), "stablemask.attention: ", name,
                      " must be on query's device ", query.device(), ", got ", (*x)->device());
    TORCH_CHECK_TYPE((*x)->is_floating_point(), "stablemask.attention: ", name,
                     " must be of a floating dtype, got ", (*x)->dtype());
  }
  TORCH_CHECK_VALUE(!options.alibi_slopes || !options.alibi_slopes->requires_grad(),
                    "stablemask.attention: alibi_slopes have no gradient; detach them");
}

/// Pseudo scores as the kernels take them: fp32, and fp64 where they or the query are.
OptionalTensor wide(const OptionalTensor& x, const at::Tensor& query) {
  if (!x || x->scalar_type() == at::kDouble) return x;
  return x->to(query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                     const OptionalTensor& gamma, const OptionalTensor& p_base,
                     std::optional<c10::SymInt> mask_length, bool infinite_beyond,
                     std::optional<double> scale, c10::SymInt window,
                     const OptionalTensor& alibi_slopes, c10::SymInt key_offset,
                     const OptionalTensor& document_start) {
  TracedOptions options{std::move(mask_length), infinite_beyond, scale,
                        std::move(window),      alibi_slopes,    std::move(key_offset),
                        document_start};
  check_inputs(query, key, value);
  check_mask(query, gamma, p_base, options);
  const OptionalTensor decay = wide(gamma, query);
  const OptionalTensor base = gamma && !p_base ? at::zeros_like(*decay) : wide(p_base, query);
  return Attention::apply(query, key, value, decay, base, options);
}

/// Casts query, key and value only: scores of the mask and slopes keep their precision.
template <at::DeviceType device>
at::Tensor autocast_attention(const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, const OptionalTensor& gamma,
                              const OptionalTensor& p_base, std::optional<c10::SymInt> mask_length,
                              bool infinite_beyond, std::optional<double> scale, c10::SymInt window,
                              const OptionalTensor& alibi_slopes, c10::SymInt key_offset,
                              const OptionalTensor& document_start) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const at::ScalarType type = at::autocast::get_autocast_dtype(device);
  const auto cast = [type](const at::Tensor& x) {
    return at::autocast::cached_cast(type, x, device);
  };
  return attention(cast(query), cast(key), cast(value), gamma, p_base, std::move(mask_length),
                   infinite_beyond, scale, std::move(window), alibi_slopes, std::move(key_offset),
                   document_start);
}

}  // namespace

TORCH_LIBRARY(stablemask, m) {
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, *, Tensor? gamma=None, "
      "Tensor? p_base=None, SymInt? mask_length=None, bool infinite_beyond=True, "
      "float? scale=None, SymInt window=0, Tensor? alibi_slopes=None, SymInt key_offset=0, "
      "Tensor? document_start=None) -> Tensor");
  m.def(
      "attention_forward(Tensor query, Tensor key, Tensor value, Tensor? gamma, Tensor? p_base, "
      "SymInt? mask_length, bool infinite_beyond, float? scale, SymInt window, "
      "Tensor? alibi_slopes, SymInt key_offset, Tensor? document_start) -> (Tensor, Tensor)");
  m.def(
      "attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor? gamma, "
      "Tensor? p_base, Tensor out, Tensor lse, bool mask_gradients, SymInt? mask_length, "
      "bool infinite_beyond, float? scale, SymInt window, Tensor? alibi_slopes, "
      "SymInt key_offset, Tensor? document_start) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(stablemask, CompositeImplicitAutograd, m) { m.impl("attention", attention); }

TORCH_LIBRARY_IMPL(stablemask, AutocastCPU, m) {
  m.impl("attention", autocast_attention<at::kCPU>);
}

TORCH_LIBRARY_IMPL(stablemask, AutocastCUDA, m) {
  m.impl("attention", autocast_attention<at::kCUDA>);
}

TORCH_LIBRARY_IMPL(stablemask, CPU, m) {
  m.impl("attention_forward", forward_kernel);
  m.impl("attention_backward", backward_kernel);
}

TORCH_LIBRARY_IMPL(stablemask, CUDA, m) {
  m.impl("attention_forward", forward_kernel);
  m.impl("attention_backward", backward_kernel);
}

// Their gradients are asked for by a second differentiation only, which then says so.
TORCH_LIBRARY_IMPL(stablemask, Autograd, m) {
  m.impl("attention_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("attention_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace stablemask::python
