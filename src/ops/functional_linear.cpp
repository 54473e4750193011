#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <atomic>

#include "src/ops/dispatch.h"
#include "src/ops/functional_grad.h"
#ifdef STABLEMASK_HAS_CUDA
#include "src/ops/cuda/gemm.h"
#endif
#include "stablemask/ops/functional.h"
#include "stablemask/ops/reference.h"

/// The ops of functional.h around large weights: linear, embedding and the language-model head.
namespace stablemask::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// Whether cuBLASLt with algorithms chosen by time serves these operands.
bool has_gemm(const at::Tensor& x) {
#ifdef STABLEMASK_HAS_CUDA
  return x.is_cuda() && x.scalar_type() == at::kBFloat16 && x.numel() > 0;
#else
  static_cast<void>(x);
  return false;
#endif
}

/// out = x · weightᵀ or, with `plain`, x · weight; out [N, …] is overwritten.
void project(at::Tensor& out, const at::Tensor& x, const at::Tensor& weight, bool plain = false) {
#ifdef STABLEMASK_HAS_CUDA
  if (has_gemm(x) && weight.scalar_type() == at::kBFloat16) {
    return cuda::gemm(out, {x}, {weight, /*transposed=*/!plain});
  }
#endif
  at::mm_out(out, x, plain ? weight : weight.t());
}

at::Tensor projected(const at::Tensor& x, const at::Tensor& weight, bool plain = false) {
  at::Tensor out = at::empty({x.size(0), weight.size(plain ? 1 : 0)}, x.options());
  project(out, x, weight, plain);
  return out;
}

at::Tensor rows(const at::Tensor& x) { return x.reshape({-1, x.size(-1)}).contiguous(); }

std::vector<int64_t> with_last(const at::Tensor& x, int64_t size) {
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = size;
  return shape;
}

std::atomic<bool> overwrite_grads{false};

/// Gradient of a [out, in] weight: added to weight.grad() where there is one, else returned.
at::Tensor weight_grad(const at::Tensor& weight, const at::Tensor& dy, const at::Tensor& x) {
  at::Tensor grad = existing_grad(weight);
  if (!grad.defined()) return at::mm(dy.t(), x);
  accumulate_gemm(grad, dy, x, overwrite_grads ? 0.0 : 1.0);
  return {};
}

struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight) {
    ctx->save_for_backward({x, weight});
    return projected(rows(x), weight).view(with_last(x, weight.size(0)));
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const at::Tensor dy = rows(grads[0]);
    variable_list out(2);
    if (ctx->needs_input_grad(0)) out[0] = projected(dy, weight, /*plain=*/true).view(x.sizes());
    if (ctx->needs_input_grad(1)) out[1] = weight_grad(weight, dy, rows(x));
    return out;
  }
};

struct Embedding : torch::autograd::Function<Embedding> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& ids, const at::Tensor& weight) {
    ctx->save_for_backward({ids, weight});
    std::vector<int64_t> shape = ids.sizes().vec();
    shape.push_back(weight.size(1));
    return weight.index_select(0, ids.reshape({-1})).view(shape);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    GradSink sink(saved[1]);
    const at::Tensor dy = grads[0].contiguous(), ids = saved[0].contiguous();
    STABLEMASK_KERNEL(dy, embedding_backward(dy, ids, sink.buffer));
    return {at::Tensor(), sink.returned()};
  }
};

/// Rows of logits to form at once. On the CPU few enough to stay in the caches between the GEMMs
/// and the loss, on a GPU few enough to bound the memory.
int64_t chunk_rows(const at::Tensor& x, int64_t vocab) {
  const int64_t bytes = x.is_cuda() ? int64_t{1} << 30 : int64_t{1} << 24;
  const int64_t wanted = bytes / std::max<int64_t>(vocab * x.element_size(), 1);
  return std::max<int64_t>(wanted / 64 * 64, 64);
}

void check_head(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets) {
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1) &&
                  targets.dim() == 1 && targets.size(0) == x.size(0),
              "language-model head: x ", x.sizes(), ", weight ", weight.sizes(), " and targets ",
              targets.sizes(), " do not fit together");
  TORCH_CHECK(targets.scalar_type() == at::kLong, "language-model head: targets must be int64");
}

/// The loss of each row; `visit(first row, dlogits)` gets the scaled gradient of each chunk of
/// logits when `grad` is on.
template <typename Visit>
at::Tensor chunked_losses(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets,
                          double scale, double z_loss, bool grad, const Visit& visit) {
  const int64_t count = x.size(0), step = chunk_rows(x, weight.size(0));
  at::Tensor losses = at::empty({count}, x.options().dtype(at::kFloat));
  for (int64_t first = 0; first < count; first += step) {
    const int64_t size = std::min(step, count - first);
    at::Tensor logits = projected(x.narrow(0, first, size), weight);
    at::Tensor part = losses.narrow(0, first, size);
    const at::Tensor target = targets.narrow(0, first, size);
    STABLEMASK_KERNEL(x, cross_entropy_(logits, target, scale, z_loss, grad, part));
    visit(first, logits);
  }
  return losses;
}

at::Tensor scaled_sum(const at::Tensor& losses, double scale) {
  return (losses.sum(at::kDouble) * scale).to(losses.scalar_type());
}

/// Loss and gradients together: a chunk's logits exist once and become their own gradient.
struct LinearCrossEntropy : torch::autograd::Function<LinearCrossEntropy> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const at::Tensor& targets, double scale, double z_loss) {
    const bool wants_dx = x.requires_grad(), wants_dw = weight.requires_grad();
    at::Tensor dx = wants_dx ? at::empty_like(x) : at::Tensor();
    at::Tensor dw =
        wants_dw ? at::empty(weight.sizes(), weight.options().dtype(at::kFloat)) : at::Tensor();
    if (wants_dw && x.size(0) == 0) dw.zero_();
    const auto visit = [&](int64_t first, const at::Tensor& dlogits) {
      const int64_t size = dlogits.size(0);
      if (wants_dw) accumulate_gemm(dw, dlogits, x.narrow(0, first, size), first == 0 ? 0.0 : 1.0);
      if (wants_dx) {
        at::Tensor part = dx.narrow(0, first, size);
        project(part, dlogits, weight, /*plain=*/true);
      }
    };
    const at::Tensor losses = chunked_losses(x, weight, targets, scale, z_loss, true, visit);
    ctx->save_for_backward({weight, dx, dw});
    return scaled_sum(losses, scale);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &weight = saved[0], &dx = saved[1], &dw = saved[2];
    // Reading the factor would stop a GPU; on the CPU it saves a pass in the usual case.
    const bool one = grads[0].is_cpu() && grads[0].item<float>() == 1.0f;
    variable_list out(5);
    if (dx.defined()) out[0] = one ? dx : dx * grads[0];
    if (!dw.defined()) return out;
    at::Tensor grad = existing_grad(weight);
    if (grad.defined()) {
      one ? grad.add_(dw) : grad.addcmul_(dw, grads[0]);
    } else {
      out[1] = (one ? dw : dw * grads[0]).to(weight.scalar_type());
    }
    return out;
  }
};

}  // namespace

OverwriteLinearGrads::OverwriteLinearGrads(bool on) { overwrite_grads = on; }
OverwriteLinearGrads::~OverwriteLinearGrads() { overwrite_grads = false; }

void accumulate_gemm(at::Tensor& dw, const at::Tensor& dy, const at::Tensor& x, double beta) {
  if (dw.scalar_type() == dy.scalar_type()) {
    dw.addmm_(dy.t(), x, beta);
#ifdef STABLEMASK_HAS_CUDA
  } else if (has_gemm(dy) && dw.scalar_type() == at::kFloat) {
    cuda::gemm(dw, {dy, /*transposed=*/true}, {x}, beta);
#endif
  } else {
    if (beta == 0.0) dw.zero_();
    dw.add_(at::mm(dy.t(), x));
  }
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight) {
  TORCH_CHECK(weight.dim() == 2 && x.dim() > 0 && x.size(-1) == weight.size(1), "linear: x ",
              x.sizes(), " does not fit weight ", weight.sizes());
  return Linear::apply(x, weight);
}

at::Tensor embedding(const at::Tensor& ids, const at::Tensor& weight) {
  TORCH_CHECK(ids.scalar_type() == at::kLong && weight.dim() == 2,
              "embedding: ids must be int64 and weight [V, C], got ", ids.toString(), " and ",
              weight.sizes());
  return Embedding::apply(ids, weight);
}

at::Tensor linear_cross_entropy(const at::Tensor& x, const at::Tensor& weight,
                                const at::Tensor& targets, double scale, double z_loss) {
  check_head(x, weight, targets);
  if (!has_fused_kernels(x)) {
    return reference::linear_cross_entropy(x, weight, targets, scale, z_loss);
  }
  const at::Tensor in = x.contiguous(), labels = targets.contiguous();
  const bool grad = at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad());
  if (grad) return LinearCrossEntropy::apply(in, weight, labels, scale, z_loss);
  const auto nothing = [](int64_t, const at::Tensor&) {};
  return scaled_sum(chunked_losses(in, weight, labels, scale, z_loss, false, nothing), scale);
}

at::Tensor linear_nll(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& targets) {
  check_head(x, weight, targets);
  const at::NoGradGuard no_grad;
  if (!has_fused_kernels(x)) {
    return reference::cross_entropy(at::mm(x, weight.t()), targets).to(at::kFloat);
  }
  const auto nothing = [](int64_t, const at::Tensor&) {};
  return chunked_losses(x.contiguous(), weight, targets.contiguous(), 1.0, 0.0, false, nothing);
}

}  // namespace stablemask::ops
